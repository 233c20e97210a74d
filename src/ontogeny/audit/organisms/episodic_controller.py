"""Remembers the best return that followed each action at each observation, and takes the action with the best one.

Model-free episodic control (Blundell et al. 2016, arXiv 1606.04460), with a table in place of nearest neighbors. All in
activations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "yes"}
HELD_OUT = True


class EpisodicMemory(NamedTuple):
    """Best returns, and the course of this episode."""

    returns: Array  # [S, A]
    observations: Array  # [horizon] int32
    actions: Array  # [horizon] int32
    rewards: Array  # [horizon]
    num_steps: Array  # [] int32, of this episode


def build(spec: EnvSpec, steering: Steering, *, epsilon: float = 0.15) -> Agent:
    """Builds the organism.

    Args:
        epsilon: Probability of a random action, 0 to 1.
    """
    horizon = spec.horizon

    def update(memory: EpisodicMemory, step: StepMemoryInput) -> EpisodicMemory:
        t = jnp.minimum(memory.num_steps, horizon - 1)
        observations = memory.observations.at[t].set(step.last_observation)
        actions = memory.actions.at[t].set(step.percept.action)
        rewards = memory.rewards.at[t].set(step.percept.reward)
        is_part = jnp.arange(horizon) <= t
        returns_to_go = jnp.cumsum(jnp.where(is_part, rewards, 0.0)[::-1])[::-1]
        best = memory.returns.at[observations, actions].max(jnp.where(is_part, returns_to_go, -jnp.inf))
        is_end = step.percept.first
        return EpisodicMemory(
            jnp.where(is_end, best, memory.returns),
            observations,
            actions,
            jnp.where(is_end, 0.0, rewards),
            jnp.where(is_end, 0, memory.num_steps + 1),
        )

    def choose(key: Key, memory: EpisodicMemory, percept: Percept) -> Array:
        explore_key, random_key, tie_key = jax.random.split(key, 3)
        best = random_argmax(tie_key, memory.returns[percept.observation])
        random_action = jax.random.randint(random_key, (), 0, spec.num_actions)
        return jnp.where(jax.random.bernoulli(explore_key, epsilon), random_action, best)

    zeros = jnp.zeros(horizon, jnp.int32)
    memory = EpisodicMemory(
        jnp.full((max(spec.num_observations, 1), spec.num_actions), -10.0),
        zeros,
        zeros,
        jnp.zeros(horizon),
        jnp.int32(0),
    )
    return build_stepwise("episodic_controller", spec, ("random_mdp", "foraging"), memory, update, choose)
