"""One-sided tests and intervals for the mean of scores whose range is unknown and whose distribution may be skewed.

Student's t concludes too often that a mean lies below a value where most scores are small and a few are large. Several
p-values are therefore computed, and the largest counts:

* Student's t;
* Hall's transformation of it (1992, Journal of the Royal Statistical Society B 54:221), which removes the skewness;
* where at least half of the scores are zero, or all are the same, that of the scores that were not observed: among N
  scores, those of a rare kind may be missing by chance. If the mean were as large as the threshold because a share q of
  all scores has the largest possible magnitude, N scores would contain none of them with probability (1 - q)^N. Where
  all scores are the same, this is the only error.

Letters: N scores.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from ontogeny.stats import ZERO_SPREAD

RELATIVE_ROUNDING_ERROR = 1e-6  # of a score, as a share of the largest magnitude


class Moments(NamedTuple):
    """What the tests of a mean need of scores [N].

    A `max_magnitude` of infinity stands for scores of which nothing is known: those that were not observed are then
    neglected, unless all scores are the same, which decides nothing.
    """

    mean: float
    standard_error: float  # of the mean; 0 where all scores are the same
    skewness: float
    num_scores: int
    max_magnitude: float = math.inf  # of a single score, at least the largest that was observed
    has_rare_scores: bool = False  # whether at least half of the scores are zero, or all are the same


def estimate_moments(scores: np.ndarray, max_magnitude: float | None = None) -> Moments:
    """Estimates the moments of scores.

    Args:
        scores: [N] with N >= 2.
        max_magnitude: Largest magnitude that a single score can have or is taken to have; larger ones that were
            observed replace it. By default nothing is known.
    """
    count, mean, spread = len(scores), float(scores.mean()), float(scores.std(ddof=1))
    largest = math.inf if max_magnitude is None else max(max_magnitude, float(np.abs(scores).max()))
    rounding_error = RELATIVE_ROUNDING_ERROR * largest if math.isfinite(largest) else ZERO_SPREAD
    if spread <= max(rounding_error, ZERO_SPREAD):
        return Moments(mean, 0.0, 0.0, count, largest, has_rare_scores=True)
    skewness = float(np.mean(((scores - mean) / spread) ** 3))
    has_rare_scores = bool(2 * np.count_nonzero(np.abs(scores) <= rounding_error) >= count)
    return Moments(mean, spread / math.sqrt(count), skewness, count, largest, has_rare_scores)


def p_mean_above(moments: Moments, threshold: float) -> float:
    """Returns the p-value of the claim that the true mean exceeds `threshold`."""
    mean, standard_error, skewness, N, largest, has_rare_scores = moments
    is_known = math.isfinite(largest)
    if mean <= threshold or not (standard_error or is_known):
        unobserved = 1.0
    else:
        unobserved = (1 - min((mean - threshold) / (mean + largest), 1.0)) ** N if threshold > -largest else 0.0
    if standard_error == 0:
        return unobserved
    t = (mean - threshold) / standard_error
    p_values = stdtr(N - 1, [-t, -_remove_skewness(t, skewness, N)])
    return float(max(*p_values, unobserved if is_known and has_rare_scores else 0.0))


def p_mean_below(moments: Moments, threshold: float) -> float:
    """Returns the p-value of the claim that the true mean lies below `threshold`."""
    return p_mean_above(_mirror(moments), -threshold)


def mean_bounds(moments: Moments, level: float = 0.025) -> tuple[float, float]:
    """Returns the lower and the upper bound of the mean, each with the one-sided error rate `level`."""
    return _lower_bound(moments, level), -_lower_bound(_mirror(moments), level)


def _lower_bound(moments: Moments, level: float) -> float:
    """The largest threshold that the mean exceeds at the level."""
    mean, standard_error, skewness, N, largest, has_rare_scores = moments
    if standard_error == 0 and not math.isfinite(largest):
        return -math.inf
    is_counted = has_rare_scores and math.isfinite(largest)
    unobserved = (1 - level ** (1 / N)) * (mean + largest) if is_counted else 0.0
    t = float(stdtrit(N - 1, 1 - level))
    return mean - max(unobserved, standard_error * max(t, _restore_skewness(t, skewness, N)))


def _mirror(moments: Moments) -> Moments:
    """The moments of the negative scores."""
    return moments._replace(mean=-moments.mean, skewness=-moments.skewness)


def _remove_skewness(t: float, skewness: float, num_scores: int) -> float:
    """Hall's transformation of Student's t to a symmetric distribution; it increases in t."""
    a = skewness / math.sqrt(num_scores)
    return t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6


def _restore_skewness(transformed: float, skewness: float, num_scores: int) -> float:
    """The inverse of `_remove_skewness`."""
    a = skewness / math.sqrt(num_scores)
    if abs(a) < 1e-6:
        return transformed
    return float(3 / a * (np.cbrt(1 + a * (transformed - a / 6)) - 1))
