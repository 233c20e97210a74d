"""Predicts by a count for each value of one input: three cells, and blind to all else.

The smallest content: it is told neither ease nor direction nor anything before the last step, so that no training can
make it lean, remember or plan. Laplace's rule of succession in each cell.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, Sequences
from ontogeny.types import Key


def build(inputs: int, outputs: int = 1, *, column: int = 2) -> Predictor:
    """`column` is the input, -1, 0 or 1, that names a cell."""
    del inputs

    def cell(x: Float[Array, "*L I"]) -> Array:
        return jnp.round(x[..., column]).astype(jnp.int32) + 1

    def init(key: Key) -> Float[Array, "3 K"]:
        """Log odds by cell."""
        del key
        return jnp.zeros((3, outputs))

    def scratch(weights: Float[Array, "3 K"]) -> Float[Array, "2 3 K"]:
        """How often 0 and 1 came, with one imagined of each."""
        return jnp.ones((2, *weights.shape))

    def query(weights: Float[Array, "3 K"], memory: tuple, x: Float[Array, "I"]) -> tuple[Float[Array, "K"], tuple]:
        return weights[cell(x)], memory

    def sequence(weights: Float[Array, "3 K"], x: Float[Array, "L I"]) -> Float[Array, "L K"]:
        return weights[cell(x)]

    def update(weights: Array, counts: Array, lived: Sequences, progress: Array) -> tuple[Array, Any]:
        """The newest sequence alone is counted: older ones have been."""
        del progress
        x, asked, came, new = jax.tree.map(lambda part: part[0], lived)
        where = jax.nn.one_hot(cell(x), 3)[:, :, None] * jax.nn.one_hot(asked, outputs)[:, None, :]
        values = jnp.stack([1 - came, came]) * new
        counts = counts + jnp.einsum("vl,lck->vck", values, where)
        return jnp.log(counts[1] / counts[0]), counts

    return Predictor(init, scratch, tuple, query, sequence, update)
