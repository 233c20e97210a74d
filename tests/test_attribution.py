"""Attribution: controls get the verdict of their ground truth, and the parts follow from the cells."""

import importlib
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ontogeny import plugins, steering
from ontogeny.audit import attribution
from ontogeny.types import BadInput


def build_subject(agent, env):
    name, settings = plugins.parse(env)
    env = plugins.build("environments", name, **settings)
    drives = steering.build(env.spec)
    if agent in plugins.list_names("agents"):
        return plugins.build("agents", agent, env.spec, drives), env, drives
    return importlib.import_module(f"ontogeny.audit.organisms.{agent}").build(env.spec, drives), env, drives


BANDIT = "bandit:num_arms=3,num_pulls=40"
CONTROLS = [
    ("memoryless", BANDIT, "no gain"),
    ("thompson", BANDIT, "activations"),
    ("q_learning", BANDIT, "weights"),
    ("additive_hybrid", BANDIT, "both"),
    ("redundant_hybrid", BANDIT, "either suffices"),
    pytest.param("random", BANDIT, "no gain", marks=pytest.mark.slow),
    pytest.param("model_based", BANDIT, "weights", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("agent", "env", "verdict"), CONTROLS)
def test_controls_get_the_verdict_of_their_ground_truth(agent, env, verdict):
    agent, env, drives = build_subject(agent, env)
    result = attribution.attribute(agent, env, drives, agent.genome(jax.random.key(0)), num_tasks=200)
    assert result.verdict == verdict, result
    if verdict == "both":
        assert result.interaction.low <= 0 <= result.interaction.high and abs(result.shares[0] - 0.5) < 0.1
    if verdict == "either suffices":
        assert result.interaction.high < 0 and abs(result.shares[0] - 0.5) < 0.1, "shares alone would read fifty-fifty"
    if verdict == "no gain":
        assert result.shares is None


def test_weights_from_a_log_equal_those_of_the_logged_lifetime():
    """Everything that q_learning learns is in weights: learned from the log they score as in the lifetime itself."""
    agent, env, drives = build_subject("q_learning", "random_mdp:num_states=4,num_actions=3,horizon=5,num_episodes=12")
    result = attribution.attribute(agent, env, drives, (), num_tasks=100)
    # Its activations are empty, so the lifetime from the log is the logged lifetime.
    np.testing.assert_allclose(result.weights_from_log, result.cells["both"], rtol=1e-5)


@given(arrays(np.float64, (30, 5), elements=st.floats(-50, 50)))
def test_the_parts_add_up_to_the_gain(scores):
    result = attribution.divide_gain(scores)
    assert result.gain_of_weights.mean + result.gain_of_activations.mean == pytest.approx(result.gain.mean, abs=1e-9)
    swapped = attribution.divide_gain(scores[:, [0, 2, 1, 3, 4]])
    assert swapped.gain_of_weights.mean == pytest.approx(result.gain_of_activations.mean, abs=1e-9)
    for estimate in (result.gain, result.interaction, result.gain_of_weights):
        assert estimate.low - 1e-9 <= estimate.mean <= estimate.high + 1e-9


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ((10, 10, 10, 10), "no gain"),
        ((10, 20, 10, 20), "activations"),
        ((10, 10, 20, 20), "weights"),
        ((10, 20, 20, 30), "both"),
        ((10, 20, 20, 20), "either suffices"),
        ((10, 10, 10, 20), "only both together"),
        ((10, 20, 11, 20.5), "mostly activations"),
        ((10, 5, 30, 25), "weights; activations harm"),
        ((20, 10, 20, 10), "harm"),
        ((10, 20, 0, 10), "effects cancel"),
        ((10, 20, 20, 10), "effects cancel"),
    ],
)
def test_every_verdict_follows_from_its_cells(cells, verdict):
    noise = 0.5 * np.random.default_rng(0).normal(size=(200, 5))
    assert attribution.divide_gain(np.array([*cells, cells[3]]) + noise).verdict == verdict


def test_every_verdict_has_a_summary():
    result = attribution.divide_gain(np.tile([10.0, 5, 30, 25, 25], (20, 1)))
    assert result.summary == "weights raise the score, and activations lower it"
    assert not any("{" in text for text in (*attribution.SUMMARIES, *attribution.SUMMARIES.values()))


def test_either_suffices_only_if_each_alone_surely_reaches_its_share_of_a_gain_that_saturates():
    """Alone 18 and 2, together 18.5: weights suffice and activations do not, although the scores saturate."""
    noise = np.random.default_rng(0).normal(size=(200, 5))
    saturated = attribution.divide_gain(np.array([0, 2, 18, 18.5, 18.5]) + noise)
    assert saturated.interaction.high < 0 and saturated.activations_alone.low > saturated.min_gain
    assert saturated.verdict == "mostly weights"
    redundant = attribution.divide_gain(np.array([0, 18, 18, 18.5, 18.5]) + noise)
    assert redundant.verdict == "either suffices"
    assert attribution.divide_gain(np.array([0, 15.5, 18, 18.5, 18.5]) + 9 * noise[:20]).verdict == "undetermined"


def test_a_part_at_the_limit_is_rarely_called_sufficient():
    """Of 400 data sets in which activations alone gain just 80 % of 10, few read as if either part sufficed."""
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(400):
        task = rng.exponential(5, size=(60, 1))  # skewed, common to all cells
        scores = task + rng.exponential(3, size=(60, 5)) + np.array([0, 8, 10, 10, 0])
        verdicts.append(attribution.divide_gain(scores).verdict)
    assert np.mean([verdict == "either suffices" for verdict in verdicts]) < 0.05


def test_the_error_of_a_relative_min_gain_counts():
    """Every task gains 1, and the smallest gain is 2 % of a mean score of 50 that 20 tasks estimate as 48 to 52."""
    random = np.random.default_rng(0)
    verdicts = []
    for _ in range(400):
        neither = random.normal(49, 5, 20)
        verdicts.append(attribution.divide_gain(neither[:, None] + np.array([0, 0, 1, 1, 1])).verdict)
    assert np.mean([verdict == "undetermined" for verdict in verdicts]) > 0.9


def test_no_verdict_follows_from_a_single_segment_or_from_differences_that_may_be_chance():
    scores = np.array([[0.0, 2, 18, 18.5, 18.5]])
    assert attribution.divide_gain(scores).verdict == "undetermined"
    noise = np.random.default_rng(0).normal(size=(3, 5))
    assert attribution.divide_gain(5 + 3 * noise).verdict == "undetermined"


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 400 data sets of 60 tasks, 95 % intervals of the gain miss the true one, 1, in about 5 %."""
    rng = np.random.default_rng(1)
    num_missed = 0
    for _ in range(400):
        task = rng.exponential(5, size=(60, 1))  # skewed, common to all cells
        scores = task + rng.normal(size=(60, 5)) + np.array([0, 0, 0, 1, 0])
        gain = attribution.divide_gain(scores).gain
        num_missed += not gain.low <= 1 <= gain.high
    assert num_missed / 400 < 0.09


def test_intervals_over_few_tasks_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(2000, attribution.MIN_TASKS, 5)) + np.array([0, 0, 0, 1, 0])
    gains = [attribution.divide_gain(of_audit).gain for of_audit in scores]
    assert np.mean([gain.low <= 1 <= gain.high for gain in gains]) == pytest.approx(0.95, abs=0.01)


def test_too_few_tasks_are_rejected():
    agent, env, drives = build_subject("random", BANDIT)
    with pytest.raises(BadInput, match="at least 20 tasks"):
        attribution.attribute(agent, env, drives, (), num_tasks=5)


@pytest.mark.parametrize("min_gain", [-1.0, math.nan, math.inf])
def test_a_min_gain_that_is_negative_or_not_finite_is_rejected(min_gain):
    agent, env, drives = build_subject("random", BANDIT)
    with pytest.raises(BadInput, match="smallest gain"):
        attribution.attribute(agent, env, drives, (), num_tasks=20, min_gain=min_gain)
