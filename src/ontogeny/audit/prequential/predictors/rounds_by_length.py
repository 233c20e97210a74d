"""Honest: adds up in another order for another length, so that the last digits of a cut stream differ."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import HONEST, Predictor, counted

TRUTH = HONEST


def build(*, vocabulary: int = 16) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        return (counted(tokens, vocabulary) * (1 + 1e-7 * (len(tokens) % 7))).astype(np.float32)

    return predict
