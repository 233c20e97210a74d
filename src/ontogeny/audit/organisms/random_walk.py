"""Moves at random."""

import jax

from ontogeny.audit.organisms.base import build_mover
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_mover("random_walk", spec, lambda key, view: jax.random.randint(key, (), 0, 4))
