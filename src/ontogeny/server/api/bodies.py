"""Bodies of requests: large ones are parsed on another thread than that of the event loop, a few at a time per key.

Reading JSON holds Python's global lock, so all large bodies are parsed by one thread, one after another, and the event
loop waits for one of them at most. A key can have a few large bodies in memory; its further ones stay unread.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import TypeAdapter, ValidationError

from ontogeny.server.api import errors
from ontogeny.server.api.fair_route import FairRoute
from ontogeny.server.fair_executor import FairExecutor
from ontogeny.server.process_memory import collection_paused

LARGE_BODY = 1 << 14  # bytes; smaller ones are parsed in a millisecond
LARGE_INPUT = 10_000  # characters, tokens or numbers; smaller inputs are processed in a few milliseconds
BYTES_PER_CONTAINER = 32  # that a body may have, on average; a million lists take a second to create and to free
MIN_CONTAINERS = 1 << 17  # lists and objects that every body may have
MAX_LARGE_BODIES = 2  # of one key that are read, parsed or restored at a time
MAX_WAITING_TIME = 20.0  # seconds until one of them ends
# A string, or the rest of a body whose last string does not end: each search would otherwise read the whole rest.
JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
Result = TypeVar("Result")


async def compute(function: Callable[..., Result], *arguments: Any, size: int) -> Result:
    """Calls a function that only computes, for a large input on another thread than that of the event loop.

    Args:
        function: Is called once.
        *arguments: Passed to the function.
        size: Characters, tokens or numbers of the input.
    """
    return await asyncio.to_thread(function, *arguments) if size > LARGE_INPUT else function(*arguments)


class BodyParser:
    """The thread that parses large bodies, and the places of each key."""

    def __init__(self) -> None:
        self._thread = FairExecutor("request bodies", 1)
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_LARGE_BODIES))

    @contextlib.asynccontextmanager
    async def reserve(self, key: str) -> AsyncIterator[None]:
        """Takes one of the places of a key, while the context is open; raises a 429 error if none becomes free."""
        places = self._places[key]
        try:
            await asyncio.wait_for(places.acquire(), MAX_WAITING_TIME)
        except TimeoutError:
            message = f"the key sends more than {MAX_LARGE_BODIES} large requests at a time; retry later"
            raise errors.too_many_requests(message, 1.0) from None
        try:
            yield
        finally:
            places.release()

    async def run(self, key: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function on the thread, when it is the turn of the key."""
        return await self._thread.call(key, function, *arguments)

    def stop(self) -> None:
        """Finishes the current call."""
        self._thread.stop()


class BodyRequest(Request):
    """A request whose large body takes a place of its key and is parsed by `BodyParser`.

    Args:
        request: The same request as FastAPI created it.
        type_: The type of the body; None if it is not JSON.
        stack: Frees the place of the request; it is closed when the request is handled.
    """

    def __init__(self, request: Request, type_: TypeAdapter[Any] | None, stack: AsyncExitStack) -> None:
        super().__init__(request.scope, request.receive)
        self._type, self._stack, self._has_place = type_, stack, False

    async def body(self) -> bytes:
        """Returns the body. A large one keeps its place until it is parsed, or until the request is handled."""
        if not hasattr(self, "_body") and self._is_large and not self._has_place:
            self._has_place = True
            await self._stack.enter_async_context(self._parser.reserve(self.state.key.id))
        return await super().body()

    async def json(self) -> Any:
        """Returns the content of a small body, or a large one as an object of its type.

        Raises:
            ApiError: A large body does not have the type.
        """
        if self._type is None or not self._has_place:
            return await super().json()
        self.state.body_digest, content, problems = await self._parser.run(
            self.state.key.id, _parse, self._type, await self.body(), self._max_containers
        )
        self._body = b""  # the bytes are not kept while the request waits for its answer
        await self._stack.aclose()
        if problems:
            raise errors.invalid_request(problems)
        return content

    @property
    def _parser(self) -> BodyParser:
        """The parser of the server."""
        return self.app.state.context.bodies

    @property
    def _max_containers(self) -> int:
        """The lists and objects that the body may have."""
        return max(MIN_CONTAINERS, self.state.max_bytes // BYTES_PER_CONTAINER)

    @property
    def _is_large(self) -> bool:
        """Whether the body is large, or has an unknown size."""
        length = self.headers.get("content-length", "0")
        return "transfer-encoding" in self.headers or not length.isdigit() or int(length) > LARGE_BODY


class BodyRoute(FairRoute):
    """A route whose large bodies are handled by `BodyRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the function that handles a request."""
        handler, field = super().get_route_handler(), self.body_field
        annotation: Any = None if field is None else field.field_info.annotation
        type_ = None if annotation is None else TypeAdapter[Any](annotation)

        async def handle(request: Request) -> Response:
            async with AsyncExitStack() as stack:
                return await handler(BodyRequest(request, type_, stack))

        return handle


async def body_digest(request: Request) -> bytes:
    """Returns the SHA-256 hash of the body of a request."""
    digest = getattr(request.state, "body_digest", None)
    return await compute(_hash, body := await request.body(), size=len(body)) if digest is None else digest


def _hash(body: bytes) -> bytes:
    """The SHA-256 hash of a body."""
    return hashlib.sha256(body).digest()


def _parse(type_: TypeAdapter[Any], body: bytes, max_containers: int) -> tuple[bytes, Any, list[dict[str, Any]]]:
    """Returns the digest of a body, its content as an object of a type, and the errors of its validation."""
    digest = _hash(body)
    if _has_more_containers(body, max_containers):
        raise errors.bad_request(f"the body has more than {max_containers} lists and objects")
    with collection_paused():
        try:
            try:
                return digest, type_.validate_json(body), []
            except ValidationError as error:
                if _details(error)[0]["type"] != "json_invalid":
                    raise
            # Python's parser says where the text ends to be JSON, and reads half a surrogate pair, of which the field
            # is then named.
            return digest, type_.validate_python(json.loads(body)), []
        except ValidationError as error:
            return digest, None, _details(error)
        except json.JSONDecodeError as error:
            return digest, None, [{"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg}]
        except (RecursionError, ValueError):  # too many levels or digits, or no UTF-8
            raise errors.bad_request(errors.MALFORMED_BODY) from None


def _details(error: ValidationError) -> list[dict[str, Any]]:
    """The errors of a body as FastAPI lists them, without the values, whose copies could be large."""
    problems = error.errors(include_url=False, include_input=False)
    return [{**details, "loc": ("body", *details["loc"])} for details in problems]


def _has_more_containers(body: bytes, max_containers: int) -> bool:
    """Whether a body has more lists and objects than allowed."""
    if body.count(b"[") + body.count(b"{") <= max_containers:
        return False
    outside = JSON_STRING.sub(b"", body)  # some of the brackets may be characters of a text
    return outside.count(b"[") + outside.count(b"{") > max_containers
