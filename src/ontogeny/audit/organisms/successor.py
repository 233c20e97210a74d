"""Learns a successor representation by temporal differences: expected future occupancy times learned rewards.

Dayan 1993 (Neural Computation 5:613); SR-TD of Russek et al. 2017 (PLoS Computational Biology 13:e1005768). It adapts
to a changed payout but not to a changed transition, unless the transition starts where it chooses. All in activations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser, num_positions
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "101"}


class SuccessorMemory(NamedTuple):
    """The successor representation and learned rewards."""

    successors: Array  # [W, W] expected future visits, by position
    rewards: Array  # [W], by position


def build(spec: EnvSpec, steering: Steering, *, rate: float = LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
    """
    W, A = num_positions(spec), spec.num_actions

    def update(memory: SuccessorMemory, step: TrialStep) -> SuccessorMemory:
        step_rate = jnp.where(step.is_cut, 0.0, rate)
        target = jax.nn.one_hot(step.position, W) + jnp.where(step.is_end, 0.0, memory.successors[step.next_position])
        successors = memory.successors.at[step.position].add(step_rate * (target - memory.successors[step.position]))
        rewards = memory.rewards.at[step.position].add(step_rate * (step.reward - memory.rewards[step.position]))
        return SuccessorMemory(successors, rewards)

    memory = SuccessorMemory(jnp.zeros((W, W)), jnp.zeros(W))
    return build_chooser("successor", spec, memory, update, lambda memory: memory.successors[:A] @ memory.rewards)
