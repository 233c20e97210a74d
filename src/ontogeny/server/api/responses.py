"""The two response formats of the OpenAI API, whole or as the parts of a stream: completions and chat completions.

This module does not depend on engines or on HTTP.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from ontogeny.engine.engine import QueueReservation
from ontogeny.engine.requests import GenerationRequest
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.engine.text_stream import TokenOffsets, token_text
from ontogeny.server.api.streaming import OutputDelta
from ontogeny.server.deployment_kinds import LanguageDeployment, ServedWeights
from ontogeny.server.keys import ApiKey
from ontogeny.server.rate_limits import TokenReservation


class ScoredToken(NamedTuple):
    """A token of a response with its log-probabilities."""

    logprobs: TokenLogprobs
    offset: int  # in characters, in the text of prompt and completion


class PreparedRequest(NamedTuple):
    """A request that is ready for the engine."""

    deployment: LanguageDeployment
    served: ServedWeights
    key: ApiKey
    sequences: list[GenerationRequest]  # one per candidate: those of the first prompt, then those of the second, ...
    prompt_tokens: int
    example: int | None  # the number of the training example, if the prompt is learned
    started_at: float  # time.monotonic
    id: str
    created_at: int  # seconds since 1970
    tokens: TokenReservation
    reservation: QueueReservation
    echoed_prompts: Sequence[str] = ()  # one per candidate; empty unless they are echoed
    prompt_lengths: Sequence[int] = ()  # characters, one per candidate; empty where no position in a text is reported
    num_candidates: int = 1  # per prompt
    num_choices: int = 1  # the best candidates of a prompt, which are returned
    ignored_fields: Sequence[str] = ()  # names of fields that the server does not know


def describe_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Returns the `usage` of a response."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class ResponseFormat(ABC):
    """Collects the outputs of a request and writes them as a response.

    Args:
        prepared: The request.
    """

    kind, chunk_kind = "", ""  # the `object` of a whole response and of a part of a stream

    def __init__(self, prepared: PreparedRequest) -> None:
        self.prepared = prepared
        self.tokenizer = prepared.deployment.model.tokenizer
        num_candidates = len(prepared.sequences)
        self.texts = [""] * num_candidates  # generated and final
        self.finish_reasons: list[str | None] = [None] * num_candidates
        self.scored: list[list[ScoredToken]] = [[] for _ in prepared.sequences]  # in a stream, those not sent yet
        self._starts = list(prepared.prompt_lengths) or [0] * num_candidates
        self._token_logprobs: list[list[float]] = [[] for _ in prepared.sequences]  # of the generated tokens
        self._offsets = [TokenOffsets(self.tokenizer, start) for start in self._starts]

    def add(self, output: OutputDelta) -> None:
        """Collects an output for the whole response."""
        index = output.sequence
        self.texts[index] += output.text
        self.scored[index] += self._score(output)
        if output.token is not None and output.token.logprobs is not None:
            self._token_logprobs[index].append(output.token.logprobs.logprob or 0.0)
        self.finish_reasons[index] = _finish_reason(output) or self.finish_reasons[index]

    def header(self, kind: str | None = None) -> dict[str, Any]:
        """Returns the first fields of a response, or of a part of a stream.

        Args:
            kind: The field `object`; by default that of a part of a stream.
        """
        prepared = self.prepared
        return {
            "id": prepared.id,
            "object": kind or self.chunk_kind,
            "created": prepared.created_at,
            "model": prepared.deployment.name,
            "system_fingerprint": f"{prepared.deployment.digest[:12]}-{prepared.served.version}",
            "ontogeny": self._describe(),
        }

    def first_chunks(self) -> list[dict[str, Any]]:
        """Returns the parts of a stream that precede all outputs."""
        return []

    def response(self) -> dict[str, Any]:
        """Returns the whole response from all collected outputs."""
        choices = [
            self.choice(
                number,
                self._echo(candidate) + self.texts[candidate],
                self._take_scored(candidate, is_final=True),
                self.finish_reasons[candidate],
            )
            for number, candidate in enumerate(self._best_candidates())
        ]
        return self.header(self.kind) | {"choices": choices}

    def chunks(self, output: OutputDelta) -> list[dict[str, Any]]:
        """Returns the parts of a stream for one output, possibly none.

        Each part names the tokens whose first character it holds. A token is therefore held back as long as its text:
        until its character is complete and no stop string can cut it off.
        """
        index, text, reason = output.sequence, output.text, _finish_reason(output)
        visible = self.visible_text(index, text)
        self.texts[index] += text
        self.scored[index] += self._score(output)
        if output.prompt_logprobs is not None:
            visible = self._echo(index)
        scored = self._take_scored(index, is_final=reason is not None)
        if not visible and not scored and reason is None:
            return []
        return [self.header() | {"choices": [self.chunk_choice(index, visible, scored, reason)]}]

    def visible_text(self, index: int, text: str) -> str:
        """Returns the part of new generated text that a client receives.

        Args:
            index: The number of the choice.
            text: The text that follows `texts[index]`.
        """
        return text

    @abstractmethod
    def choice(self, index: int, text: str, scored: list[ScoredToken], reason: str | None) -> dict[str, Any]:
        """Returns one choice of a whole response.

        Args:
            index: The number of the choice.
            text: The generated text, after the prompt if that is echoed.
            scored: Its tokens.
            reason: Its finish reason.
        """

    def chunk_choice(self, index: int, text: str, scored: list[ScoredToken], reason: str | None) -> dict[str, Any]:
        """Returns one choice of a part of a stream; see `choice`. The reason is None while the sequence continues."""
        return self.choice(index, text, scored, reason)

    def _echo(self, index: int) -> str:
        """The echoed prompt of a candidate, or an empty text."""
        return self.prepared.echoed_prompts[index] if self.prepared.echoed_prompts else ""

    def _describe(self) -> dict[str, Any]:
        """The fields of a response that the OpenAI API does not have."""
        prepared = self.prepared
        ignored = {"ignored_fields": list(prepared.ignored_fields)} if prepared.ignored_fields else {}
        return {"version": prepared.served.version, "example": prepared.example} | ignored

    def _score(self, output: OutputDelta) -> list[ScoredToken]:
        """The tokens of an output that have log-probabilities, with their positions."""
        if output.prompt_logprobs is not None:
            offsets = TokenOffsets(self.tokenizer, text=self._echo(output.sequence))
            length = self._starts[output.sequence]
            return [ScoredToken(scored, min(offsets.push(scored.token), length)) for scored in output.prompt_logprobs]
        if output.token is None or output.token.logprobs is None:
            return []
        return [ScoredToken(output.token.logprobs, self._offsets[output.sequence].push(output.token.token))]

    def _take_scored(self, index: int, *, is_final: bool) -> list[ScoredToken]:
        """Removes and returns the tokens whose text is final.

        Tokens without text, such as those of a stop string, have the position of the end of the text.
        """
        scored, end = self.scored[index], self._starts[index] + len(self.texts[index])
        num_final = len(scored) if is_final else sum(token.offset < end for token in scored)
        self.scored[index] = scored[num_final:]
        return [token._replace(offset=min(token.offset, end)) for token in scored[:num_final]]

    def _best_candidates(self) -> list[int]:
        """The indices of the candidates that are returned: of each prompt those with the highest `_mean_logprob`."""
        num_candidates, num_choices = self.prepared.num_candidates, self.prepared.num_choices
        indices = range(len(self.texts))
        groups = [indices[first : first + num_candidates] for first in indices[::num_candidates]]
        if num_candidates > num_choices:
            groups = [sorted(group, key=self._mean_logprob, reverse=True)[:num_choices] for group in groups]
        return [index for group in groups for index in group]

    def _mean_logprob(self, index: int) -> float:
        """The mean log-probability of the generated tokens of a candidate; an empty one is the worst."""
        logprobs = self._token_logprobs[index]
        return math.fsum(logprobs) / len(logprobs) if logprobs else -math.inf


class CompletionFormat(ResponseFormat):
    """The format of `/v1/completions`.

    Args:
        prepared: The request.
        num_alternatives: Likeliest tokens per position; None for no log-probabilities.
    """

    kind = chunk_kind = "text_completion"

    def __init__(self, prepared: PreparedRequest, num_alternatives: int | None) -> None:
        super().__init__(prepared)
        self.num_alternatives = num_alternatives

    def choice(self, index: int, text: str, scored: list[ScoredToken], reason: str | None) -> dict[str, Any]:
        """Returns one choice; see `ResponseFormat.choice`.

        `text_offset` is "the character offset from the start of the prompt", with and without `echo`, as OpenAI's
        completions have it; vLLM instead counts from the beginning of the text that it returns.
        """
        logprobs = None
        if self.num_alternatives is not None:
            tokens = [token_text(self.tokenizer, token.logprobs.token) for token in scored]
            logprobs = {
                "tokens": tokens,
                "token_logprobs": [token.logprobs.logprob for token in scored],
                "top_logprobs": [self._top_logprobs(s.logprobs, name) for s, name in zip(scored, tokens, strict=True)],
                "text_offset": [token.offset for token in scored],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _top_logprobs(self, scored: TokenLogprobs, name: str) -> dict[str, float] | None:
        """The likeliest tokens by text, and the token itself; of two tokens with one text the likelier counts."""
        if scored.logprob is None:
            return None
        alternatives = {name: scored.logprob}
        for token, logprob in reversed(scored.top_logprobs):
            alternatives[token_text(self.tokenizer, token)] = logprob
        return alternatives


class ChatFormat(ResponseFormat):
    """The format of `/v1/chat/completions`."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, prepared: PreparedRequest, has_logprobs: bool) -> None:
        super().__init__(prepared)
        self.has_logprobs = has_logprobs

    def first_chunks(self) -> list[dict[str, Any]]:
        """Returns the parts of a stream that precede all outputs: the role of each message."""
        empty = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self.header() | {"choices": [{"index": i} | empty]} for i in range(len(self.texts))]

    def choice(self, index: int, text: str, scored: list[ScoredToken], reason: str | None) -> dict[str, Any]:
        """Returns one choice; see `ResponseFormat.choice`."""
        message = {"role": "assistant", "content": text.removeprefix(" "), "refusal": None}
        return {"index": index, "message": message, "logprobs": self._choice_logprobs(scored), "finish_reason": reason}

    def visible_text(self, index: int, text: str) -> str:
        """Returns new text without the space at the beginning of a message; see `ResponseFormat.visible_text`."""
        return text if self.texts[index] else text.removeprefix(" ")

    def chunk_choice(self, index: int, text: str, scored: list[ScoredToken], reason: str | None) -> dict[str, Any]:
        """Returns one choice of a part of a stream; see `ResponseFormat.chunk_choice`."""
        delta = {"content": text} if text or scored else {}
        logprobs = self._choice_logprobs(scored) if scored else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _choice_logprobs(self, scored: list[ScoredToken]) -> dict[str, Any] | None:
        """The field `logprobs` of a choice."""
        if not self.has_logprobs:
            return None
        content = [
            self._token(s.token, s.logprob) | {"top_logprobs": [self._token(*pair) for pair in s.top_logprobs]}
            for s, _ in scored
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        """The description of a token with its log-probability."""
        text, data = token_text(self.tokenizer, token), self.tokenizer.bytes_of(token)
        return {"token": text, "logprob": logprob, "bytes": list(data) if data else None}


def _finish_reason(output: OutputDelta) -> str | None:
    """The finish reason in the words of the API; None while the sequence continues."""
    return None if output.end_reason is None else "stop" if output.end_reason == "stop" else "length"
