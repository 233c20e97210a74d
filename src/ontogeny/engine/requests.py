"""A generation request, the outputs that the engine sends for it, and the state of its sequence.

Nothing here knows threads or text.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.sampling import LogitAdjustments, SamplingParams, TokenLogprobs
from ontogeny.lm.adapters import AdapterTree

CacheScope = tuple[str, str]  # the owner of a prompt and the digest of the weights that processed it


class CachedLayers(NamedTuple):
    """Keys and values of the first N tokens of a sequence, as arrays of their own. G heads, D numbers per head."""

    keys: tuple[Float[np.ndarray, "G N D"], ...]  # one per layer
    values: tuple[Float[np.ndarray, "G N D"], ...]


class SequenceActivations(NamedTuple):
    """The tokens of a sequence and what its cache holds, from which a later request can continue.

    Attributes:
        tokens: All tokens of the sequence.
        layers: Keys and values of all tokens but the last; of a long sequence, of the most recent ones.
    """

    tokens: tuple[int, ...]
    layers: CachedLayers

    @property
    def num_cached(self) -> int:
        """The tokens that the cache holds: those before the last token."""
        return self.layers.keys[0].shape[1]


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
        adapter: Is added to the products of the weights; only an engine that `applies_adapters` takes any.
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
    adapter: AdapterTree | None = None


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
        end_token: The end token that ended the answer, if one did.
    """

    finish_reason: str
    activations: SequenceActivations | None = None
    end_token: int | None = None


class ReceiverClosed(Exception):
    """Raised by a callback whose receiver is gone, so that the answer is of no use to anyone."""


# Receives the log-probabilities of the prompt (where requested), then tokens, then one `FinishOutput`; returning True
# after a token ends the answer.
OutputCallback = Callable[[TokenOutput | list[TokenLogprobs] | FinishOutput], bool | None]


class SequenceState:
    """The sequence of one request: its tokens, its cache and its progress.

    It belongs to the thread that runs the engine's steps; others may set `is_cancelled`.

    Attributes:
        tokens: The prompt and the generated tokens.
        start: The number of the token at which the context begins; the tokens before it are not processed.
        has_failed: Whether an error has occurred, so that the answer cannot be completed.
        is_scored: Whether the log-probabilities of the prompt have been computed.
        arrival_time: When the request was submitted.
        waiting_since: When the request began to wait for a slot, the last time.
        cache: What the engine's runner has computed for this sequence; None before the first step.
        packed: The weights of the request as the runner reads them, once it has looked them up.
        packed_adapter: The same of the adapter.
        layers: The keys and values with which the cache begins.
        cache_length: The number of tokens in the cache.
        unprocessed: Tokens that prefill has still to process. Where there are none, the last token is decoded.
        prefix: The key of the whole prompt in the prefix cache.
        reserved_bytes: Memory that is reserved for the cache.
    """

    def __init__(self, request: GenerationRequest, on_output: OutputCallback, capacity: int, epoch: int = 0) -> None:
        self.request, self.on_output, self.capacity = request, on_output, capacity
        self.epoch = epoch if request.cache_epoch is None else request.cache_epoch
        self.arrival_time = self.waiting_since = time.monotonic()
        self.is_cancelled = self.has_failed = self.is_scored = self.has_started = False
        self.tokens = list(request.prompt)
        self.num_generated = self.cache_length = self.reserved_bytes = 0
        # The beginning of a long prompt is cut off, so that the answer, up to half the capacity, fits after it.
        reserved = 0 if request.score_prompt else min(request.max_tokens, capacity // 2)
        self.start = 0 if request.score_prompt else max(0, len(self.tokens) - (capacity - reserved))
        self.cache: Any = None
        self.packed: Any = None
        self.packed_adapter: Any = None
        self.layers: CachedLayers | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.prefix: tuple[CacheScope, bytes] | None = None
        self.restart()
        if request.activations is not None and request.activations.num_cached:
            self._continue_from(request.activations)
        elif request.cache_scope is not None and not request.score_prompt:
            self.prefix = request.cache_scope, np.asarray(self.unprocessed, np.int32).tobytes()

    @property
    def max_length(self) -> int:
        """The most tokens that the cache will hold."""
        num_remaining = self.request.max_tokens - self.num_generated
        return min(self.capacity, len(self.tokens) - self.start + num_remaining)

    def restart(self) -> None:
        """Forget the cache, so that all tokens of the context are processed anew."""
        # A context of tokens predicts the token after it too, so one token more can be scored than the cache holds.
        stop = self.capacity if self.request.score_prompt and not self.is_scored else len(self.tokens)
        self.cache, self.cache_length = None, 0 if self.layers is None else self.layers.keys[0].shape[1]
        self.unprocessed = self.tokens[self.start + self.cache_length : stop]
        if not self.is_scored:
            self.prompt_logprobs.clear()

    def drop_first_half(self) -> None:
        """Restart a full cache from the second half of its tokens, which are processed anew."""
        self.start, self.layers, self.prefix = len(self.tokens) - max(1, self.capacity // 2), None, None
        self.restart()

    def _continue_from(self, activations: SequenceActivations) -> None:
        """Take over activations; if the rest of the prompt does not fit after them, drop all but half of the text."""
        self.start = len(activations.tokens) - 1 - activations.num_cached
        if len(self.tokens) - self.start > self.capacity:
            self.drop_first_half()
        else:
            self.layers = activations.layers
            self.restart()
