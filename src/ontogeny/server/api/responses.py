"""How an answer is written down, whole or in the parts of a stream: the two forms of the OpenAI API.

Knows nothing of engines, keys or requests.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from ontogeny.engine.requests import GenerationRequest
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.engine.text_stream import token_text
from ontogeny.server.api.streaming import OutputDelta
from ontogeny.server.deployments import LanguageDeployment, ServedWeights
from ontogeny.server.keys import Key


class PreparedRequest(NamedTuple):
    """A request made ready for the engine."""

    deployment: LanguageDeployment
    answering: ServedWeights
    key: Key
    questions: list[GenerationRequest]
    prompt_tokens: int
    prompts: list[str]  # as text; only where they are echoed
    contribution: int | None
    started: float
    id: str
    created: int


class ResponseFormat(ABC):
    """How an answer is written down, whole or in parts."""

    kind, part_kind = "", ""

    def __init__(self, asked: PreparedRequest) -> None:
        self.asked = asked
        self.tokenizer = asked.deployment.model.tokenizer
        self.texts = [""] * len(asked.questions)
        self.reasons: list[str | None] = [None] * len(asked.questions)
        self.scored: list[list[TokenLogprobs]] = [[] for _ in asked.questions]

    def see(self, piece: OutputDelta) -> None:
        self.texts[piece.which] += piece.text
        if piece.prompt is not None:
            self.scored[piece.which] += piece.prompt
        if piece.token is not None and piece.token.logprobs is not None:
            self.scored[piece.which].append(piece.token.logprobs)
        self.reasons[piece.which] = _finish(piece) or self.reasons[piece.which]

    def head(self, kind: str | None = None) -> dict[str, Any]:
        asked = self.asked
        return {
            "id": asked.id,
            "object": kind or self.part_kind,
            "created": asked.created,
            "model": asked.deployment.name,
            "system_fingerprint": f"{asked.deployment.digest[:12]}-{asked.answering.version}",
            "ontogeny": {"version": asked.answering.version, "contribution": asked.contribution},
        }

    def openings(self) -> list[dict[str, Any]]:
        return []

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer at once, from all that was seen."""

    @abstractmethod
    def parts(self, piece: OutputDelta) -> list[dict[str, Any]]:
        """What a stream tells of this piece: nothing, one part or several."""


class CompletionFormat(ResponseFormat):
    kind = part_kind = "text_completion"

    def __init__(self, asked: PreparedRequest, alternatives: int | None) -> None:
        super().__init__(asked)
        self.alternatives = alternatives
        self.offsets = [0] * len(asked.questions)

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(i, self._echo(i) + text, self.scored[i], self.reasons[i]) for i, text in enumerate(self.texts)
        ]
        return self.head(self.kind) | {"choices": choices}

    def parts(self, piece: OutputDelta) -> list[dict[str, Any]]:
        scored = [] if piece.token is None or piece.token.logprobs is None else [piece.token.logprobs]
        text = piece.text
        if piece.prompt is not None:
            text, scored = self._echo(piece.which), piece.prompt
        reason = _finish(piece)
        if not text and not scored and reason is None:
            return []
        return [self.head() | {"choices": [self._choice(piece.which, text, scored, reason)]}]

    def _echo(self, index: int) -> str:
        return self.asked.prompts[index] if self.asked.prompts else ""

    def _choice(self, index: int, text: str, scored: list[TokenLogprobs], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.alternatives is not None:
            tokens = [token_text(self.tokenizer, s.token) for s in scored]
            starts = self.offsets[index] + np.cumsum([0, *map(len, tokens)])
            self.offsets[index] = int(starts[-1])
            logprobs = {
                "tokens": tokens,
                "token_logprobs": [s.logprob for s in scored],
                "top_logprobs": [self._top(s, name) for s, name in zip(scored, tokens, strict=True)],
                "text_offset": starts[:-1].tolist(),
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _top(self, scored: TokenLogprobs, name: str) -> dict[str, float] | None:
        """The likeliest tokens by name; of two with one name the likelier counts. The token itself is among them."""
        if scored.logprob is None or not self.alternatives:
            return None
        likely = {name: scored.logprob}
        for token, logprob in reversed(scored.top_logprobs):
            likely[token_text(self.tokenizer, token)] = logprob
        return likely


class ChatFormat(ResponseFormat):
    kind, part_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: PreparedRequest, logprobs: bool | None) -> None:
        super().__init__(asked)
        self.logprobs = logprobs

    def openings(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self.head() | {"choices": [self._choice(i, delta, [], None)]} for i in range(len(self.texts))]

    def whole(self) -> dict[str, Any]:
        choices = []
        for i, text in enumerate(self.texts):
            message = {"role": "assistant", "content": text.removeprefix(" "), "refusal": None}
            choices.append(
                {
                    "index": i,
                    "message": message,
                    "logprobs": self._logprobs(self.scored[i]),
                    "finish_reason": self.reasons[i],
                }
            )
        return self.head(self.kind) | {"choices": choices}

    def parts(self, piece: OutputDelta) -> list[dict[str, Any]]:
        scored = [] if piece.token is None or piece.token.logprobs is None else [piece.token.logprobs]
        text = piece.text
        if text and not self.texts[piece.which]:
            self.texts[piece.which] = text
            text = text.removeprefix(" ")
        reason = _finish(piece)
        if not text and not scored and reason is None:
            return []
        delta = {"content": text} if text or scored else {}
        return [self.head() | {"choices": [self._choice(piece.which, delta, scored, reason)]}]

    def _choice(
        self, index: int, delta: dict[str, Any], scored: list[TokenLogprobs], reason: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(scored) if scored else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scored: list[TokenLogprobs]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None

        def named(token: int, logprob: float | None) -> dict[str, Any]:
            text = token_text(self.tokenizer, token)
            return {"token": text, "logprob": logprob, "bytes": list(self.tokenizer.bytes_of(token))}

        content = [named(s.token, s.logprob) | {"top_logprobs": [named(*t) for t in s.top_logprobs]} for s in scored]
        return {"content": content, "refusal": None}


def _finish(piece: OutputDelta) -> str | None:
    """Why an answer ends with this piece, in the API's words; None where it goes on."""
    return None if piece.reason is None else "stop" if piece.reason == "stop" else "length"
