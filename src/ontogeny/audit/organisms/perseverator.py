"""Repeats its previous choices, rewarded or not: a habit that strengthens itself."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    A = spec.num_actions

    def update(habit: Array, step: TrialStep) -> Array:
        choice = jax.nn.one_hot(step.position, A)  # all zero at places without a choice
        return habit + LEARNING_RATE * jnp.sum(choice) * (choice - habit)

    return build_chooser("perseverator", spec, jnp.zeros(A), update, lambda habit: habit)
