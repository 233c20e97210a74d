"""Knows the task and makes the most of the whole life in it: the upper bound.

Finite-horizon value iteration (Puterman 1994, section 4.3) on the tables that the environment lays open to privileged
agents, for the rewards that steering makes of expected facts. A plan is drawn up at the beginning of every episode; it
knows what the steps of life that are left are worth, since an early end of an episode leaves them to others. A bound
where the tables stay what they are: of rewards that drift, it knows those of the day.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import needs_discrete, no_genome, unchanging
from ontogeny.content import episode_plan, planning
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering, TabularTask


class Foresight(NamedTuple):
    plan: episode_plan.Plan
    worth: Array  # [T + 1] of the steps of life that are left, by their number
    age: Array  # [] int32, steps lived


def build(spec: EnvSpec, steering: Steering) -> Agent:
    needs_discrete("oracle", spec)
    T = spec.num_steps

    def activations() -> Foresight:
        return Foresight(episode_plan.none_yet(spec), jnp.zeros(T + 1), jnp.int32(0))

    def continued(task: TabularTask) -> Array:
        return task.transitions * (1 - task.ends)[..., None]

    def look_ahead(given: tuple[TabularTask, Array]) -> Array:
        task, start = given
        return planning.life_values(steering(task.outcomes), continued(task), task.ends, start, spec.horizon, T)

    def action_values(key: Key, given: tuple[TabularTask, Array, Array]) -> Array:
        del key
        task, worth, left = given
        return planning.episode_values(steering(task.outcomes), continued(task), task.ends, worth, left, spec.horizon)

    def act(key: Key, state: State, percept: Percept):
        plan, worth, age = state.activations
        lived = age % T  # whoever goes on beyond a life begins another one
        task = percept.revealed_task
        # Where no episode ends early all episodes are alike, and nothing is gained by looking beyond the present one.
        matters = (lived == 0) & jnp.any(task.ends > 0)
        worth = episode_plan.only_where(matters, look_ahead, (task, percept.observation), worth)
        action, plan = episode_plan.follow(key, plan, percept, action_values, (task, worth, T - lived))
        return action, State(state.weights, Foresight(plan, worth, age + 1))

    return unchanging(no_genome, activations, act, privileged=True)
