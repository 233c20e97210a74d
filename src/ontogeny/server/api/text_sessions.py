"""Sessions with a language model: a text that goes on from call to call, and its activations as a file."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from ontogeny.engine.engine import QueueFull
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import decode
from ontogeny.server.api import errors as faults
from ontogeny.server.api.branches import FILE, SAFETENSORS
from ontogeny.server.api.context import bringing_state, caller, done, language, service, take
from ontogeny.server.api.protocol import GoOn
from ontogeny.server.deployments import LanguageDeployment, ServedWeights
from ontogeny.server.keys import Key
from ontogeny.server.sessions.texts import Answer, TextSessions

router = APIRouter(prefix="/v1/models/{model}/sessions", responses=faults.DOCUMENTED)
Caller = Annotated[Key, Depends(caller)]


async def _do(request: Request, made: LanguageDeployment, key: Key, what: Callable[..., Any], *arguments: Any) -> Any:
    """Runs one of `TextSessions`' methods on its thread, and turns what goes wrong into answers."""
    try:
        work = made.sessions.submit(what, made.sessions, key.id, *arguments)
    except QueueFull as busy:
        raise faults.too_many("the server is busy; try again", busy.retry_after, "queue_full") from None
    return await done(request, work)


async def _answering(made: LanguageDeployment, key: Key) -> ServedWeights:
    return await asyncio.to_thread(made.answering, key.id)


@router.post("")
async def create(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """A text begins."""
    made = language(request, model)
    take(request, key)
    return (await _do(request, made, key, TextSessions.create, (await _answering(made, key)).digest)).about


@router.get("/{id}")
async def show(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """How many tokens a text has, and the digest of the version that read them."""
    return (await _do(request, language(request, model), key, TextSessions.get, id)).about


@router.delete("/{id}")
async def drop(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """Forgets a text."""
    await _do(request, language(request, model), key, TextSessions.drop, id)
    return {"id": id, "deleted": True}


@router.post("/{id}/completions")
async def go_on(request: Request, model: str, id: str, body: GoOn, key: Caller) -> dict[str, Any]:
    """Reads a prompt after all that was read and said before, and goes on; nothing is learned from it."""
    made, until = language(request, model), time.monotonic() + service(request).time_limit
    tokenizer = made.model.tokenizer
    try:
        tokens = (await asyncio.to_thread(tokenizer.encode, body.prompt)).tolist()
    except BadInput as error:
        raise faults.bad(str(error), "prompt") from None
    take(request, key, len(tokens) + body.max_tokens)
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed
    taste, found = SamplingParams(body.temperature, body.top_p, seed), await _answering(made, key)
    asked = (id, found.weights, found.digest, tokens, body.max_tokens, taste, until)
    answer: Answer = await _do(request, made, key, TextSessions.go_on, *asked)
    said = len(answer.tokens)
    service(request).meter.count(key, made.name, len(tokens), said)
    service(request).limits.give_back(key, body.max_tokens - said)
    usage = {"prompt_tokens": len(tokens), "completion_tokens": said, "total_tokens": len(tokens) + said}
    text = decode(tokenizer, answer.tokens)
    return answer.session.about | {"text": text, "finish_reason": answer.reason, "usage": usage}


@router.get("/{id}/state", response_class=Response, responses={200: SAFETENSORS})
async def export(request: Request, model: str, id: str, key: Caller) -> Response:
    """A text's activations as safetensors, with digest and the version of the weights that they belong to."""
    made = language(request, model)
    take(request, key)
    return Response(await _do(request, made, key, TextSessions.export, id), media_type="application/octet-stream")


@router.put("/{id}/state", openapi_extra=FILE)
async def restore(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """Makes this text what such a file says, if the weights that answer now are those that it belongs to."""
    made = language(request, model)
    take(request, key)
    data = await request.body()
    digest = (await _answering(made, key)).digest
    with bringing_state():
        return (await _do(request, made, key, TextSessions.restore, id, data, digest)).about


@router.post("/{id}/fork")
async def fork(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """A second text that goes on from where this one is."""
    made = language(request, model)
    take(request, key)
    return (await _do(request, made, key, TextSessions.fork, id)).about
