"""From logits to a token and log-probabilities, in float64, one row at a time, by the request's seed and place alone.

Nucleus: Holtzman et al. 2020, arXiv 1904.09751, section 3.1.
"""

from typing import NamedTuple

import numpy as np

from ontogeny.errors import BadInput

MOST_ALTERNATIVES = 20


class SamplingParams(NamedTuple):
    """How a token is chosen."""

    temperature: float = 1.0  # 0: the likeliest, of equal ones the first
    top_p: float = 1.0
    seed: int = 0  # [0, 2^64)


class TokenLogprobs(NamedTuple):
    """A token, and how likely it and the likeliest were there; natural logarithms."""

    token: int
    logprob: float | None  # None for the first token of a text, which nothing comes before
    top_logprobs: tuple[tuple[int, float], ...]  # likeliest first


def checked(taste: SamplingParams) -> SamplingParams:
    if not 0 <= taste.temperature <= 2:
        raise BadInput(f"the temperature lies between 0 and 2, not {taste.temperature}")
    if not 0 < taste.top_p <= 1:
        raise BadInput(f"top_p lies above 0 and at most at 1, not {taste.top_p}")
    return taste


def sample_token(logits: np.ndarray, taste: SamplingParams, place: int) -> int:
    """The token number `place` of an answer, from logits [V] of float32."""
    if taste.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64)
    scaled = np.exp((scaled - scaled.max()) / taste.temperature)
    if taste.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        sums = np.cumsum(scaled[order])
        kept = int(np.searchsorted(sums, taste.top_p * sums[-1])) + 1
        scaled[order[kept:]] = 0
    sums = np.cumsum(scaled)
    key = np.array([taste.seed, place], np.uint64)  # as a plain list, large seeds would become floats
    drawn = np.random.Generator(np.random.Philox(key=key)).random() * sums[-1]
    return min(int(np.searchsorted(sums, drawn, side="right")), int(np.flatnonzero(scaled)[-1]))


def compute_logprobs(logits: np.ndarray, token: int, alternatives: int) -> TokenLogprobs:
    """Of logits [V], the log-probability of a token and of the likeliest ones."""
    wide = logits.astype(np.float64)
    most = wide.max()
    logprobs = wide - (most + np.log(np.exp(wide - most).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        best = np.argsort(-logprobs, kind="stable")[:alternatives]
        top = tuple((int(i), float(logprobs[i])) for i in best)
    return TokenLogprobs(token, float(logprobs[token]), top)
