"""The model-based agent: what it learns from, what it ignores, and that its scores are those it is known for."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, rng, steering
from ontogeny.rollouts import rollout_lifetime
from ontogeny.studies import published
from ontogeny.types import BadInput


def built(env, **settings):
    name, given = plugins.parse(env)
    env = plugins.build("environments", name, **given)
    drives = steering.build(env.spec)
    return env, drives, plugins.build("agents", "model_based", env.spec, drives, **settings)


@cache
def scores(env, num_lifetimes, **settings):
    """[lives]; one task and all its chance for each key, whoever lives in it."""
    env, drives, agent = built(env, **settings)

    def one(key):
        trajectory = rollout_lifetime(key, agent, env, drives, agent.genome(key), learning=True)[1]
        return jnp.sum(jax.vmap(env.score)(trajectory.outcome))

    return np.asarray(jax.jit(jax.vmap(one))(rng.sample_lifetime_keys(jax.random.key(7), num_lifetimes, "validation")))


def test_it_is_far_above_posterior_sampling_on_random_mdps():
    """RL^2, Table 2, n = 25: every printed line but RL^2's own by more than 3 standard errors of 256 lives."""
    found = scores("random_mdp:num_episodes=25", 256)
    printed = published.find_published_scores("random_mdp", {"states": 10, "actions": 5, "horizon": 10, "episodes": 25})
    assert printed["PSRL"] == 408.8 and printed["RL²"] == 445.7
    assert found.mean() - 3 * found.std() / 16 > max(score for line, score in printed.items() if line != "RL²")
    assert found.mean() > printed["RL²"]


def test_the_bonus_earns_more_than_certainty_equivalence_on_the_same_tasks():
    gained = scores("random_mdp:num_episodes=25", 256) - scores("random_mdp:num_episodes=25", 256, bonus_scale=0.0)
    assert gained.mean() > 3 * gained.std() / 16


def test_it_is_near_the_bayes_optimal_score_of_a_bandit():
    """Exact dynamic programming over the posteriors of five arms and ten pulls gives 6.660."""
    found = scores("bandit:num_arms=5,num_pulls=10", 4096)
    assert abs(found.mean() - 6.660) < 4 * found.std() / 64


def test_the_last_step_of_an_episode_teaches_facts_and_no_successor():
    env, drives, agent = built("random_mdp:horizon=4,num_episodes=3")
    state, _ = rollout_lifetime(jax.random.key(0), agent, env, drives, agent.genome(jax.random.key(0)), learning=True)
    evidence = state.weights.content.evidence
    assert float(evidence.visit_counts.sum()) == 12
    assert float(evidence.successor_counts.sum()) == 9
    assert float(evidence.end_counts.sum()) == 0


def test_a_true_end_before_the_limit_is_learned():
    env, drives, agent = built("foraging:size=3,wall_fraction=0.0,num_thorns=1,num_episodes=5")
    state, trajectory = rollout_lifetime(
        jax.random.key(1), agent, env, drives, agent.genome(jax.random.key(1)), learning=True
    )
    ends = float(state.weights.content.evidence.end_counts.sum())
    assert 0 < ends <= float((trajectory.discount == 0).sum())


def test_an_early_end_is_worth_the_steps_that_it_saves():
    """The same lives with and without an idea of what a step is worth, which `learn` has from where episodes begin."""
    env, drives, agent = built("foraging:size=4,wall_fraction=0.0,num_thorns=1,num_episodes=20")

    def blind(key, state, transition):
        percept = transition.percept._replace(first=jnp.bool_(False))
        return agent.learn(key, state, transition._replace(percept=percept))

    def total(agent, key):
        return jnp.sum(rollout_lifetime(key, agent, env, drives, agent.genome(key), learning=True)[1].reward)

    keys = rng.sample_lifetime_keys(jax.random.key(6), 48, "validation")
    thrifty, heedless = (
        np.asarray(jax.jit(jax.vmap(partial(total, each)))(keys)) for each in (agent, agent._replace(learn=blind))
    )
    gained = thrifty - heedless
    assert gained.mean() > 3 * gained.std() / 48**0.5


def test_a_drive_that_is_turned_round_turns_the_choice_round():
    """Genomes differ in drives alone: one seeks the payout, the other shuns it."""
    env, drives, agent = built("bandit:num_arms=2,num_pulls=60")
    seeking = agent.genome(jax.random.key(0))
    shunning = seeking._replace(drives=-seeking.drives)
    keys = rng.sample_lifetime_keys(jax.random.key(3), 64, "validation")

    def payouts(genome, key):
        return rollout_lifetime(key, agent, env, drives, genome, learning=True)[1].outcome.sum()

    lived = jax.jit(jax.vmap(payouts, (None, 0)))
    sought, shunned = (np.asarray(lived(genome, keys)) for genome in (seeking, shunning))
    gap = sought - shunned  # arms differ by 1/3 on average, pulls number 60: 20 for who knew both
    assert gap.mean() - 3 * gap.std() / 8 > 5


def test_negative_curiosity_is_refused():
    with pytest.raises(BadInput, match="bonus_scale"):
        built("bandit", bonus_scale=-1.0)
