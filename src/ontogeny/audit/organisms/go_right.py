"""Goes to the last column by reflex: right where it can, else up or down by chance."""

import jax
import jax.numpy as jnp

from ontogeny.audit.organisms.base import mover
from ontogeny.environments.base import next_cell
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    def move(key, view):
        blocked = next_cell(view.walls, view.cell, 1) == view.cell
        return jnp.where(blocked, 2 * jax.random.bernoulli(key).astype(jnp.int32), 1)

    return mover("go_right", spec, move)
