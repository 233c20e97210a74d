"""Guesses the next observation by a transformer: what it has read is in its cache, what it learned in its weights.

An action is the token that it takes to come next, so it lives in environments whose actions are guesses at observations, such
as `text`. `act` reads one token into the key-value cache (activations); `learn` takes one step of Adam on the token
that came (weights; its moments are scratch), and looks at the window of tokens that the cache was made of. A full
window goes on with its last half. Its genome is the weights before its life; it learns by prediction and not by reward.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering, Transition, Weights


class Reading(NamedTuple):
    """Activations: the cache, and the tokens that it was made of, of which `cache.length` count."""

    cache: KVCache  # of one row
    window: Array  # [C] int32


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    layers: int = 1,
    heads: int = 2,
    width: int = 32,
    context: int = 32,
    learning_rate: float = 3e-3,
    sampled: bool = False,
) -> Agent:
    """`sampled` draws the guess from the prediction instead of taking the most probable token."""
    del steering
    if not spec.num_observations or spec.num_observations != spec.num_actions:
        raise BadInput(
            f"agent 'language_model' guesses the next observation, which is no action of environment '{spec.name}'"
        )
    config = transformer.make_config("gpt2", spec.num_observations, context, num_layers=layers, num_heads=heads, width=width)
    return reader(config, learning_rate=learning_rate, sampled=sampled)


def reader(config: TransformerConfig, *, learning_rate: float = 3e-3, sampled: bool = False) -> Agent:
    """The agent of any transformer; its genome is the `TransformerWeights` that it is born with."""
    C, keep = config.context_length, max(config.context_length // 2, 1)
    optimizer = optax.adam(learning_rate)

    def moments(content: Any) -> Any:
        return optimizer.init(content)

    def genome(key: Key) -> TransformerWeights:
        return transformer.init_weights(key, config)

    def nothing_read() -> Reading:
        return Reading(transformer.init_cache(config, 1), jnp.zeros(C, jnp.int32))

    def init(key: Key, genome: TransformerWeights) -> State:
        del key
        return State(Weights(genome, moments(genome)), nothing_read())

    def reset(state: State) -> State:
        return State(state.weights, nothing_read())

    def read(content: TransformerWeights, reading: Reading, tokens: Array) -> tuple[Reading, Array]:
        """Takes tokens [K] in; logits [V] of what follows."""
        length = reading.cache.length[0]
        window = jax.lax.dynamic_update_slice(reading.window, tokens, (length,))
        cache, logits = transformer.extend_cache(config, content, reading.cache, tokens[None], jnp.full(1, len(tokens)))
        return Reading(cache, window), logits[0]

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        content, reading = state.weights.content, state.activations

        def begin_again(reading: Reading) -> Reading:
            return read(content, nothing_read(), reading.window[C - keep :])[0]

        full = reading.cache.length[0] >= C
        reading = jax.lax.cond(full, begin_again, lambda reading: reading, reading)
        reading, logits = read(content, reading, percept.observation[None].astype(jnp.int32))
        action = jax.random.categorical(key, logits) if sampled else jnp.argmax(logits)
        return action.astype(jnp.int32), State(state.weights, reading)

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, dict[str, Array]]:
        """Where an episode begins, what came is not the successor of what was read, and nothing is learned."""
        del key
        (content, scratch), reading = state.weights, state.activations
        last, came = reading.cache.length[0] - 1, transition.next

        def surprise(content: TransformerWeights) -> Array:
            logits = transformer.forward(config, content, reading.window[None])[0, last]
            return -jax.nn.log_softmax(logits)[came.observation]

        loss, gradient = jax.value_and_grad(surprise)(content)
        change, scratch = optimizer.update(gradient, scratch, content)
        learned = Weights(optax.apply_updates(content, change), scratch)
        weights = jax.tree.map(lambda new, old: jnp.where(came.first, old, new), learned, state.weights)
        return State(weights, reading), {"loss": loss}

    return Agent(genome, init, reset, act, learn, learning=True)
