"""Honest: knows nothing and says so."""

import numpy as np

from ontogeny.audit.prequential.predictors.base import HONEST, Predictor

TRUTH = HONEST


def build(*, vocabulary: int = 16) -> Predictor:
    return lambda tokens: np.full((len(tokens), vocabulary), -np.log(vocabulary), np.float32)
