"""Routes that sessions of agents and of texts share, and the continuation of a text."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from ontogeny.engine.engine import QueueFull
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput, CommitUnknown
from ontogeny.lm.tokenizer import decode
from ontogeny.server.api import context, errors
from ontogeny.server.api.bodies import BodyRoute
from ontogeny.server.api.context import Caller
from ontogeny.server.api.identification import identify
from ontogeny.server.api.protocol import ContinuationRequest
from ontogeny.server.api.responses import describe_usage
from ontogeny.server.api.tokenizer import encode_text
from ontogeny.server.api.waiting import run_while_connected
from ontogeny.server.deployment_kinds import Deployment, LanguageDeployment, ServedWeights
from ontogeny.server.keys import ApiKey
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.sessions.store import SessionManager, UnknownSession, describe_session
from ontogeny.server.sessions.texts import Continuation, GenerationFailed, SessionCompletion, TextSessions

router = APIRouter(route_class=BodyRoute, prefix="/v1/models/{model}/sessions", responses=errors.RESPONSES)
Result = TypeVar("Result")


class SessionCaller(NamedTuple):
    """Calls methods of the sessions of a deployment on behalf of a request, as long as its client is connected."""

    request: Request
    key: ApiKey
    deployment: Deployment

    async def create(self, method: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Calls a method that creates a session; returns its description.

        Args:
            method: A method of `AgentSessions` or `TextSessions`.
            *arguments: The arguments after the key.
        """
        context.apply_rate_limits(self.request, self.key)
        return describe_session(await self.run(self.deployment.sessions.call(method, self.key.id, *arguments)))

    async def call(self, method: Callable[..., Any], id: str, *arguments: Any) -> Any:
        """Calls a method on the session `id` when it is the turn of the session and of the key.

        Args:
            method: A method of `AgentSessions` or `TextSessions`.
            id: The session.
            *arguments: The arguments after the id.
        """
        with self.remember_failure():
            context.apply_rate_limits(self.request, self.key)
            return await self.run(self.deployment.sessions.call_in_turn(method, self.key.id, id, *arguments))

    async def describe(self, method: Callable[..., Any], id: str, *arguments: Any) -> dict[str, Any]:
        """Calls a method that returns a session like `call`; returns the description of the session."""
        return describe_session(await self.call(method, id, *arguments))

    async def identify(self) -> RequestIdentity:
        """Returns the features by which the request is recognized when it is sent again."""
        identity = await identify(self.request)
        self.request.state.identity = identity
        return self.deployment.sessions.failed_attempts.recognize(self.key.id, identity)

    @contextlib.contextmanager
    def remember_failure(self) -> Iterator[None]:
        """Remembers a request that ends with an error, so that a retry of it takes the step that it has not taken."""
        try:
            yield
        except (CommitUnknown, OwnedElsewhere):  # the step may have been taken, or another process takes it
            raise
        except BaseException:
            identity: RequestIdentity | None = getattr(self.request.state, "identity", None)
            if identity is not None:
                self.deployment.sessions.failed_attempts.add(self.key.id, identity)
            raise

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits a coroutine until the client disconnects or the time limit passes; converts errors to `ApiError`."""
        time_limit = context.get_context(self.request).deployments.config.time_limit
        try:
            return await run_while_connected(self.request, work, time_limit)
        except QueueFull as error:
            raise errors.queue_full(error.retry_after) from None
        except UnknownSession as error:
            raise errors.missing_resource(f"there is no session '{error}'") from None
        except BadInput as error:
            raise errors.bad_request(str(error)) from None
        except GenerationFailed:
            raise errors.generation_failed() from None
        except TimeoutError:
            raise errors.timed_out() from None


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
        return await sessions.describe(SessionManager.fork, id, await sessions.identify())


class TextCaller(SessionCaller):
    """A `SessionCaller` of a language model."""

    @property
    def texts(self) -> TextSessions:
        """The sessions of the model."""
        assert isinstance(self.deployment.sessions, TextSessions)
        return self.deployment.sessions

    async def served_weights(self) -> ServedWeights:
        """Returns the weights that answer the key now."""
        assert isinstance(self.deployment, LanguageDeployment)
        return await context.request_weights(self.request, self.deployment, self.key)


async def get_text_caller(request: Request, model: str, key: Caller) -> TextCaller:
    """Returns the caller of the text sessions of a model."""
    return TextCaller(request, key, context.get_language_model(request, model))


TextSessionsCaller = Annotated[TextCaller, Depends(get_text_caller)]


@router.post("")
async def create_session(sessions: TextSessionsCaller) -> dict[str, Any]:
    """Begins an empty text."""
    digest = (await sessions.served_weights()).digest
    return await sessions.create(TextSessions.create, digest, await sessions.identify())


@router.post("/{id}/completions")
async def continue_text(sessions: TextSessionsCaller, id: str, body: ContinuationRequest) -> dict[str, Any]:
    """Appends a prompt to the text and generates its continuation; the request is not learned from."""
    server, deployment = context.get_context(sessions.request), sessions.deployment
    assert isinstance(deployment, LanguageDeployment)
    started_at, tokenizer = time.monotonic(), deployment.model.tokenizer
    prompt = await asyncio.to_thread(encode_text, tokenizer, body.prompt)
    identity = await sessions.identify()
    with sessions.remember_failure():
        tokens = context.apply_rate_limits(sessions.request, sessions.key, len(prompt) + body.max_tokens)
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed
    sampling, generated = SamplingParams(body.temperature, body.top_p, seed), list[int]()

    async def complete() -> SessionCompletion:
        """Continues the text with the weights that answer the key now."""
        epoch, served = sessions.texts.epoch, await sessions.served_weights()
        continuation = Continuation(
            served.weights,
            served.digest,
            epoch,
            prompt,
            body.max_tokens,
            sampling,
            started_at + server.deployments.config.time_limit,
            served.cache_epoch,
            identity,
            served.adapter,
        )
        return await sessions.texts.complete(sessions.key.id, id, continuation, generated)

    is_computed = False
    try:
        with sessions.remember_failure():
            completion = await sessions.run(complete())
        is_computed = not completion.is_repeated
    finally:
        if is_computed or generated:  # an abandoned request counts as far as it came
            server.meter.count(sessions.key, deployment.name, len(prompt), len(generated))
            tokens.num_used = len(prompt) + len(generated)
        tokens.close()
    usage = describe_usage(len(prompt), len(completion.tokens))
    return describe_session(completion.session) | {
        "text": decode(tokenizer, completion.tokens),
        "finish_reason": completion.finish_reason,
        "usage": usage,
    }


async def _restore(sessions: TextCaller, id: str, state: bytes) -> Any:
    """Replaces the state of a session whose weights must be those that answer the key now."""
    epoch, served = sessions.texts.epoch, await sessions.served_weights()
    return await sessions.call(TextSessions.restore, id, state, served.digest, epoch)


add_session_routes(router, get_text_caller, _restore)
