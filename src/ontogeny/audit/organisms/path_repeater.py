"""Repeats the actions of the last episode if they paid more than a standard, else draws others: one outcome remembered.

Win-stay lose-shift over whole episodes: what it remembers is replaced at every episode, so nothing accumulates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "no"}
STANDARDS = {"random_mdp": 1.0, "foraging": 0.0, "relay": 0.25}  # reward per step


class PathMemory(NamedTuple):
    """The actions of this episode and those to be repeated; -1 where there is none."""

    actions: Array  # [horizon] int32
    repeated: Array  # [horizon] int32
    position: Array  # [] int32, steps of this episode
    payout: Array  # [] rewards of this episode


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    nothing = jnp.full(spec.horizon, -1, jnp.int32)

    def update(memory: PathMemory, step: StepMemoryInput) -> PathMemory:
        percept, index = step.percept, jnp.minimum(memory.position, spec.horizon - 1)
        actions = memory.actions.at[index].set(percept.action)
        position, payout = memory.position + 1, memory.payout + percept.reward
        is_good = payout > STANDARDS[spec.name] * position
        ended = PathMemory(nothing, jnp.where(is_good, actions, nothing), jnp.int32(0), jnp.float32(0))
        continued = PathMemory(actions, memory.repeated, position, payout)
        return jax.tree.map(lambda a, b: jnp.where(percept.first, a, b), ended, continued)

    def choose(key: Key, memory: PathMemory, percept: Percept) -> Array:
        repeated = memory.repeated[jnp.minimum(memory.position, spec.horizon - 1)]
        return jnp.where(repeated >= 0, repeated, jax.random.randint(key, (), 0, spec.num_actions))

    memory = PathMemory(nothing, nothing, jnp.int32(0), jnp.float32(0))
    return build_stepwise("path_repeater", spec, tuple(STANDARDS), memory, update, choose)
