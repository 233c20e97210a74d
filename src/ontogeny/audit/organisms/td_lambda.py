"""Temporal differences with fading traces, TD(lambda): surprises reach back to what came before.

Sutton 1988 (Machine Learning 3:9); Sutton & Barto 2018, section 12.2. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "100"}


class Memory(NamedTuple):
    values: Array  # [W]
    traces: Array  # [W]


def build(spec: EnvSpec, steering: Steering, *, fading: float = 0.6, rate: float = RATE) -> Agent:
    def taken_in(memory, step):
        values, traces = memory
        target = jnp.where(step.ended, step.reward, values[step.to])
        error = jnp.where(step.cut, 0.0, target - values[step.where])
        traces = (fading * traces).at[step.where].set(1.0)
        return Memory(values + rate * error * traces, jnp.where(step.ended | step.cut, 0.0, traces))

    nothing = jnp.zeros(num_places(spec))
    return chooser(
        "td_lambda", spec, Memory(nothing, nothing), taken_in, lambda memory: memory.values[: spec.num_actions]
    )
