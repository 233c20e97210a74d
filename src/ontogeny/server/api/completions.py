"""The part of the OpenAI API that a language model answers: models, completions, chat completions."""

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, format_sse_event

from ontogeny.engine.requests import GenerationRequest
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm.tokenizer import decode
from ontogeny.server.api import errors as faults
from ontogeny.server.api import protocol
from ontogeny.server.api.context import caller, deployment, language, service, take
from ontogeny.server.api.errors import ApiError
from ontogeny.server.api.protocol import ChatRequest, CompletionRequest, Generation
from ontogeny.server.api.responses import ChatFormat, CompletionFormat, PreparedRequest, ResponseFormat
from ontogeny.server.api.streaming import ClientDisconnected, OutputDelta, pieces
from ontogeny.server.api.tokenizer import prompt_tokens
from ontogeny.server.deployments import LanguageDeployment, about
from ontogeny.server.keys import Key
from ontogeny.server.learning.journal import JournalFull

router = APIRouter(responses=faults.DOCUMENTED)
Caller = Annotated[Key, Depends(caller)]
STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer, or its pieces"}


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
    tokens = [await prompt_tokens(made, prompt) for prompt in prompts]
    learns = body.learn is not False and not body.echo and len(prompts) == 1
    text = prompts[0] if isinstance(prompts[0], str) else decode(made.model.tokenizer, prompts[0])
    asked = await _asked(request, made, key, body, tokens, most, body.logprobs, bool(body.echo), text if learns else "")
    echoed = [p if isinstance(p, str) else decode(made.model.tokenizer, p) for p in prompts] if body.echo else []
    asked = asked._replace(prompts=[text for text in echoed for _ in range(n)], id=f"cmpl-{asked.id}")
    form = CompletionFormat(asked, body.logprobs)
    return await _answer(request, asked, form, body)


@router.post("/v1/chat/completions", responses={200: STREAM})
async def chat_completions(request: Request, body: ChatRequest, key: Caller) -> Any:
    """Continues a conversation, which a plain template makes one text."""
    made = language(request, body.model)
    most = next((m for m in (body.max_completion_tokens, body.max_tokens) if m is not None), 128)
    tokens = await prompt_tokens(made, protocol.chat_prompt(body.messages))
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    learns = "\n\n".join(message.text for message in body.messages if message.role == "user")
    learns = "" if body.learn is False else learns
    copies = [tokens]
    asked = await _asked(request, made, key, body, copies, most, alternatives, False, learns)
    asked = asked._replace(id=f"chatcmpl-{asked.id}")
    return await _answer(request, asked, ChatFormat(asked, body.logprobs), body, protocol.CHAT_STOPS)


async def _asked(
    request: Request,
    made: LanguageDeployment,
    key: Key,
    body: Generation,
    prompts: Sequence[list[int]],
    most: int,
    alternatives: int | None,
    echo: bool,
    learns: str,
) -> PreparedRequest:
    started, n = time.monotonic(), body.n or 1
    for prompt in prompts:
        if echo and len(prompt) > made.engine.max_sequence_length:
            raise faults.bad(
                f"{len(prompt)} tokens to score are more than the model's context of {made.engine.max_sequence_length}",
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
        GenerationRequest(
            answering.weights,
            tuple(prompt),
            most,
            SamplingParams(temperature, body.top_p or 1.0, (seed + choice) % protocol.SEEDS),
            made.model.tokenizer.end,
            alternatives,
            echo,
            started + service(request).time_limit,
            (key.id, answering.digest),
        )
        for prompt in prompts
        for choice in range(n)
    ]
    now = int(time.time())
    return PreparedRequest(made, answering, key, questions, read, [], contribution, started, uuid.uuid4().hex, now)


async def _contributed(request: Request, made: LanguageDeployment, key: Key, text: str) -> int | None:
    """Journals what is new in a prompt; its number when it is on the disk."""
    if made.lines is None:
        return None
    recent = request.app.state.recent
    new, before = recent.new_part(key.id, made.name, text)
    if not new.strip():
        return None
    try:
        return await asyncio.to_thread(made.lines.contribute, key.id, key.id, new)
    except JournalFull:
        recent.put_back(key.id, made.name, text, before)
        raise faults.too_many("so much waits to be learned that no more is taken", 10, "learner_busy") from None


async def _answer(
    request: Request, asked: PreparedRequest, form: ResponseFormat, body: Generation, stops: Sequence[str] = ()
) -> Any:
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
            if isinstance(error, ClientDisconnected):
                raise _gone() from None
            raise
        return EventSourceResponse(_events(first, found, form, counted, body.tells_usage))
    try:
        async for piece in found:
            if piece.reason == "time" and not counted.completion:
                raise _late()
            counted.see(piece)
            form.see(piece)
    except ClientDisconnected:
        raise _gone() from None
    finally:
        await found.aclose()
        counted.close()
    return form.whole() | {"usage": counted.usage}


def _gone() -> ApiError:
    return ApiError(499, "nobody is there any more", code="client_gone")  # nobody will read it


def _late() -> ApiError:
    return faults.unavailable("there was no time to answer; try again", "time_limit")


async def _events(
    first: OutputDelta, found: AsyncGenerator[OutputDelta], form: ResponseFormat, counted: "_Counted", tells_usage: bool
) -> AsyncIterator[bytes]:
    usage: dict[str, Any] = {"usage": None} if tells_usage else {}  # all parts have the field where one has it

    def event(content: dict[str, Any]) -> bytes:
        return format_sse_event(data_str=json.dumps(content, ensure_ascii=False))

    try:
        for opening in form.openings():
            yield event(opening | usage)
        counted.see(first)
        for part in form.parts(first):
            yield event(part | usage)
        async for piece in found:
            counted.see(piece)
            for part in form.parts(piece):
                yield event(part | usage)
        if tells_usage:
            yield event(form.head() | {"choices": [], "usage": counted.usage})
        yield format_sse_event(data_str="[DONE]")
    except ClientDisconnected:
        return
    except ApiError as fault:
        yield event(faults.body(fault.status_code, str(fault.detail), fault.code))
    finally:
        await found.aclose()
        counted.close()


class _Counted:
    """Usage of one request, on record when it ends however it ends."""

    def __init__(self, request: Request, asked: PreparedRequest) -> None:
        self._service, self._asked = service(request), asked
        self.completion = 0
        self._closed = False

    def see(self, piece: OutputDelta) -> None:
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
