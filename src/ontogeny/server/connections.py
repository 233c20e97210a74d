"""Connections of the server: limits on clients that send or read nothing, and the end of all requests when it stops.

uvicorn limits the time between two requests of a connection. It has no limit on the time until the first request, on
an incomplete header, on a body that the application does not read, and on a client that does not read its response.
"""

import asyncio
import contextlib
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ontogeny.server.api.errors import ApiError, bad_request
from ontogeny.server.api.request_limits import RequestLimits

CHECK_INTERVAL = 1.0  # seconds
LINGER_TIME = 1.0  # seconds for a request that is on its way when the server stops, if other processes go on
MAX_PREPARATION_TIME = 10.0  # seconds that a server may take to give its branches to other processes
CLOSE_TIME = 1  # seconds for connections to close after that


class LimitedConnection(H11Protocol):
    """One connection.

    Attributes:
        arrival_limit: Seconds in which the header of a request must arrive, counted from the first byte or, for the
            first request, from the beginning of the connection; and in which the body of an answered request must end.
        send_limit: Seconds in which the client must read some part of the response.
    """

    arrival_limit = 20.0
    send_limit = 120.0
    _timer: asyncio.TimerHandle | None = None
    _waiting_since: float | None = None  # for the rest of a request, while none is being answered
    _stalled_since = 0.0  # when the client was last seen to read
    _num_unsent = 0  # bytes at that time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to check the connection."""
        super().connection_made(transport)
        with contextlib.suppress(OSError):  # the client has gone already
            # asyncio does so only for sockets that name their protocol; without it, a part of an answer waits until
            # the client confirms the one before, which takes 40 ms on a connection that it uses again.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._waiting_since = self.loop.time()
        self._timer = self.loop.call_later(CHECK_INTERVAL, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the checks."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receives a part of a request."""
        super().data_received(data)
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()
        self._note_request()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of one that was answered before its end."""
        self._waiting_since = None if self.conn.their_state is h11.DONE else self.loop.time()
        super().on_response_complete()
        self._note_request()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request, in the form of all errors, and closes the connection."""
        self._refuse(bad_request("the request is not valid HTTP"))

    def _note_request(self) -> None:
        """Ends the wait for a request once the application answers it and limits its body."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._waiting_since = None

    def _check(self) -> None:
        """Closes the connection if the client is too slow."""
        current_time, num_unsent = self.loop.time(), self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(CHECK_INTERVAL, self._check)
        if not num_unsent or num_unsent != self._num_unsent:
            self._num_unsent, self._stalled_since = num_unsent, current_time
        elif current_time - self._stalled_since > self.send_limit:
            self.transport.abort()
        is_late = self._waiting_since is not None and current_time - self._waiting_since > self.arrival_limit
        if is_late and not self.transport.is_closing():
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # a part of a header
                text = f"the request did not arrive within {self.arrival_limit:g} s"
                self._refuse(ApiError(408, text, code="timeout"))
            else:
                self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Sends an error before any application has seen the request, and closes the connection."""
        response = error.response
        headers = [*response.raw_headers, (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=error.status_code, headers=headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class GracefulServer(uvicorn.Server):
    """A server that answers every request before it stops, and then ends with exit code 0.

    Args:
        config: The settings of uvicorn.
        limits: The middleware that ends its requests.
        drain_time: Seconds that running requests have to finish when the server stops.
        on_exit: Called on another thread as soon as the server is told to stop, which answers until it has ended.
    """

    def __init__(
        self, config: uvicorn.Config, limits: RequestLimits, drain_time: float, on_exit: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_time = drain_time
        self._limits, self._on_exit, self._is_ending = limits, on_exit, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops the server; uvicorn would raise the signal again at the end, which would be the exit code."""
        if self._is_ending and sig == signal.SIGINT:
            self.force_exit = True
        if not self._is_ending:
            self._is_ending = True
            threading.Thread(target=self._end, name="end", daemon=True).start()

    def _end(self) -> None:
        """Lets the server stop after `on_exit`, or after a while."""
        preparation = threading.Thread(target=self._on_exit, name="preparation of the end", daemon=True)
        preparation.start()
        preparation.join(MAX_PREPARATION_TIME)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends all requests, then closes all connections; where other processes answer, no new request is lost."""
        if self._limits.answers_until_end:
            self._limits.closes_connections = True
            await self._stop_accepting(sockets or [])
            await self._finish_connections()
        if not self.force_exit:
            await self._limits.stop(self._drain_time)
        await super().shutdown(sockets)

    async def _stop_accepting(self, sockets: list[socket.socket]) -> None:
        """Refuses new connections, which so go to another process, and serves those that the system has accepted.

        Closing a listening socket resets all connections that wait in its queue.
        """
        loop = asyncio.get_running_loop()
        copies = [listening.dup() for listening in sockets]
        for listening in sockets:
            with contextlib.suppress(RuntimeError):  # of another event loop
                loop.remove_reader(listening)
        await asyncio.sleep(0)  # connections that were accepted before get their transports
        for server in self.servers:
            server.close()
        for listening in copies:
            with listening, contextlib.suppress(OSError):  # none waits
                while True:
                    connection, _ = listening.accept()
                    connection.setblocking(False)
                    await loop.connect_accepted_socket(self._build_protocol, connection)

    def _build_protocol(self) -> asyncio.Protocol:
        """The protocol of a connection."""
        build: Any = self.config.http_protocol_class
        return build(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _finish_connections(self) -> None:
        """Lets connections without a request send one that is on its way, and then closes them."""
        connections: Any = self.server_state.connections
        deadline = time.monotonic() + LINGER_TIME
        while any(c.cycle is None or c.cycle.response_complete for c in connections) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(connections):
            connection.shutdown()


def build_server(
    app: Any,
    limits: RequestLimits,
    *,
    arrival_limit: float,
    send_limit: float,
    backlog: int,
    drain_time: float = 5.0,
    on_exit: Callable[[], None] = lambda: None,
    **settings: Any,
) -> GracefulServer:
    """Builds the server of an application.

    Args:
        app: The application.
        limits: The middleware in it that ends its requests.
        arrival_limit: Seconds in which the header of a request must arrive, and between two requests.
        send_limit: Seconds in which the client must read some part of the response.
        backlog: Connections that may wait to be accepted.
        drain_time: See `GracefulServer`.
        on_exit: See `GracefulServer`.
        **settings: Further settings of uvicorn.
    """
    attributes = {"arrival_limit": arrival_limit, "send_limit": send_limit}
    config = uvicorn.Config(
        app,
        http=type("Connection", (LimitedConnection,), attributes),
        loop="asyncio",  # also where another one is installed
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(arrival_limit),
        timeout_graceful_shutdown=CLOSE_TIME,
        backlog=backlog,
        lifespan="on",
        **settings,
    )
    return GracefulServer(config, limits, drain_time, on_exit)
