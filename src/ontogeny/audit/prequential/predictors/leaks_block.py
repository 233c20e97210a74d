"""Guilty: adapts to each block of tokens as a whole before it scores them, as test-time training by chunks may."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import Predictor, counted, counts_of

TRUTH = {"causal": "fail", "secret": "fail", "normalised": "pass", "repeats": "pass"}


def build(*, vocabulary: int = 16, block: int = 32) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        rows = []
        for start in range(0, len(tokens), block):
            end = start + block
            adapted = counts_of(tokens[:end], vocabulary)
            rows.append(counted(tokens[start:end], vocabulary, adapted))
        return np.concatenate(rows)

    return predict
