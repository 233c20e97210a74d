"""The part of the OpenAI API that a language model answers: models, completions, chat completions."""

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, format_sse_event

from ontogeny.errors import BadInput
from ontogeny.language.tokenizer import decode
from ontogeny.server import faults, protocol
from ontogeny.server.answers import Gone, Piece, pieces
from ontogeny.server.choices import Scored, Taste
from ontogeny.server.deployments import Answering, Text, about
from ontogeny.server.engine import Question
from ontogeny.server.faults import Fault
from ontogeny.server.journal import Full
from ontogeny.server.keys import Key
from ontogeny.server.protocol import ChatRequest, CompletionRequest, Generation
from ontogeny.server.service import caller, deployment, language, service, take
from ontogeny.server.text import shown

router = APIRouter(responses=faults.DOCUMENTED)
Caller = Annotated[Key, Depends(caller)]
MOST_CHARACTERS = 1 << 20
STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer, or its pieces"}


class Asked(NamedTuple):
    """A request made ready for the engine."""

    deployment: Text
    answering: Answering
    key: Key
    questions: list[Question]
    prompt_tokens: int
    prompts: list[str]  # as text; only where they are echoed
    contribution: int | None
    started: float
    id: str
    created: int


@router.get("/v1/models")
def models(request: Request, key: Caller) -> dict[str, Any]:
    """All deployments, with their case: frozen, or online."""
    found = service(request).deployments.by_name
    return {"object": "list", "data": [_model(name, made) for name, made in found.items()]}


@router.get("/v1/models/{model}")
def model(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """One deployment."""
    return _model(model, deployment(request, model))


def _model(name: str, made: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": made.created, "owned_by": "ontogeny", "ontogeny": about(made)}


@router.post("/tokenize")
def tokenize(request: Request, body: protocol.Tokens, key: Caller) -> dict[str, Any]:
    """A text's tokens, as some clients ask for."""
    made = language(request, body.model)
    take(request, key)
    tokens = _encoded(made, body.prompt)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": made.engine.most}


@router.get("/tokenizer_info")
def tokenizer_info(request: Request, key: Caller) -> dict[str, Any]:
    """Which token stands between documents."""
    tokenizer = language(request, None).model.tokenizer
    return {"eos_token": None if tokenizer.end is None else "<|endoftext|>", "bos_token": None}


@router.post("/v1/completions", responses={200: STREAM})
async def completions(request: Request, body: CompletionRequest, key: Caller) -> Any:
    """Continues each prompt; with `echo` and `logprobs` it scores them."""
    made = language(request, body.model)
    most = 16 if body.max_tokens is None else body.max_tokens
    prompts = body.prompts
    if not prompts:
        raise faults.bad("there is no prompt", "prompt")
    n = body.n or 1
    if n * len(prompts) > protocol.MOST_PROMPTS:
        raise faults.bad(f"{n * len(prompts)} answers are more than {protocol.MOST_PROMPTS}", "n")
    tokens = [await _tokens(made, prompt) for prompt in prompts]
    learns = body.learn is not False and not body.echo and len(prompts) == 1
    text = prompts[0] if isinstance(prompts[0], str) else decode(made.model.tokenizer, prompts[0])
    asked = await _asked(request, made, key, body, tokens, most, body.logprobs, bool(body.echo), text if learns else "")
    echoed = [p if isinstance(p, str) else decode(made.model.tokenizer, p) for p in prompts] if body.echo else []
    asked = asked._replace(prompts=[text for text in echoed for _ in range(n)], id=f"cmpl-{asked.id}")
    form = _Completions(asked, body.logprobs)
    return await _answer(request, asked, form, body)


@router.post("/v1/chat/completions", responses={200: STREAM})
async def chat_completions(request: Request, body: ChatRequest, key: Caller) -> Any:
    """Continues a conversation, which a plain template makes one text."""
    made = language(request, body.model)
    most = next((m for m in (body.max_completion_tokens, body.max_tokens) if m is not None), 128)
    tokens = await _tokens(made, protocol.chat_prompt(body.messages))
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    learns = "\n\n".join(message.text for message in body.messages if message.role == "user")
    learns = "" if body.learn is False else learns
    copies = [tokens]
    asked = await _asked(request, made, key, body, copies, most, alternatives, False, learns)
    asked = asked._replace(id=f"chatcmpl-{asked.id}")
    return await _answer(request, asked, _Chat(asked, body.logprobs), body, protocol.CHAT_STOPS)


async def _tokens(made: Text, prompt: str | list[int]) -> list[int]:
    """A prompt's tokens; of an empty one the end token, which stands before every document."""
    if isinstance(prompt, str):
        if len(prompt) > 10_000:
            found = await asyncio.to_thread(_encoded, made, prompt)
        else:
            found = _encoded(made, prompt)
    else:
        found = prompt
        if any(token >= made.model.tokenizer.size for token in found):
            raise faults.bad(f"token ids must be below {made.model.tokenizer.size}", "prompt")
    if not found:
        if made.model.tokenizer.end is None:
            raise faults.bad("the prompt is empty", "prompt")
        found = [made.model.tokenizer.end]
    return found


def _encoded(made: Text, text: str) -> list[int]:
    if len(text) > MOST_CHARACTERS:
        raise faults.bad(f"a prompt has at most {MOST_CHARACTERS} characters", "prompt")
    try:
        return np.asarray(made.model.tokenizer.encode(text)).tolist()
    except BadInput as error:
        raise faults.bad(str(error), "prompt") from None


async def _asked(
    request: Request,
    made: Text,
    key: Key,
    body: Generation,
    prompts: Sequence[list[int]],
    most: int,
    alternatives: int | None,
    echo: bool,
    learns: str,
) -> Asked:
    started, n = time.monotonic(), body.n or 1
    for prompt in prompts:
        if echo and len(prompt) > made.engine.most:
            raise faults.bad(
                f"{len(prompt)} tokens to score are more than the model's context of {made.engine.most}",
                "prompt",
                "context_length_exceeded",
            )
    read = sum(map(len, prompts))
    take(request, key, read + most * n * len(prompts))
    answering = await asyncio.to_thread(made.answering, key.id) if made.online else made.answering(key.id)
    contribution = await _contributed(request, made, key, learns) if learns.strip() else None
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed % protocol.SEEDS
    temperature = 1.0 if body.temperature is None else body.temperature
    questions = [
        Question(
            answering.weights,
            tuple(prompt),
            most,
            Taste(temperature, body.top_p or 1.0, (seed + choice) % protocol.SEEDS),
            made.model.tokenizer.end,
            alternatives,
            echo,
            started + service(request).time_limit,
        )
        for prompt in prompts
        for choice in range(n)
    ]
    now = int(time.time())
    return Asked(made, answering, key, questions, read, [], contribution, started, uuid.uuid4().hex, now)


async def _contributed(request: Request, made: Text, key: Key, text: str) -> int | None:
    """Journals what is new in a prompt; its number when it is on the disk."""
    if made.lines is None:
        return None
    new = request.app.state.recent.new_part(key.id, made.name, text)
    if not new.strip():
        return None
    try:
        return await asyncio.to_thread(made.lines.contribute, key.id, key.id, new)
    except Full:
        raise faults.too_many("so much waits to be learned that no more is taken", 10, "learner_busy") from None


async def _answer(request: Request, asked: Asked, form: "_Form", body: Generation, stops: Sequence[str] = ()) -> Any:
    made, all_stops = asked.deployment, [*body.stops, *stops]
    found = pieces(request, made.engine, made.model.tokenizer, asked.questions, all_stops)
    counted = _Counted(request, asked)
    if body.stream:
        try:
            first = await anext(found)  # what goes wrong until here is answered with a status of its own
            if first.reason == "time":
                raise _late()
        except BaseException as error:
            await found.aclose()
            counted.close()
            if isinstance(error, Gone):
                raise _gone() from None
            raise
        return EventSourceResponse(_events(first, found, form, counted, body.tells_usage))
    try:
        async for piece in found:
            if piece.reason == "time" and not counted.completion:
                raise _late()
            counted.see(piece)
            form.see(piece)
    except Gone:
        raise _gone() from None
    finally:
        await found.aclose()
        counted.close()
    return form.whole() | {"usage": counted.usage}


def _gone() -> Fault:
    return Fault(499, "nobody is there any more", code="client_gone")  # nobody will read it


def _late() -> Fault:
    return faults.unavailable("there was no time to answer; try again", "time_limit")


async def _events(
    first: Piece, found: AsyncGenerator[Piece], form: "_Form", counted: "_Counted", tells_usage: bool
) -> AsyncIterator[bytes]:
    def event(content: dict[str, Any]) -> bytes:
        return format_sse_event(data_str=json.dumps(content, ensure_ascii=False))

    try:
        for opening in form.openings():
            yield event(opening)
        counted.see(first)
        for part in form.parts(first):
            yield event(part)
        async for piece in found:
            counted.see(piece)
            for part in form.parts(piece):
                yield event(part)
        if tells_usage:
            yield event(form.head() | {"choices": [], "usage": counted.usage})
        yield format_sse_event(data_str="[DONE]")
    except Gone:
        return
    except Fault as fault:
        yield event(faults.body(fault.status_code, str(fault.detail), fault.code))
    finally:
        await found.aclose()
        counted.close()


class _Counted:
    """Usage of one request, on record when it ends however it ends."""

    def __init__(self, request: Request, asked: Asked) -> None:
        self._service, self._asked = service(request), asked
        self.completion = 0
        self._closed = False

    def see(self, piece: Piece) -> None:
        if piece.token is not None:
            if not self.completion:
                waited = time.monotonic() - self._asked.started
                self._service.meter.first_token(self._asked.deployment.name, waited)
            self.completion += 1

    @property
    def usage(self) -> dict[str, int]:
        prompt = self._asked.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": self.completion, "total_tokens": prompt + self.completion}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        asked = self._asked
        self._service.meter.count(asked.key, asked.deployment.name, asked.prompt_tokens, self.completion)
        most = sum(question.most for question in asked.questions)
        self._service.limits.give_back(asked.key, max(0, most - self.completion))


class _Form:
    """How an answer is written down, whole or in parts."""

    kind, part_kind = "", ""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.tokenizer = asked.deployment.model.tokenizer
        self.texts = [""] * len(asked.questions)
        self.reasons: list[str | None] = [None] * len(asked.questions)
        self.scored: list[list[Scored]] = [[] for _ in asked.questions]

    def see(self, piece: Piece) -> None:
        self.texts[piece.which] += piece.text
        if piece.prompt is not None:
            self.scored[piece.which] += piece.prompt
        if piece.token is not None and piece.token.scored is not None:
            self.scored[piece.which].append(piece.token.scored)
        if piece.reason is not None:
            self.reasons[piece.which] = "stop" if piece.reason == "stop" else "length"

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

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        raise NotImplementedError


class _Completions(_Form):
    kind = part_kind = "text_completion"

    def __init__(self, asked: Asked, alternatives: int | None) -> None:
        super().__init__(asked)
        self.alternatives = alternatives
        self.offsets = [0] * len(asked.questions)

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(i, self._echo(i) + text, self.scored[i], self.reasons[i]) for i, text in enumerate(self.texts)
        ]
        return self.head(self.kind) | {"choices": choices}

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        scored = [] if piece.token is None or piece.token.scored is None else [piece.token.scored]
        text = piece.text
        if piece.prompt is not None:
            text, scored = self._echo(piece.which), piece.prompt
        reason = None if piece.reason is None else "stop" if piece.reason == "stop" else "length"
        if not text and not scored and reason is None:
            return []
        return [self.head() | {"choices": [self._choice(piece.which, text, scored, reason)]}]

    def _echo(self, index: int) -> str:
        return self.asked.prompts[index] if self.asked.prompts else ""

    def _choice(self, index: int, text: str, scored: list[Scored], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.alternatives is not None:
            tokens = [shown(self.tokenizer, s.token) for s in scored]
            starts = self.offsets[index] + np.cumsum([0, *map(len, tokens)])
            self.offsets[index] = int(starts[-1])
            logprobs = {
                "tokens": tokens,
                "token_logprobs": [s.logprob for s in scored],
                "top_logprobs": [self._top(s, name) for s, name in zip(scored, tokens, strict=True)],
                "text_offset": starts[:-1].tolist(),
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _top(self, scored: Scored, name: str) -> dict[str, float] | None:
        """The likeliest tokens by name; of two with one name the likelier counts. The token itself is among them."""
        if scored.logprob is None or not self.alternatives:
            return None
        likely = {name: scored.logprob}
        for token, logprob in reversed(scored.top):
            likely[shown(self.tokenizer, token)] = logprob
        return likely


class _Chat(_Form):
    kind, part_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Asked, logprobs: bool | None) -> None:
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

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        scored = [] if piece.token is None or piece.token.scored is None else [piece.token.scored]
        text = piece.text
        if text and not self.texts[piece.which]:
            self.texts[piece.which] = text
            text = text.removeprefix(" ")
        reason = None if piece.reason is None else "stop" if piece.reason == "stop" else "length"
        if not text and not scored and reason is None:
            return []
        delta = {"content": text} if text or scored else {}
        return [self.head() | {"choices": [self._choice(piece.which, delta, scored, reason)]}]

    def _choice(self, index: int, delta: dict[str, Any], scored: list[Scored], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(scored) if scored else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scored: list[Scored]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None

        def named(token: int, logprob: float | None) -> dict[str, Any]:
            text = shown(self.tokenizer, token)
            return {"token": text, "logprob": logprob, "bytes": list(self.tokenizer.bytes_of(token))}

        content = [named(s.token, s.logprob) | {"top_logprobs": [named(*t) for t in s.top]} for s in scored]
        return {"content": content, "refusal": None}
