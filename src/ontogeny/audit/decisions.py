"""Decisions of the audit tests: effects with their errors, thresholds, competence checks and results.

`AuditTest.decide` of every test computes its verdict here from the arrays that `AuditTest.measure` returned. Nothing in
this module runs a subject. Letter: N lifetimes.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from ontogeny import bounded
from ontogeny.audit import skewed_scores
from ontogeny.stats import ZERO_SPREAD, three_way_verdict

VERDICTS = ("yes", "no", "undetermined")
NOT_SIGNIFICANT = (
    "the effect is neither surely larger nor surely smaller than the smallest effect that counts; more lifetimes may "
    "decide it"
)
MAX_EFFECT = 2.0  # of one lifetime or pair of tasks, in standard deviations of a score that is 0 or 1 equally often
MAX_BIAS = 0.5  # of a lifetime, where every report is 0 or 1 and the exact predictive is one half on average
MIN_LIFETIMES = 20  # of a verdict; intervals of fewer cover less than they state where effects are rare or skewed
Measurements = Mapping[str, np.ndarray]
"""Arrays by name, each with the leading axis N."""
Decide = Callable[[Measurements, Any], "AuditResult"]
"""The decision of a test from measurements and thresholds."""


class Effect(NamedTuple):
    """A mean over lifetimes with its two-sided 95 % interval, and the one-sided tests of its distance from any value.

    For values with a known range, such as shares of choices, both hold for few lifetimes too (`bounded`), and the
    different values are counted; for scores they allow for skewness and for rare scores (`skewed_scores`).
    """

    mean: float
    low: float
    high: float
    z: float  # mean in standard errors; infinite where the mean is not zero and the spread is
    num_lifetimes: int
    moments: skewed_scores.Moments
    value_range: tuple[float, float] | None = None
    counts: bounded.Counts = ()  # how often each value occurs, where the range is known

    def p_above(self, threshold: float) -> float:
        """Returns the p-value of the claim that the true mean exceeds `threshold`."""
        if self.value_range is not None:
            return bounded.p_mean_above(self.counts, self.value_range[0], threshold)
        return skewed_scores.p_mean_above(self.moments, threshold)

    def p_below(self, threshold: float) -> float:
        """Returns the p-value of the claim that the true mean lies below `threshold`."""
        if self.value_range is not None:
            return bounded.p_mean_below(self.counts, self.value_range[1], threshold)
        return skewed_scores.p_mean_below(self.moments, threshold)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of a decision; tests with further thresholds derive from this class.

    Attributes:
        z: How far beyond its smallest effect every part of the decision rule must lie, in normal standard errors; it
            sets the error rate of the lower bounds (`level`).
        min_effect: The smallest effect that counts, in the unit of the test's effects.
        min_competence: The least performance in the undisturbed condition at which the test applies.
        min_lifetimes: The fewest lifetimes from which a verdict is computed, at least 2.
    """

    z: float
    min_effect: float = 0.0
    min_competence: float = 0.0
    min_lifetimes: int = MIN_LIFETIMES

    @property
    def level(self) -> float:
        """The one-sided error rate of a lower bound that is compared with a smallest effect."""
        return float(ndtr(-self.z))

    def is_met(self, effect: Effect) -> bool:
        """Returns whether the lower bound of an effect exceeds `min_effect`."""
        return effect.p_above(self.min_effect) <= self.level

    def competence(self, performance: Effect, min_performance: float | None = None) -> str:
        """Returns whether the performance in the undisturbed condition suffices: "yes", "no" or "undetermined".

        Args:
            performance: The estimated performance.
            min_performance: The least that suffices; by default `min_competence`.
        """
        minimum = self.min_competence if min_performance is None else min_performance
        return three_way_verdict({"": performance}, {"": minimum}, level=self.level)


class AuditResult(NamedTuple):
    """The result of one test on one subject."""

    test: str
    hypothesis: str
    primary: bool
    verdict: str  # one of `VERDICTS`
    summary: str  # the verdict in one sentence
    p_value: float  # of the weakest part that a yes requires, against its smallest effect; 1 without a yes
    effects: Mapping[str, Effect]
    controls: Mapping[str, Effect]  # the same statistics under conditions in which they should be zero or are known
    competence_failure: str = ""  # why the test does not apply, where the subject fails the competence check
    pattern: str = ""  # a code for the algorithm that behaves alike, where the test identifies one
    details: Mapping[str, Any] = MappingProxyType({})  # further numbers for figures


def estimate_effect(
    values: np.ndarray, value_range: tuple[float, float] | None = None, *, max_magnitude: float | None = None
) -> Effect:
    """Estimates the mean of values [N] of single lifetimes.

    Args:
        values: [N] with N >= 2.
        value_range: Lowest and highest possible value, for values of which few differ, such as 0 and 1: the interval
            is then exact.
        max_magnitude: For scores without such a range, the largest magnitude that a single one is taken to have.
            Without it, scores that all agree have an interval without bounds.
    """
    values = np.asarray(values, np.float64)
    moments = skewed_scores.estimate_moments(values, max_magnitude)
    mean, error, count = moments.mean, moments.standard_error, len(values)
    z = mean / error if error else math.copysign(math.inf, mean) if abs(mean) > ZERO_SPREAD else 0.0
    if value_range is not None:
        counts = bounded.count_values(values)
        return Effect(mean, *bounded.mean_bounds(counts, *value_range), z, count, moments, value_range, counts)
    return Effect(mean, *skewed_scores.mean_bounds(moments), z, count, moments)


def estimate_share(values: np.ndarray) -> Effect:
    """Estimates a share from values [N] from 0 to 1."""
    return estimate_effect(values, (0.0, 1.0))


def estimate_paired_difference(first: np.ndarray, second: np.ndarray) -> Effect:
    """Estimates the mean of `first - second` from pairs [N] of values from 0 to 1."""
    return estimate_effect(np.asarray(first, np.float64) - np.asarray(second, np.float64), (-1.0, 1.0))


def linearize_standard_deviation(scores: np.ndarray, mean_squares: np.ndarray) -> np.ndarray:
    """Returns values [N] whose mean is the standard deviation of the score of a step, and whose spread is its error.

    Args:
        scores: Mean score of the steps of each lifetime, [N].
        mean_squares: Mean of their squares, [N].
    """
    mean = float(np.mean(scores))
    deviation = math.sqrt(max(float(np.mean(mean_squares)) - mean**2, 0.0))
    variances = mean_squares - 2 * mean * scores + mean**2
    return (deviation + variances / max(deviation, 1e-9)) / 2


def decide_all(
    parts: Mapping[str, Effect],
    thresholds: Thresholds,
    min_effects: Mapping[str, float] | None = None,
    refuting: Collection[str] | None = None,
) -> tuple[str, float]:
    """Decides the rule that the lower bound of every part exceeds its smallest effect.

    Args:
        parts: Effects by name.
        thresholds: Thresholds of the test.
        min_effects: The smallest effect that counts, by part; by default `Thresholds.min_effect` for all.
        refuting: The parts whose absence refutes the claim; by default all.

    Returns:
        The verdict (`stats.three_way_verdict`), and the p-value of the weakest part against its smallest effect, which
        is that of the whole rule (Berger 1982, Technometrics 24:295); 1 where the verdict is not yes.
    """
    min_effects = dict.fromkeys(parts, thresholds.min_effect) if min_effects is None else min_effects
    verdict = three_way_verdict(parts, min_effects, level=thresholds.level, refuting=refuting)
    p_values = [parts[name].p_above(minimum) for name, minimum in min_effects.items()]
    return verdict, max(p_values) if verdict == "yes" else 1.0


def requires_lifetimes(test: tuple[str, str, bool]) -> Callable[[Decide], Decide]:
    """Returns the decorator of a `decide` that gives no verdict with fewer lifetimes than `Thresholds.min_lifetimes`.

    Args:
        test: Name, hypothesis and `primary` of the test.
    """

    def decorate(decide: Decide) -> Decide:
        @wraps(decide)
        def decide_enough(measurements: Measurements, thresholds: Any) -> AuditResult:
            count = len(next(iter(measurements.values())))
            if count >= thresholds.min_lifetimes:
                return decide(measurements, thresholds)
            return competence_failed(test, too_few_lifetimes(test[0], count, thresholds.min_lifetimes), {}, {})

        return decide_enough

    return decorate


def too_few_lifetimes(test: str, num_lifetimes: int, min_lifetimes: int) -> str:
    """Returns the sentence that a test has too few lifetimes for a verdict."""
    return f"the test '{test}' gives no verdict with fewer than {min_lifetimes} lifetimes, and it had {num_lifetimes}"


def incompetence(performance: Effect, thresholds: Thresholds, ability: str, condition: str) -> str:
    """Returns why a test does not apply, as a sentence; empty where the performance surely suffices.

    Args:
        performance: The share of lifetimes in which the subject performs as it must.
        thresholds: Thresholds of the test.
        ability: What the subject must do, as a verb with its object.
        condition: In which lifetimes.
    """
    competence = thresholds.competence(performance)
    if competence == "yes":
        return ""
    if competence == "no":
        return f"it {ability} in only {performance.mean:.0%} of lifetimes {condition}"
    return (
        f"whether it {ability} in more than {thresholds.min_competence:.0%} of lifetimes {condition} is undetermined "
        f"({performance.mean:.0%}, {performance.low:.0%} to {performance.high:.0%})"
    )


def competence_failed(
    test: tuple[str, str, bool],
    reason: str,
    effects: Mapping[str, Effect],
    controls: Mapping[str, Effect],
    **optional: Any,
) -> AuditResult:
    """Returns the result of a test that does not apply because the subject failed the competence check.

    Args:
        test: Name, hypothesis and `primary` of the test.
        reason: What the subject failed, as a sentence.
        effects: Effects that were measured nonetheless.
        controls: Control effects.
        **optional: `pattern` or `details` of the result.
    """
    return AuditResult(
        *test,
        "undetermined",
        reason,
        p_value=1.0,
        effects=effects,
        controls=controls,
        competence_failure=reason,
        **optional,
    )
