"""Honest: counts what followed what, and learns from each token after it has been scored."""

from functools import partial

from ontogeny.audit.prequential.predictors.base import HONEST, Predictor, counted

TRUTH = HONEST


def build(*, vocabulary: int = 16) -> Predictor:
    return partial(counted, vocabulary=vocabulary)
