"""The agent `recurrent_cells`: the size of its genome, and that relabeling an environment relabels its values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny import plugins, steering, trees
from ontogeny.agents import recurrent_cells
from ontogeny.types import Percept

STEPS = 25


@pytest.mark.parametrize("env", ["bandit", "random_mdp:num_states=4,num_actions=3", "two_step"])
def test_genome_has_the_same_size_in_every_env(env):
    name, settings = plugins.parse(env)
    spec = plugins.build("environments", name, **settings).spec
    agent = plugins.build("agents", "recurrent_cells", spec, steering.build(spec))
    assert trees.num_elements(agent.genome(jax.random.key(0))) == 616


@given(seed=st.integers(0, 2**31), size=st.sampled_from([(1, 5), (4, 2), (3, 4)]))
def test_relabeling_observations_and_actions_relabels_values(seed, size):
    random = np.random.default_rng(seed)
    states, actions = size
    weights = jax.tree.map(
        lambda leaf: leaf + 0.5 * random.standard_normal(leaf.shape, np.float32),
        recurrent_cells.init_weights(jax.random.key(0), hidden_size=4, readout_size=3),
    )
    new_labels, new_actions = random.permutation(states), random.permutation(actions)
    observations, chosen = random.integers(states, size=STEPS), random.integers(actions, size=STEPS)
    relabeled, relabeled_actions = new_labels[observations], new_actions[chosen]
    chosen[0] = relabeled_actions[0] = -1  # at the start of a lifetime
    reward, first = random.standard_normal(STEPS), np.arange(STEPS) % 5 == 0
    cells, values = scan_percepts(weights, size, make_percepts(observations, chosen, reward, first))
    relabeled_cells, relabeled_values = scan_percepts(
        weights, size, make_percepts(relabeled, relabeled_actions, reward, first)
    )
    np.testing.assert_allclose(relabeled_values[:, new_actions], values, rtol=1e-4, atol=1e-5)
    permuted = relabeled_cells.hidden[np.ix_(new_labels, new_actions)]
    np.testing.assert_allclose(permuted, cells.hidden, rtol=1e-4, atol=1e-5)
    assert np.ptp(cells.hidden) > 0.1, "the comparison is empty if the cells have not changed"


@pytest.mark.parametrize("seed", range(3))
def test_one_step_changes_a_single_recurrent_cell(seed):
    random = np.random.default_rng(seed)
    spec = plugins.build("environments", "random_mdp", num_states=3, num_actions=3).spec
    weights = recurrent_cells.init_weights(jax.random.key(seed), hidden_size=4, readout_size=3)
    first_percept = make_percepts(0, -1, 0.0, True)
    cells, _ = recurrent_cells.step_cells(weights, init_activations(spec), first_percept, spec)
    assert not np.any(cells.hidden), "the first step of a lifetime must not change any cell"
    observation = 0
    for _ in range(6):
        action, successor = random.integers(3), random.integers(3)
        before = np.asarray(cells.hidden)
        cells, _ = recurrent_cells.step_cells(weights, cells, make_percepts(successor, action, 1.0, False), spec)
        changed = np.any(np.asarray(cells.hidden) != before, axis=-1)
        assert changed[observation, action] and changed.sum() == 1
        np.testing.assert_array_equal(cells.row, cells.hidden[successor])
        observation = successor


@partial(jax.jit, static_argnames="size")
def scan_percepts(weights, size, percepts):
    """The cells after a sequence of percepts, and the values [T, A] at every step."""
    spec = plugins.build(
        "environments", "random_mdp", num_states=size[0], num_actions=size[1], horizon=5, num_episodes=5
    ).spec
    step = partial(recurrent_cells.step_cells, spec=spec)
    return jax.lax.scan(lambda cells, percept: step(weights, cells, percept), init_activations(spec), percepts)


def init_activations(spec):
    agent = plugins.build("agents", "recurrent_cells", spec, steering.build(spec), hidden_size=4, readout_size=3)
    return agent.init(jax.random.key(0), agent.genome(jax.random.key(0))).activations


def make_percepts(observation, action, reward, first):
    reward = jnp.float32(reward)
    observation, action, first = jnp.int32(observation), jnp.int32(action), jnp.bool_(first)
    return Percept(observation, action, reward, reward[..., None], first, jnp.ones_like(reward))
