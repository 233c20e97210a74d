"""Stays with what paid and leaves what did not: one bit of memory for reward, and no accumulation.

Robbins 1952 (Bulletin of the American Mathematical Society 58:527).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


class Memory(NamedTuple):
    chosen: Array  # [A] one-hot, in this trial
    stays: Array  # [A] what it would do again


def build(spec: EnvSpec, steering: Steering) -> Agent:
    A = spec.num_actions

    def taken_in(memory, step):
        done = jax.nn.one_hot(step.where, A)
        chosen = jnp.where(jnp.sum(done) > 0, done, memory.chosen)
        stays = jnp.where(step.reward > 0.5, chosen, (1 - chosen) / (A - 1))
        return Memory(chosen, jnp.where(step.ended, stays, memory.stays))

    return chooser("win_stay", spec, Memory(jnp.zeros(A), jnp.zeros(A)), taken_in, lambda memory: memory.stays)
