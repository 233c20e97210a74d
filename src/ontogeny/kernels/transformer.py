"""Prefill and decode steps of a transformer by the kernels; arrays are NumPy's.

For each sequence, keys, values and logits depend bit for bit on its own tokens alone: not on the number of sequences or
tokens of a call, on the capacity of the cache, or on how its tokens are divided into calls.
"""

import os
from collections.abc import Sequence
from functools import cache as cached

import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import KVCache, TransformerConfig
from ontogeny.kernels import layout
from ontogeny.kernels.packing import PackedWeights
from ontogeny.kernels.products import embed
from ontogeny.kernels.team import MAX_THREADS, Team

Integers = Sequence[int] | np.ndarray


@cached
def team() -> Team:
    """The threads of this process that share steps, as many as it may use cores."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Team(min(num_cores, MAX_THREADS))


def init_cache(config: TransformerConfig, num_sequences: int, capacity: int) -> KVCache:
    """Returns an empty cache of NumPy arrays; `extend` does not use its `length`."""
    shape = (num_sequences, config.kv_heads, capacity, config.size_of_head)
    keys, values = (tuple(np.zeros(shape, np.float32) for _ in range(config.num_layers)) for _ in range(2))
    return KVCache(keys, values, np.zeros(num_sequences, np.int32))  # pyright: ignore[reportArgumentType]


def extend(
    packed: PackedWeights,
    cache: KVCache,
    slots: Integers,
    lengths: Integers,
    tokens: Sequence[Integers] | np.ndarray,
    logits: str = "last",
) -> Float[np.ndarray, "N V"]:
    """Process further tokens of some sequences of a cache, whose arrays change in place.

    Args:
        packed: Weights of the model.
        cache: From `init_cache`.
        slots: The number of each sequence in the cache.
        lengths: How many tokens of each sequence the cache holds.
        tokens: The next tokens of each sequence, at least one; they must fit into the cache.
        logits: `last` for the logits after the last token of each sequence, `all` for those after each token, `none`.

    Returns:
        Logits in the order of the sequences and tokens.
    """
    config, counts = packed.config, [len(new) for new in tokens]
    joined = np.concatenate([np.asarray(new, np.int64) for new in tokens])
    first = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=first[1:])
    starts = np.asarray(lengths, np.int64)
    num_tokens, capacity = len(joined), cache.keys[0].shape[2]
    if int((starts + first[1:] - first[:-1]).max()) > capacity:
        raise ValueError(f"the tokens do not fit into a cache of {capacity}")
    stream = np.empty((num_tokens, config.width), np.float32)
    embed(packed.table, joined, layout.address(stream))
    if packed.positions is not None:
        positions = np.arange(num_tokens) - np.repeat(first[:-1] - starts, counts)
        stream += packed.positions[positions]
    selected = {"last": first[1:] - 1, "all": np.arange(num_tokens), "none": np.zeros(0, np.int64)}[logits]
    outputs = np.empty((len(selected), config.vocab_size), np.float32)
    table = packed.table.copy()
    table[layout.NUM_TOKENS], table[layout.NUM_SEQUENCES] = num_tokens, len(counts)
    table[layout.NUM_LOGITS], table[layout.CAPACITY] = len(selected), capacity
    size_of_scratch = num_tokens * (config.width + layout.PANEL) + capacity
    table[layout.SCRATCH_SIZE] = size_of_scratch = -(-size_of_scratch // 32) * 32
    num_phases = layout.PHASES_PER_LAYER * config.num_layers + 1
    heads = config.num_heads + 2 * config.kv_heads
    layers = zip(cache.keys, cache.values, strict=True)
    addresses = [[layout.address(np.asarray(part)) for part in layer] for layer in layers]
    arrays = {
        layout.CACHES: np.array(addresses, np.int64),
        layout.FIRST_TOKENS: first,
        layout.SLOTS: np.asarray(slots, np.int64),
        layout.LENGTHS: starts,
        layout.LOGIT_TOKENS: selected,
        layout.STREAM: stream,
        layout.QKV: np.empty((num_tokens, heads * config.size_of_head), np.float32),
        layout.ATTENDED: np.empty((num_tokens, config.num_heads * config.size_of_head), np.float32),
        layout.HIDDEN: np.empty((num_tokens, config.mlp_width), np.float32),
        layout.LOGITS: outputs,
        layout.COUNTERS: np.zeros((num_phases, layout.COUNTER_STRIDE), np.int64),
        layout.SCRATCH: np.empty((team().num_threads, size_of_scratch), np.float32),
    }
    for field, array in arrays.items():
        table[field] = layout.address(array)
    team().run(table)
    return outputs
