"""Properties of comparisons: intervals, pairing, differences from published scores, exact upper bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.errors import BadInput
from ontogeny.report.formatting import format_mean, format_number, format_total
from ontogeny.stats import (
    confidence_interval,
    mean_interval,
    mean_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
)
from ontogeny.studies import comparison, upper_bounds

SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=40)
PART = st.builds(lambda mean, se: confidence_interval(mean, se), st.floats(-100, 100), st.floats(0.01, 10))


@given(SCORES, st.floats(-50, 50), st.floats(0.1, 10))
def test_an_interval_is_equivariant_to_shift_and_scale_of_its_scores(scores, shift, factor):
    interval, transformed = mean_interval(scores), mean_interval(np.asarray(scores) * factor + shift)
    assert transformed.mean == pytest.approx(interval.mean * factor + shift, abs=1e-6)
    assert transformed.standard_error == pytest.approx(interval.standard_error * factor, abs=1e-6)
    assert interval.low <= interval.mean <= interval.high and interval.num_tasks == len(scores)


def test_a_95_percent_interval_covers_the_true_mean_in_95_of_100_cases():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 50))
    coverage = np.mean([interval.low <= 3.0 <= interval.high for interval in map(mean_interval, samples)])
    assert 0.93 < coverage < 0.96


@given(SCORES, SCORES)
def test_a_paired_difference_is_antisymmetric_and_uses_the_shared_tasks(first, second):
    difference, reverse = paired_difference(first, second), paired_difference(second, first)
    assert difference.mean == pytest.approx(-reverse.mean)
    assert difference.standard_error == pytest.approx(reverse.standard_error)
    assert difference.num_tasks == min(len(first), len(second))


@given(SCORES, st.data())
def test_variance_that_both_agents_share_cancels_in_a_paired_difference(shared, data):
    differences = data.draw(st.lists(st.floats(-1, 1), min_size=len(shared), max_size=len(shared)))
    paired = paired_difference(np.asarray(shared) + differences, shared)
    expected = mean_interval(differences)
    assert paired.mean == pytest.approx(expected.mean, abs=1e-6)
    assert paired.standard_error == pytest.approx(expected.standard_error, abs=1e-6)


@given(st.lists(PART, min_size=1, max_size=6))
def test_an_interval_over_seeds_is_never_narrower_than_its_intervals_over_tasks(parts):
    pooled = mean_over_seeds(parts)
    assert pooled.standard_error >= math.sqrt(np.mean([part.standard_error**2 for part in parts])) * (1 - 1e-9)
    if len(parts) == 1:
        assert pooled.mean == parts[0].mean and pooled.standard_error == pytest.approx(parts[0].standard_error)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_over_few_seeds_has_its_nominal_coverage(seeds):
    """The only variance is between seeds; a false claim is as rare as three standard errors imply."""
    random = np.random.default_rng(seeds)
    pooled = [mean_over_seeds([confidence_interval(m, 1e-3) for m in random.normal(0, 1, seeds)]) for _ in range(4000)]
    assert np.mean([part.low <= 0 <= part.high for part in pooled]) == pytest.approx(0.95, abs=0.012)
    claims = [abs(part.mean) > part.min_claimed_difference for part in pooled]
    assert np.mean(claims) < 0.01  # 19 of 100 for two seeds by the normal distribution
    sides = [(random.normal(0, 1, (seeds, 1)), random.normal(0, 1, (1, 1))) for _ in range(2000)]
    differences = [paired_difference_over_seeds(a + np.zeros(40), b * 0 + random.normal(0, 1e-3, 40)) for a, b in sides]
    assert np.mean([part.low <= 0 <= part.high for part in differences]) == pytest.approx(0.95, abs=0.02)


@given(PART, st.floats(-120, 120))
def test_a_verdict_needs_three_standard_errors_and_more_than_the_rounding(score, value):
    far = comparison.compare_with_published(score, "line", value)
    clear = abs(score.mean - value) > 3 * score.standard_error and abs(score.mean - value) > 0.05 * (1 + 1e-9)
    assert (far.verdict != "level") == clear
    assert far.verdict == "level" or (far.verdict == "above") == (score.mean > value)


@given(PART, st.dictionaries(st.sampled_from("abcde"), st.floats(-100, 100), min_size=1))
def test_above_the_best_published_score_is_above_every_one(score, lines):
    best = comparison.compare_with_best_published(score, lines)
    assert best is not None and best.published_score == max(lines.values())
    if best.verdict == "above":
        assert all(
            comparison.compare_with_published(score, name, value).verdict == "above" for name, value in lines.items()
        )


def test_a_score_with_zero_standard_error_is_compared_without_a_division_by_zero():
    exact = confidence_interval(2.0, 0.0)
    assert comparison.compare_with_published(exact, "line", 1.0).verdict == "above"
    assert comparison.compare_with_published(exact, "line", 2.0).verdict == "level"


@pytest.mark.parametrize(
    ("arms", "pulls", "exact"),
    [(5, 10, True), (50, 10, True), (2, 40, True), (5, 100, False), (50, 100, False), (1000, 1000, False)],
)
def test_the_exact_bound_is_computed_only_for_small_bandits(arms, pulls, exact):
    assert upper_bounds.is_tractable(arms, pulls) == exact


def test_information_states_are_counted(monkeypatch):
    monkeypatch.setattr(upper_bounds, "MAX_STATES", 103)  # of three arms after fewer than six pulls, by listing them
    assert upper_bounds.is_tractable(3, 6)
    monkeypatch.setattr(upper_bounds, "MAX_STATES", 102)
    assert not upper_bounds.is_tractable(3, 6)


def test_the_distance_to_the_oracle_is_paired_by_task():
    def result(agent, mean):
        curve = comparison.LearningCurve("step", (), (), (), ())
        score = confidence_interval(mean, 5.0, 100)
        return comparison.AgentResult("env", agent, agent, "baseline", score, (mean,), "env", 0, 0, None, curve, False)

    best, oracle = result("cells", 90.0), result("oracle", 89.0)
    record = {"mean": 1.0, "standard_error": 0.1, "num_tasks": 100, "degrees_of_freedom": 4}
    headroom = comparison.headroom({("env", "cells", "oracle"): record}, best, oracle, math.inf)
    assert headroom.mean == -1.0 and headroom.high == pytest.approx(-1 + 2.776 * 0.1, abs=1e-3), "surely exceeded"
    headroom = comparison.headroom({}, best, oracle, 91.0)
    assert headroom.mean == 1.0 and headroom.standard_error == 5.0 and headroom.degrees_of_freedom == 99


def test_an_interval_needs_two_tasks():
    with pytest.raises(BadInput, match="at least two tasks"):
        mean_interval([1.0])


def test_the_bayes_optimal_score_of_small_bandits():
    assert upper_bounds.bayes_optimal(2, 1) == pytest.approx(1 / 2)
    # The first pull pays half the time; then the arm promises 2/3, else the other one still promises 1/2.
    assert upper_bounds.bayes_optimal(2, 2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)
    assert upper_bounds.bayes_optimal(3, 5) > upper_bounds.bayes_optimal(2, 5)
    assert upper_bounds.bayes_optimal(5, 10) == pytest.approx(6.65999, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "text"), [(6.6559, "6.656"), (162.449, "162.4"), (-3.1, "−3.100"), (1932.04, "1,932.0"), (0, "0")]
)
def test_numbers_are_rounded_to_about_four_figures(value, text):
    assert format_number(value) == text


def test_the_standard_error_determines_the_decimal_places_of_its_mean():
    assert format_mean(162.5481, 0.0831) == "162.548 ± 0.083"
    assert format_mean(2041.81, 12.3) == "2,042 ± 12"


def test_a_rounded_zero_has_no_sign():
    assert format_total(-0.0001) == "0" and format_number(-0.00001, 2) == "−0.000010" and format_total(-2.0) == "−2"
