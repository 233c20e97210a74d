"""Intervals, verdicts and ratios: agreement with closed forms, and with the formulas that they replaced."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import betaincinv, ndtr
from scipy.stats import t as student_t

from ontogeny import stats
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


def test_the_two_stage_bootstrap_covers_runs_and_their_lifetimes():
    random = np.random.default_rng(0)
    runs = [random.normal(mean, 0.1, 40) for mean in (0.0, 0.5, 1.0, 1.5)]
    low, high = stats.two_stage_bootstrap(runs)
    assert low < 0.75 < high and high - low > 0.8, "runs differ more than lifetimes"
    low, high = stats.two_stage_bootstrap(runs[:1])
    assert high - low < 0.1, "one run tells nothing about others"
    assert stats.two_stage_bootstrap(runs) == stats.two_stage_bootstrap(runs)


def test_bootstrap_means_resample_rows_whole():
    values = np.random.default_rng(1).normal(0.0, 1.0, (50, 1))
    mean, low, high = stats.bootstrap_means(np.concatenate([values, -values], axis=1))
    np.testing.assert_allclose((mean[0], low[0], high[0]), (-mean[1], -high[1], -low[1]), atol=1e-12)


def test_an_interval_needs_two_scores():
    with pytest.raises(BadInput, match="at least two tasks"):
        stats.mean_interval([1.0])
    interval = stats.mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0 and interval.num_tasks == 3 and interval.low < 2.0 < interval.high
