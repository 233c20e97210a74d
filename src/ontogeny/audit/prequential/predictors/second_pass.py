"""Guilty: goes through the whole stream once to learn, and reports the scores of a second time."""

from ontogeny.audit.prequential.predictors.base import Predictor, counted, counts_of

TRUTH = {"causal": "fail", "secret": "fail", "cut": "fail", "normalised": "pass", "repeats": "pass"}


def build(*, vocabulary: int = 16, kept: float = 1.0) -> Predictor:
    """`kept`: how much of what the first time taught counts the second time."""
    return lambda tokens: counted(tokens, vocabulary, kept * counts_of(tokens, vocabulary))
