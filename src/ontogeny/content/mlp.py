"""Predicts by two layers (a multilayer perceptron) on what it is shown in a step; it remembers nothing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, dense, memoryless
from ontogeny.errors import require_at_least
from ontogeny.types import Key


class Weights(NamedTuple):
    input: Float[Array, "I H"]
    bias: Float[Array, "H"]
    readout: Float[Array, "H K"]
    preference: Float[Array, "K"]


def build(inputs: int, outputs: int = 1, *, units: int = 16, step_size: float = 0.003) -> Predictor:
    require_at_least(1, units=units)

    def init(key: Key) -> Weights:
        first = dense(key, inputs, units)
        return Weights(first, jnp.zeros(units), jnp.zeros((units, outputs)), jnp.zeros(outputs))

    def layers(weights: Weights, x: Float[Array, "I"]) -> Float[Array, "K"]:
        return jax.nn.tanh(x @ weights.input + weights.bias) @ weights.readout + weights.preference

    return memoryless(init, layers, step_size)
