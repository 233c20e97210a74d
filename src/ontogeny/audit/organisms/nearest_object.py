"""Moves to the nearest of beacon and goal by search, without a preference between them."""

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import build_mover, move_towards
from ontogeny.environments.base import distances_to
from ontogeny.environments.beacon import BeaconObservation
from ontogeny.types import Agent, EnvSpec, Key, Steering

GROUND_TRUTH = {"learns": "no", "objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_mover("nearest_object", spec, move)


def move(key: Key, view: BeaconObservation) -> Array:
    """Returns the move on a shortest way to the nearest object."""
    is_beacon_nearer = distances_to(view.walls, view.beacon)[view.cell] < distances_to(view.walls, view.goal)[view.cell]
    return move_towards(key, view, jnp.where(is_beacon_nearer, view.beacon, view.goal))
