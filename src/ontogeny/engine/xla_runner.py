"""Steps of an engine by XLA: one program for a chunk of one prompt, and one for a token of each sequence of a batch.

A program has one shape, so a step consists of several calls. A sequence is prefilled in a cache of its own, which is
copied into a slot of a batch when its first token is decoded.
"""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights, init_cache
from ontogeny.engine import programs
from ontogeny.engine.programs import BatchShape
from ontogeny.engine.requests import CachedLayers, SequenceState
from ontogeny.engine.runners import ALL, TokenDraw
from ontogeny.engine.sampling import TokenLogprobs, compute_logprobs, sample_token
from ontogeny.errors import BadInput
from ontogeny.memory import format_bytes

MAX_CHUNKS = 2  # of prompts in one step


class SequenceBatch:
    """The cache of a batch and the sequences in its slots."""

    def __init__(self, cache: KVCache, batch_size: int) -> None:
        self.cache = cache
        self.slots: list[SequenceState | None] = [None] * batch_size

    def count(self, weights: TransformerWeights) -> tuple[int, int]:
        """How many of its sequences have these weights, and how many have none."""
        counts = Counter(None if s is None else s.request.weights is weights for s in self.slots)
        return counts[True], counts[None]


class SlotCache:
    """The cache of one sequence: of its own, or a slot of a batch."""

    def __init__(self, single: KVCache) -> None:
        self.single: KVCache | None = single
        self.batch: SequenceBatch | None = None
        self.slot = 0


class XlaRunner:
    """See `runners.Runner`."""

    shares_any_length = False
    applies_adapters = False  # its programs take weights alone

    def __init__(
        self,
        config: TransformerConfig,
        max_length: int,
        max_num_seqs: int,
        max_bytes: int | None,
        compute_dtype: DTypeLike,
        shape: BatchShape | None = None,
    ) -> None:
        self.config, self.max_length, self._compute_dtype = config, max_length, compute_dtype
        default = programs.default_batch_shape(config)
        self.shape = shape or default._replace(
            capacity=max_length, prefill_chunk=min(default.prefill_chunk, max_length)
        )
        self.prefix_chunk, size = self.shape.prefill_chunk, self.shape.batch_size
        self._max_batches = max(1, max_num_seqs // size)
        if max_bytes is not None:
            token_bytes = (
                2 * config.num_layers * config.kv_heads * config.size_of_head * np.dtype(compute_dtype).itemsize
            )
            self._max_batches = min(self._max_batches, max_bytes // (token_bytes * size * max_length))
            if not self._max_batches:
                raise BadInput(
                    f"keys and values of {size} sequences of {max_length:,} tokens need "
                    f"{format_bytes(token_bytes * size * max_length)}, more than the limit of "
                    f"{format_bytes(max_bytes)}; bound the context (--max-context) or allow more (--max-kv-cache-bytes)"
                )
        self.max_num_seqs: int | None = self._max_batches * size
        self._batches: list[SequenceBatch] = []
        self._empty = init_cache(config, 1, max_length, compute_dtype)

    def check_batch_invariance(self, weights: TransformerWeights) -> None:
        """See `Runner`."""
        programs.check_batch_invariance(self.config, self.shape, weights, self._compute_dtype)

    def num_bytes(self, num_tokens: int) -> int:
        """The batches have the memory of all sequences."""
        return 0

    def max_prefill_tokens(self, num_decoded: int) -> int:
        """See `Runner`."""
        return MAX_CHUNKS * self.shape.prefill_chunk

    def chunk_size(self, sequence: SequenceState, limit: int) -> int:
        """The bits of a prompt depend on where its chunks begin, so no chunk but the last is shorter than others."""
        size = min(len(sequence.unprocessed), self.shape.prefill_chunk)
        return size if size <= limit else 0

    def run(
        self,
        weights: TransformerWeights,
        sequences: Sequence[SequenceState],
        tokens: Sequence[Sequence[int]],
        needs: Sequence[str],
    ) -> list[Float[np.ndarray, "_ V"]]:
        """See `Runner`."""
        decoded = [sequence for sequence in sequences if not sequence.unprocessed]
        logits = self._decode(weights, decoded)
        for sequence, new, need in zip(sequences, tokens, needs, strict=True):
            if sequence.unprocessed:
                logits[id(sequence)] = self._prefill(weights, sequence, new, need == ALL)
        return [logits[id(sequence)] for sequence in sequences]

    def sample(self, draws: Sequence[TokenDraw]) -> list[tuple[int, TokenLogprobs | None]]:
        """See `Runner`."""
        return [_sample(draw) for draw in draws]

    def fork(self, cache: KVCache, length: int) -> SlotCache:
        """See `Runner`. Prefill does not change the arrays of a cache."""
        return SlotCache(cache)

    def share(self, sequence: SequenceState) -> tuple[KVCache, Sequence[jax.Array]] | None:
        """See `Runner`. The bits of decoded tokens differ from those of a prompt, so they are not shared."""
        if (single := sequence.cache.single) is None or sequence.num_generated:
            return None
        return single, jax.tree.leaves(single)

    def to_layers(self, sequence: SequenceState, length: int) -> CachedLayers:
        """See `Runner`."""
        cache = self._extract(sequence.cache)
        return CachedLayers(
            *(
                tuple(np.array(layer[0, :, :length], np.float32) for layer in part)
                for part in (cache.keys, cache.values)
            )
        )

    def suspend(self, sequence: SequenceState) -> None:
        """See `Runner`."""
        if sequence.cache is not None:
            single = self._extract(sequence.cache)
            self.release(sequence)
            sequence.cache = SlotCache(single)

    def release(self, sequence: SequenceState) -> None:
        """See `Runner`."""
        if sequence.cache is not None and sequence.cache.batch is not None:
            sequence.cache.batch.slots[sequence.cache.slot] = None
        sequence.cache = None

    def _prefill(
        self, weights: TransformerWeights, sequence: SequenceState, new: Sequence[int], all_logits: bool
    ) -> np.ndarray:
        """Processes one chunk of a prompt."""
        if sequence.cache is None:
            sequence.cache = SlotCache(self._create(sequence.layers))
        tokens = np.zeros(self.shape.prefill_chunk, np.int32)
        tokens[: len(new)] = new
        start, num_tokens = np.int32(sequence.cache_length), np.int32(len(new))
        sequence.cache.single, logits = programs.prefill(
            self.config, weights, sequence.cache.single, start, tokens, num_tokens, all_logits
        )
        return np.asarray(logits)[: len(new)] if all_logits else np.asarray(logits)[None]

    def _decode(self, weights: TransformerWeights, sequences: list[SequenceState]) -> dict[int, np.ndarray]:
        """Processes the last token of each sequence; returns their logits by the identity of the sequence."""
        for sequence in sequences:
            if sequence.cache.batch is None:
                self._insert(sequence)
        logits = dict[int, np.ndarray]()
        for batch in self._batches:
            chosen = [sequence for sequence in sequences if sequence.cache.batch is batch]
            if chosen:
                tokens, length, num_tokens = (np.zeros(self.shape.batch_size, np.int32) for _ in range(3))
                for sequence in chosen:
                    slot = sequence.cache.slot
                    tokens[slot], length[slot], num_tokens[slot] = sequence.tokens[-1], sequence.cache_length, 1
                batch.cache, computed = programs.decode_step(
                    self.config, weights, batch.cache, length, tokens, num_tokens
                )
                host = np.asarray(computed)
                logits |= {id(s): host[s.cache.slot : s.cache.slot + 1] for s in chosen}
        return logits

    def _insert(self, sequence: SequenceState) -> None:
        """Gives a sequence a slot, if possible in a batch with the same weights."""
        weights, free = sequence.request.weights, [batch for batch in self._batches if None in batch.slots]
        batch = max(free, key=lambda batch: batch.count(weights), default=None)
        is_suitable = batch is not None and (batch.count(weights)[0] or not any(batch.slots))
        if not is_suitable and len(self._batches) < self._max_batches:
            cache = init_cache(self.config, self.shape.batch_size, self.max_length, self._compute_dtype)
            batch = SequenceBatch(cache, self.shape.batch_size)
            self._batches.append(batch)
        assert batch is not None, "no more sequences run than there are slots"
        place = sequence.cache
        place.slot = batch.slots.index(None)
        batch.cache = programs.insert_sequence(batch.cache, place.single, np.int32(place.slot))
        batch.slots[place.slot], place.batch, place.single = sequence, batch, None

    def _extract(self, place: SlotCache) -> KVCache:
        """The cache of a sequence as one of its own."""
        if place.batch is None:
            assert place.single is not None
            return place.single
        return programs.extract_sequence(place.batch.cache, np.int32(place.slot))

    def _create(self, layers: CachedLayers | None) -> KVCache:
        """A cache of one sequence, of keys and values that were computed before if there are any."""
        if layers is None:
            return self._empty
        length = layers.keys[0].shape[1]

        def fill(empty: Sequence[jax.Array], parts: Sequence[np.ndarray]) -> tuple[jax.Array, ...]:
            full = [np.array(layer) for layer in empty]
            for layer, part in zip(full, parts, strict=True):
                layer[0, :, :length] = part
            return tuple(jax.numpy.asarray(layer) for layer in full)

        keys, values = fill(self._empty.keys, layers.keys), fill(self._empty.values, layers.values)
        return KVCache(keys, values, self._empty.length)


def _sample(draw: TokenDraw) -> tuple[int, TokenLogprobs | None]:
    """Draws one token with NumPy."""
    token = draw.token
    if token is None:
        candidates = draw.logits[: draw.num_candidates] if draw.adjusted is None else draw.adjusted
        token = sample_token(candidates, draw.params, draw.position)
    return token, None if draw.num_top is None else compute_logprobs(draw.logits, token, draw.num_top)
