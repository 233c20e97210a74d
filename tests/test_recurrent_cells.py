"""Recurrent cells: the size of the genome, and that relabelling an environment relabels what the cells think of it."""

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
def test_the_genome_has_the_same_size_in_every_env(env):
    name, settings = plugins.parse(env)
    spec = plugins.build("environments", name, **settings).spec
    agent = plugins.build("agents", "recurrent_cells", spec, steering.build(spec))
    assert trees.num_elements(agent.genome(jax.random.key(0))) == 616


@given(seed=st.integers(0, 2**31), size=st.sampled_from([(1, 5), (4, 2), (3, 4)]))
def test_relabelling_observations_and_actions_relabels_values(seed, size):
    random = np.random.default_rng(seed)
    states, actions = size
    rule = jax.tree.map(
        lambda leaf: leaf + 0.5 * random.standard_normal(leaf.shape, np.float32),
        recurrent_cells.init_weights(jax.random.key(0), hidden_size=4, readout_size=3),
    )
    rename, reorder = random.permutation(states), random.permutation(actions)
    seen, done = random.integers(states, size=STEPS), random.integers(actions, size=STEPS)
    renamed, reordered = rename[seen], reorder[done]
    done[0] = reordered[0] = -1  # at birth
    reward, first = random.standard_normal(STEPS), np.arange(STEPS) % 5 == 0
    cells, values = lived(rule, size, percept(seen, done, reward, first))
    others, other_values = lived(rule, size, percept(renamed, reordered, reward, first))
    np.testing.assert_allclose(other_values[:, reorder], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(others.hidden[np.ix_(rename, reorder)], cells.hidden, rtol=1e-4, atol=1e-5)
    assert np.ptp(cells.hidden) > 0.1, "the cells must have taken something in for this to mean anything"


@pytest.mark.parametrize("seed", range(3))
def test_one_step_changes_one_cell_only(seed):
    random = np.random.default_rng(seed)
    spec = plugins.build("environments", "random_mdp", num_states=3, num_actions=3).spec
    rule = recurrent_cells.init_weights(jax.random.key(seed), hidden_size=4, readout_size=3)
    cells, _ = recurrent_cells.step_cells(rule, nothing(spec, units=4), percept(0, -1, 0.0, True), spec)
    assert not np.any(cells.hidden), "at birth there is nothing to take in"
    where = 0
    for _ in range(6):
        action, successor = random.integers(3), random.integers(3)
        before = np.asarray(cells.hidden)
        cells, _ = recurrent_cells.step_cells(rule, cells, percept(successor, action, 1.0, False), spec)
        changed = np.any(np.asarray(cells.hidden) != before, axis=-1)
        assert changed[where, action] and changed.sum() == 1
        np.testing.assert_array_equal(cells.row, cells.hidden[successor])
        where = successor


@partial(jax.jit, static_argnames="size")
def lived(rule, size, percepts):
    """The cells after a life of given percepts, and the values [T, A] on the way."""
    spec = plugins.build("environments", "random_mdp", num_states=size[0], num_actions=size[1], horizon=5, num_episodes=5).spec
    step = partial(recurrent_cells.step_cells, spec=spec)
    return jax.lax.scan(lambda cells, percept: step(rule, cells, percept), nothing(spec, units=4), percepts)


def nothing(spec, units):
    agent = plugins.build("agents", "recurrent_cells", spec, steering.build(spec), hidden_size=units, readout_size=3)
    return agent.init(jax.random.key(0), agent.genome(jax.random.key(0))).activations


def percept(observation, action, reward, first):
    reward = jnp.float32(reward)
    observation, action, first = jnp.int32(observation), jnp.int32(action), jnp.bool_(first)
    return Percept(observation, action, reward, reward[..., None], first, jnp.ones_like(reward))
