"""Attribution: known cases give the known answer, and the split is what the cells say."""

import importlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ontogeny import plugins, steering
from ontogeny.audit import attribution
from ontogeny.types import BadInput


def subject(agent, env):
    name, given = plugins.parse(env)
    env = plugins.build("environments", name, **given)
    drives = steering.build(env.spec)
    if agent in plugins.list_names("agents"):
        return plugins.build("agents", agent, env.spec, drives), env, drives
    return importlib.import_module(f"ontogeny.audit.organisms.{agent}").build(env.spec, drives), env, drives


BANDIT = "bandit:num_arms=3,num_pulls=40"
KNOWN = [
    ("memoryless", BANDIT, "no gain"),
    ("thompson", BANDIT, "activations"),
    ("q_learning", BANDIT, "weights"),
    ("additive_hybrid", BANDIT, "both"),
    ("redundant_hybrid", BANDIT, "either suffices"),
    pytest.param("random", BANDIT, "no gain", marks=pytest.mark.slow),
    pytest.param("model_based", BANDIT, "weights", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("agent", "env", "verdict"), KNOWN)
def test_known_cases_give_the_known_answer(agent, env, verdict):
    agent, env, drives = subject(agent, env)
    found = attribution.attribute(agent, env, drives, agent.genome(jax.random.key(0)), num_tasks=200)
    assert found.verdict == verdict, found
    if verdict == "both":
        assert found.interaction.low <= 0 <= found.interaction.high and abs(found.shares[0] - 0.5) < 0.1
    if verdict == "either suffices":
        assert found.interaction.high < 0 and abs(found.shares[0] - 0.5) < 0.1, "shares alone would read fifty-fifty"
    if verdict == "no gain":
        assert found.shares is None


def test_a_log_teaches_what_the_life_that_wrote_it_learned():
    """All that q_learning learns is in weights: on the log it does as well as in the life itself."""
    agent, env, drives = subject("q_learning", "random_mdp:num_states=4,num_actions=3,horizon=5,num_episodes=12")
    found = attribution.attribute(agent, env, drives, (), num_tasks=100)
    # Its activations are empty, so the life on the log is the logged life.
    np.testing.assert_allclose(found.weights_from_log, found.cells["both"], rtol=1e-5)


@given(arrays(np.float64, (30, 5), elements=st.floats(-50, 50)))
def test_the_parts_add_up_to_the_gain(scores):
    found = attribution.divide_gain(scores)
    assert found.gain_of_weights.mean + found.gain_of_activations.mean == pytest.approx(found.gain.mean, abs=1e-9)
    swapped = attribution.divide_gain(scores[:, [0, 2, 1, 3, 4]])
    assert swapped.gain_of_weights.mean == pytest.approx(found.gain_of_activations.mean, abs=1e-9)
    for estimate in (found.gain, found.interaction, found.gain_of_weights):
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
    ],
)
def test_every_verdict_follows_from_its_cells(cells, verdict):
    noise = np.random.default_rng(0).normal(size=(200, 5))
    assert attribution.divide_gain(np.array([*cells, cells[3]]) + noise).verdict == verdict


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 400 data sets of 60 tasks, 95 % intervals of the gain miss the true one, 1, in about 5 %."""
    random = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        task = random.exponential(5, size=(60, 1))  # skewed, common to all cells
        scores = task + random.normal(size=(60, 5)) + np.array([0, 0, 0, 1, 0])
        gain = attribution.divide_gain(scores).gain
        missed += not gain.low <= 1 <= gain.high
    assert missed / 400 < 0.09


def test_too_few_tasks_are_refused():
    agent, env, drives = subject("random", BANDIT)
    with pytest.raises(BadInput, match="at least 20 tasks"):
        attribution.attribute(agent, env, drives, (), num_tasks=5)
