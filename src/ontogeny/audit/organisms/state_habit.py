"""Repeats at each observation the action that it took there last, with occasional lapses: habits without a standard."""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, lapse: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        lapse: Probability of a uniformly random choice, 0 to 1.
    """

    def update(habits: Array, step: StepMemoryInput) -> Array:
        return habits.at[step.last_observation].set(step.percept.action)

    def choose(key: Key, habits: Array, percept: Percept) -> Array:
        lapse_key, action_key = jax.random.split(key)
        habit = habits[percept.observation]
        is_random = (habit < 0) | jax.random.bernoulli(lapse_key, lapse)
        return jnp.where(is_random, jax.random.randint(action_key, (), 0, spec.num_actions), habit)

    habits = jnp.full(max(spec.num_observations, 1), -1, jnp.int32)
    return build_stepwise("state_habit", spec, ("random_mdp", "foraging", "relay"), habits, update, choose)
