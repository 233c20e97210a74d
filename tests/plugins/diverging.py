"""Agent plugin that always acts alike, and whose loss is infinite from the fourth step on."""

import jax.numpy as jnp

from ontogeny.agents.base import empty_genome
from ontogeny.types import Agent, State, Weights


def build(spec, steering):
    def init(key, genome):
        return State(Weights(jnp.float32(1), ()), ())

    def act(key, state, percept):
        return jnp.int32(0), state

    def learn(key, state, transition):
        content = state.weights.content + 1
        return State(Weights(content, ()), ()), {"loss": jnp.where(content > 4, jnp.inf, content)}

    return Agent(empty_genome, init, lambda state: state, act, learn, learning=True)
