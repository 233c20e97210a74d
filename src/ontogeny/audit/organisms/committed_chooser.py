"""Commits itself to its first choice, which was random, and lapses occasionally: no payout changes it."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import TrialStep, build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, lapse: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        lapse: Probability of a uniformly random choice, greater than 0 and up to 1.
    """
    A = spec.num_actions

    def update(first_choice: Array, step: TrialStep) -> Array:
        is_first = (first_choice < 0) & (step.position < A)
        return jnp.where(is_first, step.position, first_choice).astype(jnp.int32)

    def values(first_choice: Array) -> Array:
        committed = jnp.log(lapse / A + (1 - lapse) * jax.nn.one_hot(first_choice, A))
        return jnp.where(first_choice < 0, jnp.zeros(A), committed)

    return build_chooser("committed_chooser", spec, jnp.int32(-1), update, values, temperature=1.0)
