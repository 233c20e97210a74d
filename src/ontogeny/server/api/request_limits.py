"""Limits on requests before they reach the application: body size, arrival time, and time to read the response.

Plain ASGI middleware. It logs one line per request, without the content and without the key.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ontogeny.errors import StorageUnavailable
from ontogeny.server.api.errors import INTERNAL_ERROR, ApiError, storage_unavailable
from ontogeny.server.api.routes import describe_route

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger("ontogeny.requests")


class RequestLimits:
    """The middleware.

    Args:
        app: The application behind it.
        max_body_bytes: Bytes that a request body may have.
        arrival_limit: Seconds in which a request must have arrived.
        send_limit: Seconds in which the client must read each part of the response.
    """

    def __init__(self, app: Any, *, max_body_bytes: int, arrival_limit: float, send_limit: float) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes
        self.arrival_limit, self.send_limit = arrival_limit, send_limit

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(self, scope, receive, send)
        try:
            exchange.check_declared_size()
            await self.app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            if not exchange.status:
                await error.response(scope, receive, exchange.send)
        except StorageUnavailable as error:
            if not exchange.status:
                await storage_unavailable(error).response(scope, receive, exchange.send)
        except TimeoutError:
            log.info("a client was too slow to read its response")
            raise asyncio.CancelledError from None
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            if not exchange.status:
                await ApiError(500, INTERNAL_ERROR).response(scope, receive, exchange.send)
        finally:
            seconds = time.monotonic() - exchange.started_at
            log.info("%s %s %.3f s", describe_route(scope), exchange.status or "-", seconds)


class _Exchange:
    """One request and its response."""

    def __init__(self, limits: RequestLimits, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self._limits, self._scope, self._receive, self._send = limits, scope, receive, send
        self.started_at, self.status = time.monotonic(), 0
        self._num_bytes, self._is_complete = 0, False  # of the request body; true also once reading is given up

    def check_declared_size(self) -> None:
        """Raises `ApiError` if the declared size of the body is too large."""
        declared = dict(self._scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limits.max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Receives a part of the request; raises `ApiError` if it is late or exceeds the size limit."""
        if self._is_complete:
            return await self._receive()
        limits = self._limits
        try:
            seconds = max(0.0, self.started_at + limits.arrival_limit - time.monotonic())
            message = await asyncio.wait_for(self._receive(), seconds)
        except TimeoutError:
            self._is_complete = True
            text = f"the request did not arrive within {limits.arrival_limit:g} s"
            raise ApiError(408, text, code="timeout") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > limits.max_body_bytes:
            self._is_complete = True
            raise self._too_large()
        self._is_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the response; raises `TimeoutError` if the client does not read it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self._is_complete and self.status >= 400:  # the unread body would be taken for the next request
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await asyncio.wait_for(self._send(message), self._limits.send_limit)

    def _too_large(self) -> ApiError:
        """Creates the error of a body that exceeds the limit."""
        text = f"the request is larger than {self._limits.max_body_bytes} bytes"
        return ApiError(413, text, code="request_too_large")
