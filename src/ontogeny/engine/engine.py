"""Continuous batching: requests join and leave tiles of rows while they run; a few threads do the model's work.

There are two kinds of work: reading a chunk of one prompt, and one more token for each row of a tile that has been
read. Each thread takes what is most urgent, so that a prompt is read on one core while answers go on on another, and
whoever comes waits for one piece of work at most. Nothing is compiled after `start`. Bits: see `programs`; which thread
does what, and when, changes none. Knows tokens and weights; nothing of text's transport, of keys and of learning.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.engine import programs
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.programs import BatchShape
from ontogeny.engine.requests import (
    FinishOutput,
    GenerationRequest,
    OutputCallback,
    SequenceBatch,
    SequenceState,
    TokenOutput,
)
from ontogeny.engine.sampling import TokenLogprobs, compute_logprobs, sample_token
from ontogeny.errors import BadInput

ENDS = 2  # chunks that end a prompt, begun between two tokens of a tile
GOES = 1  # chunks that only go on with a prompt, begun between two tokens of a tile
IN_A_ROW = 4  # ends of prompts that are read before a long one that waits goes on by a chunk
MOST_WORKERS = 4
PATIENCE = 5.0  # seconds after which one that waits for a tile is let in before all others


class QueueFull(Exception):
    """The queue is full; `seconds` is a guess at when it is not."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the queue is full")
        self.retry_after = seconds


class RequestHandle:
    """What whoever asked holds; `cancel` lets go of the row."""

    def __init__(self, engine: "Engine", row: SequenceState) -> None:
        self._engine, self._row = engine, row

    def cancel(self) -> None:
        self._row.cancelled = True
        self._engine.wake()


class Engine:
    """Threads that answer questions to one model, whatever its weights."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        max_num_seqs: int = 64,
        max_queue: int = 256,
        shape: BatchShape | None = None,
        compute: Any = np.float32,
        num_workers: int | None = None,
    ) -> None:
        self.config = config
        self.shape = shape or programs.default_batch_shape(config)
        self.prefix_cache = PrefixCache(self.shape.prefill_chunk)
        self._most_tiles = max(1, max_num_seqs // self.shape.batch_size)
        self._queue, self._compute = max_queue, compute
        self._tiles: list[SequenceBatch] = []
        self._waiting: deque[SequenceState] = deque()
        self._lock = threading.Condition()
        self._stopping = False
        self.failure: BaseException | None = None
        self.num_generated_tokens = 0  # generated so far
        self.turns = 0  # tokens of a whole tile
        self._in_a_row = 0  # ends of prompts since one went on
        self._pace = 0.1  # seconds that a request takes, smoothed
        count = _workers() if num_workers is None else num_workers
        self._at_work, self._most_generating = count, max(1, count - 1)  # one is free for whoever comes
        self._threads = [threading.Thread(target=self._run, name=f"engine {i}", daemon=True) for i in range(count)]

    @property
    def max_sequence_length(self) -> int:
        """Tokens that one row can hold."""
        return self.shape.capacity

    def start(self, weights: TransformerWeights) -> None:
        """Compiles everything, checks the machine, then begins to answer."""
        programs.check_batch_invariance(self.config, self.shape, weights, self._compute)
        self._empty = programs.empty_sequence_cache(self.config, self.shape, self._compute)
        self._tiles.append(self._new_tile())
        for thread in self._threads:
            thread.start()

    def submit(self, question: GenerationRequest, told: OutputCallback) -> RequestHandle:
        """Queues a question; `told` is called on one of the engine's threads and must not wait. Raises `Busy`."""
        return self.submit_all([question], [told])[0]

    def submit_all(self, questions: Sequence[GenerationRequest], told: Sequence[OutputCallback]) -> list[RequestHandle]:
        """Queues questions that belong together, all or none of them.

        Where nobody waits there is room for any number: whoever comes again when `Busy` says finds that some day.
        """
        for question in questions:
            if not (length := len(question.prompt)):
                raise BadInput("a prompt needs at least one token")
            if question.score_prompt and length > self.max_sequence_length:
                raise BadInput(
                    f"{length} tokens to score are more than the model's context of {self.max_sequence_length}"
                )
        epoch = self.prefix_cache.epoch
        rows = [
            SequenceState(question, tell, self.max_sequence_length, epoch)
            for question, tell in zip(questions, told, strict=True)
        ]
        with self._lock:
            if self._stopping or self.failure is not None:
                raise QueueFull(5.0)
            if self._waiting and len(self._waiting) + len(rows) > self._queue:
                raise QueueFull(self._pace * len(self._waiting) / (self._most_tiles * self.shape.batch_size))
            self._waiting.extend(rows)
            self._lock.notify_all()
        return [RequestHandle(self, row) for row in rows]

    def wake(self) -> None:
        with self._lock:
            self._lock.notify()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    @property
    def num_requests_running(self) -> int:
        return sum(row is not None for tile in self._tiles for row in tile.rows)

    @property
    def num_requests_waiting(self) -> int:
        return len(self._waiting)

    def _new_tile(self) -> SequenceBatch:
        return SequenceBatch(programs.empty_batch_cache(self.config, self.shape, self._compute), self.shape.batch_size)

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
        except BaseException as error:  # the engine is the process's heart: what stops it is told to everybody
            self.failure = error
            raise
        finally:
            with self._lock:
                self._stopping = True
                self._at_work -= 1
                self._lock.notify_all()
                if not self._at_work:  # the last one tells those who are left, whom nobody works on any more
                    left = [*self._waiting, *(row for tile in self._tiles for row in tile.rows if row is not None)]
                    self._waiting.clear()
                    for row in left:
                        _tell(row, FinishOutput("failed" if self.failure is not None else "cancelled"))

    def _next(self) -> Callable[[], None] | None:
        """The most urgent piece of work, once there is one; None when it is time to stop."""
        with self._lock:
            while not self._stopping:
                self._let_go()
                self._let_in()
                if (work := self._most_urgent()) is not None:
                    return work
                self._lock.wait()
        return None

    def _most_urgent(self) -> Callable[[], None] | None:
        """The end of a prompt before all, since it gives somebody a first token; but a tile waits for a few at most."""
        ends, goes = self._unread()
        ready = []
        if sum(tile.busy for tile in self._tiles) < self._most_generating:
            ready = [tile for tile in self._tiles if not tile.busy and any(row and row.ready for row in tile.rows)]
        tile = min(ready, key=lambda tile: tile.turns, default=None)
        if ends and (tile is None or tile.ends < ENDS) and not (goes and self._in_a_row >= IN_A_ROW):
            found = ends[0]
            self._in_a_row += 1
            for each in self._tiles:
                each.ends += 1
        elif goes and (tile is None or tile.goes < GOES):
            found = goes[0]
            self._in_a_row = 0
            for each in self._tiles:
                each.goes += 1
        elif tile is not None:
            self.turns += 1
            tile.busy, tile.turns, tile.ends, tile.goes = True, self.turns, 0, 0
            rows = [(at, row) for at, row in enumerate(tile.rows) if row is not None and row.ready]
            for _, row in rows:
                row.busy = True
            return lambda: self._generate(tile, rows)
        else:
            return None
        found[1].busy = found[1].reading = True
        return lambda: self._read(*found)

    def _unread(self) -> tuple[list[tuple[SequenceBatch, SequenceState]], list[tuple[SequenceBatch, SequenceState]]]:
        """Rows whose prompt the next chunk ends, and those that have longer ones; first come, first served.

        Of those who came with the same prompt under the same name one reads it, and the others wait for that one.
        """
        found = [(tile, row) for tile in self._tiles for row in tile.rows if row and (row.waiting or row.reading)]
        found.sort(key=lambda pair: pair[1].since)
        seen, unread = set(), []
        for tile, row in found:
            if row.prefix is None or row.prefix not in seen:
                seen.add(row.prefix)
                if not row.busy:
                    unread.append((tile, row))
        ends = [pair for pair in unread if self._ends(pair[1])]
        return ends, [pair for pair in unread if pair not in ends]

    def _ends(self, row: SequenceState) -> bool:
        """Whether the next chunk is the last one, or none is needed."""
        known = row.prefix is not None and not row.length and self.prefix_cache.contains(*row.prefix)
        return known or len(row.waiting) <= self.shape.prefill_chunk

    def _let_go(self) -> None:
        """Of those who hung up, and those whose time is over."""
        now = time.monotonic()
        for row in [row for row in self._waiting if row.cancelled or row.question.deadline <= now]:
            self._waiting.remove(row)
            _tell(row, FinishOutput("cancelled" if row.cancelled else "time"))
        for tile in self._tiles:
            for row in tile.rows:
                if row is not None and not row.busy and (row.cancelled or row.question.deadline <= now):
                    self._leave(tile, row, "cancelled" if row.cancelled else "time")

    def _let_in(self) -> None:
        """First come, first served; one whose weights find no tile is passed by, but not for ever."""
        now = time.monotonic()
        for row in list(self._waiting):
            tile = self._tile_for(row.question.weights)
            if tile is None:
                if now - row.since > PATIENCE:
                    return
                continue
            tile.weights = row.question.weights
            tile.rows[tile.rows.index(None)] = row
            self._waiting.remove(row)

    def _tile_for(self, weights: TransformerWeights) -> SequenceBatch | None:
        for tile in self._tiles:
            if tile.weights is weights and not tile.empty and None in tile.rows:
                return tile
        for tile in self._tiles:
            if tile.empty:
                return tile
        if len(self._tiles) < self._most_tiles:
            self._tiles.append(self._new_tile())
            return self._tiles[-1]
        return None

    def _read(self, tile: SequenceBatch, row: SequenceState) -> None:
        """One chunk of a prompt; the first token of the answer where it is the last one."""
        scoring, made = row.question.score_prompt and not row.made, row.made
        logits = None
        if row.prefix is not None and not row.length and (known := self.prefix_cache.lookup(*row.prefix)) is not None:
            row.read, row.length, logits = known
            row.waiting = row.waiting[row.length :]
        if row.waiting:
            K = self.shape.prefill_chunk
            chunk, row.waiting = row.waiting[:K], row.waiting[K:]
            tokens = np.zeros(K, np.int32)
            tokens[: len(chunk)] = chunk
            before = self._empty if row.read is None else row.read
            at, count = np.int32(row.length), np.int32(len(chunk))
            cache, found = programs.prefill(self.config, row.question.weights, before, at, tokens, count, scoring)
            row.read = cache
            row.length += len(chunk)
            logits = np.asarray(found)
            if scoring:
                self._score_prompt(row, chunk, logits)
                logits = logits[len(chunk) - 1]
            elif row.prefix is not None and not row.waiting:
                self.prefix_cache.insert(*row.prefix, cache, logits, row.epoch)
        if not row.waiting:
            row.last = logits
            if scoring:
                _tell(row, row.scores)
            self._choose(tile, row)
        with self._lock:
            self.num_generated_tokens += row.made - made
            row.busy = row.reading = False
            self._lock.notify_all()

    def _score_prompt(self, row: SequenceState, chunk: Sequence[int], logits: np.ndarray) -> None:
        prompt, done = row.question.prompt, row.length
        if not row.scores:
            row.scores.append(TokenLogprobs(prompt[0], None, ()))
        for i in range(len(chunk)):
            at = done - len(chunk) + i + 1  # of the token that these logits are about
            if at < len(prompt):
                row.scores.append(compute_logprobs(logits[i], prompt[at], row.question.num_logprobs or 0))

    def _generate(self, tile: SequenceBatch, rows: list[tuple[int, SequenceState]]) -> None:
        """One more token for each of these rows; those that are full are to be read anew first."""
        R = self.shape.batch_size
        tokens, length, ready = np.zeros(R, np.int32), np.zeros(R, np.int32), np.zeros(R, np.int32)
        for at, row in rows:
            if row.length == self.max_sequence_length:
                row.slide(self.max_sequence_length)
                continue
            if row.read is not None:
                tile.cache, row.read = programs.insert_sequence(tile.cache, row.read, np.int32(at)), None
            tokens[at], length[at], ready[at] = row.seen[-1], row.length, 1
        if ready.any():
            weights = rows[0][1].question.weights  # those of all rows of a tile
            tile.cache, logits = programs.decode_step(self.config, weights, tile.cache, length, tokens, ready)
            found = np.asarray(logits)
            for at, row in rows:
                if ready[at]:
                    row.length += 1
                    row.last = found[at]
                    self._choose(tile, row)
        with self._lock:
            self.num_generated_tokens += int(ready.sum())
            tile.busy = False
            for _, row in rows:
                row.busy = False
            self._lock.notify_all()

    def _choose(self, tile: SequenceBatch, row: SequenceState) -> None:
        """One more token from the logits at hand, or the end."""
        question = row.question
        if row.made >= question.max_tokens:
            return self._leave(tile, row, "length")
        assert row.last is not None
        token = sample_token(row.last, question.sampling_params, row.made)
        scored = None if question.num_logprobs is None else compute_logprobs(row.last, token, question.num_logprobs)
        row.made += 1
        ends = token == question.end_token
        # One that is scored by clients who count on a token after the prompt gets it, the end token too.
        enough = None if ends and not question.score_prompt else _tell(row, TokenOutput(token, scored))
        row.seen.append(token)
        if ends or enough:
            self._leave(tile, row, "stop")
        elif row.made >= question.max_tokens:
            self._leave(tile, row, "length")

    def _leave(self, tile: SequenceBatch, row: SequenceState, reason: str) -> None:
        with self._lock:
            tile.rows[tile.rows.index(row)] = None
            if tile.empty:
                tile.weights = None  # which may have been learned from what is to be forgotten
            self._pace += 0.1 * (time.monotonic() - row.since - self._pace)
        _tell(row, FinishOutput(reason))


def _workers() -> int:
    """As many as there are processors, up to a few: each piece of work is too small for many cores to share it. An
    accelerator does one thing after the other; a second thread prepares what comes next."""
    if jax.default_backend() != "cpu":
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def _tell(row: SequenceState, what: TokenOutput | list[TokenLogprobs] | FinishOutput) -> bool | None:
    """Whoever asked may have gone, with the loop that it lived in: nothing of theirs may stop the others' engine."""
    try:
        return row.told(what)
    except RuntimeError:  # a closed event loop
        row.cancelled = True
    except Exception:
        logging.getLogger(__name__).exception("an answer could not be told")
        row.cancelled = True
    return None
