"""Plans each episode for the best value that several tasks drawn from its posterior promise (optimistic PSRL).

Osband and Van Roy 2017 (ICML, arXiv 1607.00215): the value of an action is its maximum over the sampled tasks, ten of
them in their experiments. The posterior is in weights, the plan of the episode in activations.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import episode_planning_agent, require_prior, spec_with_assumed_prior
from ontogeny.content import planning, tabular_posterior
from ontogeny.content.tabular_posterior import TabularEvidence
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Steering


def build(spec: EnvSpec, steering: Steering, *, num_samples: int = 10, known_reward_mean: bool = True) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of a tabular environment with a prior.
        steering: Reward function.
        num_samples: Tasks to draw from the posterior for each plan, at least 1.
        known_reward_mean: Whether the agent knows the prior mean of Normal outcome features; otherwise it assumes 0.
    """
    prior = require_prior("opsrl", spec_with_assumed_prior("opsrl", spec, known_reward_mean))
    require_at_least(1, num_samples=num_samples)

    def action_values(key: Key, evidence: TabularEvidence) -> Array:
        def add_sample(highest: Array, key: Key) -> tuple[Array, None]:
            task = tabular_posterior.sample_task(key, prior, evidence)
            values = planning.value_iteration(steering(task.outcome_features), task.successors, spec.horizon)
            return jnp.maximum(highest, values), None

        lowest = jnp.full((spec.horizon, spec.num_observations, spec.num_actions), -jnp.inf)
        return jax.lax.scan(add_sample, lowest, jax.random.split(key, num_samples))[0]

    return episode_planning_agent(spec, action_values)
