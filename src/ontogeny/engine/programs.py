"""The programs that every answer comes from: reading a chunk of one row, and one more token for a tile of rows.

Same question, same bits: a prompt is read alone, in chunks that begin at multiples of `chunk`, by a program of one
row, of which there are two: for prompts that are scored and for those that are not. Then the row is put into a tile,
and what is generated comes one token at a time from a program of `rows` rows. Each has one shape, whatever else is
going on, and no row of a product depends on another, so that an answer depends on its question alone. That a row's
place makes no difference is what a compiler might break: `check_batch_invariance` tries it on the machine at hand.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights, extend_cache, init_cache
from ontogeny.errors import BadInput


class BatchShape(NamedTuple):
    """Static: with the model's config, all that programs are compiled for."""

    batch_size: int  # R, sequences that one decode step advances
    prefill_chunk: int  # K, tokens of a prompt per prefill call
    capacity: int  # C, tokens that a row can hold


def default_batch_shape(config: TransformerConfig) -> BatchShape:
    """Eight rows on a processor, where wider tiles cost in proportion; on an accelerator as many as there may be."""
    rows = 8 if jax.default_backend() == "cpu" else 64
    return BatchShape(rows, min(32, config.context_length), config.context_length)


def empty_batch_cache(config: TransformerConfig, shape: BatchShape, compute: Any = jnp.float32) -> KVCache:
    return init_cache(config, shape.batch_size, shape.capacity, compute)


def empty_sequence_cache(config: TransformerConfig, shape: BatchShape, compute: Any = jnp.float32) -> KVCache:
    return init_cache(config, 1, shape.capacity, compute)


@partial(jax.jit, static_argnums=(0, 6))
def prefill(
    config: TransformerConfig,
    weights: TransformerWeights,
    row: KVCache,
    start: Int32[Array, ""],
    tokens: Int32[Array, "K"],
    count: Int32[Array, ""],
    every: bool,
) -> tuple[KVCache, Float[Array, "K V"] | Float[Array, "V"]]:
    """A cache of one row after it has read `count` tokens, the first of which is its token number `start`.

    Logits of what follows the last, or with `every` of what follows each. The row that is given stays as it is:
    others may go on from it.
    """
    row, logits = extend_cache(config, weights, row._replace(length=start[None]), tokens[None], count[None], all_logits=every)
    return row, logits[0]


@partial(jax.jit, donate_argnums=0)
def insert_sequence(tile: KVCache, row: KVCache, at: Int32[Array, ""]) -> KVCache:
    """A tile, one row of which is now this one."""

    def put(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, at, 0)

    return jax.tree.map(put, tile, row)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode_step(
    config: TransformerConfig,
    weights: TransformerWeights,
    tile: KVCache,
    length: Int32[Array, "R"],
    tokens: Int32[Array, "R"],
    count: Int32[Array, "R"],
) -> tuple[KVCache, Float[Array, "R V"]]:
    """Each row whose `count` is 1 reads one token, after the `length` that it holds; the others stay as they are."""
    tile = tile._replace(length=length)
    return extend_cache(config, weights, tile, tokens[:, None], count)


def check_batch_invariance(config: TransformerConfig, shape: BatchShape, weights: TransformerWeights, compute: Any = jnp.float32) -> None:
    """Compiles everything, and raises `BadInput` where on this machine a row's place changes its bits."""
    tokens, half = (
        np.arange(shape.prefill_chunk, dtype=np.int32) % config.vocab_size,
        np.int32(shape.prefill_chunk // 2),
    )
    for every in (True, False):
        row, _ = prefill(
            config, weights, empty_sequence_cache(config, shape, compute), np.int32(0), tokens, half, every
        )
    tile = empty_batch_cache(config, shape, compute)
    for at in range(shape.batch_size):
        tile = insert_sequence(tile, row, np.int32(at))
    ones, alone = np.ones(shape.batch_size, np.int32), np.zeros(shape.batch_size, np.int32)
    alone[-1] = 1
    length = np.full(shape.batch_size, half, np.int32)
    tile, together = decode_step(config, weights, tile, length, ones, ones)
    tile, apart = decode_step(config, weights, tile, length, ones, alone)  # the same token again, by one row alone
    together, apart = np.asarray(together), np.asarray(apart)
    if any(answer.tobytes() != together[0].tobytes() for answer in [*together, apart[-1]]):
        raise BadInput(
            "on this machine a row's place changes the bits of its answer, which this server promises never happens; "
            "no such machine was known"
        )
