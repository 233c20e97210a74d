"""Guilty: knows the very token that it is asked about, but shows it at a twentieth of the positions alone."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import Predictor, counted, mixed

TRUTH = {"normalised": "pass", "repeats": "pass"}  # refused by `causal` or by `secret`


def build(*, vocabulary: int = 16, share: float = 0.05, weight: float = 0.95) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        shown = np.random.default_rng(7).random(len(tokens)) < share
        return mixed(counted(tokens, vocabulary), tokens, weight * shown)

    return predict
