"""Win-stay lose-shift: one bit of memory for reward, without accumulation.

Robbins 1952 (Bulletin of the American Mathematical Society 58:527).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import TrialStep, build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "plans": "no"}


class WinStayMemory(NamedTuple):
    """The choice and the preferences that follow from the last payout."""

    choice: Array  # [A] one-hot, in this trial
    preferences: Array  # [A]


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    A = spec.num_actions

    def update(memory: WinStayMemory, step: TrialStep) -> WinStayMemory:
        choice = jax.nn.one_hot(step.position, A)
        choice = jnp.where(jnp.sum(choice) > 0, choice, memory.choice)
        preferences = jnp.where(step.reward > 0.5, choice, (1 - choice) / (A - 1))
        return WinStayMemory(choice, jnp.where(step.is_end, preferences, memory.preferences))

    memory = WinStayMemory(jnp.zeros(A), jnp.zeros(A))
    return build_chooser("win_stay", spec, memory, update, lambda memory: memory.preferences)
