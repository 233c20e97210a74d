"""Baseline agents against their sources: indices, posterior samples, updates, order of scores, published scores."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, rng, steering
from ontogeny.content import beta_bernoulli, gittins_index, tabular_posterior
from ontogeny.content.gamma import sample_log_gamma
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout_lifetime
from ontogeny.studies import published
from ontogeny.tracing import lazy_cond
from ontogeny.types import HIDDEN_OBSERVATION, FeaturePrior, Percept, Prior, Transition


def scores(agent: str, env: str, num_lifetimes: int) -> np.ndarray:
    """Scores [num_lifetimes] of whole lifetimes, on the same tasks for every agent."""
    name, settings = plugins.parse(env)
    built_env = plugins.build("environments", name, **settings)
    drives = steering.build(built_env.spec)
    name, settings = plugins.parse(agent)
    built = plugins.build("agents", name, built_env.spec, drives, **settings)

    def score(key):
        _, trajectory = rollout_lifetime(key, built, built_env, drives, built.genome(key), learning=built.learning)
        return jnp.sum(jax.vmap(built_env.score)(trajectory.outcome))

    keys = rng.sample_lifetime_keys(jax.random.key(7), num_lifetimes, "validation")
    return np.asarray(jax.jit(jax.vmap(score))(keys))


def exact_index(pulls: int, successes: int, to_go: int) -> float:
    """The finite-horizon Gittins index from its definition, by bisection: uniform prior."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        payout = (low + high) / 2

        @cache
        def gain(j: int, s: int, m: int, payout: float = payout) -> float:
            if m == 0:
                return 0.0
            p = (s + 1) / (j + 2)
            return p - payout + p * max(0, gain(j + 1, s + 1, m - 1)) + (1 - p) * max(0, gain(j + 1, s, m - 1))

        low, high = (payout, high) if gain(pulls, successes, to_go) > 0 else (low, payout)
    return low


def test_gittins_index_of_two_pulls_is_five_ninths():
    """By hand: (1/2 + (1/2)(2/3)) / (1 + 1/2) = 5/9, staying with the arm only after a success."""
    table = gittins_index.compute_table(10)
    index = [float(gittins_index.gittins_indices(table, jnp.zeros(1), jnp.zeros(1), jnp.float32(m))[0]) for m in (1, 2)]
    assert index == pytest.approx([1 / 2, 5 / 9], abs=1e-6)


@pytest.mark.parametrize(
    ("pulls", "successes", "to_go"), [(0, 0, 40), (3, 1, 20), (5, 5, 10), (20, 18, 30), (12, 3, 2)]
)
def test_gittins_index_equals_its_definition(pulls: int, successes: int, to_go: int):
    table = gittins_index.compute_table(60)
    counts = jnp.array([pulls * 1.0]), jnp.array([successes * 1.0])
    index = gittins_index.gittins_indices(table, *counts, jnp.float32(to_go))
    assert float(index[0]) == pytest.approx(exact_index(pulls, successes, to_go), abs=1e-3)


def test_gittins_index_beyond_the_table_is_scaled():
    """A long lifetime has a smaller table; where it scales, it agrees with the exact index of a shorter lifetime."""
    short, long = gittins_index.compute_table(100), gittins_index.compute_table(120)
    for pulls, successes, to_go in ((60, 30, 40), (55, 40, 30), (70, 60, 25)):
        arguments = (jnp.array([pulls * 1.0]), jnp.array([successes * 1.0]), jnp.float32(to_go))
        exact, scaled = (float(gittins_index.gittins_indices(table, *arguments)[0]) for table in (short, long))
        mean = (successes + 1) / (pulls + 2)
        assert exact > mean
        assert scaled - mean == pytest.approx(exact - mean, rel=0.15)


def test_gamma_samples_have_the_moments_of_their_distribution():
    a = jnp.array([0.02, 0.5, 1.0, 3.0, 40.0])
    samples = np.exp(np.asarray(sample_log_gamma(jax.random.key(0), jnp.tile(a, (40_000, 1))), np.float64))
    se = np.sqrt(np.asarray(a) / 40_000)
    assert np.all(np.abs(samples.mean(0) - a) < 5 * se)
    assert samples.var(0)[1:] == pytest.approx(np.asarray(a[1:]), rel=0.08)


def test_sampled_tasks_follow_the_posterior():
    prior = Prior(1.0, (FeaturePrior("normal", 1.0, 1.0, noise=1.0), FeaturePrior("bernoulli", 1.0, 1.0)))
    evidence = tabular_posterior.TabularEvidence(
        successor_counts=jnp.array([[[3.0, 0.0]], [[0.0, 0.0]]]),
        end_counts=jnp.array([[5.0], [0.0]]),
        visit_counts=jnp.array([[8.0], [0.0]]),
        feature_sums=jnp.array([[[16.0, 6.0]], [[0.0, 0.0]]]),
    )
    keys = jax.random.split(jax.random.key(1), 20_000)
    tasks = jax.vmap(lambda key: tabular_posterior.sample_task(key, prior, evidence))(keys)
    successors, outcome_features = np.asarray(tasks.successors).mean(0), np.asarray(tasks.outcome_features).mean(0)
    assert successors[0, 0] == pytest.approx([0.4, 0.1], abs=0.01)
    assert np.asarray(tasks.successors)[:, 1].sum(-1) == pytest.approx(1, abs=1e-5)  # no end was observed there
    assert outcome_features[0, 0] == pytest.approx([17 / 9, 0.7], abs=0.02)
    assert np.asarray(tasks.outcome_features)[:, 1, 0, 0].std() == pytest.approx(1, abs=0.03)


def test_q_learning_update_equals_the_hand_computed_one():
    spec = plugins.build("environments", "random_mdp", num_states=3, num_actions=2).spec
    agent = plugins.build("agents", "q_learning", spec, steering.build(spec), learning_rate=0.5, discount=0.5)
    state = agent.init(jax.random.key(0), ())
    table = jnp.array([[0.0, 1.0], [2.0, 4.0], [0.0, 0.0]])
    state = state._replace(weights=state.weights._replace(content=table))

    def updated_value(reward: float, first: bool, discount: float, final_observation: int = 1) -> float:
        def percept(observation: int, reward: float, first: bool, discount: float) -> Percept:
            numbers = (jnp.float32(reward), jnp.full(1, reward), jnp.bool_(first), jnp.float32(discount))
            return Percept(jnp.int32(observation), jnp.int32(0), *numbers)

        after = percept(2 if first else 1, reward, first, discount)
        transition = Transition(percept(0, 0, False, 1), jnp.int32(1), after, jnp.int32(final_observation))
        new_state, _ = agent.learn(jax.random.key(0), state, transition)
        return float(new_state.weights.content[0, 1])

    assert updated_value(3, False, 1) == 1 + 0.5 * (3 + 0.5 * 4 - 1)
    assert updated_value(3, True, 0) == 1 + 0.5 * (3 - 1)  # the value of a terminal step is its reward
    assert updated_value(3, True, 1) == 1 + 0.5 * (3 + 0.5 * 4 - 1)  # bootstraps from the final observation
    assert updated_value(3, True, 1, HIDDEN_OBSERVATION) == 1  # without a successor nothing is learned


def test_counts_add_the_last_pull_and_its_reward():
    spec = plugins.build("environments", "bandit", num_arms=3).spec
    for drive, successes in ((1.0, [0, 1, 0]), (-2.0, [0, 0, 0])):
        prior = beta_bernoulli.bandit_prior(spec, steering.build(spec, {"payout": drive}))
        empty = beta_bernoulli.init_counts(prior)
        pulled = Percept(jnp.int32(0), jnp.int32(1), jnp.float32(drive), jnp.ones(1), jnp.bool_(True), jnp.float32(0))
        counts = beta_bernoulli.update_counts(prior, empty, pulled)
        assert counts.pulls.tolist() == [0, 1, 0] and counts.successes.tolist() == successes
        first = pulled._replace(action=jnp.int32(-1), reward=jnp.float32(0))
        assert beta_bernoulli.update_counts(prior, empty, first).pulls.tolist() == [0, 0, 0]


def test_lazy_cond_of_a_batch_equals_lazy_cond_of_each_element():
    conditions, operands, otherwise = jnp.array([True, False, True]), jnp.arange(3.0), jnp.full(3, -1.0)

    def square_where(condition, operand, otherwise):
        return lazy_cond(condition, lambda x: x * x, operand, otherwise)

    assert jax.vmap(square_where)(conditions, operands, otherwise).tolist() == [0, -1, 4]
    assert jax.vmap(square_where, (None, 0, None))(jnp.bool_(True), operands, otherwise[0]).tolist() == [0, 1, 4]
    nested = jax.vmap(jax.vmap(square_where))(conditions[None], operands[None], otherwise[None])
    assert nested.tolist() == [[0, -1, 4]]


def test_bandit_strategies_reject_envs_with_states():
    spec = plugins.build("environments", "random_mdp").spec
    for agent in ("greedy", "epsilon_greedy", "ucb1", "thompson", "gittins"):
        with pytest.raises(BadInput, match="is for bandits"):
            plugins.build("agents", agent, spec, steering.build(spec))


@pytest.mark.parametrize(
    ("env", "agents", "num_lifetimes"),
    [
        ("bandit:num_arms=5,num_pulls=30", ("gittins", "ucb1", "thompson", "greedy", "random"), 400),
        pytest.param("random_mdp:num_episodes=10", ("psrl", "random"), 200, marks=pytest.mark.slow),
        pytest.param("two_step:num_trials=40", ("q_learning", "psrl", "random"), 200, marks=pytest.mark.slow),
        pytest.param(
            "foraging:size=3,num_episodes=5",
            ("q_learning", "certainty_equivalence", "random"),
            60,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_agent_beats_the_oracle(env: str, agents: tuple[str, ...], num_lifetimes: int):
    oracle, lowest = scores("oracle", env, num_lifetimes), scores("random", env, num_lifetimes)
    for agent in agents:
        margin = oracle - (agent_scores := scores(agent, env, num_lifetimes))
        assert margin.mean() > 3 * margin.std() / num_lifetimes**0.5, agent
        if agent != "random":
            margin = agent_scores - lowest
            assert margin.mean() > 2 * margin.std() / num_lifetimes**0.5, f"{agent} is no better than chance"


def test_oracle_equals_the_best_of_all_action_sequences():
    """Early ends save steps: the best of all 4^6 sequences of six actions, however they divide into episodes."""
    env = plugins.build("environments", "foraging", size=3, wall_fraction=0.0, num_thorns=1, horizon=3, num_episodes=2)
    drives = steering.build(env.spec)
    oracle = plugins.build("agents", "oracle", env.spec, drives)
    sequences = jnp.array(list(itertools.product(range(4), repeat=6)), jnp.int32)

    @jax.jit
    def best_return(key):
        def total_reward(actions):
            step = lambda state, action: env.step(key, state, action)  # noqa: E731
            return jnp.sum(drives(jax.lax.scan(step, start, actions)[1].outcome))

        start, _ = env.reset(rng.split_lifetime_key(key).task)
        return jnp.max(jax.vmap(total_reward)(sequences))

    @jax.jit
    def oracle_return(key):
        return jnp.sum(rollout_lifetime(key, oracle, env, drives, (), learning=False)[1].reward)

    keys = rng.sample_lifetime_keys(jax.random.key(2), 12, "validation")
    np.testing.assert_allclose([oracle_return(key) for key in keys], [best_return(key) for key in keys], atol=1e-5)


def test_oracle_is_an_upper_bound_where_episodes_end_early():
    oracle = scores("oracle", "foraging:size=3,wall_fraction=0.0,num_thorns=1,horizon=8,num_episodes=8", 40)
    model_based = scores("model_based", "foraging:size=3,wall_fraction=0.0,num_thorns=1,horizon=8,num_episodes=8", 40)
    assert (oracle >= model_based - 1e-3).all(), "an agent that knows the task scored less than one that does not"


@pytest.mark.parametrize(("algorithm", "agent"), list(published.MATCHING_AGENTS[1].items()))
def test_bandit_baselines_reach_the_published_scores(algorithm: str, agent: str):
    if (1, algorithm) in published.DISCREPANCY_NOTES:
        return
    agent_scores = scores(agent, "bandit:num_arms=5,num_pulls=100", 1500)
    published_score = published.find_published_scores("bandit", {"num_arms": 5, "num_pulls": 100})[algorithm]
    standard_error = agent_scores.std() / len(agent_scores) ** 0.5
    assert published.is_consistent(agent_scores.mean(), standard_error, published_score)


@pytest.mark.parametrize(
    "algorithm", ["PSRL", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Random", "ε-Greedy"))]
)
def test_mdp_baselines_reach_the_published_scores(algorithm: str):
    agent_scores = scores(published.MATCHING_AGENTS[2][algorithm], "random_mdp:num_episodes=10", 500)
    published_score = {row.n: row.scores for row in published.list_rows() if row.table == 2}[10][algorithm]
    standard_error = agent_scores.std() / len(agent_scores) ** 0.5
    assert published.is_consistent(agent_scores.mean(), standard_error, published_score)
