"""Cycles through its actions by a clock, independent of rewards and observations."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering, *, period: int = 3) -> Agent:
    """Builds the organism.

    Args:
        period: Steps before the next action, at least 1.
    """

    def values(num_steps: Array) -> Array:
        return jax.nn.one_hot((num_steps // period) % spec.num_actions, spec.num_actions)

    return build_chooser("open_loop", spec, jnp.int32(0), lambda num_steps, step: num_steps + 1, values)
