"""The agent `recurrent`: the equations of its cell, its inputs, its initial genome, and batches of lifetimes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering, trees
from ontogeny.agents.recurrent import encode_percept
from ontogeny.content.gru_cell import GRUWeights, step_gru
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import Percept


@pytest.fixture(scope="module")
def bandit():
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=20)
    return env, steering.build(env.spec)


def build_agent(bandit, **settings):
    """An agent, and a genome whose read-out is not zero."""
    agent = plugins.build("agents", "recurrent", bandit[0].spec, bandit[1], hidden_size=7, **settings)
    genome = agent.genome(jax.random.key(0))
    return agent, genome._replace(readout=jax.random.normal(jax.random.key(1), genome.readout.shape))


def make_percept(action=1, reward=2.0):
    scalar = jnp.float32(reward)
    return Percept(jnp.int32(0), jnp.int32(action), scalar, scalar[None], jnp.bool_(True), jnp.float32(1))


def test_step_follows_the_equations_of_the_gated_recurrent_unit():
    random = np.random.default_rng(0)
    H, num_inputs, actions = 4, 3, 2
    shapes = [(H, 3 * H), (num_inputs, 3 * H), (3 * H,), (H, actions), (actions,)]
    weights = GRUWeights(*(random.normal(size=shape).astype(np.float32) for shape in shapes))
    hidden, inputs = random.normal(size=H).astype(np.float32), random.normal(size=num_inputs).astype(np.float32)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    W, U, b = (np.split(part, 3, axis=-1) for part in (weights.recurrent, weights.input, weights.bias))
    r = sigmoid(hidden @ W[0] + inputs @ U[0] + b[0])
    z = sigmoid(hidden @ W[1] + inputs @ U[1] + b[1])
    n = np.tanh(r * (hidden @ W[2]) + inputs @ U[2] + b[2])
    expected = (1 - z) * n + z * hidden
    new_hidden, logits = step_gru(weights, jnp.asarray(hidden), jnp.asarray(inputs))
    np.testing.assert_allclose(new_hidden, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected @ weights.readout + weights.readout_bias, rtol=1e-4, atol=1e-5)


def test_predictor_and_agent_compute_the_same_with_the_same_weights():
    predictor = plugins.build("content", "gru", 3, 2, hidden_size=4)
    noise = jax.random.normal(jax.random.key(1), (500,))
    weights = jax.tree.map(
        lambda leaf: leaf + noise[: leaf.size].reshape(leaf.shape), predictor.init(jax.random.key(0))
    )
    inputs = jnp.zeros((6, 3)).at[:, :2].set(jax.random.normal(jax.random.key(2), (6, 2)))  # no sequence begins
    hidden, logits = jnp.zeros(4), []
    for step_inputs in inputs:
        hidden, step_logits = step_gru(weights, hidden, step_inputs)
        logits.append(step_logits)
    np.testing.assert_allclose(predictor.query_sequence(weights, inputs), jnp.stack(logits), atol=1e-6)


def test_inputs_are_last_action_last_reward_episode_start_and_observation(bandit):
    spec = bandit[0].spec
    np.testing.assert_array_equal(encode_percept(spec, make_percept()), [0, 1, 0, 2, 1, 1])
    np.testing.assert_array_equal(encode_percept(spec, make_percept(action=-1))[:3], [0, 0, 0])


def test_genome_is_every_weight(bandit):
    H, num_inputs, actions = 7, 6, 3
    _, genome = build_agent(bandit)
    assert trees.num_elements(genome) == 3 * H * (H + num_inputs + 1) + actions * (H + 1)


def test_initial_genome_has_orthogonal_gates_and_the_update_gate_bias(bandit):
    env, drives = bandit
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=7, update_gate_bias=1.5)
    genome = agent.genome(jax.random.key(0))
    for gate in jnp.split(genome.recurrent, 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(7), atol=1e-5)
    np.testing.assert_array_equal(genome.bias, np.repeat([0, 1.5, 0], 7))


def test_lifetime_in_a_batch_equals_the_single_lifetime(bandit):
    env, drives = bandit
    agent, genome = build_agent(bandit)
    keys = jax.random.split(jax.random.key(3), 5)

    def rollout(key):
        return rollout_lifetime(key, agent, env, drives, genome, learning=False)[1]

    batch = jax.vmap(rollout)(keys)
    assert len(np.unique(batch.action)) > 1
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(batch.action[i], rollout(key).action)


def test_actions_are_the_highest_logit_or_sampled_from_the_softmax(bandit):
    env, _ = bandit
    for stochastic in (False, True):
        agent, genome = build_agent(bandit, stochastic=stochastic)
        state = agent.init(jax.random.key(0), genome)
        _, logits = step_gru(genome, state.activations, encode_percept(env.spec, make_percept()))
        keys = jax.random.split(jax.random.key(4), 4000)
        actions = jax.vmap(lambda key, act=agent.act, state=state: act(key, state, make_percept())[0])(keys)
        shares = np.bincount(actions, minlength=3) / len(keys)
        expected = jax.nn.softmax(logits) if stochastic else np.eye(3)[int(jnp.argmax(logits))]
        np.testing.assert_allclose(shares, expected, atol=0.03)
