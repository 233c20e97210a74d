"""Values are means of whole returns, TD(1) or Monte Carlo: nothing is learned before the payout.

Sutton & Barto 2018, section 5.1, with a constant rate. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "000"}


class Memory(NamedTuple):
    values: Array  # [W]
    visited: Array  # [W] in this trial


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    def taken_in(memory, step):
        visited = memory.visited.at[step.where].set(1.0)
        change = rate * visited * (step.reward - memory.values)
        return Memory(
            memory.values + jnp.where(step.ended, change, 0.0), jnp.where(step.ended | step.cut, 0.0, visited)
        )

    nothing = jnp.zeros(num_places(spec))
    return chooser("td_one", spec, Memory(nothing, nothing), taken_in, lambda memory: memory.values[: spec.num_actions])
