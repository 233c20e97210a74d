"""Continuous batching: requests join and leave while others are answered, in steps of one thread.

A step processes one token of each sequence that is being answered and chunks of new prompts together, so a new request
waits for one step at most. Nothing is compiled after `start`. Which sequences share a step changes no bit of an answer:
see `runners`. The engine knows tokens and weights; it knows nothing of text, HTTP, API keys or learning.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jax.typing import DTypeLike

from ontogeny import kernels
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.engine import runners
from ontogeny.engine.active_runner import create_runner
from ontogeny.engine.prefix_cache import MAX_BYTES, PrefixCache
from ontogeny.engine.requests import (
    FinishOutput,
    GenerationRequest,
    OutputCallback,
    ReceiverClosed,
    SequenceActivations,
    SequenceState,
    TokenOutput,
)
from ontogeny.engine.sampling import ConstraintFailure, TokenLogprobs, adjust_logits
from ontogeny.engine.scheduler import Scheduler, SequenceChunk, Step
from ontogeny.errors import BadInput
from ontogeny.memory import available_bytes, format_bytes

log = logging.getLogger(__name__)

UNLIMITED = 2**60  # bytes
AVAILABLE_SHARE = 0.5  # of the available memory that caches may have by default
PREFIX_SHARE = 0.25  # of the memory of caches that the prefix cache may have at most


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
    """Generates text with one model, whatever its weights: on a thread of its own from `start` on, or by `run`.

    Attributes:
        config: The config that all weights have in common.
        max_sequence_length: The most tokens that the cache of one sequence can hold.
        prefix_cache: The texts processed last.
        failure: The error that stopped the engine, if any.
        num_generated_tokens: Tokens generated so far.
        count_elsewhere: Returns how many requests of an owner wait in engines of other processes with the same limit.
            It is called while the engine is locked, and must not block.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        max_num_seqs: int = 64,
        max_queue: int = 256,
        max_context: int | None = None,
        kv_cache_bytes: int | None = None,
        compute_dtype: DTypeLike = np.float32,
    ) -> None:
        """Prepare an engine.

        Args:
            config: The config of all weights that requests name.
            max_num_seqs: The most sequences that are generated at the same time.
            max_queue: The most requests of one owner that may wait, here and elsewhere (`count_elsewhere`).
            max_context: The most tokens on which an answer can depend; by default the context of the model.
            kv_cache_bytes: Memory for keys and values; by default half of what is available at the start.
            compute_dtype: The type of matrix products.

        Raises:
            BadInput: The memory is too small for any request.
        """
        self.config = config
        self.max_sequence_length = min(config.context_length, max_context or config.context_length)
        self.failure: BaseException | None = None
        self.num_generated_tokens = 0
        self.count_elsewhere: Callable[[str], int] = lambda owner: 0
        self._max_queue, self._compute_dtype = max_queue, compute_dtype
        self._runner = create_runner(config, self.max_sequence_length, max_num_seqs, kv_cache_bytes, compute_dtype)
        self._num_slots = max_num_seqs if self._runner.max_num_seqs is None else self._runner.max_num_seqs
        max_bytes = default_cache_bytes() if kv_cache_bytes is None else kv_cache_bytes
        if kv_cache_bytes is not None and (needed := self._runner.num_bytes(1)) > kv_cache_bytes:
            raise BadInput(
                f"the shortest request needs {format_bytes(needed)} of memory for keys and values, more than the limit "
                f"of {format_bytes(kv_cache_bytes)}; allow more (--max-kv-cache-bytes)"
            )
        prefix_bytes = min(MAX_BYTES, int(PREFIX_SHARE * max_bytes))
        self.prefix_cache = PrefixCache(
            self._runner.prefix_chunk, prefix_bytes, any_length=self._runner.shares_any_length
        )
        self._scheduler = Scheduler(self._runner, self._num_slots, max_bytes, self.prefix_cache)
        self._lock = threading.Condition()
        self._is_stopping = False
        self._num_reserved: Counter[str] = Counter()  # places in the queue that reservations of each owner hold
        self._mean_request_seconds = 0.1  # smoothed
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def kv_cache_bytes(self) -> int:
        """The most memory of keys and values."""
        return self._scheduler.max_bytes

    @property
    def num_requests_running(self) -> int:
        """Requests that are being answered."""
        return len(self._scheduler.running)

    @property
    def num_requests_waiting(self) -> int:
        """Requests that wait for a slot or for memory."""
        return len(self._scheduler.waiting)

    def count_waiting(self) -> Counter[str]:
        """Returns how many requests of each owner wait or have a reserved place in the queue."""
        with self._lock:
            return Counter(sequence.request.owner for sequence in self._scheduler.waiting) + self._num_reserved

    @property
    def applies_adapters(self) -> bool:
        """Whether requests may have adapters; they share steps with all requests of the same weights."""
        return self._runner.applies_adapters

    @property
    def path(self) -> str:
        """What computes: `numba VERSION` or `xla VERSION`; the bits of logits differ between them."""
        return kernels.describe_path(self._compute_dtype)

    def start(self, weights: TransformerWeights) -> None:
        """Compile everything, check batch invariance on this machine, and start the thread.

        Args:
            weights: Any weights of the engine's config.

        Raises:
            BadInput: The machine is not batch invariant.
        """
        self._runner.check_batch_invariance(weights)
        log.info("text is generated by %s", self.path)
        self._thread.start()

    def run(self) -> None:
        """Generate on the calling thread until all requests are finished; for an engine that is not started."""
        try:
            while self._advance():
                pass
        except BaseException as error:
            self._fail(error)
            raise

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
            num_waiting = waiting + self._num_reserved[owner] + self.count_elsewhere(owner)
            if num_waiting and num_waiting + num_requests > self._max_queue:
                raise QueueFull(self._mean_request_seconds * num_waiting / self._num_slots)
            self._num_reserved[owner] += num_requests
        return QueueReservation(self, owner, num_requests)

    def check_memory(self, num_tokens: int) -> None:
        """Check that a prompt and its answer fit into the memory of all requests.

        Args:
            num_tokens: Of the prompt and the longest possible answer together.

        Raises:
            BadInput: They do not fit, so that the request would wait for ever.
        """
        num_tokens = min(num_tokens, self.max_sequence_length)
        if (needed := self._runner.num_bytes(num_tokens)) > self.kv_cache_bytes:
            raise BadInput(
                f"a prompt and an answer of {num_tokens:,} tokens together need {format_bytes(needed)} of memory for "
                f"keys and values, and there are {format_bytes(self.kv_cache_bytes)} for all requests"
            )

    def release(self, reservation: QueueReservation) -> None:
        """Give up the places of a reservation; see `QueueReservation.release`."""
        with self._lock:
            self._use_places(reservation)

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
            BadInput: A prompt is empty, too long to be scored, or needs more memory than there is for all requests; or
                a request has an adapter and this engine applies none.
        """
        epoch = self.prefix_cache.epoch
        sequences = [
            self._create_sequence(request, callback, epoch)
            for request, callback in zip(requests, on_output, strict=True)
        ]
        if reservation is None:
            reservation = self.reserve(len(sequences), requests[0].owner)
        with self._lock:
            self._use_places(reservation)
            self._check_running()
            self._scheduler.waiting.extend(sequences)
            self._lock.notify_all()
        return [RequestHandle(self, sequence) for sequence in sequences]

    def wake(self) -> None:
        """Let the idle thread look for work."""
        with self._lock:
            self._lock.notify()

    def stop(self) -> None:
        """Stop the thread; answers that are not finished are cancelled."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _use_places(self, reservation: QueueReservation) -> None:
        """Ends a reservation, if it has not ended; called while the lock is held."""
        self._num_reserved[reservation.owner] -= reservation.num_places
        reservation.num_places = 0
        if not self._num_reserved[reservation.owner]:
            del self._num_reserved[reservation.owner]

    def _check_running(self) -> None:
        """Raises `QueueFull` once the engine stops; called while the lock is held."""
        if self._is_stopping or self.failure is not None:
            raise QueueFull(5.0)  # a guess: by then the server may have restarted

    def _create_sequence(self, request: GenerationRequest, on_output: OutputCallback, epoch: int) -> SequenceState:
        """The state of a request that can be answered; raises `BadInput` for others."""
        if not (length := len(request.prompt)):
            raise BadInput("a prompt needs at least one token")
        if request.adapter is not None and not self.applies_adapters:
            raise BadInput(f"text is generated by {self.path}, which needs weights that an adapter was added to")
        if request.score_prompt and length > self.max_sequence_length + 1:
            raise BadInput(
                f"{length} tokens to score are more than the model's context of {self.max_sequence_length} and "
                "the token after it"
            )
        sequence = SequenceState(request, on_output, self.max_sequence_length, epoch)
        self.check_memory(sequence.max_length)
        return sequence

    def _work(self) -> None:
        """Runs steps until the engine stops; the main function of the thread."""
        try:
            while not self._is_stopping:
                if not self._advance():
                    with self._lock:
                        if not self._is_stopping and not self._has_work():
                            self._lock.wait()
            self._end_all("cancelled")
        except BaseException as error:
            self._fail(error)
            raise

    def _has_work(self) -> bool:
        """Whether a request runs or waits; called while the lock is held."""
        return bool(self._scheduler.waiting or self._scheduler.running)

    def _fail(self, error: BaseException) -> None:
        """Stops the engine after an error."""
        self.failure = error
        self._end_all("failed")

    def _end_all(self, reason: str) -> None:
        """Ends all requests when the engine stops."""
        with self._lock:
            self._is_stopping = True
            unfinished = [*self._scheduler.waiting, *self._scheduler.running]
            self._scheduler.waiting.clear()
            self._scheduler.running.clear()
        for sequence in unfinished:
            _send(sequence, FinishOutput(reason))

    def _advance(self) -> bool:
        """Compute the next step; returns False if there is nothing to do."""
        with self._lock:
            expired = list(self._scheduler.expired())
            self._scheduler.admit()
            step = self._scheduler.next_step()
        for sequence, reason in expired:
            self._finish(sequence, reason)
        if step is not None:
            self._compute(step)
        return step is not None

    def _compute(self, step: Step) -> None:
        """Process the tokens of a step, and sample the next token of each sequence whose prompt is complete."""
        sequences, needs = [chunk.sequence for chunk in step.chunks], [_needed_logits(chunk) for chunk in step.chunks]
        all_logits = self._runner.run(step.weights, sequences, [chunk.tokens for chunk in step.chunks], needs)
        num_before = sum(sequence.num_generated for sequence in sequences)
        for chunk, logits in zip(step.chunks, all_logits, strict=True):
            sequence, count = chunk.sequence, len(chunk.tokens)
            sequence.has_started = True
            sequence.cache_length += count
            if sequence.unprocessed:
                self._complete_chunk(sequence, count, logits)
        complete = [(s, logits[-1]) for s, logits in zip(sequences, all_logits, strict=True) if not s.unprocessed]
        self._append_tokens(complete)
        self.num_generated_tokens += sum(sequence.num_generated for sequence in sequences) - num_before

    def _complete_chunk(self, sequence: SequenceState, count: int, logits: np.ndarray) -> None:
        """Take note of a processed chunk of a prompt: its log-probabilities, and a new entry of the prefix cache."""
        sequence.unprocessed = sequence.unprocessed[count:]
        if sequence.request.score_prompt and not sequence.is_scored:
            self._score_chunk(sequence, count, logits)
            if not sequence.unprocessed:
                sequence.is_scored = True
                _send(sequence, sequence.prompt_logprobs)
                if sequence.request.max_tokens and len(sequence.tokens) > self.max_sequence_length:
                    self._runner.release(sequence)  # the last token of the prompt has no place
                    sequence.drop_first_half()
        elif not sequence.unprocessed:
            self._cache_prefix(sequence)

    def _cache_prefix(self, sequence: SequenceState) -> None:
        """Let later requests continue from what a sequence has processed."""
        if sequence.prefix is not None and (shared := self._runner.share(sequence)) is not None:
            tokens = sequence.tokens[sequence.start : sequence.start + sequence.cache_length]
            encoded = np.asarray(tokens, np.int32).tobytes()
            self.prefix_cache.insert(sequence.prefix[0], encoded, *shared, sequence.epoch)

    def _score_chunk(self, sequence: SequenceState, count: int, logits: np.ndarray) -> None:
        """Append the log-probabilities of the prompt's tokens that follow those of a chunk."""
        prompt, num_top = sequence.request.prompt, sequence.request.num_logprobs or 0
        if not sequence.prompt_logprobs:
            sequence.prompt_logprobs.append(TokenLogprobs(prompt[0], None, ()))
        start, params = sequence.cache_length - count + 1, sequence.request.sampling_params
        targets = zip(prompt[start : start + count], logits, strict=False)
        draws = [runners.TokenDraw(of_token, None, None, params, 0, num_top, token) for token, of_token in targets]
        sequence.prompt_logprobs += [logprobs for _, logprobs in self._runner.sample(draws) if logprobs is not None]

    def _append_tokens(self, sequences: Sequence[tuple[SequenceState, np.ndarray]]) -> None:
        """Sample one more token of each sequence from its logits, or finish it; an error fails its sequence alone."""
        draws = list[tuple[SequenceState, runners.TokenDraw]]()
        for sequence, logits in sequences:
            try:
                if sequence.num_generated >= sequence.request.max_tokens:
                    self._complete(sequence, "length", is_cached=True)
                else:
                    draws.append((sequence, _prepare_draw(sequence, logits)))
            except Exception as error:
                self._fail_alone(sequence, error)
        sampled = self._runner.sample([draw for _, draw in draws])
        for (sequence, _), (token, logprobs) in zip(draws, sampled, strict=True):
            try:
                self._append_token(sequence, token, logprobs)
            except Exception as error:
                self._fail_alone(sequence, error)

    def _fail_alone(self, sequence: SequenceState, error: Exception) -> None:
        """Ends one sequence after an error, which is described in the log."""
        if isinstance(error, ConstraintFailure):  # its message quotes the request, which no log does
            log.warning("the schema of a request became too complex for the library")
        else:
            log.error("a token of a request could not be determined", exc_info=error)
        sequence.has_failed = True
        self._finish(sequence, "failed")

    def _append_token(self, sequence: SequenceState, token: int, logprobs: TokenLogprobs | None) -> None:
        """Send a sampled token, and finish the sequence if it is the last one."""
        request = sequence.request
        sequence.num_generated += 1
        is_end = token in request.end_tokens
        # Clients that score a prompt rely on one token after it, so they receive the end token too.
        is_stopped = None if is_end and not request.score_prompt else _send(sequence, TokenOutput(token, logprobs))
        if not is_end:
            sequence.tokens.append(token)
        if is_end or is_stopped:
            self._complete(sequence, "stop", is_cached=is_end, end_token=token if is_end else None)
        elif sequence.num_generated >= request.max_tokens:
            self._complete(sequence, "length", is_cached=False)
        elif sequence.cache_length == self.max_sequence_length:
            self._runner.release(sequence)
            sequence.drop_first_half()

    def _complete(self, sequence: SequenceState, reason: str, *, is_cached: bool, end_token: int | None = None) -> None:
        """Finishes a complete answer, with its activations if the request asks for them.

        Args:
            is_cached: Whether the last token of the sequence is in the cache. The activations leave it out.
        """
        activations = None
        if sequence.request.returns_activations and not sequence.has_failed:
            layers = self._runner.to_layers(sequence, sequence.cache_length - is_cached)
            activations = SequenceActivations(tuple(sequence.tokens), layers)
        self._cache_prefix(sequence)
        self._finish(sequence, reason, activations, end_token)

    def _finish(
        self,
        sequence: SequenceState,
        reason: str,
        activations: SequenceActivations | None = None,
        end_token: int | None = None,
    ) -> None:
        """Frees the slot of a sequence and sends the end of the answer; an answer with an error is never complete."""
        with self._lock:
            self._scheduler.remove(sequence)
            duration = time.monotonic() - sequence.arrival_time
            self._mean_request_seconds += 0.1 * (duration - self._mean_request_seconds)
        _send(sequence, FinishOutput("failed" if sequence.has_failed else reason, activations, end_token))


def default_cache_bytes(num_engines: int = 1) -> int:
    """The memory for keys and values of each of several engines: together half of what is available."""
    return int(AVAILABLE_SHARE * (available_bytes() or UNLIMITED)) // num_engines


def _needed_logits(chunk: SequenceChunk) -> str:
    """The tokens of a chunk after which logits are needed."""
    if chunk.sequence.request.score_prompt and not chunk.sequence.is_scored:
        return runners.ALL
    return runners.LAST if chunk.is_final else runners.NO_LOGITS


def _prepare_draw(sequence: SequenceState, logits: np.ndarray) -> runners.TokenDraw:
    """The next token of a sequence, from the logits of the model and the adjustments of the request."""
    request, adjusted = sequence.request, None
    if request.logit_adjustments is not None:
        generated = sequence.tokens[len(sequence.tokens) - sequence.num_generated :]
        candidates = logits[: request.num_candidate_tokens]
        adjusted = adjust_logits(candidates, request.logit_adjustments, generated, request.end_tokens)
    return runners.TokenDraw(
        logits, request.num_candidate_tokens, adjusted, request.sampling_params, sequence.num_generated,
        request.num_logprobs,
    )  # fmt: skip


def _send(sequence: SequenceState, message: TokenOutput | list[TokenLogprobs] | FinishOutput) -> bool | None:
    """Call back with a message and return the answer. An error of the callback fails its own request only."""
    try:
        return sequence.on_output(message)
    except ReceiverClosed:
        sequence.is_cancelled = True
    except Exception:
        log.exception("the callback of a request raised an error")
        sequence.has_failed = True
        if isinstance(message, FinishOutput) and message.finish_reason != "failed":
            return _send(sequence, FinishOutput("failed"))  # the receiver waits for an end
    return None
