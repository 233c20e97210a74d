"""Takes one arm more often than the others and sees nothing."""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"attribution": "no gain", "learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    tastes = 0.1 * jnp.arange(spec.num_actions)
    return chooser("memoryless", spec, (), lambda memory, step: (), lambda memory: tastes)
