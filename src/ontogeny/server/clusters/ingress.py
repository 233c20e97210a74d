"""Passing requests on to the replicas of a server, each of which is a server process with an address of its own.

Plain ASGI application. It neither reads keys from the database nor parses bodies: the replica that receives a request
does so, and passes it on to the owner of the branch if it is another one. A request whose replica ends before it has
answered is sent to another one, marked as repeated, so that its text is taught once.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fastapi.security.utils import get_authorization_scheme_param

from ontogeny.server.api.errors import ApiError, unavailable
from ontogeny.server.api.relaying import HOP_HEADERS, Relay, RepeatableRequest
from ontogeny.server.keys import LOCAL, read_id

MAX_WAITING_TIME = 10.0  # seconds until a replica answers
MAX_CHOICE_TIME = 1.0  # seconds in which a replica names its address
CHECK_INTERVAL = 1.0  # seconds until a process that has not answered a request is checked, and between checks
MAX_PROBE_TIME = 2.0  # seconds in which a process that works answers the simplest request
RETRY_INTERVAL = 0.1  # seconds
MAX_STORED_BYTES = 4 << 20  # of a body, so that the request can be repeated
FORWARDED_HEADERS = HOP_HEADERS - {b"content-length"}
log = logging.getLogger(__name__)


class Ingress:
    """The application.

    Args:
        choose: Returns the address of a replica, or raises an exception if there is none at present. It receives a
            hint: requests with one hint should go to one replica. An empty text is no hint.
        hint: The hint of all requests; None for the id of the key of each.
    """

    def __init__(self, choose: Callable[[str], Awaitable[str]], hint: str | None) -> None:
        self._choose, self._hint = choose, hint
        self._relay: Relay | None = None
        self._last_url = ""  # of the last replica that was chosen; any replica answers any request

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] == "lifespan":
            return await _confirm_lifespan(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = RepeatableRequest(scope, receive, send)
        try:
            await self._answer(request)
        except ApiError as error:
            await error.response(scope, receive, send)
        finally:
            request.close()

    async def _answer(self, request: RepeatableRequest) -> None:
        """Sends a request to replicas until one answers.

        Raises:
            ApiError: None answers.
        """
        hint = find_key_id(request.scope) if self._hint is None else self._hint
        deadline, failed = time.monotonic() + MAX_WAITING_TIME, set[str]()
        while (url := await self._attempt(request, hint, failed)) is not None:
            if request.is_disconnected:
                return
            if not request.is_repeatable or time.monotonic() > deadline:
                raise unavailable("no process of the server answers at present; retry later", "no_process")
            failed.add(url)
            hint = ""  # the replica of the hint may have ended
            await asyncio.sleep(RETRY_INTERVAL)

    async def _attempt(self, request: RepeatableRequest, hint: str, failed: set[str]) -> str | None:
        """Sends a request to one replica, and relays its answer.

        Args:
            request: With the parts of its body that have arrived.
            hint: See `Ingress`.
            failed: The addresses of replicas that have not answered it.

        Returns:
            None if it was answered; otherwise the address of the replica, or an empty text if there was none.
        """
        try:
            url = self._last_url = await self._choose(hint)
        except Exception as error:
            log.info("no replica can be chosen at present: %s: %s", type(error).__name__, error)
            url = self._last_url
            if not url or url in failed:
                return ""
        relay = self._relay = self._relay or Relay()
        headers = [(name, text) for name, text in request.marked_headers() if name not in FORWARDED_HEADERS]
        checked_at = time.monotonic()

        async def is_alive() -> bool:
            """Whether the process answers at all, asked for a request that waits; Ray takes longer to replace it."""
            nonlocal checked_at
            if time.monotonic() < checked_at + CHECK_INTERVAL:
                return True
            is_responsive = await relay.is_responsive(url, MAX_PROBE_TIME)
            checked_at = time.monotonic()
            return is_responsive

        async with relay.response(request, url, headers, _read_body(request), is_alive) as response:
            if response is None:
                return url
            await request.send_response(response)
        return None


class IngressReplica:
    """The ingress as a replica of Ray Serve.

    Args:
        replicas: The handle of Ray for the replicas of the server.
        hint: See `Ingress`.
    """

    def __init__(self, replicas: Any, hint: str | None) -> None:
        self._replicas, self._hint = replicas, hint

    def __serve_build_asgi_app__(self) -> Ingress:
        """Returns the application."""
        return Ingress(self._choose, self._hint)

    async def _choose(self, hint: str) -> str:
        """Lets Ray choose a replica; returns its address."""
        replicas = self._replicas.options(multiplexed_model_id=hint) if hint else self._replicas
        return await asyncio.wait_for(_receive(replicas.find_url.remote(hint)), MAX_CHOICE_TIME)


async def _receive(response: Any) -> str:
    """Waits for the answer of a replica."""
    return await response


def find_key_id(scope: Mapping[str, Any]) -> str:
    """Returns the id of the key that a request names, which is not secret; that of the local key if it has none."""
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    scheme, text = get_authorization_scheme_param(header)
    return (read_id(text.strip()) if scheme.lower() == "bearer" else "") or LOCAL.id


def _read_body(request: RepeatableRequest) -> AsyncIterator[bytes] | None:
    """The body of a request, or None if it has none."""
    names = {name for name, text in request.scope["headers"] if text != b"0"}
    has_body = b"content-length" in names or b"transfer-encoding" in names
    return request.stream_body(MAX_STORED_BYTES) if has_body else None


async def _confirm_lifespan(receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Confirms the start and the end of the application, which need nothing."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
