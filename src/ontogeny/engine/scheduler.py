"""The scheduler: which sequences are in which batch, and which piece of work comes next.

There are two kinds of work: prefill of one chunk of one prompt, and one decode step of a batch. All methods are called
while the engine's lock is held.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ontogeny.content.transformer import KVCache, TransformerWeights
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.programs import BatchShape
from ontogeny.engine.requests import SequenceBatch, SequenceState

MAX_FINAL_CHUNKS = 2  # final prefill chunks that may begin between two decode steps of a batch
MAX_PARTIAL_CHUNKS = 1  # partial prefill chunks that may begin between two decode steps of a batch
MAX_FINAL_CHUNKS_IN_SUCCESSION = 4  # final chunks that may begin while a partial chunk waits
MAX_OVERTAKING_SECONDS = 5.0  # after which no later request is admitted before a waiting one


class PrefillTask(NamedTuple):
    """The next chunk of a prompt."""

    batch: SequenceBatch
    sequence: SequenceState


class DecodeTask(NamedTuple):
    """One more token for the sequences in these slots of a batch."""

    batch: SequenceBatch
    sequences: list[tuple[int, SequenceState]]


class Scheduler:
    """The waiting sequences and the batches.

    Attributes:
        waiting: Sequences without a slot, in order of arrival.
        batches: All batches made so far.
        num_decode_steps: Decode steps begun so far.
    """

    def __init__(
        self, shape: BatchShape, max_batches: int, prefix_cache: PrefixCache, make_cache: Callable[[], KVCache]
    ) -> None:
        self._shape, self._max_batches = shape, max_batches
        self._prefix_cache, self._make_cache = prefix_cache, make_cache
        self.waiting: deque[SequenceState] = deque()
        self.batches: list[SequenceBatch] = []
        self.num_decode_steps = 0
        self._num_final_in_succession = 0

    @property
    def running(self) -> list[SequenceState]:
        """The sequences that have a slot."""
        return [sequence for batch in self.batches for sequence in batch.sequences]

    def add_batch(self) -> SequenceBatch:
        """Make one more batch with free slots."""
        self.batches.append(SequenceBatch(self._make_cache(), self._shape.batch_size))
        return self.batches[-1]

    def expired(self) -> Iterator[tuple[SequenceBatch | None, SequenceState, str]]:
        """Sequences that are cancelled or past their deadline and that no thread works on.

        Yields:
            The batch (None for a waiting sequence, which is removed), the sequence and the finish reason.
        """
        current_time = time.monotonic()

        def reason(sequence: SequenceState) -> str | None:
            if sequence.is_cancelled:
                return "cancelled"
            return "time" if sequence.request.deadline <= current_time else None

        for sequence in list(self.waiting):
            if finish_reason := reason(sequence):
                self.waiting.remove(sequence)
                yield None, sequence, finish_reason
        for batch in self.batches:
            for sequence in batch.sequences:
                if not sequence.is_busy and (finish_reason := reason(sequence)):
                    yield batch, sequence, finish_reason

    def remove(self, batch: SequenceBatch, sequence: SequenceState) -> None:
        """Free the slot of a sequence; an empty batch lets go of its weights, which may have to be forgotten."""
        batch.slots[batch.slots.index(sequence)] = None
        if batch.is_empty:
            batch.weights = None

    def admit(self) -> None:
        """Give slots to waiting sequences in order of arrival.

        A sequence for whose weights there is no slot is overtaken by later ones, for a limited time.
        """
        current_time = time.monotonic()
        for sequence in list(self.waiting):
            batch = self._find_batch(sequence.request.weights)
            if batch is None:
                if current_time - sequence.arrival_time > MAX_OVERTAKING_SECONDS:
                    return
                continue
            batch.weights = sequence.request.weights
            batch.slots[batch.slots.index(None)] = sequence
            self.waiting.remove(sequence)

    def next_task(self, max_decoding: int) -> PrefillTask | DecodeTask | None:
        """Choose the most urgent piece of work and mark its sequences as busy.

        A final prefill chunk comes first, since it yields somebody's first token; but only a few prefill chunks may
        begin between two decode steps of a batch.

        Args:
            max_decoding: How many batches may be decoded at the same time.
        """
        final, partial = self._unprocessed_prompts()
        batch = self._next_batch(max_decoding)
        partial_is_due = partial and self._num_final_in_succession >= MAX_FINAL_CHUNKS_IN_SUCCESSION
        if final and not partial_is_due and (batch is None or batch.num_final_chunks < MAX_FINAL_CHUNKS):
            self._num_final_in_succession += 1
            for waiting_batch in self.batches:
                waiting_batch.num_final_chunks += 1
            return _begin_prefill(*final[0])
        if partial and (batch is None or batch.num_partial_chunks < MAX_PARTIAL_CHUNKS):
            self._num_final_in_succession = 0
            for waiting_batch in self.batches:
                waiting_batch.num_partial_chunks += 1
            return _begin_prefill(*partial[0])
        return None if batch is None else self._begin_decode(batch)

    def _begin_decode(self, batch: SequenceBatch) -> DecodeTask:
        """Mark a batch and its ready sequences as busy with a decode step."""
        self.num_decode_steps += 1
        batch.is_busy, batch.last_turn = True, self.num_decode_steps
        batch.num_final_chunks = batch.num_partial_chunks = 0
        ready = [(slot, sequence) for slot, sequence in enumerate(batch.slots) if sequence and sequence.is_ready]
        for _, sequence in ready:
            sequence.is_busy = True
        return DecodeTask(batch, ready)

    def _next_batch(self, max_decoding: int) -> SequenceBatch | None:
        """The batch that has waited longest for a decode step and can have one."""
        if sum(batch.is_busy for batch in self.batches) >= max_decoding:
            return None
        ready = (b for b in self.batches if not b.is_busy and any(sequence.is_ready for sequence in b.sequences))
        return min(ready, key=lambda batch: batch.last_turn, default=None)

    def _unprocessed_prompts(
        self,
    ) -> tuple[list[tuple[SequenceBatch, SequenceState]], list[tuple[SequenceBatch, SequenceState]]]:
        """Idle sequences whose next prefill chunk is the final one, and those with longer prompts, by arrival.

        Of several sequences with the same prompt and cache scope, one is processed and the others wait for it.
        """
        pairs = [(batch, s) for batch in self.batches for s in batch.sequences if s.unprocessed or s.is_prefilling]
        pairs.sort(key=lambda pair: pair[1].arrival_time)
        prefixes, final, partial = set(), [], []
        for batch, sequence in pairs:
            if sequence.prefix is None or sequence.prefix not in prefixes:
                prefixes.add(sequence.prefix)
                if not sequence.is_busy:
                    (final if self._is_final(sequence) else partial).append((batch, sequence))
        return final, partial

    def _is_final(self, sequence: SequenceState) -> bool:
        """Whether one more prefill chunk, or none, completes the prompt."""
        is_cached = (
            sequence.prefix is not None and not sequence.cache_length and self._prefix_cache.contains(*sequence.prefix)
        )
        return is_cached or len(sequence.unprocessed) <= self._shape.prefill_chunk

    def _find_batch(self, weights: TransformerWeights) -> SequenceBatch | None:
        """A batch of these weights with a free slot, or an empty batch, or a new one if there may be more."""
        for batch in self.batches:
            if batch.weights is weights and not batch.is_empty and None in batch.slots:
                return batch
        for batch in self.batches:
            if batch.is_empty:
                return batch
        return self.add_batch() if len(self.batches) < self._max_batches else None


def _begin_prefill(batch: SequenceBatch, sequence: SequenceState) -> PrefillTask:
    """Mark a sequence as busy with prefill."""
    sequence.is_busy = sequence.is_prefilling = True
    return PrefillTask(batch, sequence)
