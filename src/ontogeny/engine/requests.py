"""What is asked of the engine, what it tells, and a request on its way: a row of a tile. Knows no threads."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ontogeny.content.transformer import KVCache, TransformerWeights
from ontogeny.engine.sampling import SamplingParams, TokenLogprobs


class GenerationRequest(NamedTuple):
    """All that an answer depends on, and when to give up."""

    weights: TransformerWeights
    prompt: tuple[int, ...]  # at least one token
    max_tokens: int  # tokens to generate
    sampling_params: SamplingParams
    end_token: int | None  # the token that ends an answer
    num_logprobs: int | None = None  # how many likely tokens to tell; None: no log-probabilities at all
    score_prompt: bool = False  # log-probabilities of the prompt too
    deadline: float = float("inf")  # of time.monotonic
    cache_scope: tuple[str, str] | None = (
        None  # owner, version of the weights: who may go on from what this one has read
    )


class TokenOutput(NamedTuple):
    """One more token of an answer."""

    token: int
    logprobs: TokenLogprobs | None


class FinishOutput(NamedTuple):
    """Why there are no more: stop (the end token, which is not part of the answer), length, time, cancelled, failed."""

    finish_reason: str


OutputCallback = Callable[
    [TokenOutput | list[TokenLogprobs] | FinishOutput], bool | None
]  # the prompt's scores first, tokens, one End; True: enough


class SequenceState:
    """A request on its way. Where it is `busy` it belongs to the thread that works on it, else to the engine's lock."""

    def __init__(self, question: GenerationRequest, told: OutputCallback, capacity: int, epoch: int = 0) -> None:
        self.question, self.told, self.epoch = question, told, epoch
        self.since = time.monotonic()
        self.cancelled = self.busy = self.reading = False
        self.seen = list(question.prompt)
        self.made = 0
        self.length = 0  # tokens in the cache
        room = 0 if question.score_prompt else min(question.max_tokens, capacity // 2)
        self.waiting = (
            self.seen[-(capacity - room) :] if not question.score_prompt else self.seen
        )  # tokens to read in chunks
        self.read: KVCache | None = None  # a row of its own, until it goes into the tile's
        self.scores: list[TokenLogprobs] = []
        self.last: np.ndarray | None = None  # logits of what comes next
        self.prefix: tuple[tuple[str, str], bytes] | None = None  # what others of its name may have read for it
        if question.cache_scope is not None and not question.score_prompt:
            self.prefix = question.cache_scope, np.asarray(self.waiting, np.int32).tobytes()

    @property
    def ready(self) -> bool:
        return not self.waiting and not self.busy

    def slide(self, capacity: int) -> None:
        """The row is full: it goes on from the second half of what it can hold, read anew."""
        self.waiting, self.length, self.read, self.prefix = self.seen[-(capacity // 2) :], 0, None, None


class SequenceBatch:
    """Rows that share weights and one program; `busy` while a thread generates with it."""

    def __init__(self, cache: KVCache, rows: int) -> None:
        self.cache = cache
        self.weights: TransformerWeights | None = None
        self.rows: list[SequenceState | None] = [None] * rows
        self.busy = False
        self.turns = 0  # of the engine's count, when it last generated
        self.ends = self.goes = 0  # chunks of prompts, that end one or go on with one, begun since then

    @property
    def empty(self) -> bool:
        return not any(self.rows)
