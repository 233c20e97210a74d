"""Knows the task and plans in it: the upper bound.

Finite-horizon value iteration (Puterman 1994, section 4.3) on the tables that the world lays open to privileged
agents, for the rewards that steering makes of expected facts. Drawn up anew at the beginning of every episode.
"""

from jax import Array

from ontogeny.agents.base import needs_discrete, no_genome, unchanging
from ontogeny.content import episode_plan, planning
from ontogeny.types import Agent, Key, Percept, Spec, State, Steering, Tables


def build(spec: Spec, steering: Steering) -> Agent:
    needs_discrete("oracle", spec)

    def action_values(key: Key, task: Tables) -> Array:
        del key
        successors = task.transitions * (1 - task.ends)[..., None]
        return planning.value_iteration(steering(task.outcomes), successors, spec.horizon)

    def act(key: Key, state: State, percept: Percept):
        action, plan = episode_plan.follow(key, state.activations, percept, action_values, percept.revealed)
        return action, State(state.weights, plan)

    return unchanging(no_genome, lambda: episode_plan.none_yet(spec), act, privileged=True)
