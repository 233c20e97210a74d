"""Intervals, verdicts and ratios: agreement with closed forms, and with the formulas that they replaced."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import betaincinv, ndtr
from scipy.stats import t as student_t

from ontogeny import stats
from ontogeny.studies.mesa.comparison import mean_over_runs
from ontogeny.types import BadInput


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (517, 1000), (4999, 5000)])
def test_the_clopper_pearson_interval_is_the_beta_quantile(count, total):
    low = 0.0 if count == 0 else betaincinv(count, total - count + 1, 0.025)
    high = 1.0 if count == total else betaincinv(count + 1, total - count, 0.975)
    np.testing.assert_allclose(stats.clopper_pearson(count, total), (low, high), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 9, 500])
def test_critical_values_are_student_t_quantiles(degrees_of_freedom):
    expected = student_t.ppf(0.975, degrees_of_freedom)
    assert stats.critical_value(stats.Z95, degrees_of_freedom) == pytest.approx(expected, rel=1e-6)
    assert stats.critical_value(stats.Z95, math.inf) == stats.Z95


def test_a_ratio_of_sums_equals_the_mean_where_all_denominators_are_equal():
    """The interval then is that of a mean by Student's t."""
    numerators = np.random.default_rng(0).normal(3.0, 1.0, 30)
    mean, low, high = stats.ratio_of_sums(numerators, np.full(30, 2.0))
    standard_error = numerators.std(ddof=1) / math.sqrt(30) / 2
    half_width = stats.critical_value(stats.Z95, 29) * standard_error
    assert mean == pytest.approx(numerators.mean() / 2) and (high - low) / 2 == pytest.approx(half_width)
    assert low < mean < high


def test_the_spread_of_a_linearized_ratio_contains_that_of_its_denominators():
    denominators = np.random.default_rng(0).normal(20.0, 5.0, 40)
    terms = stats.linearized_ratio(np.full(40, 10.0), denominators)
    assert terms.mean() == pytest.approx(10.0 / denominators.mean())
    assert terms.std() == pytest.approx(terms.mean() * denominators.std() / denominators.mean())


def test_a_ratio_of_few_sums_has_no_interval():
    estimate = stats.ratio_of_sums(np.array([1.0, 2.0]), np.array([1.0, 3.0]), min_terms=3)
    assert estimate.mean == 0.75 and math.isnan(estimate.low) and math.isnan(estimate.high)


class NormalEffect(NamedTuple):
    """A normal estimate with a known standard error."""

    mean: float
    standard_error: float

    def p_above(self, value):
        return float(ndtr((value - self.mean) / self.standard_error))

    def p_below(self, value):
        return float(ndtr((self.mean - value) / self.standard_error))


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((0.31, 0.31), "yes"),  # both lower bounds exceed 0.1
        ((0.31, 0.25), "undetermined"),  # significantly above zero, but not above 0.1
        ((0.31, -0.13), "no"),
        ((0.31, -0.11), "undetermined"),  # below 0.1 at 2.5 %, but not at half of it, as the weaker of two parts must
    ],
)
def test_every_threshold_has_its_error(means, verdict):
    parts = {str(number): NormalEffect(mean, 0.1) for number, mean in enumerate(means)}
    assert stats.three_way_verdict(parts, dict.fromkeys(parts, 0.1)) == verdict


def test_only_a_part_that_refutes_the_claim_yields_a_no():
    parts = {"effect": NormalEffect(0.11, 0.1), "other": NormalEffect(-9.0, 0.1)}
    minima = dict.fromkeys(parts, 0.1)
    assert stats.three_way_verdict(parts, minima) == "no"
    assert stats.three_way_verdict(parts, minima, refuting=["effect"]) == "undetermined"


def test_a_mean_of_values_that_all_agree_exceeds_nothing_for_certain():
    assert stats.p_mean_exceeds(1.0, 0.0, 9) == stats.p_mean_exceeds(1.0, 1e-12, 9) == 1.0
    assert stats.p_mean_exceeds(1.0, 0.1, 9) < 1e-5


def test_an_interval_over_runs_contains_the_spread_of_the_runs_and_not_of_their_lifetimes():
    random = np.random.default_rng(0)
    runs = [random.normal(mean, 0.1, 40) for mean in (0.0, 0.5, 1.0, 1.5)]
    effect = mean_over_runs(runs)
    assert effect.low < 0.75 < effect.high and effect.high - effect.low > 0.8, "runs differ more than lifetimes"
    effect = mean_over_runs(runs[:1])
    assert effect.high - effect.low < 0.1, "one run tells nothing about others"


# Coverage: the share of simulated data sets in which the true value lies in the interval.

FEW = (2, 3, 5, 10)  # seeds of development, or runs
NUM_SIMULATIONS = 1000  # the standard error of a coverage of 95 % is 0.7 %
NUM_TASKS = 50
RECORDED = json.loads(Path(__file__).with_name("data").joinpath("scores.json").read_text())


def coverage(intervals, truth):
    """The share of intervals that contain the true value."""
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


def resample(scores, num_seeds, random):
    """Scores [S, R, N] of simulated evaluations, whose seeds share their tasks, resampled from scores [seed, task]."""
    scores = np.asarray(scores, float)
    seeds = random.integers(scores.shape[0], size=(NUM_SIMULATIONS, num_seeds, 1))
    tasks = random.integers(scores.shape[1], size=(NUM_SIMULATIONS, 1, NUM_TASKS))
    return scores[seeds, tasks]


def over_seeds(scores):
    """`mean_over_seeds` of scores [R, N]."""
    return stats.mean_over_seeds([stats.mean_interval(of_seed) for of_seed in scores])


@pytest.mark.parametrize("num_seeds", FEW)
@pytest.mark.parametrize("error_over_tasks", [0.1, 0.5, 1.0, 3.0])
def test_intervals_over_few_seeds_cover_the_mean_of_gaussian_scores(num_seeds, error_over_tasks):
    """The degrees of freedom are those of the part with the fewest, whatever its share of the error."""
    random = np.random.default_rng(num_seeds)
    means = random.normal(0, num_seeds**0.5, (NUM_SIMULATIONS, num_seeds))
    means += random.normal(0, error_over_tasks, (NUM_SIMULATIONS, 1))
    parts = [[stats.confidence_interval(mean, error_over_tasks, 1000) for mean in of_seeds] for of_seeds in means]
    intervals = [stats.mean_over_seeds(part) for part in parts]
    assert coverage(intervals, 0.0) > 0.93
    claims = np.mean([abs(interval.mean) > interval.min_claimed_difference for interval in intervals])
    assert claims < 0.008, "0.27 % with a standard error of 0.16 %"


def test_three_standard_errors_are_exceeded_by_chance_in_27_of_10000_cases():
    """The only spread is between seeds, so the share is exact; a further part of the error makes it smaller."""
    random, is_claimed = np.random.default_rng(0), []
    for num_seeds in FEW:
        for means in random.normal(0, 1, (4000, num_seeds)):
            interval = stats.mean_over_seeds([stats.confidence_interval(mean, 1e-6, 1000) for mean in means])
            is_claimed.append(abs(interval.mean) > interval.min_claimed_difference)
    assert np.mean(is_claimed) == pytest.approx(0.0027, abs=0.0012), "43 of 16,000, with a standard error of 7"


@pytest.mark.parametrize("num_seeds", FEW)
@pytest.mark.parametrize("name", RECORDED)
def test_intervals_over_few_seeds_cover_the_mean_of_recorded_scores(name, num_seeds):
    evaluations = resample(RECORDED[name], num_seeds, np.random.default_rng(num_seeds))
    assert coverage(map(over_seeds, evaluations), np.mean(RECORDED[name])) > 0.93


@pytest.mark.parametrize("num_seeds", FEW)
@pytest.mark.parametrize("name", RECORDED)
def test_paired_differences_over_few_seeds_cover_zero_for_equal_agents(name, num_seeds):
    """Both agents are developed with seeds of their own and evaluated in the same tasks."""
    scores = resample(RECORDED[name], 2 * num_seeds, np.random.default_rng(num_seeds))
    pairs = ((of_tasks[:num_seeds], of_tasks[num_seeds:]) for of_tasks in scores)
    differences = [stats.paired_difference_over_seeds(first, second) for first, second in pairs]
    assert coverage(differences, 0.0) > 0.94
    claims = np.mean([abs(part.mean) > part.min_claimed_difference for part in differences])
    assert claims < 0.006


@pytest.mark.parametrize("num_runs", FEW)
@pytest.mark.parametrize("name", ["gaussian", *RECORDED])
def test_intervals_over_few_runs_cover_the_mean_over_runs(name, num_runs):
    """Every run has lifetimes of its own."""
    random = np.random.default_rng(num_runs)
    scores = random.normal(random.normal(0, 1, (500, 1)), 2, (500, 64)) if name == "gaussian" else RECORDED[name]
    scores = np.asarray(scores)
    runs = random.integers(len(scores), size=(NUM_SIMULATIONS, num_runs, 1))
    lifetimes = random.integers(scores.shape[1], size=(NUM_SIMULATIONS, num_runs, NUM_TASKS))
    assert coverage(map(mean_over_runs, scores[runs, lifetimes]), scores.mean()) > 0.91


@pytest.mark.parametrize("num_tasks", FEW)
def test_intervals_over_few_tasks_cover_the_mean(num_tasks):
    samples = np.random.default_rng(num_tasks).normal(3.0, 2.0, (NUM_SIMULATIONS, num_tasks))
    assert coverage(map(stats.mean_interval, samples), 3.0) == pytest.approx(0.95, abs=0.02)


def test_an_interval_needs_two_scores():
    with pytest.raises(BadInput, match="at least two tasks"):
        stats.mean_interval([1.0])
    interval = stats.mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0 and interval.num_tasks == 3 and interval.low < 2.0 < interval.high


def add_all(weights, amounts):
    """The sums after each term."""
    sums = [stats.RunningSums()]
    for weight, amount in zip(weights, amounts, strict=True):
        sums.append(sums[-1].add(float(weight), float(amount)))
    return sums[1:]


def test_running_sums_give_the_weighted_mean_and_the_variance_of_the_sum():
    draw = np.random.default_rng(0)
    weights, amounts = draw.uniform(1, 5, 30), draw.normal(size=30)
    sums = add_all(weights, amounts)[-1]
    assert sums.ratio == pytest.approx(amounts.sum() / weights.sum())
    residuals = amounts - sums.ratio * weights
    assert sums.variance == pytest.approx((residuals**2).sum() * 30 / 29)
    assert math.isnan(stats.RunningSums().ratio) and math.isnan(add_all([1], [1])[0].variance)


def test_always_valid_intervals_hold_the_running_mean_at_all_times():
    """The conditional means wander, and the weights differ; every interval of a sequence must hold the running mean."""
    draw = np.random.default_rng(1)
    num_missed, num_sequences, length = 0, 200, 300
    for _ in range(num_sequences):
        weights = np.exp(draw.uniform(math.log(200), math.log(2000), length))
        means = 0.3 * np.sin(np.arange(length) / 20 + draw.uniform(0, 6))
        amounts = weights * (means + 0.5 * draw.standard_t(5, length))
        averages = np.cumsum(weights * means) / np.cumsum(weights)
        intervals = [stats.always_valid_interval(sums, 1e7) for sums in add_all(weights, amounts)]
        is_missed = [not i.low <= average <= i.high for i, average in zip(intervals, averages, strict=True)]
        num_missed += any(is_missed)
    assert stats.clopper_pearson(num_missed, num_sequences)[0] <= 0.05, num_missed


def test_an_interval_for_one_time_misses_the_mean_more_often_than_an_always_valid_one():
    """A planted error: Student's interval looked at after every term."""
    draw = np.random.default_rng(2)
    num_missed = 0
    for _ in range(60):
        values = draw.normal(size=300)
        intervals = [stats.mean_interval(values[:stop]) for stop in range(20, 301)]
        num_missed += any(interval.excludes_zero for interval in intervals)
    assert num_missed > 12


def test_always_valid_intervals_scale_with_amounts_and_weights():
    draw = np.random.default_rng(3)
    weights, amounts = draw.uniform(1, 5, 40), draw.normal(1.0, 1.0, 40)
    interval = stats.always_valid_interval(add_all(weights, amounts)[-1], 10.0)
    scaled = stats.always_valid_interval(add_all(2 * weights, 3 * amounts)[-1], 90.0)
    assert np.allclose(np.array(scaled), 1.5 * np.array(interval))
    assert interval.low < interval.mean < interval.high
    wider = stats.always_valid_interval(add_all(weights, amounts)[-1], 10.0, level=0.01)
    assert wider.low < interval.low and wider.high > interval.high
    narrowest = min(
        stats.always_valid_interval(add_all(weights, amounts)[-1], variance).high
        for variance in np.geomspace(1, 1e4, 50)
    )
    at_variance = stats.always_valid_interval(add_all(weights, amounts)[-1], add_all(weights, amounts)[-1].variance)
    assert at_variance.high - interval.mean == pytest.approx(narrowest - interval.mean, rel=2e-3)


def test_the_first_terms_have_no_always_valid_interval():
    sums = add_all(np.ones(20), np.linspace(0, 1, 20))
    assert stats.always_valid_interval(sums[18], 1.0)[1:] == (-math.inf, math.inf)
    assert math.isfinite(stats.always_valid_interval(sums[19], 1.0).low)
