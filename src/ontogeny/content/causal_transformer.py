"""Predicts by one causal transformer block (Vaswani et al. 2017, arXiv 1706.03762): it remembers keys and values.

Letters: D width, N heads, W steps that are kept, I inputs, K outputs, L steps. How long ago a step was is a bias of its
attention, learned for each age (Raffel et al. 2020, arXiv 1910.10683, section 2.1); layers are normed before use.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ontogeny.content.base import Predictor, begins, by_gradient, dense
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Key

NEVER = -1e9  # attention to what is not there


class Weights(NamedTuple):
    embed: Float[Array, "I D"]
    offset: Float[Array, "D"]
    attend: Float[Array, "D 3*D"]  # queries, keys, values
    ages: Float[Array, "N W"]
    merge: Float[Array, "D D"]
    wide: Float[Array, "D 4*D"]
    narrow: Float[Array, "4*D D"]
    readout: Float[Array, "D K"]
    preference: Float[Array, "K"]


class Memory(NamedTuple):
    """The latest step last."""

    keys: Float[Array, "W D"]
    values: Float[Array, "W D"]
    there: Bool[Array, "W"]


def build(
    inputs: int, outputs: int = 1, *, width: int = 16, heads: int = 2, window: int = 50, step_size: float = 0.005
) -> Predictor:
    require_at_least(1, width=width, heads=heads, window=window)
    if width % heads:
        raise BadInput(f"the setting 'width' must be a multiple of the {heads} heads, not {width}")
    each = width // heads

    def init(key: Key) -> Weights:
        keys = jax.random.split(key, 5)
        return Weights(
            dense(keys[0], inputs, width),
            jnp.zeros(width),
            dense(keys[1], width, 3 * width),
            jnp.zeros((heads, window)),
            dense(keys[2], width, width),
            dense(keys[3], width, 4 * width),
            dense(keys[4], 4 * width, width),
            jnp.zeros((width, outputs)),
            jnp.zeros(outputs),
        )

    def fresh() -> Memory:
        return Memory(jnp.zeros((window, width)), jnp.zeros((window, width)), jnp.zeros(window, bool))

    def entered(weights: Weights, x: Float[Array, "*L I"]) -> tuple[Array, Array, Array, Array]:
        stream = x @ weights.embed + weights.offset
        asks, key, value = jnp.split(normed(stream) @ weights.attend, 3, axis=-1)
        return stream, asks, key, value

    def left(weights: Weights, stream: Float[Array, "*L D"], attended: Float[Array, "*L D"]) -> Float[Array, "*L K"]:
        stream = stream + attended @ weights.merge
        stream = stream + jax.nn.relu(normed(stream) @ weights.wide) @ weights.narrow
        return normed(stream) @ weights.readout + weights.preference

    def query(weights: Weights, memory: Memory, x: Float[Array, "I"]) -> tuple[Float[Array, "K"], Memory]:
        stream, asks, key, value = entered(weights, x)
        there = memory.there & ~begins(x)
        memory = Memory(
            jnp.concatenate([memory.keys[1:], key[None]]),
            jnp.concatenate([memory.values[1:], value[None]]),
            jnp.concatenate([there[1:], jnp.ones(1, bool)]),
        )
        match = jnp.einsum("nd,wnd->nw", asks.reshape(heads, each), memory.keys.reshape(window, heads, each))
        match = jnp.where(memory.there, match / jnp.sqrt(each) + weights.ages[:, ::-1], NEVER)
        values = memory.values.reshape(window, heads, each)
        attended = jnp.einsum("nw,wnd->nd", jax.nn.softmax(match), values).reshape(width)
        return left(weights, stream, attended), memory

    def sequence(weights: Weights, x: Float[Array, "L I"]) -> Float[Array, "L K"]:
        L = x.shape[0]
        stream, asks, keys, values = entered(weights, x)
        asks, keys, values = (part.reshape(L, heads, each) for part in (asks, keys, values))
        age = jnp.arange(L)[:, None] - jnp.arange(L)[None, :]
        memory = jnp.cumsum(begins(x))
        seen = (age >= 0) & (age < window) & (memory[:, None] == memory[None, :])
        match = jnp.einsum("tnd,snd->nts", asks, keys) / jnp.sqrt(each) + weights.ages[:, jnp.clip(age, 0, window - 1)]
        shares = jax.nn.softmax(jnp.where(seen, match, NEVER))
        return left(weights, stream, jnp.einsum("nts,snd->tnd", shares, values).reshape(L, width))

    return by_gradient(init, fresh, query, sequence, step_size)


def normed(x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
    """Root mean square one (Zhang & Sennrich 2019, arXiv 1910.07467), without a gain."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
