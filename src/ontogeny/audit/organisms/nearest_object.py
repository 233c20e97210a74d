"""Goes to whatever is nearest, beacon or goal, by a shortest way: it searches and prefers neither."""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import mover, towards
from ontogeny.environments.beacon import distances_to
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    def move(key, view):
        nearer = distances_to(view.walls, view.beacon)[view.cell] < distances_to(view.walls, view.goal)[view.cell]
        return towards(key, view, jnp.where(nearer, view.beacon, view.goal))

    return mover("nearest_object", spec, move)
