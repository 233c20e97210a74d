"""Continuous batching: requests join and leave batches while these are decoded, by a few worker threads.

Each thread takes the most urgent piece of work of the scheduler, so a prompt is prefilled on one core while answers are
decoded on another, and a new request waits for one piece of work at most. Nothing is compiled after `start`. Which
thread does what, and when, changes no bit of an answer: see `programs`. The engine knows tokens and weights; it knows
nothing of text, HTTP, API keys or learning.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import ModuleType

import jax
import numpy as np
from jax.typing import DTypeLike

from ontogeny import kernels
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.engine import programs
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.programs import BatchShape
from ontogeny.engine.requests import (
    FinishOutput,
    GenerationRequest,
    OutputCallback,
    ReceiverClosed,
    SequenceActivations,
    SequenceBatch,
    SequenceState,
    TokenOutput,
)
from ontogeny.engine.sampling import ConstraintFailure, TokenLogprobs, adjust_logits, compute_logprobs, sample_token
from ontogeny.engine.scheduler import DecodeTask, PrefillTask, Scheduler
from ontogeny.errors import BadInput

log = logging.getLogger(__name__)

MAX_WORKERS = 4


class QueueFull(Exception):
    """No further request can be queued; `retry_after` is an estimate, in seconds, of when one can."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class RequestHandle:
    """A submitted request, which its owner can cancel."""

    def __init__(self, engine: "Engine", sequence: SequenceState) -> None:
        self._engine, self._sequence = engine, sequence

    @property
    def has_started(self) -> bool:
        """Whether the engine has begun to process the prompt."""
        return self._sequence.has_started

    def cancel(self) -> None:
        """End the answer and free its slot; has no effect on a finished answer."""
        self._sequence.is_cancelled = True
        self._engine.wake()


class QueueReservation:
    """Places in the queue of an engine, from `Engine.reserve` until `Engine.submit_all` uses them.

    It lets a caller do work between the admission of its requests and their submission.
    """

    def __init__(self, engine: "Engine", owner: str, num_places: int) -> None:
        self._engine, self.owner, self.num_places = engine, owner, num_places

    def release(self) -> None:
        """Give up the places that were not used; has no effect after `submit_all`."""
        self._engine.release(self)


class Engine:
    """Worker threads that generate text with one model, whatever its weights.

    Attributes:
        config: The config that all weights have in common.
        shape: The sizes for which the programs are compiled.
        prefix_cache: The prompts processed last.
        failure: The error that stopped the engine, if any.
        num_generated_tokens: Tokens generated so far.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        max_num_seqs: int = 64,
        max_queue: int = 256,
        shape: BatchShape | None = None,
        compute_dtype: DTypeLike = np.float32,
        num_workers: int | None = None,
    ) -> None:
        """Prepare an engine, which generates from `start` on.

        Args:
            config: The config of all weights that requests name.
            max_num_seqs: The most sequences that are generated at the same time; at least one batch.
            max_queue: The most requests of one owner that may wait for a slot.
            shape: Static sizes; by default chosen for the device.
            compute_dtype: The type of matrix products.
            num_workers: Threads; by default one per core, at most 4, and 2 with an accelerator.
        """
        self.config = config
        self._programs = choose_programs(compute_dtype)
        self.shape = shape or self._programs.default_batch_shape(config, max_num_seqs)
        self.prefix_cache = PrefixCache(self.shape.prefill_chunk)
        self.failure: BaseException | None = None
        self.num_generated_tokens = 0
        self._max_queue, self._compute_dtype = max_queue, compute_dtype
        max_batches = max(1, max_num_seqs // self.shape.batch_size)
        self._num_slots = max_batches * self.shape.batch_size
        self._scheduler = Scheduler(
            self.shape,
            max_batches,
            self.prefix_cache,
            lambda: self._init_cache(self.shape.batch_size),
            self._programs.extract_sequence,
        )
        self._lock = threading.Condition()
        self._is_stopping = False
        self._num_reserved: Counter[str] = Counter()  # places in the queue that reservations of each owner hold
        self._mean_request_seconds = 0.1  # smoothed
        count = _default_num_workers() if num_workers is None else num_workers
        self._num_alive, self._max_decoding = count, max(1, count - 1)  # one thread stays free for new requests
        self._threads = [threading.Thread(target=self._work, name=f"engine {i}", daemon=True) for i in range(count)]

    @property
    def max_sequence_length(self) -> int:
        """The most tokens that the cache of one sequence can hold."""
        return self.shape.capacity

    @property
    def num_requests_running(self) -> int:
        """Requests that have a slot in a batch."""
        return len(self._scheduler.running)

    @property
    def num_requests_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._scheduler.waiting)

    @property
    def path(self) -> str:
        """What computes: `numba VERSION` or `xla VERSION`; the bits of logits differ between them."""
        return kernels.describe_path(self._compute_dtype)

    def start(self, weights: TransformerWeights) -> None:
        """Compile the programs, check batch invariance on this machine, and start the threads.

        Args:
            weights: Any weights of the engine's config.

        Raises:
            BadInput: The machine is not batch invariant.
        """
        self._programs.check_batch_invariance(self.config, self.shape, weights, self._compute_dtype)
        log.info("text is generated by %s", self.path)
        self._empty_cache = self._init_cache(1)
        self._scheduler.add_batch()
        for thread in self._threads:
            thread.start()

    def submit(self, request: GenerationRequest, on_output: OutputCallback) -> RequestHandle:
        """Queue one request; see `submit_all`."""
        return self.submit_all([request], [on_output])[0]

    def reserve(self, num_requests: int, owner: str = "") -> QueueReservation:
        """Reserve places in the queue for requests that `submit_all` will queue together.

        While no request of their owner waits, any number is accepted, so that a client which retries is served
        eventually.

        Args:
            num_requests: How many places.
            owner: The owner of the requests.

        Raises:
            QueueFull: More requests of this owner wait than are allowed.
        """
        with self._lock:
            self._check_running()
            waiting = sum(sequence.request.owner == owner for sequence in self._scheduler.waiting)
            num_waiting = waiting + self._num_reserved[owner]
            if num_waiting and num_waiting + num_requests > self._max_queue:
                raise QueueFull(self._mean_request_seconds * num_waiting / self._num_slots)
            self._num_reserved[owner] += num_requests
        return QueueReservation(self, owner, num_requests)

    def release(self, reservation: QueueReservation) -> None:
        """Give up the places of a reservation; see `QueueReservation.release`."""
        with self._lock:
            self._num_reserved[reservation.owner] -= reservation.num_places
            reservation.num_places = 0

    def submit_all(
        self,
        requests: Sequence[GenerationRequest],
        on_output: Sequence[OutputCallback],
        reservation: QueueReservation | None = None,
    ) -> list[RequestHandle]:
        """Queue requests that belong together, all or none of them.

        Args:
            requests: Requests of one owner, whose weights have the engine's config.
            on_output: One callback per request. It is called on a thread of the engine and must not block.
            reservation: Places for these requests, which are used; None to reserve them now.

        Raises:
            QueueFull: More requests of this owner wait than are allowed, or the engine has stopped.
            BadInput: A prompt is empty, or too long to be scored.
        """
        for request in requests:
            if not (length := len(request.prompt)):
                raise BadInput("a prompt needs at least one token")
            if request.score_prompt and length > self.max_sequence_length + 1:
                raise BadInput(
                    f"{length} tokens to score are more than the model's context of {self.max_sequence_length} and "
                    "the token after it"
                )
        epoch = self.prefix_cache.epoch
        sequences = [
            SequenceState(request, callback, self.max_sequence_length, epoch)
            for request, callback in zip(requests, on_output, strict=True)
        ]
        if reservation is None:
            reservation = self.reserve(len(sequences), requests[0].owner)
        with self._lock:
            self._num_reserved[reservation.owner] -= reservation.num_places
            reservation.num_places = 0
            self._check_running()
            self._scheduler.waiting.extend(sequences)
            self._lock.notify_all()
        return [RequestHandle(self, sequence) for sequence in sequences]

    def wake(self) -> None:
        """Let one idle thread look for work."""
        with self._lock:
            self._lock.notify()

    def stop(self) -> None:
        """Stop the threads; answers that are not finished are cancelled."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _check_running(self) -> None:
        """Raises `QueueFull` once the engine stops; called while the lock is held."""
        if self._is_stopping or self.failure is not None:
            raise QueueFull(5.0)  # a guess: by then the server may have restarted

    def _init_cache(self, num_sequences: int) -> KVCache:
        """Returns an empty cache for this number of sequences."""
        return self._programs.init_cache(self.config, num_sequences, self.shape.capacity, self._compute_dtype)

    def _work(self) -> None:
        """Does pieces of work until the engine stops; the main function of a thread."""
        try:
            while (task := self._wait_for_task()) is not None:
                if isinstance(task, PrefillTask):
                    self._prefill(*task)
                else:
                    self._decode(*task)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            with self._lock:
                self._is_stopping = True
                self._num_alive -= 1
                self._lock.notify_all()
                if not self._num_alive:  # the last thread ends the answers that no thread works on any more
                    unfinished = [*self._scheduler.waiting, *self._scheduler.running]
                    self._scheduler.waiting.clear()
                    for sequence in unfinished:
                        _send(sequence, FinishOutput("failed" if self.failure is not None else "cancelled"))

    def _wait_for_task(self) -> PrefillTask | DecodeTask | None:
        """The most urgent piece of work as soon as there is any; None when the engine stops."""
        with self._lock:
            while not self._is_stopping:
                for batch, sequence, reason in self._scheduler.expired():
                    if batch is None:
                        _send(sequence, FinishOutput(reason))
                    else:
                        self._finish(batch, sequence, reason)
                self._scheduler.admit()
                if (task := self._scheduler.next_task(self._max_decoding)) is not None:
                    return task
                self._lock.wait()
        return None

    def _prefill(self, batch: SequenceBatch, sequence: SequenceState) -> None:
        """Process one chunk of a prompt; the final chunk also yields the first token of the answer."""
        request, num_before = sequence.request, sequence.num_generated
        scores_prompt = request.score_prompt and not sequence.is_scored
        if sequence.create_cache is not None:
            sequence.cache, sequence.create_cache = sequence.create_cache(), None
        logits = self._continue_from_prefix(sequence)
        if sequence.unprocessed:
            logits = self._process_chunk(sequence, scores_prompt)
        if not sequence.unprocessed:
            sequence.next_logits = logits
            if scores_prompt:
                sequence.is_scored = True
                _send(sequence, sequence.prompt_logprobs)
            if scores_prompt and request.max_tokens and len(sequence.tokens) > self.max_sequence_length:
                sequence.drop_first_half(self.max_sequence_length)  # the last token of the prompt has no place
            else:
                self._append_token(batch, sequence)
        with self._lock:
            self.num_generated_tokens += sequence.num_generated - num_before
            sequence.is_busy = sequence.is_prefilling = False
            self._lock.notify_all()

    def _continue_from_prefix(self, sequence: SequenceState) -> np.ndarray | None:
        """Let a new sequence continue from the longest cached prefix of its prompt, if there is one.

        Returns:
            The logits after the prompt if the whole prompt is cached, otherwise None.
        """
        if sequence.prefix is None or sequence.cache_length:
            return None
        prefix = self.prefix_cache.lookup(*sequence.prefix)
        if prefix is None:
            return None
        sequence.cache, sequence.cache_length = prefix.cache, prefix.length
        sequence.unprocessed = sequence.unprocessed[prefix.length :]
        return prefix.logits

    def _process_chunk(self, sequence: SequenceState, scores_prompt: bool) -> np.ndarray:
        """Prefill one chunk and return the logits after its last token."""
        K, request = self.shape.prefill_chunk, sequence.request
        chunk, sequence.unprocessed = sequence.unprocessed[:K], sequence.unprocessed[K:]
        tokens = np.zeros(K, np.int32)
        tokens[: len(chunk)] = chunk
        cache = self._empty_cache if sequence.cache is None else sequence.cache
        start, num_tokens = np.int32(sequence.cache_length), np.int32(len(chunk))
        cache, device_logits = self._programs.prefill(
            self.config, request.weights, cache, start, tokens, num_tokens, scores_prompt
        )
        sequence.cache = cache
        sequence.cache_length += len(chunk)
        logits = np.asarray(device_logits)
        if scores_prompt:
            _score_chunk(sequence, len(chunk), logits)
            logits = logits[len(chunk) - 1]
        elif sequence.prefix is not None and not sequence.unprocessed:
            self.prefix_cache.insert(*sequence.prefix, cache, logits, sequence.epoch)
        return logits

    def _decode(self, batch: SequenceBatch, sequences: list[tuple[int, SequenceState]]) -> None:
        """Generate one more token for each sequence; a full one instead drops its first half, for a new prefill."""
        tokens, length, num_tokens = (np.zeros(self.shape.batch_size, np.int32) for _ in range(3))
        for slot, sequence in sequences:
            if sequence.cache_length == self.max_sequence_length:
                sequence.drop_first_half(self.max_sequence_length)
                continue
            if sequence.cache is not None:
                batch.cache = self._programs.insert_sequence(batch.cache, sequence.cache, np.int32(slot))
                sequence.cache = None
            tokens[slot], length[slot], num_tokens[slot] = sequence.tokens[-1], sequence.cache_length, 1
        if num_tokens.any():
            weights = sequences[0][1].request.weights  # those of all sequences of a batch
            batch.cache, logits = self._programs.decode_step(
                self.config, weights, batch.cache, length, tokens, num_tokens
            )
            host_logits = np.asarray(logits)
            for slot, sequence in sequences:
                if num_tokens[slot]:
                    sequence.cache_length += 1
                    sequence.next_logits = host_logits[slot]
                    self._append_token(batch, sequence)
        with self._lock:
            self.num_generated_tokens += int(num_tokens.sum())
            batch.is_busy = False
            for _, sequence in sequences:
                sequence.is_busy = False
            self._lock.notify_all()

    def _append_token(self, batch: SequenceBatch, sequence: SequenceState) -> None:
        """Sample one more token from the logits of the sequence, or finish it; an error fails this sequence alone."""
        try:
            self._sample(batch, sequence)
        except Exception as error:
            if isinstance(error, ConstraintFailure):  # its message quotes the request, which no log does
                log.warning("the schema of a request became too complex for the library")
            else:
                log.exception("a token of a request could not be determined")
            sequence.has_failed = True
            if sequence in batch.slots:
                self._finish(batch, sequence, "failed")

    def _sample(self, batch: SequenceBatch, sequence: SequenceState) -> None:
        """Sample one more token from the logits of the sequence, or finish it."""
        request = sequence.request
        if sequence.num_generated >= request.max_tokens:
            return self._complete(batch, sequence, "length", is_cached=True)
        assert sequence.next_logits is not None
        logits = sequence.next_logits[: request.num_candidate_tokens]
        if request.logit_adjustments is not None:
            generated = sequence.tokens[len(sequence.tokens) - sequence.num_generated :]
            logits = adjust_logits(logits, request.logit_adjustments, generated, request.end_tokens)
        token = sample_token(logits, request.sampling_params, sequence.num_generated)
        logprobs = None
        if request.num_logprobs is not None:
            logprobs = compute_logprobs(sequence.next_logits, token, request.num_logprobs)
        sequence.num_generated += 1
        is_end = token in request.end_tokens
        # Clients that score a prompt rely on one token after it, so they receive the end token too.
        is_stopped = None if is_end and not request.score_prompt else _send(sequence, TokenOutput(token, logprobs))
        if not is_end:
            sequence.tokens.append(token)
        if is_end or is_stopped:
            self._complete(batch, sequence, "stop", is_cached=is_end)
        elif sequence.num_generated >= request.max_tokens:
            self._complete(batch, sequence, "length", is_cached=False)

    def _complete(self, batch: SequenceBatch, sequence: SequenceState, reason: str, *, is_cached: bool) -> None:
        """Finishes a complete answer, with its activations if the request asks for them.

        Args:
            is_cached: Whether the last token of the sequence is in the cache. The activations leave it out.
        """
        if not sequence.request.returns_activations or sequence.has_failed:
            return self._finish(batch, sequence, reason)
        cache = sequence.cache
        if cache is None:
            cache = self._programs.extract_sequence(batch.cache, np.int32(batch.slots.index(sequence)))
        activations = SequenceActivations(tuple(sequence.tokens), cache, sequence.cache_length - is_cached)
        self._finish(batch, sequence, reason, activations)

    def _finish(
        self, batch: SequenceBatch, sequence: SequenceState, reason: str, activations: SequenceActivations | None = None
    ) -> None:
        """Frees the slot of a sequence and sends the end of the answer; an answer with an error is never complete."""
        with self._lock:
            self._scheduler.remove(batch, sequence)
            duration = time.monotonic() - sequence.arrival_time
            self._mean_request_seconds += 0.1 * (duration - self._mean_request_seconds)
        _send(sequence, FinishOutput("failed" if sequence.has_failed else reason, activations))


def _score_chunk(sequence: SequenceState, chunk_size: int, logits: np.ndarray) -> None:
    """Append the log-probabilities of the prompt's tokens that follow those of a chunk."""
    prompt, num_top = sequence.request.prompt, sequence.request.num_logprobs or 0
    if not sequence.prompt_logprobs:
        sequence.prompt_logprobs.append(TokenLogprobs(prompt[0], None, ()))
    start = sequence.cache_length - chunk_size + 1
    for token, token_logits in zip(prompt[start : start + chunk_size], logits, strict=False):
        sequence.prompt_logprobs.append(compute_logprobs(token_logits, token, num_top))


def choose_programs(compute_dtype: DTypeLike = np.float32) -> ModuleType:
    """Returns the module whose functions compute: `kernel_programs` where the kernels are active, else `programs`."""
    if not kernels.is_active(compute_dtype):
        return programs
    from ontogeny.engine import kernel_programs

    return kernel_programs


def _default_num_workers() -> int:
    """One thread per core, up to a few: each piece of work is too small for many cores to share it.

    An accelerator executes one program after the other; a second thread prepares the next one.
    """
    if jax.default_backend() != "cpu":
        return 2
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_cores, MAX_WORKERS)


def _send(sequence: SequenceState, output: TokenOutput | list[TokenLogprobs] | FinishOutput) -> bool | None:
    """Call back with an output and return the answer. An error of the callback fails its own request only."""
    try:
        return sequence.on_output(output)
    except ReceiverClosed:
        sequence.is_cancelled = True
    except Exception:
        log.exception("the callback of a request raised an error")
        sequence.has_failed = True
        if isinstance(output, FinishOutput) and output.finish_reason != "failed":
            return _send(sequence, FinishOutput("failed"))  # the receiver waits for an end
    return None
