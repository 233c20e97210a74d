"""Believes in one of two hidden states, which of the last places pays, and learns what to do in each.

A latent-state mimic (Akam, Costa & Dayan 2015, PLoS Computational Biology 11:e1004648): without any link between action
and place it looks model-based where payouts move. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "001"}
HAZARD = 0.02  # per payout, that the other place pays from now on
LIKELY = 0.9  # of a payout where it is due


class Memory(NamedTuple):
    belief: Array  # [2] of the hidden states
    values: Array  # [2, A] of the actions in each
    chosen: Array  # [] int32, in this trial


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    A = spec.num_actions

    def taken_in(memory, step):
        chosen = jnp.where(step.where < A, step.where, memory.chosen).astype(jnp.int32)
        odd = step.where % 2  # which of the two last places this is; of the two arms, in a bandit of two
        agrees = jnp.where(step.reward > 0, odd, 1 - odd)
        likelihood = jnp.where(jnp.arange(2) == agrees, LIKELY, 1 - LIKELY)
        belief = memory.belief * likelihood
        belief = belief / jnp.sum(belief)
        belief = (1 - HAZARD) * belief + HAZARD * belief[::-1]
        told = step.ended | (jnp.abs(step.reward) > 0)
        belief = jnp.where(told, belief, memory.belief)
        change = rate * belief * (step.reward - memory.values[:, chosen])
        values = memory.values.at[:, chosen].add(jnp.where(step.ended, change, 0.0))
        return Memory(belief, values, chosen)

    nothing = Memory(jnp.full(2, 0.5), jnp.zeros((2, A)), jnp.int32(0))
    return chooser("latent_state_learner", spec, nothing, taken_in, lambda memory: memory.belief @ memory.values)
