"""Passing a request on to another process: the request, which can be sent again, and the relay of the answer."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx2 as httpx
from starlette.requests import ClientDisconnect

from ontogeny.server.request_identity import IDEMPOTENCY_KEY, RETRY_COUNT

Message = MutableMapping[str, Any]
HOP_HEADERS = {  # which belong to one connection
    b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"proxy-connection",
    b"content-length",
}  # fmt: skip
WATCH_INTERVAL = 0.25  # seconds between two looks at the process that is to answer
MAX_CONNECT_TIME = 1.0  # seconds
# A connection ends about 25 seconds after the machine at its other end, also in the middle of an answer.
SOCKET_OPTIONS = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), seconds)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]
log = logging.getLogger(__name__)


class RepeatableRequest:
    """One request, whose body can be read again, and its response.

    Args:
        scope: The request in the form of the ASGI protocol, as are the two others.
        receive: Returns the next part of the body, or the end of the connection.
        send: Sends a part of the response to the client.

    Attributes:
        is_repeatable: Whether the body can be read again.
        is_disconnected: Whether the client has closed the connection.
        was_sent: Whether a process may have handled the request already.
    """

    def __init__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self._body: list[Message] = []  # the parts that were received
        self._position = 0  # of the next part for the application
        self._disconnection: asyncio.Task[None] | None = None
        self._has_body = asyncio.Event()  # set when all of it was received
        self.is_repeatable, self.is_disconnected, self.was_sent = True, False, False

    async def replay(self) -> Message:
        """Receives the next part of the request, also one that was received before."""
        if self._position < len(self._body):
            message = self._body[self._position]
        else:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_disconnected = True
                return message
            self._body.append(message)
            if not message.get("more_body", False):
                self._has_body.set()
        self._position += 1
        return message

    async def read_body(self) -> bytes:
        """Receives the rest of the body; returns all of it."""
        self._position = len(self._body)
        while not self.is_disconnected and not self._has_body.is_set():
            await self.replay()
        return b"".join(message.get("body", b"") for message in self._body)

    async def stream_body(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Returns the parts of the body as they arrive.

        Args:
            max_bytes: Bytes that are stored so that the body can be read again; a longer one is not repeatable.

        Raises:
            ClientDisconnect: The client has closed the connection before the end of the body.
        """
        self._position, num_bytes = 0, 0
        while self._position < len(self._body) or not self._has_body.is_set():
            message = await self.replay()
            if self.is_disconnected:
                raise ClientDisconnect
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                self.is_repeatable = False
                self._body.clear()
                self._position = 0
            yield message.get("body", b"")

    def marked_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers, which say that the request is repeated if a process may have handled it already."""
        headers: list[tuple[bytes, bytes]] = self.scope["headers"]
        if not self.was_sent or any(name == IDEMPOTENCY_KEY.encode() for name, _ in headers):
            return headers
        return [*((name, text) for name, text in headers if name != RETRY_COUNT.encode()), (RETRY_COUNT.encode(), b"1")]

    def url_at(self, base: str) -> str:
        """The address of the request at another process.

        Args:
            base: The address of the process, without a path.
        """
        query = f"?{self.scope['query_string'].decode('latin-1')}" if self.scope["query_string"] else ""
        return f"{base}{self.scope.get('raw_path', self.scope['path'].encode()).decode('latin-1')}{query}"

    def disconnected(self) -> asyncio.Task[None]:
        """A task that ends when the client closes the connection."""
        if self._disconnection is None:
            self._disconnection = asyncio.create_task(self._await_disconnection())
        return self._disconnection

    async def _await_disconnection(self) -> None:
        """Waits until the client closes the connection; the parts of the body come before."""
        await self._has_body.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_disconnected = True

    async def send_response(self, response: httpx.Response) -> None:
        """Relays the answer of a process, part by part, until it ends or the client closes the connection.

        Raises:
            TransportError: The process has ended before its answer.
        """
        dropped = HOP_HEADERS | {b"date"}  # which the web server of this process adds
        headers = [(name, text) for name, text in response.headers.raw if name.lower() not in dropped]
        if (length := response.headers.get("content-length")) is not None:
            headers.append((b"content-length", length.encode()))
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        parts: AsyncIterator[bytes] = response.aiter_raw()
        async for part in parts:
            if self.is_disconnected:
                return
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        """Ends the wait for the end of the connection."""
        if self._disconnection is not None:
            self._disconnection.cancel()


class Relay:
    """The connections to other processes."""

    def __init__(self) -> None:
        transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=None), socket_options=SOCKET_OPTIONS, trust_env=False
        )
        self._client = httpx.AsyncClient(
            transport=transport, timeout=httpx.Timeout(None, connect=MAX_CONNECT_TIME), trust_env=False
        )

    async def is_responsive(self, base: str, seconds: float) -> bool:
        """Whether a process answers the simplest request.

        Args:
            base: The address of the process.
            seconds: Time to answer.
        """
        try:
            await self._client.get(f"{base}/health", timeout=seconds)
        except httpx.TransportError:
            return False
        return True

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    @contextlib.asynccontextmanager
    async def response(
        self,
        request: RepeatableRequest,
        base: str,
        headers: list[tuple[bytes, bytes]],
        content: bytes | AsyncIterator[bytes] | None,
        is_alive: Callable[[], Awaitable[bool]],
    ) -> AsyncIterator[httpx.Response | None]:
        """Sends a request to a process, and waits until the answer begins.

        Args:
            request: Marked as sent where the process may have handled it without an answer.
            base: The address of the process.
            headers: Those of the request at that process.
            content: Its body.
            is_alive: Whether it is worth waiting for the process; called at intervals.

        Yields:
            The response; None if there is none because the process has ended or the client has disconnected.
        """
        message = self._client.build_request(
            request.scope["method"], request.url_at(base), headers=headers, content=content
        )
        answering = asyncio.create_task(self._client.send(message, stream=True))
        try:
            response = await self._wait(request, answering, is_alive)
        except (httpx.ConnectError, httpx.ConnectTimeout, ClientDisconnect):
            response = None
        except httpx.TransportError as error:
            log.info("the process at %s has not answered: %s", base, error)
            request.was_sent, response = True, None
        finally:
            if not answering.done():
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
                    await answering
        if response is None:
            yield None
            return
        async with contextlib.aclosing(response):
            yield response

    async def _wait(
        self,
        request: RepeatableRequest,
        answering: asyncio.Task[httpx.Response],
        is_alive: Callable[[], Awaitable[bool]],
    ) -> httpx.Response | None:
        """Returns the response when it begins; None if the client disconnects or the process ends before."""
        while not answering.done():
            await asyncio.wait((answering, request.disconnected()), timeout=WATCH_INTERVAL,
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            if request.is_disconnected:
                return None
            if not answering.done() and not await is_alive():
                request.was_sent = True
                return None
        return answering.result()
