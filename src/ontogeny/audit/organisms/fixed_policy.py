"""Follows one policy in every lifetime: a fixed action for each observation, with occasional lapses."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "no"}


def build(spec: EnvSpec, steering: Steering, *, lapse: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        lapse: Probability of a uniformly random choice, 0 to 1.
    """

    def update(memory: tuple, step: StepMemoryInput) -> tuple:
        return memory

    def choose(key: Key, memory: tuple, percept: Percept) -> Array:
        lapse_key, action_key = jax.random.split(key)
        lapses = jax.random.bernoulli(lapse_key, lapse)
        random_action = jax.random.randint(action_key, (), 0, spec.num_actions)
        return jnp.where(lapses, random_action, (7 * percept.observation + 3) % spec.num_actions)

    return build_stepwise("fixed_policy", spec, ("random_mdp", "foraging", "relay"), (), update, choose)
