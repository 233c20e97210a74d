"""Agent plugin that always acts alike, and whose loss, or weights, are infinite from the fourth step on."""

import jax.numpy as jnp

from ontogeny.agents.base import empty_genome
from ontogeny.types import Agent, State, Weights


def build(spec, steering, *, part: str = "loss") -> Agent:
    def init(key, genome):
        return State(Weights(jnp.float32(1), ()), ())

    def act(key, state, percept):
        return jnp.int32(0), state

    def learn(key, state, transition):
        content = state.weights.content + 1
        diverged = jnp.where(content > 4, jnp.inf, content)
        if part == "weights":  # the loss follows one step later, as that of the weights before an update does
            return State(Weights(diverged, ()), ()), {"loss": state.weights.content}
        return State(Weights(content, ()), ()), {"loss": diverged}

    return Agent(empty_genome, init, lambda state: state, act, learn, learning=True)
