"""Values without traces, and a model that replays single links into them in the background: Dyna.

Sutton 1990 (ICML); SR-Dyna of Russek et al. 2017 plans alike. It plans, if not when it chooses. All in activations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}


class Memory(NamedTuple):
    values: Array  # [W]
    leads: Array  # [W, W]
    rewards: Array  # [W]


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    W, A = num_places(spec), spec.num_actions

    def taken_in(memory, step):
        learns = jnp.where(step.cut, 0.0, rate)
        to = jnp.where(step.ended, 0.0, jax.nn.one_hot(step.to, W))
        leads = memory.leads.at[step.where].add(learns * (to - memory.leads[step.where]))
        rewards = memory.rewards.at[step.where].add(learns * (step.reward - memory.rewards[step.where]))
        values = memory.values + rate * (rewards + leads @ memory.values - memory.values)  # each place once
        return Memory(values, leads, rewards)

    nothing = jnp.zeros(W)
    return chooser(
        "dyna", spec, Memory(nothing, jnp.zeros((W, W)), nothing), taken_in, lambda memory: memory.values[:A]
    )
