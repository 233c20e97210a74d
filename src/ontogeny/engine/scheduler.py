"""The scheduler: which sequences are in which batch, and which piece of work comes next.

There are two kinds of work: prefill of one chunk of one prompt, and one decode step of a batch. Owners of requests
are served in turn: slots go to the owner that holds the fewest, work goes to the owner that has waited longest for work
of this kind, and a sequence of an owner that holds many slots is suspended for one of an owner that holds fewer. All
methods are called while the engine's lock is held.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ontogeny.content.transformer import KVCache, TransformerWeights
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.programs import BatchShape
from ontogeny.engine.requests import SequenceBatch, SequenceState

MAX_FINAL_CHUNKS = 2  # final prefill chunks that may begin between two decode steps of a batch
MAX_PARTIAL_CHUNKS = 1  # partial prefill chunks that may begin between two decode steps of a batch
MAX_FINAL_CHUNKS_IN_SUCCESSION = 4  # final chunks that may begin while a partial chunk waits
MAX_OVERTAKING_SECONDS = 5.0  # after which no later request is admitted before a waiting one
MIN_TASKS = 8  # pieces of work of a batch before its sequences are suspended for other weights


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

    Args:
        shape: The static sizes of the programs.
        max_batches: The most batches that may exist.
        prefix_cache: The prompts processed last.
        make_cache: Creates the cache of a batch.
        extract_sequence: Copies the cache of one slot out of the cache of a batch.

    Attributes:
        waiting: Sequences without a slot, in order of arrival.
        batches: All batches made so far.
        num_decode_steps: Decode steps begun so far.
    """

    def __init__(
        self,
        shape: BatchShape,
        max_batches: int,
        prefix_cache: PrefixCache,
        make_cache: Callable[[], KVCache],
        extract_sequence: Callable[[KVCache, np.int32], KVCache],
    ) -> None:
        self._shape, self._max_batches = shape, max_batches
        self._prefix_cache, self._make_cache, self._extract_sequence = prefix_cache, make_cache, extract_sequence
        self.waiting: deque[SequenceState] = deque()
        self.batches: list[SequenceBatch] = []
        self.num_decode_steps = 0
        self._num_final_in_succession = 0
        self._num_admissions = self._num_prefills = 0
        # When work was last done because it was the turn of an owner; owners without an entry come first.
        self._admission_turns: dict[str, int] = {}
        self._prefill_turns: dict[str, int] = {}
        self._decode_turns: dict[str, int] = {}

    @property
    def running(self) -> list[SequenceState]:
        """The sequences that have a slot."""
        return [sequence for batch in self.batches for sequence in batch.sequences]

    def add_batch(self) -> SequenceBatch:
        """Make one more batch with free slots."""
        self.batches.append(SequenceBatch(self._make_cache(), self._shape.batch_size))
        return self.batches[-1]

    def expired(self) -> Iterator[tuple[SequenceBatch | None, SequenceState, str]]:
        """Sequences that are cancelled, failed or past their deadline and that no thread works on.

        Yields:
            The batch (None for a waiting sequence, which is removed), the sequence and the finish reason.
        """
        current_time = time.monotonic()

        def reason(sequence: SequenceState) -> str | None:
            if sequence.has_failed:
                return "failed"
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
            batch.weights, batch.num_tasks = None, 0

    def admit(self) -> None:
        """Give slots to waiting sequences, of one owner in the order of arrival.

        The owner with the fewest slots comes first, of several the one whose last admission is longest ago.
        A sequence for whose weights there is no slot is overtaken by later ones, for a limited time.
        """
        for batch in self.batches:
            batch.is_yielding = False
        while self.waiting and (admission := self._next_admission()) is not None:
            batch, sequence = admission
            batch.weights = sequence.request.weights
            batch.slots[batch.slots.index(None)] = sequence
            self.waiting.remove(sequence)
            self._num_admissions += 1
            self._admission_turns[sequence.request.owner] = self._num_admissions

    def _next_admission(self) -> tuple[SequenceBatch, SequenceState] | None:
        """Choose the sequence that is admitted next and a batch with a free slot for it."""
        num_slots = Counter(sequence.request.owner for sequence in self.running)
        current_time, without_slot = time.monotonic(), set()

        def rank(sequence: SequenceState) -> tuple[int, int]:
            owner = sequence.request.owner
            return num_slots[owner], self._admission_turns.get(owner, 0)

        for sequence in sorted(self.waiting, key=rank):
            kind = sequence.request.owner, id(sequence.request.weights)
            if kind not in without_slot:
                batch = self._find_batch(sequence.request.weights) or self._suspend_rivals(sequence, num_slots)
                if batch is not None:
                    return batch, sequence
                without_slot.add(kind)
            if current_time - sequence.waiting_since > MAX_OVERTAKING_SECONDS:
                return None
        return None

    def _suspend_rivals(self, sequence: SequenceState, num_slots: Counter[str]) -> SequenceBatch | None:
        """Suspend a sequence of an owner that holds at least two slots more than the owner of a waiting sequence.

        Where the weights of the waiting sequence have no batch, all sequences of another batch are suspended, if its
        owners have other batches or some work was done for it. They continue later where they were. A batch in which
        threads are at work gets no further work until it can be suspended.

        Args:
            num_slots: The number of slots of each owner.
        """
        owner = sequence.request.owner
        rivals = [
            (num_slots[rival.request.owner], rival.arrival_time, batch, rival)
            for batch in self.batches
            if batch.weights is sequence.request.weights and not batch.is_busy
            for rival in batch.sequences
            if not rival.is_busy and num_slots[rival.request.owner] > num_slots[owner] + 1
        ]
        if rivals:
            _, _, batch, rival = max(rivals, key=lambda entry: entry[:2])
            self._suspend(batch, rival)
            return batch
        due = [] if num_slots[owner] else [batch for batch in self.batches if _can_yield(batch, num_slots)]
        if not due:
            return None
        batch = min(due, key=lambda batch: (not _is_idle(batch), -batch.num_tasks, len(batch.sequences)))
        if not _is_idle(batch):
            batch.is_yielding = True
            return None
        for rival in batch.sequences:
            self._suspend(batch, rival)
        return batch

    def _suspend(self, batch: SequenceBatch, sequence: SequenceState) -> None:
        """Let a sequence wait again, with its cache."""
        if sequence.cache is None and sequence.create_cache is None and sequence.cache_length:
            sequence.cache = self._extract_sequence(batch.cache, np.int32(batch.slots.index(sequence)))
        self.remove(batch, sequence)
        sequence.waiting_since = time.monotonic()
        self.waiting.appendleft(sequence)

    def next_task(self, max_decoding: int) -> PrefillTask | DecodeTask | None:
        """Choose the most urgent piece of work and mark its sequences as busy.

        A final prefill chunk comes first, since it yields somebody's first token; but only a few prefill chunks may
        begin between two decode steps of a batch.

        Args:
            max_decoding: How many batches may be decoded at the same time.
        """
        final, partial = self._unprocessed_prompts()
        choice = self._next_batch(max_decoding)
        batch = None if choice is None else choice[0]
        partial_is_allowed = partial and (batch is None or batch.num_partial_chunks < MAX_PARTIAL_CHUNKS)
        partial_is_due = partial and self._num_final_in_succession >= MAX_FINAL_CHUNKS_IN_SUCCESSION
        if final and partial_is_allowed:  # or its owner has waited longer
            partial_is_due = partial_is_due or self._prefill_turn(partial[0][1]) < self._prefill_turn(final[0][1])
        if final and not partial_is_due and (batch is None or batch.num_final_chunks < MAX_FINAL_CHUNKS):
            self._num_final_in_succession += 1
            for waiting_batch in self.batches:
                waiting_batch.num_final_chunks += 1
            return self._begin_prefill(*final[0])
        if partial_is_allowed:
            self._num_final_in_succession = 0
            for waiting_batch in self.batches:
                waiting_batch.num_partial_chunks += 1
            return self._begin_prefill(*partial[0])
        return None if choice is None else self._begin_decode(*choice)

    def _begin_prefill(self, batch: SequenceBatch, sequence: SequenceState) -> PrefillTask:
        """Mark a sequence as busy with prefill."""
        self._num_prefills += 1
        batch.num_tasks += 1
        self._prefill_turns[sequence.request.owner] = self._num_prefills
        sequence.is_busy = sequence.is_prefilling = True
        return PrefillTask(batch, sequence)

    def _begin_decode(self, batch: SequenceBatch, owner: str) -> DecodeTask:
        """Mark a batch and its ready sequences as busy with a decode step, which is the turn of an owner."""
        self.num_decode_steps += 1
        self._decode_turns[owner] = self.num_decode_steps
        batch.is_busy, batch.last_turn = True, self.num_decode_steps
        batch.num_tasks += 1
        batch.num_final_chunks = batch.num_partial_chunks = 0
        ready = [(slot, sequence) for slot, sequence in enumerate(batch.slots) if sequence and sequence.is_ready]
        for _, sequence in ready:
            sequence.is_busy = True
        return DecodeTask(batch, ready)

    def _next_batch(self, max_decoding: int) -> tuple[SequenceBatch, str] | None:
        """The owner whose last turn is longest ago, and of its batches the one that has waited longest."""
        if sum(batch.is_busy for batch in self.batches) >= max_decoding:
            return None
        ready = (
            (batch, sequence.request.owner)
            for batch in self.batches
            if not batch.is_busy and not batch.is_yielding
            for sequence in batch.sequences
            if sequence.is_ready
        )
        return min(ready, key=lambda pair: (self._decode_turns.get(pair[1], 0), pair[0].last_turn), default=None)

    def _prefill_turn(self, sequence: SequenceState) -> int:
        """When the owner of a sequence last had a turn to prefill."""
        return self._prefill_turns.get(sequence.request.owner, 0)

    def _unprocessed_prompts(
        self,
    ) -> tuple[list[tuple[SequenceBatch, SequenceState]], list[tuple[SequenceBatch, SequenceState]]]:
        """Idle sequences whose next prefill chunk is the final one, and those with longer prompts.

        They are in the order of the turns of their owners, and of one owner in the order of arrival.
        Of several sequences with the same prompt and cache scope, one is processed and the others wait for it.
        """
        batches = [batch for batch in self.batches if not batch.is_yielding]
        pairs = [(batch, s) for batch in batches for s in batch.sequences if s.unprocessed or s.is_prefilling]
        pairs.sort(key=lambda pair: (self._prefill_turn(pair[1]), pair[1].arrival_time))
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


def _is_idle(batch: SequenceBatch) -> bool:
    """Whether no thread works on a batch or on one of its sequences."""
    return not batch.is_busy and not any(sequence.is_busy for sequence in batch.sequences)


def _can_yield(batch: SequenceBatch, num_slots: Counter[str]) -> bool:
    """Whether all sequences of a batch may be suspended for other weights."""
    in_batch = Counter(sequence.request.owner for sequence in batch.sequences)
    return batch.num_tasks >= MIN_TASKS or all(num_slots[name] > in_batch[name] for name in in_batch)
