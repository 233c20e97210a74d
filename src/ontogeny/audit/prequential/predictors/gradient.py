"""Honest: a softmax of weights, a row per context, that takes a gradient step after each token was scored."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import HONEST, Predictor

TRUTH = HONEST


def build(*, vocabulary: int = 16, rate: float = 1.0) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        weights, rows, context = np.zeros((vocabulary + 1, vocabulary)), [], vocabulary
        for token in tokens:
            rows.append(weights[context] - np.log(np.sum(np.exp(weights[context]))))
            weights[context] -= rate * (np.exp(rows[-1]) - np.eye(vocabulary)[token])
            context = token
        return np.stack(rows)

    return predict
