"""Moves to the neighboring cell that it has visited least in this episode: curious, without an aim."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.environments import beacon
from ontogeny.environments.base import next_cell
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "no", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    nothing = jnp.zeros(beacon.spec_size(spec) ** 2 if spec.name == "beacon" else 1)

    def update(visits: Array, step: StepMemoryInput) -> Array:
        visits = visits.at[beacon.parse_observation(step.last_observation).cell].add(1.0)
        return jnp.where(step.percept.first, nothing, visits)

    def choose(key: Key, visits: Array, percept: Percept) -> Array:
        view = beacon.parse_observation(percept.observation)
        visits = visits.at[view.cell].add(1.0)
        cells = jax.vmap(lambda action: next_cell(view.walls, view.cell, action))(jnp.arange(spec.num_actions))
        return random_argmax(key, -visits[cells])

    return build_stepwise("novelty_seeker", spec, ("beacon",), nothing, update, choose)
