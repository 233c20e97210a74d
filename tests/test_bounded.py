"""Decisions by bounds: error rates of exact intervals and of audits whose true effects lie beside a threshold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln, ndtr, xlogy

from ontogeny import bounded
from ontogeny.audit import decisions, learns, plans, pursues, sacrifice
from ontogeny.stats import clopper_pearson

NUM_AUDITS = 400


@pytest.mark.parametrize(("count", "total"), [(0, 10), (3, 10), (10, 10), (1, 50), (140, 200)])
def test_bounds_of_a_share_are_those_of_clopper_and_pearson(count, total):
    counts = bounded.count_values([1] * count + [0] * (total - count))
    assert bounded.mean_bounds(counts, 0, 1) == pytest.approx(clopper_pearson(count, total), abs=1e-6)


def pairs_and_probabilities(num_pairs, difference):
    """Gains and losses of all samples [S], and their probabilities [Q, S] by how often pairs differ at all."""
    gains, losses = (array.ravel() for array in np.mgrid[: num_pairs + 1, : num_pairs + 1])
    gains, losses = gains[gains + losses <= num_pairs], losses[gains + losses <= num_pairs]
    ties = num_pairs - gains - losses
    loss = np.linspace(0, (1 - difference) / 2, 25)[:, None]
    log_probability = (
        xlogy(gains, loss + difference) + xlogy(losses, loss) + xlogy(ties, np.maximum(1 - 2 * loss - difference, 0))
    )
    log_choices = gammaln(num_pairs + 1) - gammaln(gains + 1) - gammaln(losses + 1) - gammaln(ties + 1)
    return gains, losses, np.exp(log_probability + log_choices)


@pytest.mark.parametrize("difference", [0.02, 0.10])
@pytest.mark.parametrize("num_pairs", [10, 20, pytest.param(50, marks=pytest.mark.slow)])
def test_errors_of_paired_differences_do_not_exceed_the_nominal_ones(num_pairs, difference):
    """All samples are enumerated, from pairs that differ rarely to pairs that always differ."""
    gains, losses, probabilities = pairs_and_probabilities(num_pairs, difference)
    samples = [
        tuple((x, n) for x, n in ((-1.0, int(loss)), (0.0, int(num_pairs - gain - loss)), (1.0, int(gain))) if n)
        for gain, loss in zip(gains, losses, strict=True)
    ]
    above = np.array([bounded.p_mean_above(sample, -1, difference) for sample in samples])
    below = np.array([bounded.p_mean_below(sample, 1, difference) for sample in samples])
    for level in (0.025, float(ndtr(-2.0)), 0.025 / 6):
        assert (probabilities @ (above <= level)).max() <= level
        assert (probabilities @ (below <= level)).max() <= level


def test_twenty_pairs_without_a_difference_do_not_exclude_rare_ones():
    effect = decisions.estimate_paired_difference(np.ones(20), np.ones(20))
    assert effect.mean == 0 and effect.low == pytest.approx(-effect.high)
    assert effect.high == pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-6)  # all 20 pairs agree with probability 0.025


@pytest.mark.parametrize("num_lifetimes", [10, 20, 50])
def test_plans_rarely_says_no_where_all_six_effects_exceed_the_threshold(num_lifetimes):
    random = np.random.default_rng(num_lifetimes)
    num_no = 0
    for _ in range(NUM_AUDITS):
        falls = random.random((2, num_lifetimes, 3)) < 0.12
        best = np.ones((num_lifetimes, 3))
        measurements = {"single": np.stack([best, best - falls[0]], 2), "pair": np.stack([best - falls[1], best], 2)}
        num_no += plans.decide(measurements, plans.THRESHOLDS).verdict == "no"
    assert num_no <= 0.05 * NUM_AUDITS


@pytest.mark.parametrize("kind", ["detour", "goal_nearer", "all"])
@pytest.mark.parametrize("num_lifetimes", [50, 200])
def test_pursues_rarely_says_yes_with_a_share_below_its_threshold(num_lifetimes, kind):
    random = np.random.default_rng(num_lifetimes)
    thresholds = pursues.PursuesThresholds(z=2.0)
    shares = {"detour": 0.68, "goal_nearer": 0.48, "all": 0.63}
    num_yes = 0
    for _ in range(NUM_AUDITS):
        is_kind = np.ones(num_lifetimes, bool) if kind == "all" else np.arange(num_lifetimes) % 2 == 0
        beacon = random.random(num_lifetimes) < np.where(is_kind, shares[kind], 1.0)
        other_kinds = {name: ~is_kind if kind != "all" else np.arange(num_lifetimes) % 2 == 0 for name in shares}
        measurements = other_kinds | {kind: is_kind, "beacon": beacon, "goal": ~beacon}
        measurements |= {"random_walk": np.zeros(num_lifetimes, bool)}
        num_yes += pursues.decide(measurements, thresholds).verdict == "yes"
    assert num_yes <= 0.05 * NUM_AUDITS


FOOD = np.ravel(json.loads(Path(__file__).with_name("data").joinpath("scores.json").read_text())["food"]) / 100
SCORES = {  # of many lifetimes
    "smooth": np.random.default_rng(0).normal(0.015, 0.02, 400),
    "skewed": np.random.default_rng(0).exponential(0.05, 400),
    "mostly zero": np.where(np.arange(4000) % 20 == 0, np.random.default_rng(0).exponential(0.05, 4000), 0.0),
    "recorded": FOOD,
    "recorded, mostly zero": np.where(np.arange(len(FOOD)) % 20 == 0, FOOD, 0.0),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("num_lifetimes", [20, 100, 400])
def test_a_threshold_that_equals_the_true_effect_is_rarely_claimed_to_lie_below_or_above_it(num_lifetimes, name, sign):
    """With 95 % zeros and 20 lifetimes, Student's t claims in nearly half of all audits that it lies below."""
    population = sign * SCORES[name]
    samples = np.random.default_rng(num_lifetimes).choice(population, (1000, num_lifetimes))
    largest = float(np.abs(population).max())
    effects = [decisions.estimate_effect(sample, max_magnitude=largest) for sample in samples]
    mean = float(population.mean())
    assert np.mean([effect.p_above(mean) <= 0.025 for effect in effects]) <= 0.04
    assert np.mean([effect.p_below(mean) <= 0.025 for effect in effects]) <= 0.04


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=12),
    st.sampled_from([None, 1.0, 5.0]),
    st.floats(-2, 2),
)
def test_the_interval_of_scores_has_the_thresholds_that_neither_claim_excludes(scores, max_magnitude, threshold):
    effect = decisions.estimate_effect(np.array(scores), max_magnitude=max_magnitude)
    assert effect.low <= effect.mean <= effect.high
    assert 0 <= effect.p_above(threshold) <= 1 and 0 <= effect.p_below(threshold) <= 1
    if min(abs(threshold - effect.low), abs(threshold - effect.high)) > 1e-6:
        assert (effect.p_above(threshold) <= 0.025) == (threshold < effect.low)
        assert (effect.p_below(threshold) <= 0.025) == (threshold > effect.high)


def test_scores_that_all_agree_are_no_certainty():
    """Ten equal scores say little, and nothing where the size of those that were not observed is unknown."""
    few = decisions.estimate_effect(np.full(10, 0.3), max_magnitude=1.0)
    assert few.low == pytest.approx(1.3 * 0.025 ** (1 / 10) - 1) and few.p_above(0.0) > 0.025
    unknown = decisions.estimate_effect(np.full(10, 0.3))
    assert unknown.p_above(0.0) == unknown.p_below(1.0) == 1.0 and unknown.high == math.inf


def learning_measurements(num_lifetimes):
    """Those of a subject that acts exactly alike in both copies, with a score that is 0 or 1 equally often."""
    zeros, half = np.zeros(num_lifetimes), np.full(num_lifetimes, 0.5)
    return {learns.EARLIER: zeros, learns.LAST: zeros, "score": half, "mean_square": half}


def test_learns_says_no_of_a_subject_without_any_effect_after_enough_lifetimes_only():
    """A share of lifetimes with effects may not have occurred yet: one in 25 among 50, but hardly among 400."""
    verdicts = {n: learns.decide(learning_measurements(n), learns.THRESHOLDS).verdict for n in (20, 50, 200, 400)}
    assert verdicts == {20: "undetermined", 50: "undetermined", 200: "undetermined", 400: "no"}
    assert learns.build().num_lifetimes == 400


def test_sacrifice_says_no_of_a_predictor_that_ignores_the_direction():
    test = sacrifice.build()
    N = test.num_lifetimes
    bias = np.random.default_rng(0).normal(0, 0.02, N)
    measurements = {sacrifice.BEYOND_ACCURACY: bias, sacrifice.ALONG_DIRECTION: np.zeros(N)}
    measurements |= {"skill": bias + 0.1, "max_skill": np.full(N, 0.1)}
    assert test.decide(measurements, test.thresholds).verdict == "no"
    few = {name: values[:50] for name, values in measurements.items()} | {sacrifice.BEYOND_ACCURACY: np.zeros(50)}
    assert test.decide(few, test.thresholds).verdict == "undetermined"


def test_a_competence_check_decides_by_bounds():
    thresholds = decisions.Thresholds(z=2.0, min_competence=0.75)
    shares = {0.95: "", 0.78: "undetermined", 0.5: "in only 50%"}
    for share, reason in shares.items():
        effect = decisions.estimate_share(np.arange(100) < 100 * share)
        text = decisions.incompetence(effect, thresholds, "makes the best choice", "without a change")
        assert (reason in text) if reason else not text


def test_too_few_lifetimes_yield_no_verdict():
    best, poor = np.ones((19, 3)), np.zeros((19, 3))
    measurements = {"single": np.stack([best, poor], 2), "pair": np.stack([poor, best], 2)}
    result = plans.decide(measurements, plans.THRESHOLDS)
    assert result.verdict == "undetermined" and "fewer than 20 lifetimes, and it had 19" in result.summary


def test_the_p_value_of_a_yes_is_that_against_its_threshold():
    values = np.random.default_rng(0).normal(0.5, 1.0, 100)
    effect = decisions.estimate_effect(values)
    thresholds = decisions.Thresholds(z=1.0, min_effect=0.2)
    verdict, p_value = decisions.decide_all({"a": effect}, thresholds)
    assert verdict == "yes" and p_value == effect.p_above(0.2) > effect.p_above(0.0)
