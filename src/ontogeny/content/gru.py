"""Predicts by a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078): what it remembers is its hidden units.

Letters: H hidden units, I inputs, K outputs, L steps.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, begins, by_gradient, dense
from ontogeny.errors import require_at_least
from ontogeny.types import Key


class Weights(NamedTuple):
    """The gates stand side by side on the last axis: reset, update, candidate."""

    recurrent: Float[Array, "H 3*H"]
    input: Float[Array, "I 3*H"]
    bias: Float[Array, "3*H"]
    readout: Float[Array, "H K"]
    preference: Float[Array, "K"]


def build(inputs: int, outputs: int = 1, *, units: int = 12, memory: float = 1.0, step_size: float = 0.01) -> Predictor:
    """`memory` is the first bias of the update gates: how long the untrained units remember."""
    require_at_least(1, units=units)

    def init(key: Key) -> Weights:
        recurrent_key, input_key = jax.random.split(key)
        blocks = [jax.nn.initializers.orthogonal()(k, (units, units)) for k in jax.random.split(recurrent_key, 3)]
        bias = jnp.zeros(3 * units).at[units : 2 * units].set(memory)
        readout = jnp.zeros((units, outputs))
        return Weights(
            jnp.concatenate(blocks, axis=1), dense(input_key, inputs, 3 * units), bias, readout, jnp.zeros(outputs)
        )

    def fresh() -> Float[Array, "H"]:
        return jnp.zeros(units)

    def advance(weights: Weights, hidden: Array, x: Array, from_input: Array) -> Float[Array, "H"]:
        hidden = jnp.where(begins(x), 0.0, hidden)
        from_hidden = hidden @ weights.recurrent
        gates = jax.nn.sigmoid(from_hidden[: 2 * units] + from_input[: 2 * units])
        reset, update = gates[:units], gates[units:]
        candidate = jnp.tanh(from_input[2 * units :] + reset * from_hidden[2 * units :])
        return candidate + update * (hidden - candidate)

    def query(
        weights: Weights, hidden: Float[Array, "H"], x: Float[Array, "I"]
    ) -> tuple[Float[Array, "K"], Float[Array, "H"]]:
        hidden = advance(weights, hidden, x, x @ weights.input + weights.bias)
        return hidden @ weights.readout + weights.preference, hidden

    def sequence(weights: Weights, x: Float[Array, "L I"]) -> Float[Array, "L K"]:
        def step(hidden: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
            hidden = partial(advance, weights)(hidden, *given)
            return hidden, hidden

        _, hidden = jax.lax.scan(step, fresh(), (x, x @ weights.input + weights.bias))
        return hidden @ weights.readout + weights.preference

    return by_gradient(init, fresh, query, sequence, step_size)
