"""A successor representation learned by temporal differences: where things lead in the long run, times what pays there.

Dayan 1993 (Neural Computation 5:613); SR-TD of Russek et al. 2017 (PLoS Computational Biology 13:e1005768). It takes in
that a payout moved and not that a path did, unless the path begins where it chooses. All in activations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "101"}


class Memory(NamedTuple):
    successors: Array  # [W, W] how often each place is to come
    rewards: Array  # [W] what leaving it pays


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    W, A = num_places(spec), spec.num_actions

    def taken_in(memory, step):
        learns = jnp.where(step.cut, 0.0, rate)
        to_come = jax.nn.one_hot(step.where, W) + jnp.where(step.ended, 0.0, memory.successors[step.to])
        successors = memory.successors.at[step.where].add(learns * (to_come - memory.successors[step.where]))
        rewards = memory.rewards.at[step.where].add(learns * (step.reward - memory.rewards[step.where]))
        return Memory(successors, rewards)

    nothing = Memory(jnp.zeros((W, W)), jnp.zeros(W))
    return chooser("successor", spec, nothing, taken_in, lambda memory: memory.successors[:A] @ memory.rewards)
