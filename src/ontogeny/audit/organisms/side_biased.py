"""Prefers one side by a wide margin and lapses now and then."""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering, *, lapse: float = 0.1) -> Agent:
    odds = jnp.full(spec.num_actions, lapse / spec.num_actions).at[0].add(1 - lapse)
    return chooser("side_biased", spec, (), lambda memory, step: (), lambda memory: jnp.log(odds), temperature=1.0)
