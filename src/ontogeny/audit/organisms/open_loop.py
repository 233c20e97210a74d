"""Goes through its actions by the clock, whatever comes of them."""

import jax
import jax.numpy as jnp

from ontogeny.audit.organisms.base import chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering, *, period: int = 3) -> Agent:
    def values(ticks):
        return jax.nn.one_hot((ticks // period) % spec.num_actions, spec.num_actions)

    return chooser("open_loop", spec, jnp.int32(0), lambda ticks, step: ticks + 1, values)
