"""The scheduler: which requests run, and what the next step processes.

A step processes tokens of sequences with the same weights, whatever their adapters: one token of each sequence that is
being answered, and chunks of waiting prompts, up to a number of tokens. So neither do prompts wait for answers nor
answers for prompts.
Owners of requests are served in turn: slots go to the owner that has the fewest, steps to the owner whose last step is
longest ago, and a sequence of an owner with many slots is suspended for one of an owner with fewer. A request starts
when the memory of its whole answer is free. All methods are called while the engine's lock is held.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.requests import SequenceState
from ontogeny.engine.runners import Runner

MAX_OVERTAKING_SECONDS = 5.0  # after which no later request is admitted before a waiting one


class SequenceChunk(NamedTuple):
    """The next tokens of one sequence; `is_final` if none of its prompt remain after them."""

    sequence: SequenceState
    tokens: list[int]
    is_final: bool


class Step(NamedTuple):
    """What is computed next."""

    weights: TransformerWeights
    chunks: list[SequenceChunk]


class Scheduler:
    """The waiting and the running sequences.

    Args:
        runner: Computes the steps.
        max_num_seqs: The most sequences that run at the same time.
        max_bytes: Memory for the caches of all sequences and for the prefix cache.
        prefix_cache: Its entries give way to sequences.

    Attributes:
        waiting: Sequences that do not run, in order of arrival.
        running: Sequences that run.
        num_steps: Steps begun so far.
    """

    def __init__(self, runner: Runner, max_num_seqs: int, max_bytes: int, prefix_cache: PrefixCache) -> None:
        self._runner, self._max_num_seqs, self._prefix_cache = runner, max_num_seqs, prefix_cache
        self.max_bytes = max_bytes
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.num_steps = self._num_admissions = 0
        # When work was last done because it was the turn of an owner; owners without an entry come first.
        self._admission_turns: dict[str, int] = {}
        self._step_turns: dict[str, int] = {}
        self._prefill_turns: dict[str, int] = {}
        self._weights_turns: dict[int, int] = {}

    def expired(self) -> Iterator[tuple[SequenceState, str]]:
        """Remove sequences that are cancelled, failed or past their deadline, and yield them and the finish reason."""
        current_time = time.monotonic()
        for sequences in (self.waiting, self.running):
            for sequence in list(sequences):
                if sequence.has_failed:
                    reason = "failed"
                elif sequence.is_cancelled:
                    reason = "cancelled"
                elif sequence.request.deadline <= current_time:
                    reason = "time"
                else:
                    continue
                self.remove(sequence)
                yield sequence, reason

    def remove(self, sequence: SequenceState) -> None:
        """Free the slot and the memory of a sequence; has no effect when it is called again."""
        for sequences in (self.waiting, self.running):
            if sequence in sequences:
                sequences.remove(sequence)
        self._release_memory(sequence)
        identities = {id(sequence.request.weights) for sequence in self.running}
        self._weights_turns = {key: turn for key, turn in self._weights_turns.items() if key in identities}

    def admit(self) -> None:
        """Let waiting sequences run, of one owner in the order of arrival.

        The owner with the fewest slots comes first, of several the one whose last admission is longest ago. A sequence
        for which there is no slot or no memory is overtaken by later ones, for a limited time.
        """
        while self.waiting and (sequence := self._next_admission()) is not None:
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._num_admissions += 1
            self._admission_turns[sequence.request.owner] = self._num_admissions

    def next_step(self) -> Step | None:
        """Choose the weights and the tokens of the next step; None if no sequence runs."""
        leader = min(self.running, key=self._turn, default=None)
        if leader is None:
            return None
        self.num_steps += 1
        weights = leader.request.weights
        self._step_turns[leader.request.owner] = self._weights_turns[id(weights)] = self.num_steps
        sequences = [sequence for sequence in self.running if sequence.request.weights is weights]
        decoded = [sequence for sequence in sequences if not sequence.unprocessed]
        chunks = [SequenceChunk(sequence, [sequence.tokens[-1]], True) for sequence in decoded]
        if len(decoded) < len(sequences):
            chunks += self._choose_chunks([s for s in sequences if s.unprocessed], len(decoded))
        return Step(weights, chunks)

    def _turn(self, sequence: SequenceState) -> tuple[int, int, float]:
        """What comes first has the lowest: the last turns of the owner and of the weights, and the arrival."""
        owner, weights = sequence.request.owner, id(sequence.request.weights)
        return self._step_turns.get(owner, 0), self._weights_turns.get(weights, 0), sequence.arrival_time

    def _choose_chunks(self, sequences: list[SequenceState], num_decoded: int) -> list[SequenceChunk]:
        """Chunks of prompts, whose owners take turns; while others wait, a long prompt has half of the tokens.

        Of several sequences with the same prompt and cache scope, one is processed and the others wait for it.
        """
        remaining = self._runner.max_prefill_tokens(num_decoded)
        half, prefixes, chunks = remaining // 2, set(), list[SequenceChunk]()
        sequences = sorted(sequences, key=lambda s: (self._prefill_turns.get(s.request.owner, 0), s.arrival_time))
        for sequence in sequences:
            if sequence.prefix is not None:
                if sequence.prefix in prefixes:
                    continue
                prefixes.add(sequence.prefix)
                self._continue_from_prefix(sequence)
            length = len(sequence.unprocessed)
            limit = remaining if length <= remaining or len(sequences) == 1 else min(remaining, half)
            count = self._runner.chunk_size(sequence, limit)
            if count:
                remaining -= count
                chunks.append(SequenceChunk(sequence, sequence.unprocessed[:count], count == length))
                self._prefill_turns[sequence.request.owner] = self.num_steps
        return chunks

    def _continue_from_prefix(self, sequence: SequenceState) -> None:
        """Let a sequence without a cache continue from the longest cached prefix of its prompt, if there is one."""
        if sequence.prefix is None or sequence.cache is not None:
            return
        if (prefix := self._prefix_cache.lookup(*sequence.prefix)) is not None:
            sequence.cache, sequence.cache_length = self._runner.fork(prefix.cache, prefix.length), prefix.length
            sequence.unprocessed = sequence.unprocessed[prefix.length :]

    def _next_admission(self) -> SequenceState | None:
        """Choose the sequence that is admitted next and reserve a slot and memory for it."""
        num_slots = Counter(sequence.request.owner for sequence in self.running)
        current_time, without_slot = time.monotonic(), set()

        def rank(sequence: SequenceState) -> tuple[int, int]:
            owner = sequence.request.owner
            return num_slots[owner], self._admission_turns.get(owner, 0)

        for sequence in sorted(self.waiting, key=rank):
            owner = sequence.request.owner
            if owner not in without_slot:
                if len(self.running) >= self._max_num_seqs and not self._suspend_rival(sequence, num_slots):
                    without_slot.add(owner)
                elif self._reserve_memory(sequence, num_slots):
                    return sequence
            if current_time - sequence.waiting_since > MAX_OVERTAKING_SECONDS:
                return None
        return None

    def _suspend_rival(self, sequence: SequenceState, num_slots: Counter[str]) -> SequenceState | None:
        """Suspend a running sequence of an owner that has at least two slots more than the owner of a waiting one.

        Args:
            sequence: Waits.
            num_slots: The number of slots of each owner, which changes.

        Returns:
            The suspended sequence, which keeps its cache; None if there is none to suspend.
        """
        num_own = num_slots[sequence.request.owner]
        rivals = [rival for rival in self.running if num_slots[rival.request.owner] > num_own + 1]
        if not rivals:
            return None
        rival = max(rivals, key=lambda rival: (num_slots[rival.request.owner], rival.arrival_time))
        num_slots[rival.request.owner] -= 1
        self.running.remove(rival)
        self._runner.suspend(rival)
        rival.waiting_since = time.monotonic()
        self.waiting.appendleft(rival)
        return rival

    def _reserve_memory(self, sequence: SequenceState, num_slots: Counter[str]) -> bool:
        """Reserve the memory of a whole answer, which cached prefixes and sequences of rivals give up if necessary."""
        needed = self._runner.num_bytes(sequence.max_length)

        def is_free() -> bool:
            reserved = sum(s.reserved_bytes for s in (*self.waiting, *self.running) if s is not sequence)
            return self._prefix_cache.limit(self.max_bytes - reserved - needed)

        while not is_free():
            suspended = [s for s in self.waiting if s.reserved_bytes and s is not sequence]
            rival = suspended[-1] if suspended else self._suspend_rival(sequence, num_slots)
            if rival is None:
                return False
            self._release_memory(rival)
            rival.restart()
        sequence.reserved_bytes = needed
        return True

    def _release_memory(self, sequence: SequenceState) -> None:
        """Drops the cache of a sequence."""
        self._runner.release(sequence)
        sequence.cache, sequence.reserved_bytes = None, 0
