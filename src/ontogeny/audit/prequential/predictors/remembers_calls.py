"""Guilty: what it saw in one call serves the next, even in a new instance, as a cache or a file on disk would.

In a fresh process its memory is gone, and so is its guilt: this is what `--fresh process` is for.
"""

import numpy as np

from ontogeny.audit.prequential.predictors.base import Predictor, counted, counts_of

TRUTH = {"repeats": "fail", "normalised": "pass", "causal": "undetermined", "cut": "undetermined"}
_SEEN: dict[int, np.ndarray] = {}  # by vocabulary, for as long as the process lives


def build(*, vocabulary: int = 16) -> Predictor:
    def predict(tokens: np.ndarray) -> np.ndarray:
        before = _SEEN.get(vocabulary, np.zeros((vocabulary + 1, vocabulary)))
        _SEEN[vocabulary] = before + counts_of(tokens, vocabulary)
        return counted(tokens, vocabulary, before)

    return predict
