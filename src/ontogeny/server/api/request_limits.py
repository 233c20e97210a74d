"""Limits on requests before they reach the application: size and arrival time of the body.

Plain ASGI middleware. It logs one line per request, without the content and without the key, and ends the running
requests when the server stops.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ontogeny.errors import StorageUnavailable
from ontogeny.server.api.errors import INTERNAL_ERROR, ApiError, storage_unavailable, unavailable
from ontogeny.server.api.routes import describe_route

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MIN_UPLOAD_RATE = 200_000  # bytes per second in which a body with a limit of its own must arrive
MAX_DISCARDED_BYTES = 8 << 20  # of the body of a refused request, so that the client reads the response
MAX_DISCARD_TIME = 2.0  # seconds
MAX_END_TIME = 2.0  # seconds in which a client must read the end of a response when the server stops
CLOSE = (b"connection", b"close")
log = logging.getLogger("ontogeny.requests")


def no_upload_limit(method: str, path: str) -> int | None:
    """Returns None: no route has a limit of its own."""


class RequestLimits:
    """The middleware.

    Args:
        app: The application behind it.
        max_body_bytes: Bytes that a request body may have.
        arrival_limit: Seconds in which a request must have arrived.
        upload_limit: Returns the bytes that the body of a request with this method and path may have; None where
            `max_body_bytes` applies.
        answers_until_end: Whether requests that arrive while the server stops are answered, because other processes
            can do so.

    Attributes:
        is_stopping: Whether running requests are being ended.
        closes_connections: Whether every response ends its connection.
    """

    def __init__(
        self,
        app: Any,
        *,
        max_body_bytes: int,
        arrival_limit: float,
        upload_limit: Callable[[str, str], int | None] = no_upload_limit,
        answers_until_end: bool = False,
    ) -> None:
        self.app, self.max_body_bytes, self.upload_limit = app, max_body_bytes, upload_limit
        self.arrival_limit, self.answers_until_end = arrival_limit, answers_until_end
        self._running: set[asyncio.Task[Any]] = set()
        self.is_stopping = self.closes_connections = False

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope.setdefault("state", {})
        exchange, task = _Exchange(self, scope, receive, send), asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            if self.is_stopping and not self.answers_until_end:
                raise server_stops()
            exchange.check_declared_size()
            await self.app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            await exchange.respond(error)
        except StorageUnavailable as error:
            await exchange.respond(storage_unavailable(error))
        except asyncio.CancelledError:
            if not self.is_stopping:
                raise
            task.uncancel()
            await exchange.end(server_stops())
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            await exchange.respond(ApiError(500, INTERNAL_ERROR))
        finally:
            self._running.discard(task)
            seconds = time.monotonic() - exchange.started_at
            log.info("%s %s %.3f s", describe_route(scope), exchange.status or "-", seconds)

    async def stop(self, seconds: float) -> None:
        """Answers new requests with status 503, and after a time the running ones too; returns when all have ended.

        Args:
            seconds: Time for the running requests to finish.
        """
        self.is_stopping = True
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=2 * MAX_END_TIME)


def server_stops() -> ApiError:
    """Creates the error of a request that reaches a server while it stops, or is not finished in time."""
    return unavailable("the server stops; retry later", "server_stops")


class _Exchange:
    """One request and its response."""

    def __init__(self, limits: RequestLimits, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self._limits, self._scope, self._receive, self._send = limits, scope, receive, send
        self.started_at, self.status = time.monotonic(), 0
        self._headers = dict(scope["headers"])
        has_body = self._headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self._headers
        # of the request body; `_is_complete` is true also once reading is given up
        self._num_bytes, self._is_complete = 0, not has_body
        upload_limit = limits.upload_limit(scope["method"], scope["path"])
        self._max_bytes = limits.max_body_bytes if upload_limit is None else upload_limit
        scope["state"]["max_bytes"] = self._max_bytes
        self._arrival_limit = max(limits.arrival_limit, (upload_limit or 0) / MIN_UPLOAD_RATE)
        self._deadline: float | None = None  # of the body; set when the application begins to read it
        self._is_event_stream = False

    def check_declared_size(self) -> None:
        """Raises `ApiError` if the declared size of the body is too large."""
        declared = self._headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Receives a part of the request; raises `ApiError` if it is late or exceeds the size limit."""
        if self._is_complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = time.monotonic() + self._arrival_limit
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            text = f"the request did not arrive within {self._arrival_limit:g} s"
            raise ApiError(408, text, code="timeout") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise self._too_large()
        self._is_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the response; waits while the client reads no earlier part."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ())]
            self._is_event_stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            is_unread = not self._is_complete and self.status >= 400
            if is_unread or self._limits.closes_connections:  # the unread body would be taken for the next request
                message["headers"] = [*headers, CLOSE]
        elif not message.get("more_body", False) and not self._is_complete and self.status >= 400:
            await self._send({**message, "more_body": True})
            if not self._limits.is_stopping:
                await self._discard_body()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def respond(self, error: ApiError) -> None:
        """Sends an error unless the response has begun."""
        if not self.status:
            await error.response(self._scope, self._receive, self.send)

    async def end(self, error: ApiError) -> None:
        """Ends the response with an error: as a whole, or as the last event of a stream that has begun."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_END_TIME):
                await self.respond(error)
                if self._is_event_stream:
                    event = f"data: {json.dumps(error.body)}\n\n".encode()
                    await self._send({"type": "http.response.body", "body": event})

    async def _discard_body(self) -> None:
        """Reads the rest of the request, within limits: a client that still sends would not see the response."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_DISCARD_TIME):
                num_bytes, is_complete = 0, False
                while num_bytes < MAX_DISCARDED_BYTES and not is_complete:
                    message = await self._receive()
                    num_bytes += len(message.get("body", b""))
                    is_complete = not message.get("more_body", False)

    def _too_large(self) -> ApiError:
        """Creates the error of a body that exceeds the limit."""
        return ApiError(413, f"the request is larger than {self._max_bytes} bytes", code="request_too_large")
