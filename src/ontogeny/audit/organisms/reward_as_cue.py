"""Uses the last place of a trial and its payout as a cue, and learns the response to each cue.

Akam, Costa & Dayan 2015 (PLoS Computational Biology 11:e1004648): habits that look like plans. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser, num_positions
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no"}


class CueMemory(NamedTuple):
    """Values by cue."""

    values: Array  # [2 W, A], W positions; cues are a payout and no payout at each position
    cue: Array  # [] int32
    action: Array  # [] int32, chosen in this trial


def build(spec: EnvSpec, steering: Steering, *, rate: float = LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate of the values, 0 to 1.
    """
    W, A = num_positions(spec), spec.num_actions

    def update(memory: CueMemory, step: TrialStep) -> CueMemory:
        action = jnp.where(step.position < A, step.position, memory.action)
        entry = (memory.cue, action)
        change = rate * (step.reward - memory.values[entry])
        values = memory.values.at[entry].add(jnp.where(step.is_end, change, 0.0))
        has_payout = jnp.abs(step.reward) > 0
        cue = jnp.where(step.is_end | has_payout, 2 * step.position + (step.reward > 0), memory.cue)
        return CueMemory(values, cue.astype(jnp.int32), action.astype(jnp.int32))

    memory = CueMemory(jnp.zeros((2 * W, A)), jnp.int32(0), jnp.int32(0))
    return build_chooser("reward_as_cue", spec, memory, update, lambda memory: memory.values[memory.cue])
