"""One-sided tests and intervals for the mean of values with a known range, without an approximation for many values.

The bounds are Gaffke's (2005, Mathematical Methods of Statistics 14:39; Learned-Miller & Thomas 2020, arXiv
1905.06208): a lower bound of the mean adds one value at the lower end of the range to the sample, and takes a quantile
of the average under Dirichlet weights. For values of 0 and 1 this is the exact interval of Clopper and Pearson (1934,
Biometrika 26:404). For differences of pairs of 0 and 1 its error rates are at most nominal wherever the tests enumerate
them, also where differences are rare; those of the score interval of Tango (1998, Statistics in Medicine 17:891) reach
2.5 times the nominal rate. For other values they are conjectured to be valid. Letters: N values, J different values.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Counts = tuple[tuple[float, int], ...]
"""Every different value and how often it occurred, in ascending order."""

NUM_NODES = 256  # of the quadrature; more change no probability by more than 1e-9 for up to 1,000 values


def count_values(values: Sequence[float] | np.ndarray) -> Counts:
    """Returns every different value [J] of values [N] and how often it occurs."""
    different, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    return tuple((float(x), int(count)) for x, count in zip(different, counts, strict=True))


def p_mean_above(counts: Counts, lowest: float, threshold: float) -> float:
    """Tests the claim that the mean exceeds a threshold.

    Args:
        counts: The sample.
        lowest: Lower end of the range of values.
        threshold: The threshold that the mean exceeds if the claim is true.

    Returns:
        The p-value: the probability that the average with Dirichlet weights is at most `threshold`.
    """
    terms = [(x - threshold, count) for x, count in counts] + [(lowest - threshold, 1)]
    return probability_of_nonpositive_sum(tuple(terms))


def p_mean_below(counts: Counts, highest: float, threshold: float) -> float:
    """Tests the claim that the mean lies below a threshold; `p_mean_above` has the arguments, with the upper end."""
    return p_mean_above(tuple((-x, count) for x, count in counts), -highest, -threshold)


@lru_cache(maxsize=65536)
def probability_of_nonpositive_sum(terms: Counts) -> float:
    """Returns the probability that a weighted sum of independent gamma variables of scale 1 is at most zero.

    The characteristic function is inverted numerically (Gil-Pelaez 1951, Biometrika 38:481).

    Args:
        terms: Weight and shape of each variable.
    """
    weights = np.array([weight for weight, _ in terms])
    shapes = np.array([shape for _, shape in terms], np.float64)
    is_present = (weights != 0) & (shapes > 0)
    weights, shapes = weights[is_present], shapes[is_present]
    if not np.any(weights > 0):
        return 1.0
    if not np.any(weights < 0):
        return 0.0
    points, point_weights = _quadrature()
    t = points / np.sqrt(shapes @ weights**2)
    log_characteristic = -shapes @ np.log(1 - 1j * np.outer(weights, t))
    integral = np.imag(np.exp(log_characteristic)) @ point_weights
    return float(np.clip(0.5 - integral / np.pi, 0.0, 1.0))


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Points t and weights for the integral of f(t) / t from 0 to infinity: Gauss-Legendre in the arctangent of t."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    angles = (nodes + 1) * np.pi / 4
    return np.tan(angles), weights * np.pi / 4 / (np.sin(angles) * np.cos(angles))


@lru_cache(maxsize=4096)
def mean_bounds(counts: Counts, lowest: float, highest: float, level: float = 0.025) -> tuple[float, float]:
    """Returns the lower and the upper bound of the mean, each with the one-sided error rate `level`."""
    from scipy.optimize import brentq  # takes a quarter of a second to import, and few callers need it

    def lower_bound(counts: Counts, lowest: float) -> float:
        mean = sum(x * count for x, count in counts) / sum(count for _, count in counts)
        if mean == lowest:
            return lowest
        bound: Any = brentq(
            lambda threshold: p_mean_above(counts, lowest, threshold) - level, lowest, counts[-1][0], xtol=1e-9
        )
        return float(bound)

    mirrored = tuple((-x, count) for x, count in reversed(counts))
    return lower_bound(counts, lowest), -lower_bound(mirrored, -highest)
