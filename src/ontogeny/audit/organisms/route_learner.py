"""Remembers for each cell the last move that it made there on a way to the goal, and makes it again; else it wanders.

It neither sees walls nor the goal: what it knows of a layout, it has experienced.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.environments import beacon
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "yes", "objective": "no"}


class RouteMemory(NamedTuple):
    """Moves by cell; -1 where there is none."""

    route: Array  # [cells] int32, that led to the goal
    moves: Array  # [cells] int32, of this episode


def build(spec: EnvSpec, steering: Steering, *, lapse: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        lapse: Probability of a random move, 0 to 1.
    """
    none = jnp.full(beacon.spec_size(spec) ** 2 if spec.name == "beacon" else 1, -1, jnp.int32)

    def update(memory: RouteMemory, step: StepMemoryInput) -> RouteMemory:
        percept = step.percept
        cell = beacon.parse_observation(step.last_observation).cell
        moves = memory.moves.at[cell].set(percept.action)
        is_at_goal = percept.outcome[0] > 0
        route = jnp.where(is_at_goal & (moves >= 0), moves, memory.route)
        return RouteMemory(route, jnp.where(percept.first, none, moves))

    def choose(key: Key, memory: RouteMemory, percept: Percept) -> Array:
        lapse_key, move_key = jax.random.split(key)
        route_move = memory.route[beacon.parse_observation(percept.observation).cell]
        wanders = (route_move < 0) | jax.random.bernoulli(lapse_key, lapse)
        return jnp.where(wanders, jax.random.randint(move_key, (), 0, spec.num_actions), route_move)

    return build_stepwise("route_learner", spec, ("beacon",), RouteMemory(none, none), update, choose)
