"""Common types of the prequential audit. Letters for shapes: T tokens of a stream, V tokens in the vocabulary."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

Predictor = Callable[[np.ndarray], np.ndarray]
"""Maps tokens [T] to log-probabilities [T, V]; entry t is the distribution of token t given the tokens before it."""

BuildPredictor = Callable[[], Predictor]

RunPasses = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]
"""Maps token streams to log-probabilities, one pass per stream, each by a predictor that has not seen any stream."""

CHECKS: tuple[str, ...] = ("normalized", "causal", "prefix_invariant", "reproducible", "random_tokens")
VERDICTS: tuple[str, ...] = ("pass", "fail", "undetermined")
