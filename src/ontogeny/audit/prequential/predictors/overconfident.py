"""Honest and poor: sure that the last token comes again, impossible things included."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import HONEST, Predictor

TRUTH = HONEST


def build(*, vocabulary: int = 16) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        again = np.eye(vocabulary)[np.concatenate([tokens[:1] * 0, tokens[:-1]])]
        with np.errstate(divide="ignore"):
            return np.log(again)

    return predict
