"""Learns values as means of complete returns, TD(1) or Monte Carlo: it learns nothing before the payout.

Sutton & Barto 2018, section 5.1, with a constant learning rate. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser, num_positions
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "000"}


class MonteCarloMemory(NamedTuple):
    """Values and the positions visited in this trial."""

    values: Array  # [W], by position
    visited: Array  # [W] 0 or 1, by position


def build(spec: EnvSpec, steering: Steering, *, rate: float = LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
    """

    def update(memory: MonteCarloMemory, step: TrialStep) -> MonteCarloMemory:
        visited = memory.visited.at[step.position].set(1.0)
        change = rate * visited * (step.reward - memory.values)
        values = memory.values + jnp.where(step.is_end, change, 0.0)
        return MonteCarloMemory(values, jnp.where(step.is_end | step.is_cut, 0.0, visited))

    zeros = jnp.zeros(num_positions(spec))
    memory = MonteCarloMemory(zeros, zeros)
    return build_chooser("td_one", spec, memory, update, lambda memory: memory.values[: spec.num_actions])
