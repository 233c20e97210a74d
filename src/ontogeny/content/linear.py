"""Predicts by one linear layer on what it is shown in a step (logistic regression); it remembers nothing."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, memoryless
from ontogeny.types import Key


class Weights(NamedTuple):
    input: Float[Array, "I K"]
    bias: Float[Array, "K"]


def build(inputs: int, outputs: int = 1, *, step_size: float = 0.003) -> Predictor:
    def init(key: Key) -> Weights:
        del key
        return Weights(jnp.zeros((inputs, outputs)), jnp.zeros(outputs))

    def layer(weights: Weights, x: Float[Array, "I"]) -> Float[Array, "K"]:
        return x @ weights.input + weights.bias

    return memoryless(init, layer, step_size)
