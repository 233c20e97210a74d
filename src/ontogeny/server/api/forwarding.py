"""Passing a request on to the server process that owns the branch of its key.

Plain ASGI middleware, behind authentication. A route claims the branch that it needs; if another process owns it, the
route ends with `OwnedElsewhere` before it has sent anything, and the middleware sends the request, as it was received,
to that process and relays the answer. An answer from the weights of a branch begins only while this process has its
lease; otherwise the request is handled again, here or by the present owner. The client sees one answer in any case.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2 as httpx

from ontogeny.server.api.errors import STORAGE_ERROR, ApiError, unavailable
from ontogeny.server.api.relaying import HOP_HEADERS, Message, Relay, RepeatableRequest
from ontogeny.server.processes.membership import Membership
from ontogeny.server.processes.ownership import OwnedElsewhere

PROCESS_HEADER = "x-ontogeny-process"  # of every response: the name and number of the process that answers
FORWARDED_HEADER = "x-ontogeny-forwarded"  # of a request that another process passes on, whose number it names
REFUSED_HEADER = "x-ontogeny-not-owner"  # of the response to such a request by a process that is not the owner either
OWNER_HEADER = "x-ontogeny-owner"  # of that response: number and address of the owner, if there is one
HANDLED = "the request may have been handled"  # the value of that header if the process was the owner before
OWN_PATHS = frozenset({"/health", "/ready", "/metrics"})  # about one process
BROWSER_HEADERS = {b"origin", b"referer"}  # which the process that received the request has checked
BROWSER_PREFIX = b"sec-fetch-"
MAX_WAITING_TIME = 10.0  # seconds until a branch has an owner that answers
RETRY_INTERVAL = 0.05  # seconds
log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """The lease of this process has ended before the answer of a request began."""


class RequestForwarding:
    """The middleware.

    Args:
        app: The application behind it.
        membership: This process.
        count_request: Called after a request that a branch has answered or learns from, with the name of the branch and
            the number of the process that passed the request on, or None.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        membership: Membership,
        count_request: Callable[[str, int | None], None] = lambda branch, process: None,
    ) -> None:
        self._app, self._membership, self._count_request = app, membership, count_request
        self._relay = Relay()

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return await self._relay.close()  # at the end of the lifespan
        exchange = _ForwardableRequest(self._membership, scope, receive, send)
        deadline = time.monotonic() + MAX_WAITING_TIME
        try:
            for attempt in itertools.count():
                owner = await self._handle(scope, exchange)
                if owner is None:
                    if (branch := scope["state"].get("branch")) is not None:
                        self._count_request(branch, exchange.forwarded_by)
                    return
                if (refund := scope["state"].pop("refund", None)) is not None:
                    refund()  # the process that answers counts the request
                if exchange.is_forwarded:
                    raise _not_owner(owner, exchange.was_sent)
                if await self._pass_on(exchange, owner):
                    return
                if time.monotonic() > deadline:
                    raise unavailable("the process that owns the branch does not answer; retry later", "owner")
                await asyncio.sleep(RETRY_INTERVAL if attempt else 0)  # the owner may have changed a moment ago
        finally:
            exchange.close()

    async def _handle(self, scope: dict[str, Any], exchange: "_ForwardableRequest") -> OwnedElsewhere | None:
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
            if self._membership.is_cut_off:
                raise unavailable(STORAGE_ERROR, "storage_unavailable") from None
            number = self._membership.last_number
            log.info("the lease of process %s ended before an answer began; the request is handled again", number)
            exchange.was_sent = True
            return OwnedElsewhere(0, "")
        finally:
            scope["route"] = attempt.get("route")
        return attempt["state"].pop("owned_elsewhere", None)

    async def _pass_on(self, exchange: "_ForwardableRequest", owner: OwnedElsewhere) -> bool:
        """Passes a request on; returns False if nothing was answered, so that it must be tried again."""
        if not owner.url:
            return False

        async def is_alive() -> bool:
            return await self._is_alive(owner.number)

        headers, body = exchange.headers_to_forward(), await exchange.read_body()
        async with self._relay.response(exchange, owner.url, headers, body, is_alive) as response:
            if response is None:
                return exchange.is_disconnected
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


class _ForwardableRequest(RepeatableRequest):
    """One request that this process or another one answers."""

    def __init__(
        self, membership: Membership, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        super().__init__(scope, receive, send)
        self._membership, self._state = membership, dict(scope["state"])
        self.named_owner = ""  # by the process that refused the request last
        numbers = [number for name, number in scope["headers"] if name == FORWARDED_HEADER.encode()]
        self.is_forwarded = bool(numbers)
        is_number = self.is_forwarded and numbers[0].isdigit() and len(numbers[0]) < 19
        self.forwarded_by = int(numbers[0]) if is_number else None

    def take_named_owner(self) -> OwnedElsewhere | None:
        """Returns the owner that the process named to which the request was sent last."""
        number, _, url = self.named_owner.partition(" ")
        self.named_owner = ""
        return OwnedElsewhere(int(number), url) if url else None

    def begin_attempt(self) -> dict[str, Any]:
        """Returns a scope for the application, as if the request had just arrived."""
        self._position = 0
        state = self.scope["state"]
        state.clear()
        state.update(self._state)
        return {**self.scope, "headers": self.marked_headers(), "state": state}

    async def send(self, message: Message) -> None:
        """Sends a part of the response of this process.

        Raises:
            LeaseLost: The answer is to begin with the weights of a branch, and the lease has ended.
        """
        if message["type"] == "http.response.start":
            if self.scope["state"].get("owned_elsewhere") is not None:
                return
            number = self.scope["state"].get("lease")
            if number is not None and number != self._membership.number:
                raise LeaseLost
            name = f"{self._membership.name} {self._membership.last_number}".encode()
            message["headers"] = [*message.get("headers", ()), (PROCESS_HEADER.encode(), name)]
        elif self.scope["state"].get("owned_elsewhere") is not None:
            return
        await self._send(message)

    def headers_to_forward(self) -> list[tuple[bytes, bytes]]:
        """The headers of the request for the owner."""
        dropped = HOP_HEADERS | BROWSER_HEADERS | {b"host"}
        headers = [
            (name, text)
            for name, text in self.marked_headers()
            if name not in dropped and not name.startswith(BROWSER_PREFIX)
        ]
        return [*headers, (FORWARDED_HEADER.encode(), str(self._membership.last_number).encode())]


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
