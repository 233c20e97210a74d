"""Laws of comparison: intervals, pairing, distances from what was published, the exact ceiling."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.errors import BadInput
from ontogeny.studies import comparison, upper_bounds

SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=40)
PART = st.builds(lambda mean, se: comparison.interval(mean, se, 10), st.floats(-100, 100), st.floats(0.01, 10))


@given(SCORES, st.floats(-50, 50), st.floats(0.1, 10))
def test_an_interval_moves_and_stretches_with_its_scores(scores, shift, factor):
    one, other = comparison.summary(scores), comparison.summary(np.asarray(scores) * factor + shift)
    assert other.mean == pytest.approx(one.mean * factor + shift, abs=1e-6)
    assert other.se == pytest.approx(one.se * factor, abs=1e-6)
    assert one.low <= one.mean <= one.high and one.num_tasks == len(scores)


def test_a_95_percent_interval_holds_the_truth_95_times_in_100():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 50))
    found = [comparison.summary(row) for row in draws]
    share = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert 0.93 < share < 0.96


@given(SCORES, SCORES)
def test_pairing_is_antisymmetric_and_uses_the_tasks_that_both_lived(one, other):
    there, back = comparison.paired(one, other), comparison.paired(other, one)
    assert there.mean == pytest.approx(-back.mean) and there.se == pytest.approx(back.se)
    assert there.num_tasks == min(len(one), len(other))


@given(SCORES, st.data())
def test_what_both_share_falls_out_of_a_paired_difference(luck, data):
    apart = data.draw(st.lists(st.floats(-1, 1), min_size=len(luck), max_size=len(luck)))
    found = comparison.paired(np.asarray(luck) + apart, luck)
    alone = comparison.summary(apart)
    assert found.mean == pytest.approx(alone.mean, abs=1e-6) and found.se == pytest.approx(alone.se, abs=1e-6)


@given(st.lists(PART, min_size=1, max_size=6))
def test_seeds_never_make_an_interval_narrower_than_its_tasks_allow(parts):
    found = comparison.over_seeds(parts)
    assert found.se >= math.sqrt(np.mean([part.se**2 for part in parts])) * (1 - 1e-9)
    if len(parts) == 1:
        assert found.mean == parts[0].mean and found.se == pytest.approx(parts[0].se)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_over_few_seeds_holds_the_truth_as_often_as_it_says(seeds):
    """Where the spread between seeds is all there is; and a claim where there is nothing is as rare as three errors."""
    chance = np.random.default_rng(seeds)
    found = [comparison.over_seeds([comparison.interval(m, 1e-3) for m in chance.normal(0, 1, seeds)]) for _ in range(4000)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.012)
    assert np.mean([abs(one.mean) > one.claim for one in found]) < 0.01  # 19 of 100 for two seeds by the normal
    sides = [(chance.normal(0, 1, (seeds, 1)), chance.normal(0, 1, (1, 1))) for _ in range(2000)]
    apart = [comparison.paired_over_seeds(a + np.zeros(40), b * 0 + chance.normal(0, 1e-3, 40)) for a, b in sides]
    assert np.mean([one.low <= 0 <= one.high for one in apart]) == pytest.approx(0.95, abs=0.02)


@given(PART, st.floats(-120, 120))
def test_a_verdict_needs_three_errors_and_more_than_the_printed_digits(score, value):
    far = comparison.distance(score, "line", value)
    clear = abs(score.mean - value) > 3 * score.se and abs(score.mean - value) > 0.05 * (1 + 1e-9)
    assert (far.verdict != "level") == clear
    assert far.verdict == "level" or (far.verdict == "above") == (score.mean > value)


@given(PART, st.dictionaries(st.sampled_from("abcde"), st.floats(-100, 100), min_size=1))
def test_above_the_best_line_is_above_every_line(score, lines):
    best = comparison.against_best(score, lines)
    assert best is not None and best.value == max(lines.values())
    if best.verdict == "above":
        assert all(comparison.distance(score, name, value).verdict == "above" for name, value in lines.items())


def test_a_score_without_spread_is_told_apart_without_dividing_by_nothing():
    exact = comparison.interval(2.0, 0.0)
    assert comparison.distance(exact, "line", 1.0).verdict == "above"
    assert comparison.distance(exact, "line", 2.0).verdict == "level"


@pytest.mark.parametrize(
    ("arms", "pulls", "exact"),
    [(5, 10, True), (50, 10, True), (2, 40, True), (5, 100, False), (50, 100, False), (1000, 1000, False)],
)
def test_a_bandit_is_bounded_exactly_only_where_that_is_quick(arms, pulls, exact):
    assert upper_bounds.is_exact(arms, pulls) == exact


def test_information_states_are_counted(monkeypatch):
    monkeypatch.setattr(upper_bounds, "EXACT", 103)  # of three arms after fewer than six pulls, by listing them
    assert upper_bounds.is_exact(3, 6)
    monkeypatch.setattr(upper_bounds, "EXACT", 102)
    assert not upper_bounds.is_exact(3, 6)


def test_an_interval_needs_two_tasks():
    with pytest.raises(BadInput, match="at least two tasks"):
        comparison.summary([1.0])


def test_the_bayes_optimal_score_of_small_bandits():
    assert upper_bounds.bayes_optimal(2, 1) == pytest.approx(1 / 2)
    # The first pull pays half the time; then the arm promises 2/3, else the other one still promises 1/2.
    assert upper_bounds.bayes_optimal(2, 2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)
    assert upper_bounds.bayes_optimal(3, 5) > upper_bounds.bayes_optimal(2, 5)
    assert upper_bounds.bayes_optimal(5, 10) == pytest.approx(6.65999, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "shown"), [(6.6559, "6.656"), (162.449, "162.4"), (-3.1, "−3.100"), (1932.04, "1,932.0"), (0, "0")]
)
def test_numbers_are_written_for_people(value, shown):
    assert comparison.number(value) == shown


def test_an_error_sets_the_decimals_of_its_mean():
    assert comparison.plus_minus(comparison.interval(162.5481, 0.0831)) == "162.548 ± 0.083"
    assert comparison.plus_minus(comparison.interval(2041.81, 12.3)) == "2,042 ± 12"


def test_nothing_has_no_sign():
    assert comparison.total(-0.0001) == "0" and comparison.number(-0.00001, 2) == "−0.000010" and comparison.total(-2.0) == "−2"
