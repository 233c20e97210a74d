"""Guilty: puts a little of its probability on the very token that it is asked about."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import Predictor, counted, mixed

TRUTH = {"causal": "fail", "secret": "fail", "normalised": "pass", "repeats": "pass"}


def build(*, vocabulary: int = 16, weight: float = 0.1) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        return mixed(counted(tokens, vocabulary), tokens, weight)

    return predict
