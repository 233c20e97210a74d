"""Predicts with one count table of three cells, indexed by a single input that is -1, 0 or 1; has no memory.

The smallest learned content: it depends on no other input and no earlier step, so no training can make it use context
or plan. Each cell estimates its probability by Laplace's rule of succession.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content.base import PredictionBatch, Predictor
from ontogeny.types import Key, PyTree

KEY_NUMBER = 0  # in the random keys of the mesa study, which trains contents in this order


def build(num_inputs: int, num_outputs: int = 1, *, input_index: int = 2) -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step; all but one are ignored.
        num_outputs: Predicted quantities per step.
        input_index: Position of the input that selects a cell by its value, -1, 0 or 1.
    """
    del num_inputs

    def cell(inputs: Float[Array, "*L I"]) -> Int32[Array, "*L"]:
        return jnp.round(inputs[..., input_index]).astype(jnp.int32) + 1

    def init(key: Key) -> Float[Array, "3 K"]:
        """Log odds by cell."""
        del key
        return jnp.zeros((3, num_outputs))

    def init_scratch(weights: Float[Array, "3 K"]) -> Float[Array, "2 3 K"]:
        """Counts of targets 0 and 1, which start at one each."""
        return jnp.ones((2, *weights.shape))

    def query(
        weights: Float[Array, "3 K"], memory: PyTree, inputs: Float[Array, "I"]
    ) -> tuple[Float[Array, "K"], PyTree]:
        return weights[cell(inputs)], memory

    def query_sequence(weights: Float[Array, "3 K"], inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        return weights[cell(inputs)]

    def update(
        weights: Float[Array, "3 K"], counts: Float[Array, "2 3 K"], batch: PredictionBatch, progress: Array
    ) -> tuple[Float[Array, "3 K"], Float[Array, "2 3 K"]]:
        """Counts the newest sequence alone, because the older ones have been counted before."""
        del weights, progress
        inputs, target_index, target, mask = jax.tree.map(lambda leaf: leaf[0], batch)
        location = jax.nn.one_hot(cell(inputs), 3)[:, :, None] * jax.nn.one_hot(target_index, num_outputs)[:, None, :]
        # v: target 0 or 1, l: step, c: cell, k: predicted quantity.
        counts = counts + jnp.einsum("vl,lck->vck", jnp.stack([1 - target, target]) * mask, location)
        return jnp.log(counts[1] / counts[0]), counts

    return Predictor(init, init_scratch, tuple, query, query_sequence, update)
