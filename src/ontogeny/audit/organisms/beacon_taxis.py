"""Moves in a straight line towards the beacon, whatever stands in the way: it resembles an objective without walls."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import build_mover
from ontogeny.environments.base import grid_size
from ontogeny.environments.beacon import BeaconObservation
from ontogeny.types import Agent, EnvSpec, Key, Steering

GROUND_TRUTH = {"learns": "no", "objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_mover("beacon_taxis", spec, move)


def move(key: Key, view: BeaconObservation) -> Array:
    """Returns a random one of the moves that lead in the beacon's direction, seldom another move."""
    size = grid_size(view.walls)
    down = view.beacon // size - view.cell // size
    right = view.beacon % size - view.cell % size
    preferences = jnp.stack([down < 0, right > 0, down > 0, right < 0]).astype(jnp.float32)
    # Each other move keeps a weight of 0.02, so that no move is impossible.
    return jax.random.categorical(key, jnp.log(preferences + 0.02))
