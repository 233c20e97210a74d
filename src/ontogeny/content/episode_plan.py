"""A plan for one episode: computed where an episode begins and followed until it ends."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.rng import random_argmax
from ontogeny.tracing import lazy_cond
from ontogeny.types import EnvSpec, Key, Percept, PyTree


class EpisodePlan(NamedTuple):
    """A deterministic policy for the rest of an episode."""

    policy: Int32[Array, "H S"]  # the action with h + 1 steps to go
    num_steps_taken: Int32[Array, ""]  # in the present episode; -1 where there is no plan


def init_plan(spec: EnvSpec) -> EpisodePlan:
    """Returns the plan before the first episode, which `follow_plan` replaces at once."""
    return EpisodePlan(jnp.zeros((spec.horizon, spec.num_observations), jnp.int32), jnp.int32(-1))


def follow_plan(
    key: Key,
    plan: EpisodePlan,
    percept: Percept,
    action_values: Callable[[Key, PyTree], Float[Array, "H S A"]],
    inputs: PyTree,
) -> tuple[Int32[Array, ""], EpisodePlan]:
    """Returns the next action; where an episode begins, makes a new plan first.

    Args:
        key: Random key, for the planner and for ties.
        plan: The plan so far.
        percept: What the agent perceives now.
        action_values: Computes from a key and `inputs` the values to plan by. It must not close over traced arrays:
            all that varies is in `inputs`.
        inputs: Input of the planner.

    Returns:
        The action, and the plan after it.
    """

    def compute_policy(operand: tuple[Key, PyTree]) -> Int32[Array, "H S"]:
        value_key, tie_key = jax.random.split(operand[0])
        return random_argmax(tie_key, action_values(value_key, operand[1]))

    is_new = percept.first | (plan.num_steps_taken < 0)
    policy = lazy_cond(is_new, compute_policy, (key, inputs), plan.policy)
    num_steps_taken = jnp.where(is_new, 0, plan.num_steps_taken)
    steps_to_go = jnp.maximum(len(plan.policy) - num_steps_taken, 1)
    return policy[steps_to_go - 1, percept.observation], EpisodePlan(policy, num_steps_taken + 1)


def is_at_time_limit(spec: EnvSpec, plan: EpisodePlan) -> Bool[Array, ""]:
    """Whether the last step was the last one that the horizon allows, so that its end says nothing about the task."""
    return plan.num_steps_taken >= spec.horizon
