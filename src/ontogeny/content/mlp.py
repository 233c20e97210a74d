"""Predicts with a multilayer perceptron of one hidden layer on the inputs of the present step; has no memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, feedforward_predictor, init_dense
from ontogeny.errors import require_at_least
from ontogeny.types import Key

KEY_NUMBER = 2  # in the random keys of the mesa study, which trains contents in this order


class MLPWeights(NamedTuple):
    """Weights of both layers."""

    input: Float[Array, "I H"]
    bias: Float[Array, "H"]
    readout: Float[Array, "H K"]
    readout_bias: Float[Array, "K"]


def build(
    num_inputs: int,
    num_outputs: int = 1,
    *,
    hidden_size: int = 16,
    learning_rate: float = 0.003,
    outputs: str = "binary",
) -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step.
        hidden_size: Hidden units, at least 1.
        learning_rate: Initial step size of Adam; it falls to zero along a cosine until the last update.
        outputs: `binary` for K binary quantities, `categorical` for the K classes of one quantity.
    """
    require_at_least(1, hidden_size=hidden_size)

    def init(key: Key) -> MLPWeights:
        input_weights, readout = init_dense(key, num_inputs, hidden_size), jnp.zeros((hidden_size, num_outputs))
        return MLPWeights(input_weights, jnp.zeros(hidden_size), readout, jnp.zeros(num_outputs))

    def apply(weights: MLPWeights, inputs: Float[Array, "I"]) -> Float[Array, "K"]:
        return jax.nn.tanh(inputs @ weights.input + weights.bias) @ weights.readout + weights.readout_bias

    return feedforward_predictor(init, apply, learning_rate, outputs=outputs)
