"""Prefill and decode steps of a transformer by the kernels; arrays are NumPy's.

For each sequence, keys, values and logits depend bit for bit on its own tokens and its adapter alone: not on the number
of sequences or tokens of a call, on the adapters of the others, or on how its tokens are divided into calls.
"""

import os
from collections.abc import Sequence
from functools import cache as cached

import numpy as np
from jaxtyping import Float

from ontogeny.kernels import layout
from ontogeny.kernels.attention import MAX_QUERIES
from ontogeny.kernels.cache import SequenceCache
from ontogeny.kernels.packing import PackedAdapter, PackedWeights
from ontogeny.kernels.products import MICRO_TOKENS, embed
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

    def view(self, field: int, num_vectors: int, size: int) -> np.ndarray:
        """The memory of a field as an array of vectors."""
        self.reserve(field, num_vectors * size)
        return self._arrays[field][: num_vectors * size].reshape(num_vectors, size)

    def write(self, field: int, integers: Sequence[int]) -> int:
        """Write int64 numbers into the memory of a field and return its address."""
        address = self.reserve(field, 2 * len(integers))
        self._arrays[field].view(np.int64)[: len(integers)] = integers
        return address

    def clear(self, field: int, size: int) -> int:
        """As `reserve`, with `size` int64 numbers that are 0."""
        address = self.reserve(field, 2 * size)
        self._arrays[field].view(np.int64)[:size] = 0
        return address


class _StepTokens:
    """The tokens of a step and where they stand."""

    def __init__(
        self, caches: Sequence[SequenceCache], tokens: Sequence[Integers] | np.ndarray, logits: str | Sequence[str]
    ) -> None:
        self.joined, self.positions, self.first, self.selected = list[int](), list[int](), [0], list[int]()
        self.lengths, self.longest = [cache.length for cache in caches], 0
        kinds = [logits] * len(caches) if isinstance(logits, str) else logits
        for cache, new, kind in zip(caches, tokens, kinds, strict=True):
            begin, length, count = self.first[-1], cache.length, len(new)
            cache.reserve(length + count)
            self.joined.extend(new)
            self.positions.extend(range(length, length + count))
            self.first.append(begin + count)
            self.longest = max(self.longest, length + count)
            if kind == "last":
                self.selected.append(begin + count - 1)
            elif kind == "all":
                self.selected.extend(range(begin, begin + count))


def _group_tokens(first: Sequence[int], adapters: Sequence[PackedAdapter | None]) -> list[tuple[int, ...]]:
    """The groups of tokens with the same adapter, side by side; see `low_rank`.

    Args:
        first: Where the tokens of each sequence begin, and where the last ones end.
        adapters: Of each sequence.
    """
    groups, start = list[tuple[int, ...]](), 0
    for number, adapter in enumerate(adapters):
        following = adapters[number + 1] if number + 1 < len(adapters) else None
        if adapter is not None and following is adapter:
            continue
        stop = first[number + 1]
        if adapter is not None:
            for token in range(start, stop, MICRO_TOKENS):
                groups.append((token, min(MICRO_TOKENS, stop - token), adapter.address, adapter.rank))
        start = stop
    return groups


def _describe_adapters(
    table: np.ndarray, workspace: Workspace, first: Sequence[int], adapters: Sequence[PackedAdapter | None]
) -> None:
    """Fills in the fields of a step's table that adapters need."""
    groups = _group_tokens(first, adapters)
    if groups:
        max_rank = max(adapter.rank for adapter in adapters if adapter is not None)
        table[layout.NUM_GROUPS], table[layout.MAX_RANK] = len(groups), max_rank
        table[layout.GROUPS] = workspace.write(layout.GROUPS, [field for group in groups for field in group])
        table[layout.REDUCED] = workspace.reserve(layout.REDUCED, first[-1] * max_rank)


def extend(
    packed: PackedWeights,
    caches: Sequence[SequenceCache],
    tokens: Sequence[Integers] | np.ndarray,
    logits: str | Sequence[str] = "last",
    workspace: Workspace | None = None,
    adapters: Sequence[PackedAdapter | None] = (),
) -> Float[np.ndarray, "N V"]:
    """Process further tokens of some sequences, whose caches grow.

    Args:
        packed: Weights of the model.
        caches: Of different sequences, computed by these weights and the adapter of the sequence.
        tokens: The next tokens of each sequence, at least one.
        logits: `last` for the logits after the last token of a sequence, `all` for those after each token, `none`; of
            all sequences or of each.
        workspace: Memory for the step; by default new memory.
        adapters: The adapter of each sequence, or None; by default no sequence has any.

    Returns:
        Logits in the order of the sequences and tokens, in the memory of the workspace.
    """
    config, workspace = packed.config, Workspace() if workspace is None else workspace
    step = _StepTokens(caches, tokens, logits)
    num_tokens, num_logits = len(step.joined), len(step.selected)
    if step.longest > config.context_length:
        raise ValueError(f"{step.longest} tokens are more than the context of {config.context_length}")
    stream = workspace.view(layout.STREAM, num_tokens, config.width)
    table = packed.table.copy()
    table[layout.STREAM] = workspace.reserve(layout.STREAM, 0)
    embed(packed.table, np.array(step.joined, np.int64), int(table[layout.STREAM]))
    if packed.positions is not None:
        stream += packed.positions[step.positions]
    size, padded = config.size_of_head, layout.padded_size(config.size_of_head)
    size_of_scratch = num_tokens * (config.width + layout.PANEL)
    size_of_scratch += MAX_QUERIES * (size + padded + -(-step.longest // layout.PAGE) * layout.PAGE)
    size_of_scratch = -(-size_of_scratch // 32) * 32
    num_phases = layout.PHASES_PER_LAYER * config.num_layers + 1
    for field, number in (
        (layout.NUM_TOKENS, num_tokens),
        (layout.NUM_SEQUENCES, len(caches)),
        (layout.NUM_LOGITS, num_logits),
        (layout.SCRATCH_SIZE, size_of_scratch),
        (layout.FIRST_TOKENS, workspace.write(layout.FIRST_TOKENS, step.first)),
        (layout.PAGE_TABLES, workspace.write(layout.PAGE_TABLES, [cache.table_address for cache in caches])),
        (layout.LENGTHS, workspace.write(layout.LENGTHS, step.lengths)),
        (layout.LOGIT_TOKENS, workspace.write(layout.LOGIT_TOKENS, step.selected)),
        (layout.QKV, workspace.reserve(layout.QKV, num_tokens * (config.num_heads + 2 * config.kv_heads) * size)),
        (layout.ATTENDED, workspace.reserve(layout.ATTENDED, num_tokens * config.num_heads * size)),
        (layout.HIDDEN, workspace.reserve(layout.HIDDEN, num_tokens * config.mlp_width)),
        (layout.LOGITS, workspace.reserve(layout.LOGITS, num_logits * config.vocab_size)),
        (layout.SCRATCH, workspace.reserve(layout.SCRATCH, team().num_threads * size_of_scratch)),
        (layout.COUNTERS, workspace.clear(layout.COUNTERS, num_phases * layout.COUNTER_STRIDE)),
    ):
        table[field] = number
    if config.positions == "rotary":
        cosines, sines = rotation_table(config.rope_base, size, config.rope_scaling).cover(step.longest)
        table[layout.COSINES], table[layout.SINES] = layout.address(cosines), layout.address(sines)
    _describe_adapters(table, workspace, step.first, adapters)
    team().run(table)
    for cache, new in zip(caches, tokens, strict=True):
        cache.length += len(new)
    return workspace.view(layout.LOGITS, num_logits, config.vocab_size)
