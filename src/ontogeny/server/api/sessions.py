"""Routes that sessions of agents and of texts share, and the continuation of a text."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request, Response

from ontogeny.engine.engine import QueueFull
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import decode
from ontogeny.server.api import context, errors
from ontogeny.server.api.context import Caller
from ontogeny.server.api.protocol import ContinuationRequest
from ontogeny.server.api.responses import describe_usage
from ontogeny.server.api.tokenizer import encode_text
from ontogeny.server.deployments import Deployment, LanguageDeployment, ServedWeights
from ontogeny.server.keys import ApiKey
from ontogeny.server.sessions.store import SessionManager, UnknownSession, describe_session
from ontogeny.server.sessions.texts import SessionCompletion, TextSessions

router = APIRouter(prefix="/v1/models/{model}/sessions", responses=errors.RESPONSES)


class SessionCaller(NamedTuple):
    """Calls methods of the sessions of a deployment on behalf of a request."""

    request: Request
    key: ApiKey
    deployment: Deployment

    async def call(self, method: Callable[..., Any], *arguments: Any, num_tokens: int = 0) -> Any:
        """Calls a method on the thread of the sessions, and converts its errors to `ApiError`.

        Args:
            method: A method of `AgentSessions` or `TextSessions`.
            *arguments: The arguments after the key.
            num_tokens: Tokens that count against the limits of the key.
        """
        context.apply_rate_limits(self.request, self.key, num_tokens)
        time_limit = context.get_context(self.request).deployments.config.time_limit
        try:
            future = self.deployment.sessions.submit(method, self.key.id, *arguments)
            return await asyncio.wait_for(asyncio.wrap_future(future), time_limit)
        except QueueFull as error:
            raise errors.queue_full(error.retry_after) from None
        except UnknownSession as error:
            raise errors.missing_resource(f"there is no session '{error}'") from None
        except BadInput as error:
            raise errors.bad_request(str(error)) from None
        except TimeoutError:
            raise errors.timed_out() from None

    async def describe(self, method: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Calls a method that returns a session; returns the description of the session."""
        return describe_session(await self.call(method, *arguments))


def add_session_routes(
    router: APIRouter, get_caller: Callable[..., Awaitable[SessionCaller]], restore: Callable[..., Any]
) -> None:
    """Adds the routes that all sessions share.

    Args:
        router: The router; its prefix ends before the id of the session.
        get_caller: A FastAPI dependency.
        restore: Replaces the state of a session: `await restore(sessions, id, state)`.
    """
    dependency = Depends(get_caller)

    @router.get("/{id}")
    async def show_session(id: str, sessions: SessionCaller = dependency) -> dict[str, Any]:
        """Returns the number of steps of a session and the digest of its weights."""
        return await sessions.describe(SessionManager.get, id)

    @router.delete("/{id}")
    async def delete_session(id: str, sessions: SessionCaller = dependency) -> dict[str, Any]:
        """Deletes a session."""
        await sessions.call(SessionManager.delete, id)
        return {"id": id, "deleted": True}

    @router.get("/{id}/state", response_class=Response, responses=context.STATE_DOWNLOAD)
    async def export_session(id: str, sessions: SessionCaller = dependency) -> Response:
        """Returns the state of a session as safetensors, with its digests."""
        return Response(await sessions.call(SessionManager.export, id), media_type="application/octet-stream")

    @router.put("/{id}/state", openapi_extra=context.STATE_UPLOAD)
    async def restore_session(id: str, sessions: SessionCaller = dependency) -> dict[str, Any]:
        """Replaces the state of a session by an exported one that belongs to the same weights."""
        try:
            return describe_session(await restore(sessions, id, await sessions.request.body()))
        except errors.ApiError as error:
            if error.status_code == 400:
                error.code = "state_rejected"
            raise

    @router.post("/{id}/fork")
    async def fork_session(id: str, sessions: SessionCaller = dependency) -> dict[str, Any]:
        """Creates a second session that continues from the state of this one."""
        return await sessions.describe(SessionManager.fork, id)


class TextCaller(SessionCaller):
    """A `SessionCaller` of a language model."""

    async def served_weights(self) -> ServedWeights:
        """Returns the weights that answer the key now."""
        assert isinstance(self.deployment, LanguageDeployment)
        return await self.deployment.request_weights(self.key.id)


async def get_text_caller(request: Request, model: str, key: Caller) -> TextCaller:
    """Returns the caller of the text sessions of a model."""
    return TextCaller(request, key, context.get_language_model(request, model))


TextSessionsCaller = Annotated[TextCaller, Depends(get_text_caller)]


@router.post("")
async def create_session(sessions: TextSessionsCaller) -> dict[str, Any]:
    """Begins an empty text."""
    return await sessions.describe(TextSessions.create, (await sessions.served_weights()).digest)


@router.post("/{id}/completions")
async def continue_text(sessions: TextSessionsCaller, id: str, body: ContinuationRequest) -> dict[str, Any]:
    """Appends a prompt to the text and generates its continuation; the request is not learned from."""
    server, deployment = context.get_context(sessions.request), sessions.deployment
    assert isinstance(deployment, LanguageDeployment)
    deadline, tokenizer = time.monotonic() + server.deployments.config.time_limit, deployment.model.tokenizer
    prompt = await asyncio.to_thread(encode_text, tokenizer, body.prompt)
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed
    sampling, served = SamplingParams(body.temperature, body.top_p, seed), await sessions.served_weights()
    completion: SessionCompletion = await sessions.call(
        TextSessions.complete, id, served.weights, served.digest, prompt, body.max_tokens, sampling, deadline,
        num_tokens=len(prompt) + body.max_tokens,
    )  # fmt: skip
    num_generated = len(completion.tokens)
    server.meter.count(sessions.key, deployment.name, len(prompt), num_generated)
    server.rate_limits.release_tokens(sessions.key, body.max_tokens - num_generated)
    text = decode(tokenizer, completion.tokens)
    usage = describe_usage(len(prompt), num_generated)
    return describe_session(completion.session) | {
        "text": text,
        "finish_reason": completion.finish_reason,
        "usage": usage,
    }


async def _restore(sessions: TextCaller, id: str, state: bytes) -> Any:
    """Replaces the state of a session whose weights must be those that answer the key now."""
    return await sessions.call(TextSessions.restore, id, state, (await sessions.served_weights()).digest)


add_session_routes(router, get_text_caller, _restore)
