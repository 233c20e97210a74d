"""Guilty: its probabilities sum to more than one, which makes every score better."""

from ontogeny.audit.prequential.predictors.base import HONEST, Predictor, counted

TRUTH = HONEST | {"normalised": "fail"}


def build(*, vocabulary: int = 16, more: float = 0.01) -> Predictor:
    return lambda tokens: counted(tokens, vocabulary) + more
