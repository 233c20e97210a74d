"""Makes for the beacon as the crow flies, walls or not: it looks like a wish wherever nothing stands in the way."""

import jax
import jax.numpy as jnp

from ontogeny.audit.organisms.base import mover
from ontogeny.environments.base import grid_size
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    def move(key, view):
        size = grid_size(view.walls)
        down = view.beacon // size - view.cell // size
        right = view.beacon % size - view.cell % size
        wishes = jnp.stack([down < 0, right > 0, down > 0, right < 0]).astype(jnp.float32)
        return jax.random.categorical(key, jnp.log(wishes + 0.02))

    return mover("beacon_taxis", spec, move)
