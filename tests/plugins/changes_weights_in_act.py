"""Violates the agent contract on purpose: `act` changes its weights."""

import jax.numpy as jnp

from ontogeny.types import Agent, State, Weights


def build(spec, steering) -> Agent:
    def init(key, genome):
        return State(Weights(jnp.float32(0)), ())

    def act(key, state, percept):
        return jnp.int32(0), State(Weights(state.weights.content + 1), ())

    return Agent(lambda key: (), init, lambda state: state, act, lambda key, state, transition: (state, ()))
