"""Moves to the last column by reflex: right where that is open, else up or down at random."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import build_mover
from ontogeny.environments.base import next_cell
from ontogeny.environments.beacon import BeaconObservation
from ontogeny.types import Agent, EnvSpec, Key, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_mover("go_right", spec, move)


def move(key: Key, view: BeaconObservation) -> Array:
    """Returns east, or north or south where east is blocked."""
    is_blocked = next_cell(view.walls, view.cell, 1) == view.cell
    return jnp.where(is_blocked, 2 * jax.random.bernoulli(key).astype(jnp.int32), 1)
