"""The two response formats of the OpenAI API, whole or as the parts of a stream: completions and chat completions.

This module does not depend on engines or on HTTP.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ontogeny.engine.requests import GenerationRequest
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.engine.text_stream import token_text
from ontogeny.server.api.streaming import OutputDelta
from ontogeny.server.deployments import LanguageDeployment, ServedWeights
from ontogeny.server.keys import ApiKey


class PreparedRequest(NamedTuple):
    """A request that is ready for the engine."""

    deployment: LanguageDeployment
    served: ServedWeights
    key: ApiKey
    sequences: list[GenerationRequest]  # one per choice
    prompt_tokens: int
    example: int | None  # the number of the training example, if the prompt is learned
    started_at: float  # time.monotonic
    id: str
    created_at: int  # seconds since 1970
    echoed_prompts: Sequence[str] = ()  # one per choice; empty unless they are echoed


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
        self.texts = [""] * len(prepared.sequences)
        self.finish_reasons: list[str | None] = [None] * len(prepared.sequences)
        self.logprobs: list[list[TokenLogprobs]] = [[] for _ in prepared.sequences]

    def add(self, output: OutputDelta) -> None:
        """Collects an output for the whole response."""
        self.texts[output.sequence] += output.text
        self.logprobs[output.sequence] += [*(output.prompt_logprobs or ()), *_token_logprobs(output)]
        self.finish_reasons[output.sequence] = _finish_reason(output) or self.finish_reasons[output.sequence]

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
            "ontogeny": {"version": prepared.served.version, "example": prepared.example},
        }

    def first_chunks(self) -> list[dict[str, Any]]:
        """Returns the parts of a stream that precede all outputs."""
        return []

    def response(self) -> dict[str, Any]:
        """Returns the whole response from all collected outputs."""
        choices = [
            self.choice(i, self._echo(i) + text, self.logprobs[i], self.finish_reasons[i])
            for i, text in enumerate(self.texts)
        ]
        return self.header(self.kind) | {"choices": choices}

    def chunks(self, output: OutputDelta) -> list[dict[str, Any]]:
        """Returns the parts of a stream for one output, possibly none."""
        text, logprobs, reason = output.text, _token_logprobs(output), _finish_reason(output)
        if output.prompt_logprobs is not None:
            text, logprobs = self._echo(output.sequence), output.prompt_logprobs
        if not text and not logprobs and reason is None:
            return []
        return [self.header() | {"choices": [self.chunk_choice(output.sequence, text, logprobs, reason)]}]

    @abstractmethod
    def choice(self, index: int, text: str, scored: list[TokenLogprobs], reason: str | None) -> dict[str, Any]:
        """Returns one choice of a whole response.

        Args:
            index: The number of the choice.
            text: The generated text, after the prompt if that is echoed.
            scored: The log-probabilities of its tokens.
            reason: Its finish reason.
        """

    def chunk_choice(self, index: int, text: str, scored: list[TokenLogprobs], reason: str | None) -> dict[str, Any]:
        """Returns one choice of a part of a stream; see `choice`. The reason is None while the sequence continues."""
        return self.choice(index, text, scored, reason)

    def _echo(self, index: int) -> str:
        """The echoed prompt of a choice, or an empty text."""
        return self.prepared.echoed_prompts[index] if self.prepared.echoed_prompts else ""


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
        self._offsets = [0] * len(prepared.sequences)

    def choice(self, index: int, text: str, scored: list[TokenLogprobs], reason: str | None) -> dict[str, Any]:
        """Returns one choice; see `ResponseFormat.choice`."""
        logprobs = None
        if self.num_alternatives is not None:
            tokens = [token_text(self.tokenizer, s.token) for s in scored]
            starts = self._offsets[index] + np.cumsum([0, *map(len, tokens)])
            self._offsets[index] = int(starts[-1])
            logprobs = {
                "tokens": tokens,
                "token_logprobs": [s.logprob for s in scored],
                "top_logprobs": [self._top_logprobs(s, name) for s, name in zip(scored, tokens, strict=True)],
                "text_offset": starts[:-1].tolist(),
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _top_logprobs(self, scored: TokenLogprobs, name: str) -> dict[str, float] | None:
        """The likeliest tokens by text, and the token itself; of two tokens with one text the likelier counts."""
        if scored.logprob is None or not self.num_alternatives:
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

    def choice(self, index: int, text: str, scored: list[TokenLogprobs], reason: str | None) -> dict[str, Any]:
        """Returns one choice; see `ResponseFormat.choice`."""
        message = {"role": "assistant", "content": text.removeprefix(" "), "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(scored), "finish_reason": reason}

    def chunks(self, output: OutputDelta) -> list[dict[str, Any]]:
        """Returns the parts of a stream for one output, without the space at the beginning of a message."""
        if output.text and not self.texts[output.sequence]:
            self.texts[output.sequence] = output.text
            output = output._replace(text=output.text.removeprefix(" "))
        return super().chunks(output)

    def chunk_choice(self, index: int, text: str, scored: list[TokenLogprobs], reason: str | None) -> dict[str, Any]:
        """Returns one choice of a part of a stream; see `ResponseFormat.chunk_choice`."""
        delta = {"content": text} if text or scored else {}
        logprobs = self._logprobs(scored) if scored else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scored: list[TokenLogprobs]) -> dict[str, Any] | None:
        """The field `logprobs` of a choice."""
        if not self.has_logprobs:
            return None
        content = [
            self._token(s.token, s.logprob) | {"top_logprobs": [self._token(*pair) for pair in s.top_logprobs]}
            for s in scored
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        """The description of a token with its log-probability."""
        text, data = token_text(self.tokenizer, token), self.tokenizer.bytes_of(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


def _token_logprobs(output: OutputDelta) -> list[TokenLogprobs]:
    """The log-probabilities of the token of an output, as a list of at most one entry."""
    return [] if output.token is None or output.token.logprobs is None else [output.token.logprobs]


def _finish_reason(output: OutputDelta) -> str | None:
    """The finish reason in the words of the API; None while the sequence continues."""
    return None if output.end_reason is None else "stop" if output.end_reason == "stop" else "length"
