"""Does again what it did, paid or not: a habit that feeds on itself."""

import jax
import jax.numpy as jnp

from ontogeny.audit.organisms.base import RATE, chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    A = spec.num_actions

    def taken_in(habit, step):
        done = jax.nn.one_hot(step.where, A)  # all zero at places where nothing is chosen
        return habit + RATE * jnp.sum(done) * (done - habit)

    return chooser("perseverator", spec, jnp.zeros(A), taken_in, lambda habit: habit)
