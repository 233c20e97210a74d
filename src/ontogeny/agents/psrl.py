"""Plans each episode for one task drawn from its posterior (posterior sampling).

Strens 2000 (ICML); Osband, Russo and Van Roy 2013 (NeurIPS 26), PSRL. The posterior is in weights, the plan of the
episode in activations.
"""

from jax import Array

from ontogeny.agents.base import episode_planning_agent, require_prior, spec_with_assumed_prior
from ontogeny.content import planning, tabular_posterior
from ontogeny.content.tabular_posterior import TabularEvidence
from ontogeny.types import Agent, EnvSpec, Key, Steering


def build(spec: EnvSpec, steering: Steering, *, known_reward_mean: bool = True) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of a tabular environment with a prior.
        steering: Reward function.
        known_reward_mean: Whether the agent knows the prior mean of Normal outcome features; otherwise it assumes 0.
    """
    prior = require_prior("psrl", spec_with_assumed_prior("psrl", spec, known_reward_mean))

    def action_values(key: Key, evidence: TabularEvidence) -> Array:
        task = tabular_posterior.sample_task(key, prior, evidence)
        return planning.value_iteration(steering(task.outcome_features), task.successors, spec.horizon)

    return episode_planning_agent(spec, action_values)
