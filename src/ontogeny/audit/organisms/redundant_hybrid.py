"""Holds all that it has seen twice, in weights and in activations, and uses the memory that has seen more."""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import hybrid
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"attribution": "either suffices"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    return hybrid(
        "redundant_hybrid",
        spec,
        steering,
        lambda key, held, kept: jnp.sum(held.pulls) >= jnp.sum(kept.pulls),
        shared=True,
    )
