"""Learned content: posteriors against the textbook, planning against brute force, the bonus against its program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.content import action_values, planning, tabular_model
from ontogeny.types import BadInput, EnvSpec, FeaturePrior, Prior

S, A, H = 3, 2, 4
FACTS = (FeaturePrior("normal", 1.0, 2.0, noise=0.5), FeaturePrior("bernoulli", 1.0, 2.0))
SPEC = EnvSpec("tiny", A, S, (), ("gain", "payout"), 40, H, (), Prior(0.5, FACTS))
MODEL = tabular_model.build(SPEC)
PLAN = jax.jit(planning.value_iteration, static_argnums=2)

STEPS = st.lists(
    st.tuples(
        st.integers(0, S - 1),
        st.integers(0, A - 1),
        st.tuples(st.floats(-3, 3, width=32), st.sampled_from([0.0, 1.0])),
        st.integers(0, S - 1),
        st.booleans(),  # ended
        st.booleans(),  # seen
    ),
    max_size=12,
)


def learned(steps):
    weights = MODEL.init()
    for observation, action, outcome, successor, ended, seen in steps:
        outcome, ended, seen = jnp.array(outcome), jnp.bool_(ended), jnp.bool_(seen)
        weights = MODEL.update(weights, observation, action, outcome, successor, ended, seen)
    return weights


def batch_posterior(steps, observation, action):
    """The posterior at one (observation, action), written from the densities: precisions add, pseudo-counts add."""
    here = [step for step in steps if step[:2] == (observation, action)]
    gains = [step[2][0] for step in here]
    prior_precision, precision = 1 / FACTS[0].b ** 2, 1 / FACTS[0].noise ** 2
    posterior_precision = prior_precision + len(here) * precision
    gain = (prior_precision * FACTS[0].a + precision * sum(gains)) / posterior_precision
    alpha = FACTS[1].a + sum(step[2][1] for step in here)
    beta = FACTS[1].b + sum(1 - step[2][1] for step in here)
    known = [step for step in here if step[5]]
    counts = np.array([0.5 + sum(step[3] == s and not step[4] for step in known) for s in range(S)])
    payout, payout_variance = alpha / (alpha + beta), alpha * beta / (alpha + beta) ** 2 / (alpha + beta + 1)
    evidence = [posterior_precision / precision, payout * (1 - payout) / payout_variance]
    return counts / (0.5 * S + len(known)), [gain, payout], evidence


@given(STEPS)
def test_the_posterior_is_the_batch_posterior(steps):
    predicted = MODEL.query(learned(steps))
    for s, a in itertools.product(range(S), range(A)):
        successors, outcome_features, evidence = batch_posterior(steps, s, a)
        np.testing.assert_allclose(predicted.successors[s, a], successors, rtol=1e-5)
        np.testing.assert_allclose(predicted.outcome_features[s, a], outcome_features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(predicted.feature_evidence[s, a], evidence, rtol=1e-4)


@given(STEPS, st.randoms(use_true_random=False))
def test_the_order_of_the_evidence_does_not_matter(steps, random):
    shuffled = random.sample(steps, len(steps))
    for one, other in zip(learned(steps), learned(shuffled), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_planted_error_would_be_seen():
    """A model that counts the unseen successor differs from the batch posterior: the comparison above has teeth."""
    steps = [(0, 0, (1.0, 1.0), 2, False, False)]
    mistaken = [(*step[:5], True) for step in steps]
    right = batch_posterior(steps, 0, 0)[0]
    assert not np.allclose(MODEL.query(learned(mistaken)).successors[0, 0], right)


def test_a_env_without_a_prior_is_refused():
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
def test_planning_finds_what_brute_force_finds(seed):
    random = np.random.default_rng(seed)
    rewards = random.normal(size=(2, 2))
    successors = random.dirichlet(np.ones(3), size=(2, 2))[..., :2]  # a third of the mass ends the episode
    planned = PLAN(jnp.array(rewards), jnp.array(successors), 3)
    assert planned.shape == (3, 2, 2)
    np.testing.assert_allclose(planned[-1, 0].max(), brute_force(rewards, successors, 3), rtol=1e-4, atol=1e-5)


def exact_index_bonus(last, first=1):
    """Index minus mean by backward induction for n + N = `last` fixed, {n: bonus}; the standardised mean on a grid."""
    z = np.linspace(-6, 4, 1001)
    nodes, chances = np.polynomial.hermite_e.hermegauss(41)
    chances = chances / chances.sum()
    values, bonus = np.zeros_like(z), {}
    for n in range(last - 1, first - 1, -1):
        mean, spread = z / np.sqrt(n), np.sqrt(1 / n - 1 / (n + 1))
        then = (mean[:, None] + spread * nodes) * np.sqrt(n + 1)
        beyond = np.maximum(then - z[-1], 0) / np.sqrt(n + 1) * (last - 1 - n)
        play_on = mean + (np.interp(then, z, values) + beyond) @ chances
        bonus[n] = -np.interp(0, play_on, z) / np.sqrt(n)
        values = np.maximum(play_on, 0)
    return bonus


@pytest.mark.parametrize("last", [3, 11, 51, 201])
def test_the_bonus_is_that_of_the_finite_horizon_gittins_index(last):
    for n, exact in exact_index_bonus(last).items():
        fitted = float(planning.normal_index_bonus(jnp.float32(n), jnp.float32(last - n)))
        assert abs(fitted - exact) < 0.01 + 0.03 * exact, (n, last - n)


@given(st.floats(0.01, 0.99), st.floats(2, 500), st.floats(1, 500))
def test_the_index_of_a_probability_is_a_probability(mean, evidence, pulls):
    bonus = float(planning.bernoulli_index_bonus(jnp.float32(mean), jnp.float32(evidence), jnp.float32(pulls)))
    assert -1e-5 <= bonus <= 1 - mean + 1e-5
    if pulls == 1:
        assert abs(bonus) < 1e-5


def test_values_are_asked_by_the_steps_to_go():
    values = action_values.build(SPEC)
    table = values.update(values.init(), jnp.arange(H * S * A).reshape(H, S, A))
    assert values.query(table, jnp.int32(1), jnp.int32(1)).tolist() == [2, 3]
    assert values.query(table, jnp.int32(0), jnp.int32(H)).tolist() == [18, 19]
