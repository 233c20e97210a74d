"""Takes every action once at each observation, and from then on the one that paid most at once.

Explore-then-commit (Lattimore and Szepesvari 2020, Bandit Algorithms, chapter 6) at each observation apart, blind to
what follows an action. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "yes"}
HELD_OUT = True


class TrialMemory(NamedTuple):
    """The first reward of each action at each observation, and which actions have been tried there."""

    rewards: Array  # [S, A]
    is_tried: Array  # [S, A] bool


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    shape = (max(spec.num_observations, 1), spec.num_actions)

    def update(memory: TrialMemory, step: StepMemoryInput) -> TrialMemory:
        place = step.last_observation, step.percept.action
        reward = jnp.where(memory.is_tried[place], memory.rewards[place], step.percept.reward)
        return TrialMemory(memory.rewards.at[place].set(reward), memory.is_tried.at[place].set(True))

    def choose(key: Key, memory: TrialMemory, percept: Percept) -> Array:
        is_tried = memory.is_tried[percept.observation]
        return random_argmax(key, jnp.where(is_tried, memory.rewards[percept.observation], jnp.inf))

    memory = TrialMemory(jnp.zeros(shape), jnp.zeros(shape, bool))
    return build_stepwise("explore_then_commit", spec, ("random_mdp",), memory, update, choose)
