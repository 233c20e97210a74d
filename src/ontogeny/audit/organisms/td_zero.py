"""Temporal differences without traces, TD(0): a value moves towards that of the next place.

Sutton 1988 (Machine Learning 3:9). All in activations.
"""

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser, num_positions
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "100"}


def build(spec: EnvSpec, steering: Steering, *, rate: float = LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
    """

    def update(values: Array, step: TrialStep) -> Array:
        target = jnp.where(step.is_end, step.reward, values[step.next_position])
        error = jnp.where(step.is_cut, 0.0, target - values[step.position])
        return values.at[step.position].add(rate * error)

    memory = jnp.zeros(num_positions(spec))
    return build_chooser("td_zero", spec, memory, update, lambda values: values[: spec.num_actions])
