"""Passing a request on to the server process that owns the branch of its key.

Plain ASGI middleware, behind authentication. A route claims the branch that it needs; if another process owns it, the
route ends with `OwnedElsewhere` before it has sent anything, and the middleware sends the request, as it was received,
to that process and relays the answer. An answer from the weights of a branch begins only while this process has its
lease; otherwise the request is handled again, here or by the present owner. The client sees one answer in any case.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx2 as httpx

from ontogeny.server.api.errors import ApiError, unavailable
from ontogeny.server.api.identification import IDEMPOTENCY_KEY, RETRY_COUNT
from ontogeny.server.processes.membership import Membership
from ontogeny.server.processes.ownership import OwnedElsewhere

Message = MutableMapping[str, Any]
PROCESS_HEADER = "x-ontogeny-process"  # of every response: the name and number of the process that answers
FORWARDED_HEADER = "x-ontogeny-forwarded"  # of a request that another process passes on
REFUSED_HEADER = "x-ontogeny-not-owner"  # of the response to such a request by a process that is not the owner either
OWNER_HEADER = "x-ontogeny-owner"  # of that response: number and address of the owner, if there is one
HANDLED = "the request may have been handled"  # the value of that header if the process was the owner before
HOP_HEADERS = {  # which belong to one connection
    b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"proxy-connection", b"host",
    b"content-length",
}  # fmt: skip
OWN_PATHS = frozenset({"/health", "/ready", "/metrics"})  # about one process
BROWSER_HEADERS = {b"origin", b"referer"}  # which the process that received the request has checked
BROWSER_PREFIX = b"sec-fetch-"
MAX_WAITING_TIME = 10.0  # seconds until a branch has an owner that answers
RETRY_INTERVAL = 0.05  # seconds
WATCH_INTERVAL = 0.25  # seconds between two looks at the lease of the process that is to answer
MAX_CONNECT_TIME = 1.0  # seconds
# A connection ends about 25 seconds after the machine at its other end, also in the middle of an answer.
SOCKET_OPTIONS = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), seconds)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]
log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """The lease of this process has ended before the answer of a request began."""


class RequestForwarding:
    """The middleware.

    Args:
        app: The application behind it.
        membership: This process.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], membership: Membership) -> None:
        self._app, self._membership = app, membership
        transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=None), socket_options=SOCKET_OPTIONS, trust_env=False
        )
        self._client = httpx.AsyncClient(
            transport=transport, timeout=httpx.Timeout(None, connect=MAX_CONNECT_TIME), trust_env=False
        )

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return await self._client.aclose()  # at the end of the lifespan
        exchange = _RepeatableRequest(self._membership, scope, receive, send)
        deadline = time.monotonic() + MAX_WAITING_TIME
        try:
            while True:
                owner = await self._handle(scope, exchange)
                if owner is None:
                    return
                if (refund := scope["state"].pop("refund", None)) is not None:
                    refund()  # the process that answers counts the request
                if exchange.is_forwarded:
                    raise _not_owner(owner, exchange.was_sent)
                if await self._relay(scope, exchange, owner):
                    return
                if time.monotonic() > deadline:
                    raise unavailable("the process that owns the branch does not answer; retry later", "owner")
                await asyncio.sleep(RETRY_INTERVAL)
        finally:
            exchange.close()

    async def _handle(self, scope: dict[str, Any], exchange: "_RepeatableRequest") -> OwnedElsewhere | None:
        """Answers a request here; returns the process that is to answer instead, if nothing was sent."""
        if self._membership.is_leaving and scope["path"] not in OWN_PATHS:
            if (owner := exchange.take_named_owner()) is not None:
                return owner
            successor = await asyncio.to_thread(self._membership.find_successor)
            if successor is not None:  # which names the owner, unless it can answer
                return OwnedElsewhere(successor.number, successor.url)
        attempt = exchange.begin_attempt()
        try:
            await self._app(attempt, exchange.replay, exchange.send)
        except LeaseLost:
            number = self._membership.last_number
            log.info("the lease of process %s ended before an answer began; the request is handled again", number)
            exchange.was_sent = True
            return OwnedElsewhere(0, "")
        finally:
            scope["route"] = attempt.get("route")
        return attempt["state"].pop("owned_elsewhere", None)

    async def _relay(self, scope: dict[str, Any], exchange: "_RepeatableRequest", owner: OwnedElsewhere) -> bool:
        """Passes a request on; returns False if nothing was answered, so that it must be tried again."""
        if not owner.url:
            return False
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        url = f"{owner.url}{scope.get('raw_path', scope['path'].encode()).decode('latin-1')}{query}"
        request = self._client.build_request(
            scope["method"], url, headers=exchange.headers_to_forward(), content=await exchange.read_body()
        )
        answering = asyncio.create_task(self._client.send(request, stream=True))
        try:
            while not answering.done():
                await asyncio.wait((answering, exchange.disconnected()), timeout=WATCH_INTERVAL,
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                if exchange.is_disconnected:
                    return True
                if not answering.done() and not await self._is_alive(owner.number):
                    exchange.was_sent = True
                    return False
            response = answering.result()
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return False
        except httpx.TransportError as error:
            log.info("process %d has not answered: %s", owner.number, error)
            exchange.was_sent = True
            return False
        finally:
            if not answering.done():
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
                    await answering
        async with contextlib.aclosing(response):
            if REFUSED_HEADER in response.headers:
                exchange.was_sent |= response.headers[REFUSED_HEADER] == HANDLED
                exchange.named_owner = response.headers.get(OWNER_HEADER, "")
                return False
            try:
                await exchange.send_response(response)
            except httpx.TransportError as error:  # the client sees that the answer is incomplete
                log.info("process %d has not finished an answer: %s", owner.number, error)
        return True

    async def _is_alive(self, number: int) -> bool:
        """Whether a process has a lease, as far as the database can say."""
        with contextlib.suppress(Exception):
            return await asyncio.to_thread(self._membership.find_process, number) is not None
        return True


class _RepeatableRequest:
    """One request, whose body can be read again, and its response."""

    def __init__(
        self, membership: Membership, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        self._membership, self._scope, self._receive, self._send = membership, scope, receive, send
        self._state = dict(scope["state"])
        self._body: list[Message] = []  # the parts that were received
        self._position = 0  # of the next part for the application
        self._disconnection: asyncio.Task[None] | None = None
        self.is_disconnected = self.was_sent = False  # `was_sent`: a process may have handled the request already
        self.named_owner = ""  # by the process that refused the request last
        self.is_forwarded = any(name == FORWARDED_HEADER.encode() for name, _ in scope["headers"])

    def take_named_owner(self) -> OwnedElsewhere | None:
        """Returns the owner that the process named to which the request was sent last."""
        number, _, url = self.named_owner.partition(" ")
        self.named_owner = ""
        return OwnedElsewhere(int(number), url) if url else None

    def begin_attempt(self) -> dict[str, Any]:
        """Returns a scope for the application, as if the request had just arrived."""
        self._position = 0
        state = self._scope["state"]
        state.clear()
        state.update(self._state)
        return {**self._scope, "headers": self._marked_headers(), "state": state}

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
        self._position += 1
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the response of this process.

        Raises:
            LeaseLost: The answer is to begin with the weights of a branch, and the lease has ended.
        """
        if message["type"] == "http.response.start":
            if self._scope["state"].get("owned_elsewhere") is not None:
                return
            number = self._scope["state"].get("lease")
            if number is not None and number != self._membership.number:
                raise LeaseLost
            name = f"{self._membership.name} {self._membership.last_number}".encode()
            message["headers"] = [*message.get("headers", ()), (PROCESS_HEADER.encode(), name)]
        elif self._scope["state"].get("owned_elsewhere") is not None:
            return
        await self._send(message)

    async def read_body(self) -> bytes:
        """Receives the rest of the body; returns all of it."""
        self._position = len(self._body)
        while not self.is_disconnected and (not self._body or self._body[-1].get("more_body", False)):
            await self.replay()
        return b"".join(message.get("body", b"") for message in self._body)

    def headers_to_forward(self) -> list[tuple[bytes, bytes]]:
        """The headers of the request for the owner."""
        dropped = HOP_HEADERS | BROWSER_HEADERS
        headers = [
            (name, text)
            for name, text in self._marked_headers()
            if name not in dropped and not name.startswith(BROWSER_PREFIX)
        ]
        return [*headers, (FORWARDED_HEADER.encode(), b"1")]

    def _marked_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers, which say that the request is repeated if a process may have handled it already."""
        headers: list[tuple[bytes, bytes]] = self._scope["headers"]
        if not self.was_sent or any(name == IDEMPOTENCY_KEY.encode() for name, _ in headers):
            return headers
        return [*((name, text) for name, text in headers if name != RETRY_COUNT.encode()), (RETRY_COUNT.encode(), b"1")]

    def disconnected(self) -> asyncio.Task[None]:
        """A task that ends when the client closes the connection."""
        if self._disconnection is None:
            self._disconnection = asyncio.create_task(self._await_disconnection())
        return self._disconnection

    async def _await_disconnection(self) -> None:
        """Waits until the client closes the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_disconnected = True

    async def send_response(self, response: httpx.Response) -> None:
        """Relays the answer of the owner, part by part, until it ends or the client closes the connection.

        Raises:
            TransportError: The owner has ended before its answer.
        """
        headers = [(name, text) for name, text in response.headers.raw if name.lower() not in HOP_HEADERS]
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


def _not_owner(owner: OwnedElsewhere, was_handled: bool) -> ApiError:
    """Creates the answer to a request that was passed on to a process that does not own the branch either.

    Args:
        owner: The process that owns it, if there is one.
        was_handled: Whether this process was the owner and may have written the text of the request.
    """
    error = unavailable("another process owns the branch now; retry", "owner")
    error.headers = {**(error.headers or {}), REFUSED_HEADER: HANDLED if was_handled else "nothing was done"}
    if owner.url:
        error.headers[OWNER_HEADER] = f"{owner.number} {owner.url}"
    return error
