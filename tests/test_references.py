"""The reference agents do what their sources say: indices, draws, updates, order of scores, agreement with print."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, rng, steering
from ontogeny.content import beta_bernoulli, episode_plan, gittins_index, tabular_posterior
from ontogeny.content.gamma import sample_log_gamma
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout_lifetime
from ontogeny.studies import published
from ontogeny.types import FeaturePrior, Percept, Prior, Transition


def scores(agent: str, env: str, num_lifetimes: int) -> np.ndarray:
    """Scores of whole lives, [num_lives], the same tasks for every agent."""
    name, given = plugins.parse(env)
    built = plugins.build("environments", name, **given)
    drives = steering.build(built.spec)
    name, given = plugins.parse(agent)
    subject = plugins.build("agents", name, built.spec, drives, **given)

    def one(key):
        _, trajectory = rollout_lifetime(key, subject, built, drives, subject.genome(key), learning=subject.learning)
        return jnp.sum(jax.vmap(built.score)(trajectory.outcome))

    keys = rng.sample_lifetime_keys(jax.random.key(7), num_lifetimes, "validation")
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def exact_index(pulls: int, successes: int, to_go: int) -> float:
    """The finite-horizon Gittins index from its definition, by bisection: uniform prior."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        known = (low + high) / 2

        @cache
        def gain(j: int, s: int, m: int, known: float = known) -> float:
            if m == 0:
                return 0.0
            p = (s + 1) / (j + 2)
            return p - known + p * max(0, gain(j + 1, s + 1, m - 1)) + (1 - p) * max(0, gain(j + 1, s, m - 1))

        low, high = (known, high) if gain(pulls, successes, to_go) > 0 else (low, known)
    return low


def test_gittins_index_of_two_pulls_is_five_ninths():
    """By hand: (1/2 + (1/2)(2/3)) / (1 + 1/2) = 5/9, staying with the arm only after a success."""
    table = gittins_index.compute_table(10)
    index = [float(gittins_index.gittins_indices(table, jnp.zeros(1), jnp.zeros(1), jnp.float32(m))[0]) for m in (1, 2)]
    assert index == pytest.approx([1 / 2, 5 / 9], abs=1e-6)


@pytest.mark.parametrize(
    ("pulls", "successes", "to_go"), [(0, 0, 40), (3, 1, 20), (5, 5, 10), (20, 18, 30), (12, 3, 2)]
)
def test_gittins_index_is_that_of_its_definition(pulls: int, successes: int, to_go: int):
    table = gittins_index.compute_table(60)
    found = gittins_index.gittins_indices(table, jnp.array([pulls * 1.0]), jnp.array([successes * 1.0]), jnp.float32(to_go))
    assert float(found[0]) == pytest.approx(exact_index(pulls, successes, to_go), abs=1e-3)


def test_gittins_index_beyond_the_table_is_scaled():
    """A long life keeps a smaller table; where it must scale, it agrees with the exact index of a shorter life."""
    short, long = gittins_index.compute_table(100), gittins_index.compute_table(120)
    for pulls, successes, to_go in ((60, 30, 40), (55, 40, 30), (70, 60, 25)):
        given = (jnp.array([pulls * 1.0]), jnp.array([successes * 1.0]), jnp.float32(to_go))
        exact, scaled = (float(gittins_index.gittins_indices(table, *given)[0]) for table in (short, long))
        mean = (successes + 1) / (pulls + 2)
        assert exact > mean
        assert scaled - mean == pytest.approx(exact - mean, rel=0.15)


def test_draws_have_the_moments_of_their_distributions():
    a = jnp.array([0.02, 0.5, 1.0, 3.0, 40.0])
    drawn = np.exp(np.asarray(sample_log_gamma(jax.random.key(0), jnp.tile(a, (40_000, 1))), np.float64))
    se = np.sqrt(np.asarray(a) / 40_000)
    assert np.all(np.abs(drawn.mean(0) - a) < 5 * se)
    assert drawn.var(0)[1:] == pytest.approx(np.asarray(a[1:]), rel=0.08)


def test_a_drawn_task_follows_the_evidence():
    prior = Prior(1.0, (FeaturePrior("normal", 1.0, 1.0, noise=1.0), FeaturePrior("bernoulli", 1.0, 1.0)))
    evidence = tabular_posterior.TabularEvidence(
        successor_counts=jnp.array([[[3.0, 0.0]], [[0.0, 0.0]]]),
        end_counts=jnp.array([[5.0], [0.0]]),
        visit_counts=jnp.array([[8.0], [0.0]]),
        feature_sums=jnp.array([[[16.0, 6.0]], [[0.0, 0.0]]]),
    )
    drawn = jax.vmap(lambda key: tabular_posterior.sample_task(key, prior, evidence))(jax.random.split(jax.random.key(1), 20_000))
    successors, outcome_features = np.asarray(drawn.successors).mean(0), np.asarray(drawn.outcome_features).mean(0)
    assert successors[0, 0] == pytest.approx([0.4, 0.1], abs=0.01)
    assert np.asarray(drawn.successors)[:, 1].sum(-1) == pytest.approx(1, abs=1e-5)  # an end never seen is never drawn
    assert outcome_features[0, 0] == pytest.approx([17 / 9, 0.7], abs=0.02)
    assert np.asarray(drawn.outcome_features)[:, 1, 0, 0].std() == pytest.approx(1, abs=0.03)


def test_q_learning_updates_as_by_hand():
    spec = plugins.build("environments", "random_mdp", num_states=3, num_actions=2).spec
    agent = plugins.build("agents", "q_learning", spec, steering.build(spec), learning_rate=0.5, discount=0.5)
    state = agent.init(jax.random.key(0), ())
    table = jnp.array([[0.0, 1.0], [2.0, 4.0], [0.0, 0.0]])
    state = state._replace(weights=state.weights._replace(content=table))

    def learned(reward: float, first: bool, discount: float) -> float:
        def percept(observation: int, reward: float, first: bool, discount: float) -> Percept:
            numbers = (jnp.float32(reward), jnp.full(1, reward), jnp.bool_(first), jnp.float32(discount))
            return Percept(jnp.int32(observation), jnp.int32(0), *numbers)

        before, then = percept(0, 0, False, 1), percept(1, reward, first, discount)
        after, _ = agent.learn(jax.random.key(0), state, Transition(before, jnp.int32(1), then))
        return float(after.weights.content[0, 1])

    assert learned(3, False, 1) == 1 + 0.5 * (3 + 0.5 * 4 - 1)
    assert learned(3, True, 0) == 1 + 0.5 * (3 - 1)  # a true end is worth its reward
    assert learned(3, True, 1) == 1  # at a time limit the successor is not seen: nothing to learn from


def test_counts_take_in_what_was_pulled_and_paid():
    spec = plugins.build("environments", "bandit", num_arms=3).spec
    for drive, successes in ((1.0, [0, 1, 0]), (-2.0, [0, 0, 0])):
        arms = beta_bernoulli.bandit_prior(spec, steering.build(spec, {"payout": drive}))
        nothing = beta_bernoulli.init_counts(arms)
        pulled = Percept(jnp.int32(0), jnp.int32(1), jnp.float32(drive), jnp.ones(1), jnp.bool_(True), jnp.float32(0))
        counts = beta_bernoulli.update_counts(arms, nothing, pulled)
        assert counts.pulls.tolist() == [0, 1, 0] and counts.successes.tolist() == successes
        born = pulled._replace(action=jnp.int32(-1), reward=jnp.float32(0))
        assert beta_bernoulli.update_counts(arms, nothing, born).pulls.tolist() == [0, 0, 0]


def test_only_where_computes_for_a_batch_what_it_computes_for_one():
    conditions, given, rest = jnp.array([True, False, True]), jnp.arange(3.0), jnp.full(3, -1.0)

    def one(condition, given, rest):
        return episode_plan.lazy_cond(condition, lambda x: x * x, given, rest)

    assert jax.vmap(one)(conditions, given, rest).tolist() == [0, -1, 4]
    assert jax.vmap(one, (None, 0, None))(jnp.bool_(True), given, rest[0]).tolist() == [0, 1, 4]
    nested = jax.vmap(jax.vmap(one))(conditions[None], given[None], rest[None])
    assert nested.tolist() == [[0, -1, 4]]


def test_bandit_strategies_refuse_envs_with_states():
    spec = plugins.build("environments", "random_mdp").spec
    for agent in ("greedy", "epsilon_greedy", "ucb1", "thompson", "gittins"):
        with pytest.raises(BadInput, match="is for bandits"):
            plugins.build("agents", agent, spec, steering.build(spec))


@pytest.mark.parametrize(
    ("env", "others", "num_lives"),
    [
        ("bandit:num_arms=5,num_pulls=30", ("gittins", "ucb1", "thompson", "greedy", "random"), 400),
        ("random_mdp:num_episodes=10", ("psrl", "random"), 200),
        pytest.param("two_step:num_trials=40", ("q_learning", "psrl", "random"), 200, marks=pytest.mark.slow),
        pytest.param(
            "foraging:size=3,num_episodes=5", ("q_learning", "certainty_equivalence", "random"), 60, marks=pytest.mark.slow
        ),
    ],
)
def test_nobody_beats_the_oracle(env: str, others: tuple[str, ...], num_lifetimes: int):
    oracle, lowest = scores("oracle", env, num_lifetimes), scores("random", env, num_lifetimes)
    for other in others:
        ahead = oracle - (found := scores(other, env, num_lifetimes))
        assert ahead.mean() > 3 * ahead.std() / num_lifetimes**0.5, other
        if other != "random":
            ahead = found - lowest
            assert ahead.mean() > 2 * ahead.std() / num_lifetimes**0.5, f"{other} is no better than chance"


def test_the_oracle_of_a_garden_does_as_well_as_any_sequence_of_actions():
    """Early ends save steps: the best of all 4^6 ways to spend six steps of life, however they fall into episodes."""
    env = plugins.build("environments", "foraging", size=3, wall_fraction=0.0, num_thorns=1, horizon=3, num_episodes=2)
    drives = steering.build(env.spec)
    oracle = plugins.build("agents", "oracle", env.spec, drives)
    ways = jnp.array(list(itertools.product(range(4), repeat=6)), jnp.int32)

    @jax.jit
    def best(key):
        def lived(actions):
            step = lambda state, action: env.step(key, state, action)  # noqa: E731
            return jnp.sum(drives(jax.lax.scan(step, start, actions)[1].outcome))

        start, _ = env.reset(rng.split_lifetime_key(key).task)
        return jnp.max(jax.vmap(lived)(ways))

    @jax.jit
    def own(key):
        return jnp.sum(rollout_lifetime(key, oracle, env, drives, (), learning=False)[1].reward)

    keys = rng.sample_lifetime_keys(jax.random.key(2), 12, "validation")
    np.testing.assert_allclose([own(key) for key in keys], [best(key) for key in keys], atol=1e-5)


def test_an_oracle_that_plans_each_episode_by_itself_would_not_be_a_bound():
    gain = scores("oracle", "foraging:size=3,wall_fraction=0.0,num_thorns=1,horizon=8,num_episodes=8", 40)
    lone = scores("model_based", "foraging:size=3,wall_fraction=0.0,num_thorns=1,horizon=8,num_episodes=8", 40)
    assert (gain >= lone - 1e-3).all(), "whoever knows the garden cannot earn less in it than whoever does not"


@pytest.mark.parametrize(("line", "agent"), list(published.MATCHING_AGENTS[1].items()))
def test_bandit_references_land_where_the_paper_does(line: str, agent: str):
    if (1, line) in published.DISCREPANCY_NOTES:
        return
    found = scores(agent, "bandit:num_arms=5,num_pulls=100", 1500)
    printed = published.find_published_scores("bandit", {"num_arms": 5, "num_pulls": 100})[line]
    assert published.is_consistent(found.mean(), found.std() / len(found) ** 0.5, printed)


@pytest.mark.parametrize(
    "line", ["PSRL", *(pytest.param(line, marks=pytest.mark.slow) for line in ("Random", "ε-Greedy"))]
)
def test_mdp_references_land_where_the_paper_does(line: str):
    found = scores(published.MATCHING_AGENTS[2][line], "random_mdp:num_episodes=10", 500)
    printed = {row.n: row.scores for row in published.list_rows() if row.table == 2}[10][line]
    assert published.is_consistent(found.mean(), found.std() / len(found) ** 0.5, printed)
