"""The dense recurrent network: its equations, what it sees, and that a life among many is the life alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering, trees
from ontogeny.agents.recurrent import encode_percept
from ontogeny.content.gru import GRUWeights, step_gru
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import Percept


@pytest.fixture(scope="module")
def bandit():
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=20)
    return env, steering.build(env.spec)


def alive(bandit, **settings):
    """An agent and a genome whose read-out is not silent."""
    agent = plugins.build("agents", "recurrent", bandit[0].spec, bandit[1], hidden_size=7, **settings)
    genome = agent.genome(jax.random.key(0))
    return agent, genome._replace(readout=jax.random.normal(jax.random.key(1), genome.readout.shape))


def percept(action=1, reward=2.0):
    scalar = jnp.float32(reward)
    return Percept(jnp.int32(0), jnp.int32(action), scalar, scalar[None], jnp.bool_(True), jnp.float32(1))


def test_one_step_follows_the_equations_of_the_gated_recurrent_unit():
    chance = np.random.default_rng(0)
    H, inputs_, actions = 4, 3, 2
    shapes = [(H, 3 * H), (inputs_, 3 * H), (3 * H,), (H, actions), (actions,)]
    net = GRUWeights(*(chance.normal(size=shape).astype(np.float32) for shape in shapes))
    hidden, seen = chance.normal(size=H).astype(np.float32), chance.normal(size=inputs_).astype(np.float32)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    W, U, b = (np.split(part, 3, axis=-1) for part in (net.recurrent, net.input, net.bias))
    r = sigmoid(hidden @ W[0] + seen @ U[0] + b[0])
    z = sigmoid(hidden @ W[1] + seen @ U[1] + b[1])
    n = np.tanh(r * (hidden @ W[2]) + seen @ U[2] + b[2])
    expected = (1 - z) * n + z * hidden
    found, logits = step_gru(net, jnp.asarray(hidden), jnp.asarray(seen))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected @ net.readout + net.readout_bias, rtol=1e-4, atol=1e-5)


def test_it_sees_last_action_last_reward_episode_start_and_observation(bandit):
    spec = bandit[0].spec
    np.testing.assert_array_equal(encode_percept(spec, percept()), [0, 1, 0, 2, 1, 1])
    np.testing.assert_array_equal(encode_percept(spec, percept(action=-1))[:3], [0, 0, 0])


def test_the_genome_is_every_weight(bandit):
    H, inputs_, actions = 7, 6, 3
    _, genome = alive(bandit)
    assert trees.num_elements(genome) == 3 * H * (H + inputs_ + 1) + actions * (H + 1)


def test_a_line_begins_with_orthogonal_gates_and_a_bias_towards_remembering(bandit):
    agent = plugins.build("agents", "recurrent", *_of(bandit), hidden_size=7, update_gate_bias=1.5)
    genome = agent.genome(jax.random.key(0))
    for block in jnp.split(genome.recurrent, 3, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(7), atol=1e-5)
    np.testing.assert_array_equal(genome.bias, np.repeat([0, 1.5, 0], 7))


def test_a_life_among_many_is_the_life_alone(bandit):
    env, drives = bandit
    agent, genome = alive(bandit)
    keys = jax.random.split(jax.random.key(3), 5)

    def lived(key):
        return rollout_lifetime(key, agent, env, drives, genome, learning=False)[1]

    together = jax.vmap(lived)(keys)
    assert len(np.unique(together.action)) > 1
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(together.action[i], lived(key).action)


def test_actions_are_the_highest_logit_or_drawn_in_proportion(bandit):
    env, _ = bandit
    for sampled in (False, True):
        agent, genome = alive(bandit, stochastic=sampled)
        state = agent.init(jax.random.key(0), genome)
        _, logits = step_gru(genome, state.activations, encode_percept(env.spec, percept()))
        keys = jax.random.split(jax.random.key(4), 4000)
        taken = jax.vmap(lambda key, act=agent.act, state=state: act(key, state, percept())[0])(keys)
        shares = np.bincount(taken, minlength=3) / len(keys)
        expected = jax.nn.softmax(logits) if sampled else np.eye(3)[int(jnp.argmax(logits))]
        np.testing.assert_allclose(shares, expected, atol=0.03)


def _of(bandit):
    return bandit[0].spec, bandit[1]
