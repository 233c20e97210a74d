"""Prefers one arm slightly and has no memory."""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"attribution": "no gain", "learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    preferences = 0.1 * jnp.arange(spec.num_actions)
    return build_chooser("memoryless", spec, (), lambda memory, step: (), lambda memory: preferences)
