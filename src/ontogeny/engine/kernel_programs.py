"""The functions of `programs`, computed on a CPU by the kernels of `ontogeny.kernels`.

Caches hold NumPy arrays. That of a batch changes in place; that of one sequence is never changed, so that other
sequences may continue from it. The logits of a sequence depend on its own tokens alone, bit for bit.
"""

from collections.abc import Callable

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.engine.programs import BatchShape
from ontogeny.errors import BadInput
from ontogeny.kernels import transformer
from ontogeny.kernels.packing import pack


def default_batch_shape(config: TransformerConfig, max_num_seqs: int = 64) -> BatchShape:
    """Up to sixteen sequences: a step reads all weights once, however many sequences it advances."""
    return BatchShape(min(16, max(1, max_num_seqs)), min(32, config.context_length), config.context_length)


def init_cache(
    config: TransformerConfig, num_sequences: int, capacity: int, compute_dtype: DTypeLike = np.float32
) -> KVCache:
    """Returns an empty cache; arguments as in `content.transformer.init_cache`."""
    assert compute_dtype == np.float32, "the kernels compute in float32"
    return transformer.init_cache(config, num_sequences, capacity)


def prefill(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    start: np.integer,
    tokens: Int32[np.ndarray, "K"],
    num_tokens: np.integer,
    all_logits: bool,
) -> tuple[KVCache, Float[np.ndarray, "_ V"] | Float[np.ndarray, "V"]]:
    """Process one chunk of a prompt; see `programs.prefill`. Padding has no logits."""
    extended = _copy_cache(cache, lambda layer: _copy(layer, int(start)))
    new = tokens[: int(num_tokens)]
    logits = transformer.extend(
        pack(config, weights), extended, [0], [int(start)], [new], "all" if all_logits else "last"
    )
    return extended, logits if all_logits else logits[0]


def _copy(original: np.ndarray, length: int) -> np.ndarray:
    """A new array with the first keys or values [1, G, C, D] of one sequence; the others are never read."""
    copied = np.zeros_like(original)
    copied[:, :, :length] = original[:, :, :length]
    return copied


def insert_sequence(batch_cache: KVCache, cache: KVCache, slot: np.integer) -> KVCache:
    """Copy the cache of one sequence into a slot of a batch, which changes in place."""
    for batch_part, part in ((batch_cache.keys, cache.keys), (batch_cache.values, cache.values)):
        for batch_layer, layer in zip(batch_part, part, strict=True):
            np.asarray(batch_layer)[int(slot)] = np.asarray(layer)[0]
    return batch_cache


def extract_sequence(batch_cache: KVCache, slot: np.integer) -> KVCache:
    """Copy the cache of one sequence out of a slot of a batch; the inverse of `insert_sequence`."""
    index = int(slot)
    return _copy_cache(batch_cache, lambda layer: layer[index : index + 1].copy())


def _copy_cache(cache: KVCache, copy: Callable[[np.ndarray], np.ndarray]) -> KVCache:
    """A cache of one sequence, whose arrays are copied by a function."""
    keys, values = (tuple(copy(np.asarray(layer)) for layer in part) for part in (cache.keys, cache.values))
    return KVCache(keys, values, np.zeros(1, np.int32))  # pyright: ignore[reportArgumentType]


def decode_step(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    length: Int32[np.ndarray, "R"],
    tokens: Int32[np.ndarray, "R"],
    num_tokens: Int32[np.ndarray, "R"],
) -> tuple[KVCache, Float[np.ndarray, "R V"]]:
    """Process one token of each sequence whose `num_tokens` is 1; only the logits of these have a meaning."""
    slots = np.flatnonzero(num_tokens)
    computed = transformer.extend(pack(config, weights), cache, slots, length[slots], tokens[slots, None])
    if len(slots) == len(tokens):
        return cache, computed
    logits = np.empty((len(tokens), config.vocab_size), np.float32)
    logits[slots] = computed
    return cache, logits


def check_batch_invariance(
    config: TransformerConfig, shape: BatchShape, weights: TransformerWeights, compute_dtype: DTypeLike = np.float32
) -> None:
    """Compile the kernels and compare the logits of every slot of a batch bit for bit, and with those of prefill.

    Raises:
        BadInput: On this machine the logits of a sequence depend on its slot or on the other sequences.
    """
    num_tokens = max(1, shape.prefill_chunk // 2)
    tokens = np.arange(num_tokens + 1, dtype=np.int32) % config.vocab_size
    packed, slots = pack(config, weights), range(shape.batch_size)
    cache = init_cache(config, shape.batch_size, max(shape.capacity, num_tokens + 1), compute_dtype)
    reference = transformer.extend(packed, cache, [0], [0], [tokens])
    transformer.extend(packed, cache, slots, [0] * len(slots), [tokens[:num_tokens]] * len(slots), "none")
    together = transformer.extend(packed, cache, slots, [num_tokens] * len(slots), [tokens[num_tokens:]] * len(slots))
    if any(logits.tobytes() != reference.tobytes() for logits in together):
        raise BadInput(
            "on this machine the bits of an answer depend on its slot in the batch, so the server cannot keep its "
            "promise of batch invariance"
        )
