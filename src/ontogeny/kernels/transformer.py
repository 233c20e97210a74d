"""Prefill and decode steps of a transformer by the kernels; arrays are NumPy's.

For each sequence, keys, values and logits depend bit for bit on its own tokens alone: not on the number of sequences or
tokens of a call, or on how its tokens are divided into calls.
"""

import os
from collections.abc import Sequence
from functools import cache as cached

import numpy as np
from jaxtyping import Float

from ontogeny.kernels import layout
from ontogeny.kernels.attention import MAX_QUERIES
from ontogeny.kernels.cache import SequenceCache
from ontogeny.kernels.packing import PackedWeights
from ontogeny.kernels.products import embed
from ontogeny.kernels.rotations import rotation_table
from ontogeny.kernels.team import MAX_THREADS, Team

Integers = Sequence[int] | np.ndarray


@cached
def team() -> Team:
    """The threads of this process that share steps, as many as it may use cores."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Team(min(num_cores, MAX_THREADS))


class Workspace:
    """The memory of intermediate values, which steps that do not overlap use one after another."""

    def __init__(self) -> None:
        self._arrays: dict[int, np.ndarray] = {}
        self._addresses: dict[int, int] = {}

    def reserve(self, field: int, size: int) -> int:
        """Return the address of memory for `size` float32 numbers, the same for each call with this field."""
        array = self._arrays.get(field)
        if array is None or array.size < size:
            array = self._arrays[field] = np.empty(size, np.float32)
            self._addresses[field] = layout.address(array)
        return self._addresses[field]

    def clear(self, field: int, size: int) -> int:
        """As `reserve`, with `size` int64 numbers that are 0."""
        address = self.reserve(field, 2 * size)
        self._arrays[field].view(np.int64)[:size] = 0
        return address


def extend(
    packed: PackedWeights,
    caches: Sequence[SequenceCache],
    tokens: Sequence[Integers] | np.ndarray,
    logits: str | Sequence[str] = "last",
    workspace: Workspace | None = None,
) -> Float[np.ndarray, "N V"]:
    """Process further tokens of some sequences, whose caches grow.

    Args:
        packed: Weights of the model.
        caches: Of different sequences, computed by the same weights.
        tokens: The next tokens of each sequence, at least one.
        logits: `last` for the logits after the last token of a sequence, `all` for those after each token, `none`; of
            all sequences or of each.
        workspace: Memory for the step; by default new memory.

    Returns:
        Logits in the order of the sequences and tokens.
    """
    config, counts = packed.config, [len(new) for new in tokens]
    workspace = Workspace() if workspace is None else workspace
    first = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=first[1:])
    joined = np.concatenate(tokens, dtype=np.int64, casting="unsafe")
    starts = np.array([cache.length for cache in caches], np.int64)
    num_tokens, longest = len(joined), 0
    for cache, count in zip(caches, counts, strict=True):
        longest = max(longest, cache.length + count)
        cache.reserve(cache.length + count)
    if longest > config.context_length:
        raise ValueError(f"{longest} tokens are more than the context of {config.context_length}")
    stream = np.empty((num_tokens, config.width), np.float32)
    embed(packed.table, joined, layout.address(stream))
    if packed.positions is not None:
        positions = np.arange(num_tokens) - np.repeat(first[:-1] - starts, counts)
        stream += packed.positions[positions]
    selected = _select(first, logits)
    outputs = np.empty((len(selected), config.vocab_size), np.float32)
    page_tables = np.array([cache.table_address for cache in caches], np.int64)
    table = packed.table.copy()
    table[layout.NUM_TOKENS], table[layout.NUM_SEQUENCES] = num_tokens, len(counts)
    table[layout.NUM_LOGITS] = len(selected)
    size, padded = config.size_of_head, layout.padded_size(config.size_of_head)
    size_of_scratch = num_tokens * (config.width + layout.PANEL)
    size_of_scratch += MAX_QUERIES * (size + padded + -(-longest // layout.PAGE) * layout.PAGE)
    table[layout.SCRATCH_SIZE] = size_of_scratch = -(-size_of_scratch // 32) * 32
    arrays = [
        (layout.FIRST_TOKENS, first),
        (layout.PAGE_TABLES, page_tables),
        (layout.LENGTHS, starts),
        (layout.LOGIT_TOKENS, selected),
        (layout.STREAM, stream),
        (layout.LOGITS, outputs),
    ]
    if config.positions == "rotary":
        cosines, sines = rotation_table(config.rope_base, size, config.rope_scaling).cover(longest)
        arrays += [(layout.COSINES, cosines), (layout.SINES, sines)]
    for field, array in arrays:
        table[field] = layout.address(array)
    for field, numbers in (
        (layout.QKV, num_tokens * (config.num_heads + 2 * config.kv_heads) * size),
        (layout.ATTENDED, num_tokens * config.num_heads * size),
        (layout.HIDDEN, num_tokens * config.mlp_width),
        (layout.SCRATCH, team().num_threads * size_of_scratch),
    ):
        table[field] = workspace.reserve(field, numbers)
    num_phases = layout.PHASES_PER_LAYER * config.num_layers + 1
    table[layout.COUNTERS] = workspace.clear(layout.COUNTERS, num_phases * layout.COUNTER_STRIDE)
    team().run(table)
    for cache, count in zip(caches, counts, strict=True):
        cache.length += count
    return outputs


def _select(first: np.ndarray, logits: str | Sequence[str]) -> np.ndarray:
    """The tokens after which logits are computed, by the first token of each sequence and what is needed of it."""
    if logits == "last":
        return first[1:] - 1
    if logits == "all":
        return np.arange(first[-1])
    if logits == "none":
        return np.zeros(0, np.int64)
    ends = zip(first[:-1].tolist(), first[1:].tolist(), logits, strict=True)
    starts = {"last": lambda begin, end: end - 1, "all": lambda begin, end: begin, "none": lambda begin, end: end}
    return np.concatenate([np.arange(starts[kind](begin, end), end) for begin, end, kind in ends])
