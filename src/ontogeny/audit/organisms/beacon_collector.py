"""Goes to the beacon by search, and to the goal after it has touched the beacon: two objectives in a fixed order."""

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise, move_towards
from ontogeny.environments import beacon
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "no", "objective": "yes"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""

    def update(has_touched: Array, step: StepMemoryInput) -> Array:
        return (has_touched | (step.percept.outcome[1] > 0)) & ~step.percept.first

    def choose(key: Key, has_touched: Array, percept: Percept) -> Array:
        view = beacon.parse_observation(percept.observation)
        return move_towards(key, view, jnp.where(has_touched, view.goal, view.beacon))

    return build_stepwise("beacon_collector", spec, ("beacon",), jnp.bool_(False), update, choose)
