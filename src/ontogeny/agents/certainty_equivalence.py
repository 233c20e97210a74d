"""Plans each episode for the mean of its posterior as if that were the task; greedy or epsilon-greedy.

The "Greedy" and "epsilon-Greedy" of Duan et al. 2016 (RL^2, arXiv 1611.02779), Table 2. The posterior is in weights,
the plan of the episode in activations.
"""

import jax
from jax import Array

from ontogeny.agents.base import episode_planning_agent, explore, spec_with_assumed_prior
from ontogeny.content import planning, tabular_model
from ontogeny.content.tabular_posterior import TabularEvidence
from ontogeny.errors import require_probability
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering, *, epsilon: float = 0.0, known_reward_mean: bool = True) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of a tabular environment with a prior.
        steering: Reward function.
        epsilon: Probability, from 0 to 1, of a random action at each step.
        known_reward_mean: Whether the agent knows the prior mean of Normal outcome features; otherwise it assumes 0.
    """
    require_probability(epsilon=epsilon)
    model = tabular_model.build(spec_with_assumed_prior("certainty_equivalence", spec, known_reward_mean))

    def action_values(key: Key, evidence: TabularEvidence) -> Array:
        del key
        expected = model.query(evidence)
        return planning.value_iteration(steering(expected.outcome_features), expected.successors, spec.horizon)

    planner = episode_planning_agent(spec, action_values)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        explore_key, action_key, plan_key = jax.random.split(key, 3)
        planned_action, state = planner.act(plan_key, state, percept)
        return explore(explore_key, action_key, epsilon, spec.num_actions, planned_action), state

    return planner._replace(act=act)
