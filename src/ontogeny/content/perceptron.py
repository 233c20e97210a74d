"""A perceptron of one normalized hidden layer: the encoder, the decoder and the heads of neural agents.

Layer norm without weights (Ba et al. 2016, arXiv 1607.06450) and SiLU, as in Hafner et al. 2023 (arXiv 2301.04104).

Letters: I inputs, W hidden units, K outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ontogeny.content.base import init_dense
from ontogeny.content.transformer_block import Linear, apply_linear
from ontogeny.types import Key


class PerceptronWeights(NamedTuple):
    """The two layers."""

    hidden: Linear  # [I, W]
    output: Linear  # [W, K]


def init_perceptron(
    key: Key, num_inputs: int, width: int, num_outputs: int, *, output_scale: float = 0.0, output_bias: ArrayLike = 0.0
) -> PerceptronWeights:
    """Draws initial weights.

    Args:
        key: Random key.
        num_inputs: I.
        width: W.
        num_outputs: K.
        output_scale: Scale of the output weights; 0 for outputs that begin at their bias.
        output_bias: Initial bias, broadcast to [K].
    """
    hidden_key, output_key = jax.random.split(key)
    return PerceptronWeights(
        Linear(init_dense(hidden_key, num_inputs, width), jnp.zeros(width)),
        Linear(
            init_dense(output_key, width, num_outputs, output_scale),
            jnp.broadcast_to(jnp.asarray(output_bias, jnp.float32), (num_outputs,)),
        ),
    )


def apply_hidden(layer: Linear, inputs: Float[Array, "*batch I"]) -> Float[Array, "*batch W"]:
    """Computes a hidden layer: affine map, layer norm, SiLU."""
    return jax.nn.silu(jax.nn.standardize(apply_linear(layer, inputs)))


def apply_perceptron(weights: PerceptronWeights, inputs: Float[Array, "*batch I"]) -> Float[Array, "*batch K"]:
    """Computes the outputs."""
    return apply_linear(weights.output, apply_hidden(weights.hidden, inputs))
