"""Statistics of comparisons: standard errors, confidence intervals, paired differences and three-way verdicts.

The module works on plain numbers and NumPy arrays and does not import JAX, so reports can be written without it.
Letters for shapes: N observations (tasks, lifetimes or windows of text), R runs, K quantities.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from ontogeny import bounded
from ontogeny.errors import BadInput

Z95 = 1.959964  # half-width, in standard errors, of a normal 95 % interval
ONE_SIDED_LEVEL = 0.025  # error rate of each bound of a 95 % interval
ZERO_SPREAD = 1e-9  # standard errors below this are rounding errors of values that all agree
CLAIM = 3.0  # normal standard errors that a difference needs before it is claimed


class Interval(NamedTuple):
    """A mean with its standard error and its 95 % confidence interval."""

    mean: float
    standard_error: float
    low: float
    high: float
    num_tasks: int
    degrees_of_freedom: float = math.inf

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero, which alone is no claim."""
        return self.low > 0 or self.high < 0

    @property
    def min_claimed_difference(self) -> float:
        """The distance from the mean beyond which a difference is claimed."""
        return critical_value(CLAIM, self.degrees_of_freedom) * self.standard_error


class RatioEstimate(NamedTuple):
    """A ratio of two sums with its 95 % confidence interval; the ends are not finite with too few terms."""

    mean: float
    low: float
    high: float


class OneSidedTests(Protocol):
    """Any estimated effect that can be tested against a threshold from both sides."""

    def p_above(self, threshold: float) -> float:
        """The p-value of the claim that the true effect exceeds `threshold`; small where the lower bound does."""
        ...

    def p_below(self, threshold: float) -> float:
        """The p-value of the claim that the true effect lies below `threshold`; small where the upper bound does."""
        ...


def mean_and_standard_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the first axis.

    Args:
        values: [N, ...] with N >= 2.

    Returns:
        Two arrays of shape [...].
    """
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def critical_value(standard_errors: float, degrees_of_freedom: float) -> float:
    """The Student's t quantile that covers as much as a normal interval of a given half-width.

    Args:
        standard_errors: Half-width of the normal interval in standard errors, e.g. `Z95`.
        degrees_of_freedom: At least 1; infinity gives the normal value itself.

    Returns:
        The half-width in standard errors for a standard error that is estimated from few values.
    """
    if np.isinf(degrees_of_freedom):
        return standard_errors
    return float(stdtrit(degrees_of_freedom, ndtr(standard_errors)))


def confidence_interval(
    mean: float, standard_error: float, num_tasks: int = 0, degrees_of_freedom: float | None = None
) -> Interval:
    """The 95 % interval of a mean by Student's t.

    Args:
        mean: The center of the interval.
        standard_error: Of the mean.
        num_tasks: The number of scores from which the standard error was estimated; 0 where the error is known.
        degrees_of_freedom: Of the standard error; by default one less than `num_tasks`, or infinity where that is 0.
    """
    if degrees_of_freedom is None:
        degrees_of_freedom = num_tasks - 1 if num_tasks else math.inf
    half_width = critical_value(Z95, degrees_of_freedom) * standard_error
    return Interval(mean, standard_error, mean - half_width, mean + half_width, num_tasks, degrees_of_freedom)


def mean_interval(scores: Sequence[float] | np.ndarray) -> Interval:
    """The mean of independent scores, one per task or per run, with its 95 % interval by Student's t.

    Args:
        scores: [N] with N >= 2.

    Raises:
        BadInput: There are fewer than two scores, or the array has more than one axis.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise BadInput(f"an interval needs the scores of at least two tasks, not an array of shape {values.shape}")
    mean, standard_error = mean_and_standard_error(values)
    return confidence_interval(float(mean), float(standard_error), int(values.size))


def paired_difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Interval:
    """The mean of `first - second`, paired by task.

    Args:
        first: [N], one score per task.
        second: [M], on the same tasks in the same order; the first min(N, M) tasks are compared.
    """
    shared = min(len(first), len(second))
    return mean_interval(np.asarray(first, np.float64)[:shared] - np.asarray(second, np.float64)[:shared])


def paired_difference_over_seeds(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Interval:
    """`paired_difference` of two agents that were each developed with several seeds.

    Args:
        first: One array of scores [N] per seed of development.
        second: The same for the other agent; the number of seeds may differ.

    Returns:
        The interval over tasks, widened by the spread between the seeds of each side.
    """
    difference = paired_difference(np.mean(first, axis=0), np.mean(second, axis=0))
    return _widen_by_seeds(difference, [np.mean(side, axis=1) for side in (first, second) if len(side) > 1])


def mean_over_seeds(intervals: Sequence[Interval]) -> Interval:
    """The mean over developments that differ in their seed only.

    All seeds are evaluated on the same tasks, so their errors over tasks do not average out; the spread between seeds
    is added. A single seed tells nothing about that spread.
    """
    means = np.array([interval.mean for interval in intervals])
    error_over_tasks = math.sqrt(float(np.mean([interval.standard_error**2 for interval in intervals])))
    num_tasks = min(interval.num_tasks for interval in intervals)
    degrees_of_freedom = min(interval.degrees_of_freedom for interval in intervals)
    pooled = confidence_interval(float(np.mean(means)), error_over_tasks, num_tasks, degrees_of_freedom)
    return _widen_by_seeds(pooled, [means] if len(intervals) > 1 else [])


def unpaired_difference(first: Interval, second: Interval) -> Interval:
    """The difference `first - second` of two means whose tasks are not paired."""
    standard_error = math.hypot(first.standard_error, second.standard_error)
    degrees_of_freedom = min(first.degrees_of_freedom, second.degrees_of_freedom)
    return confidence_interval(first.mean - second.mean, standard_error, 0, degrees_of_freedom)


def _widen_by_seeds(interval: Interval, means_by_side: Sequence[np.ndarray]) -> Interval:
    """An interval over tasks, widened by the variance of the means [R] over the seeds of each side.

    The sum of estimated variances has the degrees of freedom of the part that has the fewest, with which an interval
    covers at least its nominal share whatever the parts are (Mickey and Brown 1966, Annals of Mathematical Statistics
    37:639). The approximation of Welch and Satterthwaite covers less where the part with few degrees of freedom is
    small by chance.
    """
    variances = [float(np.var(means, ddof=1)) / len(means) for means in means_by_side]
    degrees_of_freedom = min([interval.degrees_of_freedom, *(len(means) - 1 for means in means_by_side)])
    standard_error = math.sqrt(interval.standard_error**2 + sum(variances))
    return confidence_interval(interval.mean, standard_error, interval.num_tasks, degrees_of_freedom)


def clopper_pearson(count: int, total: int) -> tuple[float, float]:
    """The exact 95 % interval of a binomial proportion (Clopper and Pearson 1934, Biometrika 26:404).

    Args:
        count: Number of successes, 0 to `total`.
        total: Number of trials, at least 1.
    """
    from scipy import stats  # takes a second to import, and few callers need it

    interval: Any = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    return float(interval.low), float(interval.high)


def share_interval(
    share: float, standard_error: float, num_units: int, degrees_of_freedom: float = math.inf
) -> tuple[float, float]:
    """The 95 % interval of a share or of a mean of shares, which stays within 0 to 1.

    Wilson's interval (1927, J Am Stat Assoc 22:209) for the number of independent observations that would have the
    same standard error, with Student's t (Franco et al. 2019, J Surv Stat Methodol 7:334).

    Args:
        share: The share, or the mean of the shares of several units.
        standard_error: Its standard error. Where it is 0, all units have the same share, which is no certainty: at a
            share of 0 or 1, each unit counts as one observation, and elsewhere the interval is that of `bounded`.
        num_units: Number of units over which the error was estimated, at least 1.
        degrees_of_freedom: Of the standard error.
    """
    variance = share * (1 - share)
    if standard_error < ZERO_SPREAD and variance > 0:
        return bounded.mean_bounds(((share, num_units),), 0.0, 1.0)
    num_observations = variance / standard_error**2 if standard_error > 0 and variance > 0 else float(num_units)
    correction = critical_value(Z95, degrees_of_freedom) ** 2 / num_observations
    center = (share + correction / 2) / (1 + correction)
    half_width = math.sqrt(correction * (variance + correction / 4)) / (1 + correction)
    return max(center - half_width, 0.0), min(center + half_width, 1.0)


def linearized_ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Terms whose mean is the ratio of two sums and whose spread gives its error, that of the lower sum included.

    Source: linearization (Cochran 1977, Sampling Techniques, chapter 6).

    Args:
        numerators: [N], the terms of the upper sum.
        denominators: [N], the terms of the lower sum, whose mean counts as 1e-9 where it is smaller.

    Returns:
        [N].
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    mean = max(float(denominators.mean()), 1e-9)
    ratio = float(numerators.mean()) / mean
    return ratio + (numerators - ratio * denominators) / mean


def ratio_of_sums(numerators: np.ndarray, denominators: np.ndarray, *, min_terms: int = 2) -> RatioEstimate:
    """A ratio of two sums, with a 95 % interval by linearization (`linearized_ratio`) and Student's t.

    Args:
        numerators: [N], the terms of the upper sum.
        denominators: [N], the terms of the lower sum, all positive.
        min_terms: With fewer terms the ends of the interval are NaN; at least 2.
    """
    mean = float(numerators.sum() / denominators.sum())
    if len(numerators) < min_terms:
        return RatioEstimate(mean, math.nan, math.nan)
    interval = mean_interval(linearized_ratio(numerators, denominators))
    return RatioEstimate(mean, interval.low, interval.high)


def three_way_verdict(
    effects: Mapping[str, OneSidedTests],
    min_effects: Mapping[str, float],
    *,
    level: float = ONE_SIDED_LEVEL,
    refuting: Collection[str] | None = None,
) -> str:
    """The verdict on a claim of several parts: "yes", "no" or "undetermined". A non-significant result is never a "no".

    Both verdicts follow bounds of the effects, never their means. A yes requires that every part exceeds its smallest
    effect at the level of the test, without a correction (the intersection-union test of Berger 1982, Technometrics
    24:295). One part that lies below suffices for a no, so its level is divided by the number of parts (Bonferroni).

    Args:
        effects: Effects by name.
        min_effects: The smallest effect that counts, by the name of each part of the claim.
        level: One-sided error rate of a yes. That of a no is `ONE_SIDED_LEVEL`.
        refuting: The parts whose absence refutes the claim; by default all.
    """
    if all(effects[name].p_above(minimum) <= level for name, minimum in min_effects.items()):
        return "yes"
    refuting = min_effects if refuting is None else refuting
    is_refuted = any(effects[name].p_below(min_effects[name]) <= ONE_SIDED_LEVEL / len(refuting) for name in refuting)
    return "no" if is_refuted else "undetermined"


def p_mean_exceeds(distance: float, standard_error: float, degrees_of_freedom: float) -> float:
    """The one-sided p-value that a mean lies this far above a value by chance alone, by Student's t.

    Args:
        distance: The estimated mean minus the value.
        standard_error: Of the mean; with zero nothing is claimed and the p-value is 1, because values that all agree
            say nothing about their spread.
        degrees_of_freedom: Of the standard error; without any, nothing is claimed and the p-value is 1.
    """
    if degrees_of_freedom < 1:
        return 1.0
    if standard_error < ZERO_SPREAD:
        return 1.0
    return float(stdtr(degrees_of_freedom, -distance / standard_error))


class RunningSums(NamedTuple):
    """Sums over a sequence of amounts with weights, from which an interval of their ratio follows at any time.

    Attributes:
        num_terms: Number of terms.
        weight: Sum of the weights, such as the bytes of texts.
        squared_weight: Sum of their squares.
        amount: Sum of the amounts, such as the bits saved on each text.
        squared_amount: Sum of their squares.
        product: Sum of the products of weight and amount.
    """

    num_terms: int = 0
    weight: float = 0.0
    squared_weight: float = 0.0
    amount: float = 0.0
    squared_amount: float = 0.0
    product: float = 0.0

    def add(self, weight: float, amount: float) -> "RunningSums":
        """Returns the sums with one more term, whose weight is positive."""
        return RunningSums(
            self.num_terms + 1,
            self.weight + weight,
            self.squared_weight + weight**2,
            self.amount + amount,
            self.squared_amount + amount**2,
            self.product + weight * amount,
        )

    @property
    def ratio(self) -> float:
        """The mean per unit of weight; NaN without any term."""
        return self.amount / self.weight if self.num_terms else math.nan

    @property
    def variance(self) -> float:
        """The estimated variance of the sum of the amounts, given the weights; NaN with fewer than two terms."""
        if self.num_terms < 2:
            return math.nan
        squares = self.squared_amount - 2 * self.ratio * self.product + self.ratio**2 * self.squared_weight
        return max(squares, 0.0) * self.num_terms / (self.num_terms - 1)


def always_valid_interval(
    sums: RunningSums, typical_variance: float, *, level: float = 0.05, min_terms: int = 20
) -> RatioEstimate:
    """An interval that may be looked at after every term: an asymptotic confidence sequence of the mean.

    The mean is that of the conditional expectations of the terms, each given all terms before it, weighted like the
    terms: it may change from term to term, and terms may depend on earlier ones and on earlier looks. With a
    probability of about 1 - `level`, all intervals of a sequence contain the means of their times. So where a lower end
    exceeds 0, the hypothesis is rejected that this weighted mean was at most 0 at that time. "About": the intervals are
    those of a Gaussian sequence with the same variances, which the sums approach as they grow; the first `min_terms`
    terms have none.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Annals of Statistics 52:2613, proposition 2.5, with
    the weights as known factors of the terms; the boundary is the two-sided normal mixture of Robbins (1970), as in
    Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055. The sequence is not replaced by its
    running intersection, since the mean may move.

    Args:
        sums: Over all terms so far.
        typical_variance: The variance of the sum of the amounts at which the interval is to be narrowest; chosen before
            the first term. It does not affect the validity.
        level: Error rate of the whole sequence.
        min_terms: With fewer terms the ends are infinite.
    """
    if sums.num_terms < max(min_terms, 2):
        return RatioEstimate(sums.ratio, -math.inf, math.inf)
    log_level = -2 * math.log(level)
    prior = typical_variance / (log_level + math.log(1 + log_level))  # the variance of the mixture, inverted
    total = sums.variance + prior
    half_width = math.sqrt(total * (math.log(total / prior) + log_level)) / sums.weight
    return RatioEstimate(sums.ratio, sums.ratio - half_width, sums.ratio + half_width)
