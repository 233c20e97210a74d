"""Takes where the last trial ended and what it paid as a cue, and learns what to do after each.

Akam, Costa & Dayan 2015 (PLoS Computational Biology 11:e1004648): habits that look like plans. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no"}


class Memory(NamedTuple):
    values: Array  # [2 W, A] by cue: what paid at each place, and what did not
    cue: Array  # [] int32
    chosen: Array  # [] int32, in this trial


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    W, A = num_places(spec), spec.num_actions

    def taken_in(memory, step):
        chosen = jnp.where(step.where < A, step.where, memory.chosen)
        here = (memory.cue, chosen)
        change = rate * (step.reward - memory.values[here])
        values = memory.values.at[here].add(jnp.where(step.ended, change, 0.0))
        paid = jnp.abs(step.reward) > 0
        cue = jnp.where(step.ended | paid, 2 * step.where + (step.reward > 0), memory.cue)
        return Memory(values, cue.astype(jnp.int32), chosen.astype(jnp.int32))

    nothing = Memory(jnp.zeros((2 * W, A)), jnp.int32(0), jnp.int32(0))
    return chooser("reward_as_cue", spec, nothing, taken_in, lambda memory: memory.values[memory.cue])
