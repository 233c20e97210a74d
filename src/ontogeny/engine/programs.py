"""The compiled programs of the server's engine: prefill of one sequence, and one decode step of a batch.

Batch invariance: a prompt is processed alone, in chunks that begin at multiples of the chunk size, by a program for one
sequence (of which there are two: with and without the logits of every token). Its cache is then copied into a batch,
and a program for `batch_size` sequences generates one token at a time. Each program has one shape, and no row of a
product depends on another row, so an answer depends on its request alone. A compiler might break the independence of
rows: `check_batch_invariance` tests it on the machine at hand. Letters: R sequences of a batch, K tokens of a chunk,
V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights, extend_cache, init_cache
from ontogeny.errors import BadInput


class BatchShape(NamedTuple):
    """The static sizes for which the programs are compiled, besides the model's config."""

    batch_size: int  # R, sequences that one decode step advances
    prefill_chunk: int  # K, tokens of a prompt that one prefill call processes
    capacity: int  # tokens that the cache of a sequence can hold


def default_batch_shape(config: TransformerConfig, max_num_seqs: int = 64) -> BatchShape:
    """Eight sequences on a CPU, where larger batches cost in proportion; 64 on an accelerator.

    The size does not follow `max_num_seqs`, because the bits of logits depend on it.
    """
    batch_size = 8 if jax.default_backend() == "cpu" else 64
    return BatchShape(batch_size, min(32, config.context_length), config.context_length)


@partial(jax.jit, static_argnums=(0, 6))
def prefill(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    start: Int32[Array, ""],
    tokens: Int32[Array, "K"],
    num_tokens: Int32[Array, ""],
    all_logits: bool,
) -> tuple[KVCache, Float[Array, "K V"] | Float[Array, "V"]]:
    """Process one chunk of a prompt.

    Args:
        cache: The cache of one sequence; it stays valid, so that other sequences may continue from it.
        start: The number of tokens that the cache holds.
        tokens: The chunk, padded to K tokens.
        num_tokens: How many of them count.
        all_logits: Whether to return the logits after every token instead of those after the last one.

    Returns:
        The extended cache and the logits.
    """
    cache, logits = extend_cache(
        config, weights, cache._replace(length=start[None]), tokens[None], num_tokens[None], all_logits=all_logits
    )
    return cache, logits[0]


@partial(jax.jit, donate_argnums=0)
def insert_sequence(batch_cache: KVCache, cache: KVCache, slot: Int32[Array, ""]) -> KVCache:
    """Copy the cache of one sequence into a slot of a batch."""

    def insert(batch: Array, sequence: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(batch, sequence, slot, 0)

    return jax.tree.map(insert, batch_cache, cache)


@jax.jit
def extract_sequence(batch_cache: KVCache, slot: Int32[Array, ""]) -> KVCache:
    """Copy the cache of one sequence out of a slot of a batch; the inverse of `insert_sequence`."""
    return jax.tree.map(lambda batch: jax.lax.dynamic_slice_in_dim(batch, slot, 1, 0), batch_cache)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode_step(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    length: Int32[Array, "R"],
    tokens: Int32[Array, "R"],
    num_tokens: Int32[Array, "R"],
) -> tuple[KVCache, Float[Array, "R V"]]:
    """Process one token of each sequence whose `num_tokens` is 1; the others, with 0, stay as they are.

    Args:
        length: The tokens that each sequence's cache holds.
        tokens: The next token of each sequence.
        num_tokens: 1 or 0.

    Returns:
        The extended cache and the logits of what follows.
    """
    return extend_cache(config, weights, cache._replace(length=length), tokens[:, None], num_tokens)


def check_batch_invariance(
    config: TransformerConfig, shape: BatchShape, weights: TransformerWeights, compute_dtype: DTypeLike = jnp.float32
) -> None:
    """Compile all programs and compare the logits of every slot of a batch bit for bit.

    Raises:
        BadInput: On this machine the logits of a sequence depend on its slot or on the other sequences.
    """
    tokens = np.arange(shape.prefill_chunk, dtype=np.int32) % config.vocab_size
    half = np.int32(shape.prefill_chunk // 2)
    empty = init_cache(config, 1, shape.capacity, compute_dtype)
    for all_logits in (True, False):
        cache, _ = prefill(config, weights, empty, np.int32(0), tokens, half, all_logits)
    batch = init_cache(config, shape.batch_size, shape.capacity, compute_dtype)
    for slot in range(shape.batch_size):
        batch = insert_sequence(batch, cache, np.int32(slot))
    cache = extract_sequence(batch, np.int32(0))
    batch = insert_sequence(batch, cache, np.int32(0))
    ones, last_only = np.ones(shape.batch_size, np.int32), np.zeros(shape.batch_size, np.int32)
    last_only[-1] = 1
    length = np.full(shape.batch_size, half, np.int32)
    batch, together = decode_step(config, weights, batch, length, ones, ones)
    batch, separate = decode_step(config, weights, batch, length, ones, last_only)  # the same token, in one slot
    together, separate = np.asarray(together), np.asarray(separate)
    if any(logits.tobytes() != together[0].tobytes() for logits in [*together, separate[-1]]):
        raise BadInput(
            "on this machine the bits of an answer depend on its slot in the batch, so the server cannot keep its "
            "promise of batch invariance"
        )
