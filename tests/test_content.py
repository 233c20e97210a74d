"""Learned content: posteriors against textbooks, planning against brute force, bonuses against dynamic programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.content import action_values, planning, tabular_model
from ontogeny.content.base import init_orthogonal
from ontogeny.errors import BadInput
from ontogeny.types import EnvSpec, FeaturePrior, Prior

S, A, H = 3, 2, 4
FEATURES = (FeaturePrior("normal", 1.0, 2.0, noise=0.5), FeaturePrior("bernoulli", 1.0, 2.0))
SPEC = EnvSpec("tiny", A, S, (), ("gain", "payout"), 40, H, (), Prior(0.5, FEATURES))
MODEL = tabular_model.build(SPEC)
PLAN = jax.jit(planning.value_iteration, static_argnums=2)

STEPS = st.lists(
    st.tuples(
        st.integers(0, S - 1),
        st.integers(0, A - 1),
        st.tuples(st.floats(-3, 3, width=32), st.sampled_from([0.0, 1.0])),
        st.integers(0, S - 1),
        st.booleans(),  # is_end
        st.booleans(),  # is_observed
    ),
    max_size=12,
)


def evidence_of(steps):
    weights = MODEL.init()
    for observation, action, outcome, successor, is_end, is_observed in steps:
        outcome, is_end, is_observed = jnp.array(outcome), jnp.bool_(is_end), jnp.bool_(is_observed)
        weights = MODEL.update(weights, observation, action, outcome, successor, is_end, is_observed)
    return weights


def batch_posterior(steps, observation, action):
    """The posterior of one (observation, action), written from the densities: precisions add, pseudo-counts add."""
    visits = [step for step in steps if step[:2] == (observation, action)]
    gains = [step[2][0] for step in visits]
    prior_precision, precision = 1 / FEATURES[0].b ** 2, 1 / FEATURES[0].noise ** 2
    posterior_precision = prior_precision + len(visits) * precision
    gain = (prior_precision * FEATURES[0].a + precision * sum(gains)) / posterior_precision
    alpha = FEATURES[1].a + sum(step[2][1] for step in visits)
    beta = FEATURES[1].b + sum(1 - step[2][1] for step in visits)
    observed = [step for step in visits if step[5]]
    counts = np.array([0.5 + sum(step[3] == s and not step[4] for step in observed) for s in range(S)])
    payout, payout_variance = alpha / (alpha + beta), alpha * beta / (alpha + beta) ** 2 / (alpha + beta + 1)
    evidence = [posterior_precision / precision, payout * (1 - payout) / payout_variance]
    return counts / (0.5 * S + len(observed)), [gain, payout], evidence


@given(STEPS)
def test_sequential_posterior_equals_batch_posterior(steps):
    prediction = MODEL.query(evidence_of(steps))
    for s, a in itertools.product(range(S), range(A)):
        successors, outcome_features, evidence = batch_posterior(steps, s, a)
        np.testing.assert_allclose(prediction.successors[s, a], successors, rtol=1e-5)
        np.testing.assert_allclose(prediction.outcome_features[s, a], outcome_features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(prediction.feature_evidence[s, a], evidence, rtol=1e-4)


@given(STEPS, st.randoms(use_true_random=False))
def test_evidence_is_independent_of_the_order_of_steps(steps, random):
    shuffled = random.sample(steps, len(steps))
    for leaf, shuffled_leaf in zip(evidence_of(steps), evidence_of(shuffled), strict=True):
        np.testing.assert_allclose(leaf, shuffled_leaf, atol=1e-5)


def test_comparison_with_batch_posterior_detects_a_planted_error():
    """A model that counts a successor that was not observed differs from the batch posterior."""
    steps = [(0, 0, (1.0, 1.0), 2, False, False)]
    planted = [(*step[:5], True) for step in steps]
    expected = batch_posterior(steps, 0, 0)[0]
    assert not np.allclose(MODEL.query(evidence_of(planted)).successors[0, 0], expected)


def test_env_without_a_prior_is_rejected():
    with pytest.raises(BadInput, match="tiny"):
        tabular_model.build(SPEC._replace(prior=None))


def brute_force(rewards, successors, horizon):
    """The best value of the first observation over all deterministic policies that may depend on the steps to go."""
    states, actions = rewards.shape
    best = -np.inf
    for policy in itertools.product(range(actions), repeat=states * horizon):
        policy = np.reshape(policy, (horizon, states))
        values = np.zeros(states)
        for chosen in policy:
            values = np.array([rewards[s, a] + successors[s, a] @ values for s, a in enumerate(chosen)])
        best = max(best, values[0])
    return best


@given(st.integers(0, 2**31))
def test_value_iteration_equals_brute_force(seed):
    random = np.random.default_rng(seed)
    rewards = random.normal(size=(2, 2))
    successors = random.dirichlet(np.ones(3), size=(2, 2))[..., :2]  # a third of the mass ends the episode
    planned = PLAN(jnp.array(rewards), jnp.array(successors), 3)
    assert planned.shape == (3, 2, 2)
    np.testing.assert_allclose(planned[-1, 0].max(), brute_force(rewards, successors, 3), rtol=1e-4, atol=1e-5)


def exact_index_bonus(total, first=1):
    """Index minus mean by backward induction for n + N = `total` fixed, {n: bonus}; the standardized mean on a grid."""
    z = np.linspace(-6, 4, 1001)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(41)
    node_weights = node_weights / node_weights.sum()
    values, bonus = np.zeros_like(z), {}
    for n in range(total - 1, first - 1, -1):
        mean, deviation = z / np.sqrt(n), np.sqrt(1 / n - 1 / (n + 1))
        next_z = (mean[:, None] + deviation * nodes) * np.sqrt(n + 1)
        beyond = np.maximum(next_z - z[-1], 0) / np.sqrt(n + 1) * (total - 1 - n)
        continuation = mean + (np.interp(next_z, z, values) + beyond) @ node_weights
        bonus[n] = -np.interp(0, continuation, z) / np.sqrt(n)
        values = np.maximum(continuation, 0)
    return bonus


@pytest.mark.parametrize("total", [3, 11, 51, 201])
def test_normal_bonus_equals_finite_horizon_gittins_index(total):
    for n, exact in exact_index_bonus(total).items():
        fitted = float(planning.normal_index_bonus(jnp.float32(n), jnp.float32(total - n)))
        assert abs(fitted - exact) < 0.01 + 0.03 * exact, (n, total - n)


@given(st.floats(0.01, 0.99), st.floats(2, 500), st.floats(1, 500))
def test_index_of_a_probability_is_a_probability(mean, evidence, pulls):
    bonus = float(planning.bernoulli_index_bonus(jnp.float32(mean), jnp.float32(evidence), jnp.float32(pulls)))
    assert -1e-5 <= bonus <= 1 - mean + 1e-5
    if pulls == 1:
        assert abs(bonus) < 1e-5


def test_action_values_are_indexed_by_steps_to_go():
    values = action_values.build(SPEC)
    table = values.update(values.init(), jnp.arange(H * S * A).reshape(H, S, A))
    assert values.query(table, jnp.int32(1), jnp.int32(1)).tolist() == [2, 3]
    assert values.query(table, jnp.int32(0), jnp.int32(H)).tolist() == [18, 19]


@pytest.mark.parametrize("size", [1, 2, 48])
def test_orthogonal_weights_equal_those_of_a_qr_decomposition(size):
    key = jax.random.key(size)
    matrix = init_orthogonal(key, size)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-5)
    np.testing.assert_allclose(matrix, jax.nn.initializers.orthogonal()(key, (size, size)), atol=1e-4)
