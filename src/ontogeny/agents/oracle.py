"""Knows the task and maximizes the return of the whole lifetime: the upper bound.

Finite-horizon value iteration (Puterman 1994, section 4.3) on the tables that the environment reveals to privileged
agents, for the rewards that steering gives to expected outcome features. The agent plans at the beginning of every
episode and takes into account that an early end leaves its steps to later episodes. It is an upper bound where the
tables do not change; where rewards drift, it knows those of the present step only.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent, require_discrete_observations
from ontogeny.content import episode_plan, planning
from ontogeny.tracing import lazy_cond
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering, TabularTask


class OracleActivations(NamedTuple):
    """The plan, and the values that it takes into account."""

    plan: episode_plan.EpisodePlan
    start_values: Array  # [T + 1] value of an episode that begins with t steps of the lifetime left
    num_steps: Array  # [] int32, steps taken


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the agent; it has no settings."""
    require_discrete_observations("oracle", spec)
    T = spec.num_steps

    def init_activations() -> OracleActivations:
        return OracleActivations(episode_plan.init_plan(spec), jnp.zeros(T + 1), jnp.int32(0))

    def model(task: TabularTask) -> tuple[Array, Array, Array]:
        """Expected rewards, and probabilities of successors and of an end."""
        continuing = task.transitions * (1 - task.termination_probabilities)[..., None]
        return steering(task.outcomes), continuing, task.termination_probabilities

    def compute_start_values(inputs: tuple[TabularTask, Array]) -> Array:
        task, start = inputs
        return planning.lifetime_values(*model(task), start, spec.horizon, T)

    def action_values(key: Key, inputs: tuple[TabularTask, Array, Array]) -> Array:
        del key
        task, start_values, steps_left = inputs
        return planning.episode_values(*model(task), start_values, steps_left, spec.horizon)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        plan, start_values, num_steps = state.activations
        step = num_steps % T  # an agent that continues beyond a lifetime begins another one
        task = percept.revealed_task
        # Where no episode ends early all episodes are alike, and looking beyond the present one changes nothing.
        is_needed = (step == 0) & jnp.any(task.termination_probabilities > 0)
        inputs = (task, percept.observation)
        start_values = lazy_cond(is_needed, compute_start_values, inputs, start_values)
        plan_inputs = (task, start_values, T - step)
        action, plan = episode_plan.follow_plan(key, plan, percept, action_values, plan_inputs)
        return action, State(state.weights, OracleActivations(plan, start_values, num_steps + 1))

    return fixed_weights_agent(empty_genome, init_activations, act, privileged=True)
