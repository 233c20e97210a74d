"""Counts by weights what each action paid, and takes the best so far: the smallest agent that learns."""

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
        known = state.weights.content
        values = (known["sums"] + known["hope"]) / (known["pulls"] + 1)
        return random_argmax(key, values), State(state.weights, state.activations + 1)

    def learn(key, state, transition):
        known, action = state.weights.content, transition.action
        sums = known["sums"].at[action].add(transition.next_percept.reward)
        content = known | {"sums": sums, "pulls": known["pulls"].at[action].add(1.0)}
        return State(Weights(content), state.activations), ()

    return Agent(genome, init, reset, act, learn, learning=True)
