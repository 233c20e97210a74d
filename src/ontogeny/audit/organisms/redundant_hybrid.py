"""Holds everything it has observed twice, in weights and in activations, and uses the memory with more observations."""

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import build_hybrid
from ontogeny.content.beta_bernoulli import ArmCounts
from ontogeny.types import Agent, EnvSpec, Key, Steering

GROUND_TRUTH = {"attribution": "either suffices"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""

    def has_more_pulls(key: Key, in_activations: ArmCounts, in_weights: ArmCounts) -> Array:
        return jnp.sum(in_activations.pulls) >= jnp.sum(in_weights.pulls)

    return build_hybrid("redundant_hybrid", spec, steering, has_more_pulls, is_shared=True)
