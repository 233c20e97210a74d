"""Guilty: sets its pace of learning by how much is still to come, which nobody knows who predicts a stream."""

from ontogeny.audit.prequential.predictors.base import Predictor, counted

TRUTH = {"cut": "fail", "normalised": "pass", "causal": "pass", "repeats": "pass", "secret": "pass"}


def build(*, vocabulary: int = 16) -> Predictor:
    return lambda tokens: counted(tokens, vocabulary, trust=1 + 200 / max(len(tokens), 1))
