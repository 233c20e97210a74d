"""Infers which of the last places pays, a hidden state, and learns the response to each state.

A latent-state learner (Akam, Costa & Dayan 2015, PLoS Computational Biology 11:e1004648): without a model of how
actions lead to places it appears model-based where payouts change. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser, update_latent_belief
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "001"}


class LatentStateMemory(NamedTuple):
    """Belief and values."""

    belief: Array  # [2] of the hidden states
    values: Array  # [2, A] of the actions in each
    action: Array  # [] int32, chosen in this trial


def build(spec: EnvSpec, steering: Steering, *, rate: float = LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate of the values, 0 to 1.
    """
    A = spec.num_actions

    def update(memory: LatentStateMemory, step: TrialStep) -> LatentStateMemory:
        action = jnp.where(step.position < A, step.position, memory.action).astype(jnp.int32)
        belief = update_latent_belief(memory.belief, step)
        change = rate * belief * (step.reward - memory.values[:, action])
        values = memory.values.at[:, action].add(jnp.where(step.is_end, change, 0.0))
        return LatentStateMemory(belief, values, action)

    memory = LatentStateMemory(jnp.full(2, 0.5), jnp.zeros((2, A)), jnp.int32(0))
    return build_chooser("latent_state_learner", spec, memory, update, lambda memory: memory.belief @ memory.values)
