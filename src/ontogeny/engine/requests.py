"""A generation request, the outputs that the engine sends for it, and the state of its sequence and batch.

Nothing here knows threads or text.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ontogeny.content.transformer import KVCache, TransformerWeights
from ontogeny.engine.sampling import LogitAdjustments, SamplingParams, TokenLogprobs

CacheScope = tuple[str, str]  # the owner of a prompt and the digest of the weights that processed it


class SequenceActivations(NamedTuple):
    """The tokens of a sequence and its cache, from which a later request can continue.

    Attributes:
        tokens: All tokens of the sequence.
        cache: A cache of one sequence. Of a request possibly a function that creates it, which the engine calls when
            it begins with the request, so that waiting requests need no memory for it.
        num_cached: The tokens that the cache holds: those before the last token.
    """

    tokens: tuple[int, ...]
    cache: KVCache | Callable[[], KVCache]
    num_cached: int


class GenerationRequest(NamedTuple):
    """Everything on which an answer depends, its owner and its deadline.

    Attributes:
        weights: The weights that generate the answer.
        prompt: Tokens, at least one.
        max_tokens: The most tokens that are generated, at least 0.
        sampling_params: How they are drawn.
        end_tokens: The tokens that end an answer.
        num_candidate_tokens: Only the tokens below this number are generated; None for all of the model. The model may
            have more logits than its tokenizer has tokens.
        num_logprobs: How many of the most probable tokens to list at each position; None for no log-probabilities.
        score_prompt: Whether to compute the log-probabilities of the prompt's tokens too.
        deadline: The value of `time.monotonic()` at which the answer is cut off.
        cache_scope: Requests of the same scope share the prefix cache; None bypasses the cache.
        owner: Owners are served in turn, however many requests each of them has.
        activations: Activations of the same weights, whose tokens begin the prompt; None to begin without any.
        returns_activations: Whether the end of a complete answer carries the activations.
        cache_epoch: The epoch of the prefix cache before the weights were chosen; None for the epoch of the arrival.
        logit_adjustments: How the logits differ from those of the model when a token is drawn.
    """

    weights: TransformerWeights
    prompt: tuple[int, ...]
    max_tokens: int
    sampling_params: SamplingParams
    end_tokens: frozenset[int] = frozenset()
    num_candidate_tokens: int | None = None
    num_logprobs: int | None = None
    score_prompt: bool = False
    deadline: float = float("inf")
    cache_scope: CacheScope | None = None
    owner: str = ""
    activations: SequenceActivations | None = None
    returns_activations: bool = False
    cache_epoch: int | None = None
    logit_adjustments: LogitAdjustments | None = None


class TokenOutput(NamedTuple):
    """One generated token; `logprobs` is None where the request needs none."""

    token: int
    logprobs: TokenLogprobs | None


class FinishOutput(NamedTuple):
    """The end of an answer.

    Attributes:
        finish_reason: `stop` (the end token, which is not part of the answer, or a stop string), `length`, `time`,
            `cancelled` or `failed` (an error in the engine or in the callback; the answer is not complete).
        activations: Those after a complete answer, without an end token, if the request asks for them.
    """

    finish_reason: str
    activations: SequenceActivations | None = None


class ReceiverClosed(Exception):
    """Raised by a callback whose receiver is gone, so that the answer is of no use to anyone."""


# Receives the log-probabilities of the prompt (where requested), then tokens, then one `FinishOutput`; returning True
# after a token ends the answer.
OutputCallback = Callable[[TokenOutput | list[TokenLogprobs] | FinishOutput], bool | None]


class SequenceState:
    """The sequence of one request: its tokens, its cache and its progress.

    While `is_busy`, it belongs to the thread that works on it, otherwise to the holder of the engine's lock.

    Attributes:
        has_failed: Whether an error has occurred, so that the answer cannot be completed.
        is_scored: Whether the log-probabilities of the prompt have been computed.
        arrival_time: When the request was submitted.
        waiting_since: When the request began to wait for a slot, the last time.
        cache: The cache of this sequence alone; None while it is part of the cache of a batch.
        create_cache: Creates `cache` before the first prefill of a sequence that continues from activations.
        cache_length: The number of tokens in the cache.
        unprocessed: Tokens that prefill has still to process.
        prefix: The key of the whole prompt in the prefix cache.
    """

    def __init__(self, request: GenerationRequest, on_output: OutputCallback, capacity: int, epoch: int = 0) -> None:
        self.request, self.on_output = request, on_output
        self.epoch = epoch if request.cache_epoch is None else request.cache_epoch
        self.arrival_time = self.waiting_since = time.monotonic()
        self.is_cancelled = self.has_failed = self.is_busy = self.is_prefilling = self.is_scored = False
        self.tokens = list(request.prompt)
        self.num_generated = 0
        self.cache_length = 0
        # The beginning of a long prompt is cut off, so that the answer, up to half the capacity, fits after it.
        reserved = 0 if request.score_prompt else min(request.max_tokens, capacity // 2)
        # A context of tokens predicts the token after it too, so one token more can be scored than the cache holds.
        self.unprocessed = self.tokens[:capacity] if request.score_prompt else self.tokens[-(capacity - reserved) :]
        self.cache: KVCache | None = None
        self.create_cache: Callable[[], KVCache] | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.next_logits: np.ndarray | None = None
        self.prefix: tuple[CacheScope, bytes] | None = None
        if request.activations is not None and request.activations.num_cached:
            self._continue_from(request.activations, capacity)
        elif request.cache_scope is not None and not request.score_prompt:
            self.prefix = request.cache_scope, np.asarray(self.unprocessed, np.int32).tobytes()

    @property
    def has_started(self) -> bool:
        """Whether the prompt has been processed in part at least."""
        return bool(self.is_busy or self.cache_length or self.num_generated)

    @property
    def is_ready(self) -> bool:
        """Whether the next token can be decoded."""
        return not self.unprocessed and not self.is_busy

    def drop_first_half(self, capacity: int) -> None:
        """Restart a full cache from the second half of its tokens, which are processed anew."""
        self.unprocessed, self.cache_length = self.tokens[-max(1, capacity // 2) :], 0
        self.cache = self.create_cache = self.prefix = None

    def _continue_from(self, activations: SequenceActivations, capacity: int) -> None:
        """Take over activations; if the rest of the prompt does not fit after them, drop all but half of the text."""
        self.unprocessed = self.tokens[len(activations.tokens) - 1 :]
        self.cache_length = activations.num_cached
        if isinstance(activations.cache, KVCache):
            self.cache = activations.cache
        else:
            self.create_cache = activations.cache
        if self.cache_length + len(self.unprocessed) > capacity:
            self.drop_first_half(capacity)


class SequenceBatch:
    """Sequences that share weights and one decode program; `is_busy` while a thread decodes it.

    Attributes:
        slots: The sequences; None for a free slot.
        last_turn: The engine's count of decode steps when this batch was last decoded.
        num_tasks: Pieces of work begun since the batch has its weights.
        is_yielding: Whether no work is begun, because the sequences will be suspended.
        num_final_chunks: Prefill chunks that complete a prompt, begun since then.
        num_partial_chunks: Prefill chunks that do not complete a prompt, begun since then.
    """

    def __init__(self, cache: KVCache, batch_size: int) -> None:
        self.cache = cache
        self.weights: TransformerWeights | None = None
        self.slots: list[SequenceState | None] = [None] * batch_size
        self.is_busy = False
        self.is_yielding = False
        self.last_turn = self.num_tasks = 0
        self.num_final_chunks = self.num_partial_chunks = 0

    @property
    def sequences(self) -> list[SequenceState]:
        """The sequences of the batch in the order of their slots."""
        return [sequence for sequence in self.slots if sequence is not None]

    @property
    def is_empty(self) -> bool:
        """Whether all slots are free."""
        return not any(self.slots)
