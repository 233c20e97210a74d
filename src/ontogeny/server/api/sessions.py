"""Routes of sessions with a language model: a text that continues from call to call, and its activations as a file."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from ontogeny.engine.engine import QueueFull
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm.tokenizer import decode
from ontogeny.server.api import errors
from ontogeny.server.api.context import (
    STATE_DOWNLOAD,
    STATE_UPLOAD,
    Caller,
    apply_rate_limits,
    get_context,
    get_language_model,
    label_state_errors,
    wait_for_session,
)
from ontogeny.server.api.protocol import ContinuationRequest
from ontogeny.server.api.tokenizer import encode_text
from ontogeny.server.deployments import LanguageDeployment, ServedWeights
from ontogeny.server.keys import ApiKey
from ontogeny.server.sessions.texts import SessionCompletion, TextSessions

router = APIRouter(prefix="/v1/models/{model}/sessions", responses=errors.RESPONSES)


async def _call(
    request: Request, deployment: LanguageDeployment, key: ApiKey, method: Callable[..., Any], *arguments: Any
) -> Any:
    """Calls a method of `TextSessions` on its thread."""
    try:
        future = deployment.sessions.submit(method, key.id, *arguments)
    except QueueFull as error:
        raise errors.queue_full(error.retry_after) from None
    return await wait_for_session(request, future)


async def _served_weights(deployment: LanguageDeployment, key: ApiKey) -> ServedWeights:
    return await asyncio.to_thread(deployment.served_weights, key.id)


@router.post("")
async def create_session(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """Begins an empty text."""
    deployment = get_language_model(request, model)
    apply_rate_limits(request, key)
    digest = (await _served_weights(deployment, key)).digest
    return (await _call(request, deployment, key, TextSessions.create, digest)).info


@router.get("/{id}")
async def show_session(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """Returns the number of tokens of a text and the digest of the weights that computed its activations."""
    return (await _call(request, get_language_model(request, model), key, TextSessions.get, id)).info


@router.delete("/{id}")
async def delete_session(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """Deletes a session."""
    await _call(request, get_language_model(request, model), key, TextSessions.delete, id)
    return {"id": id, "deleted": True}


@router.post("/{id}/completions")
async def continue_text(
    request: Request, model: str, id: str, body: ContinuationRequest, key: Caller
) -> dict[str, Any]:
    """Appends a prompt to the text and generates its continuation; the request is not learned from."""
    context, deployment = get_context(request), get_language_model(request, model)
    deadline = time.monotonic() + context.time_limit
    tokenizer = deployment.model.tokenizer
    prompt = await asyncio.to_thread(encode_text, tokenizer, body.prompt)
    apply_rate_limits(request, key, len(prompt) + body.max_tokens)
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed
    sampling, served = SamplingParams(body.temperature, body.top_p, seed), await _served_weights(deployment, key)
    arguments = (id, served.weights, served.digest, prompt, body.max_tokens, sampling, deadline)
    completion: SessionCompletion = await _call(request, deployment, key, TextSessions.complete, *arguments)
    num_generated = len(completion.tokens)
    context.meter.count(key, deployment.name, len(prompt), num_generated)
    context.rate_limits.release_tokens(key, body.max_tokens - num_generated)
    return completion.session.info | {
        "text": decode(tokenizer, completion.tokens),
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": num_generated,
            "total_tokens": len(prompt) + num_generated,
        },
    }


@router.get("/{id}/state", response_class=Response, responses=STATE_DOWNLOAD)
async def export_session(request: Request, model: str, id: str, key: Caller) -> Response:
    """Returns the activations of a text as safetensors, with the digest of their weights."""
    deployment = get_language_model(request, model)
    apply_rate_limits(request, key)
    state = await _call(request, deployment, key, TextSessions.export, id)
    return Response(state, media_type="application/octet-stream")


@router.put("/{id}/state", openapi_extra=STATE_UPLOAD)
async def restore_session(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """Replaces the state of a session by an exported one of the weights that answer this key now."""
    deployment = get_language_model(request, model)
    apply_rate_limits(request, key)
    state = await request.body()
    digest = (await _served_weights(deployment, key)).digest
    with label_state_errors():
        return (await _call(request, deployment, key, TextSessions.restore, id, state, digest)).info


@router.post("/{id}/fork")
async def fork_session(request: Request, model: str, id: str, key: Caller) -> dict[str, Any]:
    """Creates a second text that continues from this one."""
    deployment = get_language_model(request, model)
    apply_rate_limits(request, key)
    return (await _call(request, deployment, key, TextSessions.fork, id)).info
