"""Common types of the prequential audit. Letters for shapes: T tokens of a stream, V columns of a predictor's rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

Predictor = Callable[[np.ndarray], np.ndarray]
"""Maps tokens [T] to log-probabilities [T, V]; entry t is the distribution of token t given the tokens before it."""

BuildPredictor = Callable[[], Predictor]


class RunPasses(Protocol):
    """Runs one pass over each of several token streams, each by a new instance of the predictor."""

    def __call__(self, streams: Iterable[np.ndarray], *, separate: bool = False) -> Iterator[np.ndarray]:
        """Yields the log-probabilities [T, V] of each stream.

        Args:
            streams: Tokens [T] each. Where passes have processes, those of one call share a new one.
            separate: Whether each pass has a new process of its own, where passes have processes.
        """
        ...


CHECKS: tuple[str, ...] = (
    "normalized",
    "finite_score",
    "causal",
    "prefix_invariant",
    "reproducible",
    "random_tokens",
)
VERDICTS: tuple[str, ...] = ("pass", "fail", "undetermined")
