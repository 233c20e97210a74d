"""Middleware of Ray Serve's HTTP server: a request whose ingress process has ended is sent to another one.

Ray's HTTP server returns without any answer then, and its web server answers with status 500 (Ray 2.60,
`get_http_response_status` and `send_http_response_on_exception` in `ray/serve/_private/http_util.py`). No setting
changes that, but a variable names a function that returns middleware for the HTTP server.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.middleware import Middleware

from ontogeny.server.api.errors import UNAVAILABLE_RETRY_AFTER, unavailable
from ontogeny.server.api.relaying import Message, RepeatableRequest

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # Ray's variable
MAX_STORED_BYTES = 4 << 20  # of a body, so that the request can be repeated
MAX_ATTEMPTS = 3
RETRY_INTERVAL = 0.1  # seconds
log = logging.getLogger(__name__)


def list_middleware() -> list[Middleware]:
    """Returns the middleware; the function that the variable names."""
    return [Middleware(IngressRepetition)]


def find_variables() -> dict[str, str]:
    """The variables of Ray's processes that make its HTTP server use the middleware."""
    return {CALLBACK: f"{__name__}.{list_middleware.__name__}"}


class IngressRepetition:
    """The middleware.

    Args:
        app: Ray's HTTP server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = _ProxiedRequest(scope, receive, send)
        for _ in range(MAX_ATTEMPTS):
            await self._app(request.begin_attempt(), request.receive, request.send)
            if request.is_answered or request.is_disconnected:
                return
            log.info("the process that received a request has ended before it answered")
            request.was_sent = True
            if not request.is_repeatable:
                break
            await asyncio.sleep(RETRY_INTERVAL)
        error = unavailable("the process that received the request has ended; retry later", "no_process")
        await error.response(scope, receive, send)


class _ProxiedRequest(RepeatableRequest):
    """A request at Ray's HTTP server.

    Attributes:
        is_answered: Whether an answer has begun.
    """

    def __init__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        super().__init__(scope, receive, send)
        self.is_answered = False

    def begin_attempt(self) -> Message:
        """Returns a scope for Ray, as if the request had just arrived, but with its mark if it is repeated."""
        self._position = 0
        return {**self.scope, "headers": list(self.marked_headers())}

    async def receive(self) -> Message:
        """Receives the next part of the request; of a large body, no part is stored."""
        message = await self.replay()
        if self.is_repeatable and sum(len(part.get("body", b"")) for part in self._body) > MAX_STORED_BYTES:
            self.is_repeatable = False
        if not self.is_repeatable:
            self._body.clear()
            self._position = 0
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer; one of Ray itself, such as status 503 without an ingress, names no time."""
        self.is_answered = True
        if message["type"] == "http.response.start" and message["status"] == 503:
            headers = [(name.lower(), text) for name, text in message.get("headers", ())]
            if not any(name == b"retry-after" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"retry-after", UNAVAILABLE_RETRY_AFTER.encode())]}
        await self._send(message)
