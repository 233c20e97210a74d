"""Chooses every action with equal probability: the lower bound."""

import jax
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the agent; it has no settings."""
    del steering

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        del percept
        return jax.random.randint(key, (), 0, spec.num_actions), state

    return fixed_weights_agent(empty_genome, tuple, act)
