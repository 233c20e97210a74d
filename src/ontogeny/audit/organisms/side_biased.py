"""Strongly prefers one side and lapses occasionally."""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering, *, lapse: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        lapse: Probability of a uniformly random choice, 0 to 1.
    """
    odds = jnp.full(spec.num_actions, lapse / spec.num_actions).at[0].add(1 - lapse)
    return build_chooser(
        "side_biased", spec, (), lambda memory, step: (), lambda memory: jnp.log(odds), temperature=1.0
    )
