"""Temporal differences without traces, TD(0): a value moves towards that of the next place.

Sutton 1988 (Machine Learning 3:9). All in activations.
"""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "100"}


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    def taken_in(values, step):
        target = jnp.where(step.ended, step.reward, values[step.to])
        error = jnp.where(step.cut, 0.0, target - values[step.where])
        return values.at[step.where].add(rate * error)

    return chooser("td_zero", spec, jnp.zeros(num_places(spec)), taken_in, lambda values: values[: spec.num_actions])
