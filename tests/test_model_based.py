"""The model-based agent: the evidence it learns from, its bonus, and its scores against published ones."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, rng, steering
from ontogeny.rollouts import rollout_lifetime
from ontogeny.studies import published
from ontogeny.types import BadInput


def build_agent(env, **settings):
    name, env_settings = plugins.parse(env)
    env = plugins.build("environments", name, **env_settings)
    drives = steering.build(env.spec)
    return env, drives, plugins.build("agents", "model_based", env.spec, drives, **settings)


@cache
def scores(env, num_lifetimes, **settings):
    """Scores [num_lifetimes]; a key fixes the task and all randomness of the environment, whatever the settings."""
    env, drives, agent = build_agent(env, **settings)

    def score(key):
        trajectory = rollout_lifetime(key, agent, env, drives, agent.genome(key), learning=True)[1]
        return jnp.sum(jax.vmap(env.score)(trajectory.outcome))

    return np.asarray(
        jax.jit(jax.vmap(score))(rng.sample_lifetime_keys(jax.random.key(7), num_lifetimes, "validation"))
    )


def test_score_on_random_mdps_exceeds_all_published_baselines():
    """RL^2, Table 2, n = 25: every published score but that of RL^2 by more than 3 standard errors of 256 lifetimes."""
    agent_scores = scores("random_mdp:num_episodes=25", 256)
    published_scores = published.find_published_scores(
        "random_mdp", {"num_states": 10, "num_actions": 5, "horizon": 10, "num_episodes": 25}
    )
    assert published_scores["PSRL"] == 408.8 and published_scores["RL²"] == 445.7
    highest = max(score for name, score in published_scores.items() if name != "RL²")
    assert agent_scores.mean() - 3 * agent_scores.std() / 16 > highest
    assert agent_scores.mean() > published_scores["RL²"]


def test_bonus_scores_more_than_certainty_equivalence_on_the_same_tasks():
    gain = scores("random_mdp:num_episodes=25", 256) - scores("random_mdp:num_episodes=25", 256, bonus_scale=0.0)
    assert gain.mean() > 3 * gain.std() / 16


def test_bandit_score_is_near_bayes_optimal():
    """Exact dynamic programming over the posteriors of five arms and ten pulls gives 6.660."""
    agent_scores = scores("bandit:num_arms=5,num_pulls=10", 4096)
    assert abs(agent_scores.mean() - 6.660) < 4 * agent_scores.std() / 64


def test_last_step_of_an_episode_adds_outcome_features_and_no_successor():
    env, drives, agent = build_agent("random_mdp:horizon=4,num_episodes=3")
    state, _ = rollout_lifetime(jax.random.key(0), agent, env, drives, agent.genome(jax.random.key(0)), learning=True)
    evidence = state.weights.content.evidence
    assert float(evidence.visit_counts.sum()) == 12
    assert float(evidence.successor_counts.sum()) == 9
    assert float(evidence.end_counts.sum()) == 0


def test_termination_before_the_time_limit_is_learned():
    env, drives, agent = build_agent("foraging:size=3,wall_fraction=0.0,num_thorns=1,num_episodes=5")
    state, trajectory = rollout_lifetime(
        jax.random.key(1), agent, env, drives, agent.genome(jax.random.key(1)), learning=True
    )
    ends = float(state.weights.content.evidence.end_counts.sum())
    assert 0 < ends <= float((trajectory.discount == 0).sum())


def test_value_of_saved_steps_raises_the_return():
    """The same lifetimes with and without the value of a step, which `learn` takes from the starts of episodes."""
    env, drives, agent = build_agent("foraging:size=4,wall_fraction=0.0,num_thorns=1,num_episodes=20")

    def learn_without_step_value(key, state, transition):
        percept = transition.percept._replace(first=jnp.bool_(False))
        return agent.learn(key, state, transition._replace(percept=percept))

    def total_reward(agent, key):
        return jnp.sum(rollout_lifetime(key, agent, env, drives, agent.genome(key), learning=True)[1].reward)

    keys = rng.sample_lifetime_keys(jax.random.key(6), 48, "validation")
    agents = (agent, agent._replace(learn=learn_without_step_value))
    with_value, without_value = (np.asarray(jax.jit(jax.vmap(partial(total_reward, a)))(keys)) for a in agents)
    gain = with_value - without_value
    assert gain.mean() > 3 * gain.std() / 48**0.5


def test_reversed_drive_reverses_the_choice():
    """Two genomes differ in their drives alone: one seeks the payout, the other avoids it."""
    env, drives, agent = build_agent("bandit:num_arms=2,num_pulls=60")
    seeking = agent.genome(jax.random.key(0))
    avoiding = seeking._replace(drives=-seeking.drives)
    keys = rng.sample_lifetime_keys(jax.random.key(3), 64, "validation")

    def payouts(genome, key):
        return rollout_lifetime(key, agent, env, drives, genome, learning=True)[1].outcome.sum()

    total_payouts = jax.jit(jax.vmap(payouts, (None, 0)))
    sought, avoided = (np.asarray(total_payouts(genome, keys)) for genome in (seeking, avoiding))
    gap = sought - avoided  # arms differ by 1/3 on average, so over 60 pulls an agent that knows both gains 20
    assert gap.mean() - 3 * gap.std() / 8 > 5


def test_negative_bonus_scale_is_rejected():
    with pytest.raises(BadInput, match="bonus_scale"):
        build_agent("bandit", bonus_scale=-1.0)
