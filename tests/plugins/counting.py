"""Counts rewards per action in its weights and takes the best action: a minimal agent that learns."""

import jax.numpy as jnp

from ontogeny.rng import random_argmax
from ontogeny.types import Agent, State, Weights


def build(spec, steering, *, hope: float = 1.0) -> Agent:
    def genome(key):
        return {"hope": jnp.float32(hope)}

    def init(key, genome):
        content = {"hope": genome["hope"], "sums": jnp.zeros(spec.num_actions), "pulls": jnp.zeros(spec.num_actions)}
        return State(Weights(content), jnp.int32(0))

    def reset(state):
        return State(state.weights, jnp.int32(0))

    def act(key, state, percept):
        content = state.weights.content
        values = (content["sums"] + content["hope"]) / (content["pulls"] + 1)
        return random_argmax(key, values), State(state.weights, state.activations + 1)

    def learn(key, state, transition):
        content, action = state.weights.content, transition.action
        sums = content["sums"].at[action].add(transition.next_percept.reward)
        content = content | {"sums": sums, "pulls": content["pulls"].at[action].add(1.0)}
        return State(Weights(content), state.activations), ()

    return Agent(genome, init, reset, act, learn, learning=True)
