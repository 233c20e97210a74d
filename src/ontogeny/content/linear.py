"""Predicts with one linear layer on the inputs of the present step (logistic regression); has no memory."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, feedforward_predictor
from ontogeny.types import Key

KEY_NUMBER = 1  # in the random keys of the mesa study, which trains contents in this order


class LinearPredictorWeights(NamedTuple):
    """Weights of the layer."""

    input: Float[Array, "I K"]
    bias: Float[Array, "K"]


def build(num_inputs: int, num_outputs: int = 1, *, learning_rate: float = 0.003, outputs: str = "binary") -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step.
        learning_rate: Initial step size of Adam; it falls to zero along a cosine until the last update.
        outputs: `binary` for K binary quantities, `categorical` for the K classes of one quantity.
    """

    def init(key: Key) -> LinearPredictorWeights:
        del key
        return LinearPredictorWeights(jnp.zeros((num_inputs, num_outputs)), jnp.zeros(num_outputs))

    def apply(weights: LinearPredictorWeights, inputs: Float[Array, "I"]) -> Float[Array, "K"]:
        return inputs @ weights.input + weights.bias

    return feedforward_predictor(init, apply, learning_rate, outputs=outputs)
