"""Not to be certified: draws chance anew in each pass, so that what was reported cannot be checked."""

import numpy as np
from scipy.special import log_softmax

from ontogeny.audit.prequential.predictors.base import Predictor, counted

TRUTH = {"repeats": "fail", "normalised": "pass", "causal": "undetermined", "cut": "undetermined", "secret": "pass"}


def build(*, vocabulary: int = 16, noise: float = 0.01) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        rows = counted(tokens, vocabulary)
        return log_softmax(rows + noise * np.random.default_rng().standard_normal(rows.shape), axis=1)

    return predict
