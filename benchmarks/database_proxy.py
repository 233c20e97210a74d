"""A TCP proxy between one server process and its database, which loses, delays and refuses on demand.

The proxy runs on a thread of its own. It reads the messages of PostgreSQL's protocol far enough to recognize the COMMIT
of a transaction that has written: `stop_next_commit` stops a connection right before or right after one, so that a
fault hits an open transaction, or one whose outcome its client does not learn.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self

CHUNK = 65536  # bytes that are passed on at a time
POLL_INTERVAL = 0.005  # seconds
PROTOCOL = 196608  # the code of a start-up message; others ask for encryption
WRITES = (b"INSERT", b"UPDATE", b"DELETE", b"WITH")  # the beginnings of statements that write


class StoppedCommit:
    """A COMMIT that a proxy stops.

    Args:
        after: Whether the database commits, and only its answer is stopped.

    Attributes:
        is_stopped: Set once a COMMIT has been stopped.
        released: Set to let it go on.
        client_port: The port of its connection, by which `pg_stat_activity` lists the session.
    """

    def __init__(self, after: bool) -> None:
        self.after, self.client_port = after, 0
        self.is_stopped, self.released = threading.Event(), threading.Event()

    async def wait(self) -> None:
        """Returns when the commit may go on."""
        self.is_stopped.set()
        while not self.released.is_set():
            await asyncio.sleep(POLL_INTERVAL)


class DatabaseProxy:
    """A proxy on a free port of the loopback interface.

    Args:
        target_port: The port of the database on the loopback interface.

    Attributes:
        port: The port of the proxy.
        delay: Seconds by which everything is delayed, in both directions.
        is_refusing: Whether new connections are closed at once.
        is_silent: Whether nothing is passed on; what arrives meanwhile is passed on later.
        next_commit: The next COMMIT of a transaction that has written, if it is to be stopped.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port, self.port = target_port, 0
        self.next_commit: StoppedCommit | None = None
        self._connections: set[_Connection] = set()
        self._started, self._stopping = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), name="database proxy", daemon=True)
        self.restore()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _run(self) -> None:
        """Accepts connections until the end."""
        self._loop = asyncio.get_running_loop()
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stopping.wait()
            await self._reset()
            await asyncio.sleep(POLL_INTERVAL)  # so that all transports are closed

    def cut(self) -> int:
        """Resets all connections; returns how many there were."""
        return self._call(self._reset())

    def database_ports(self) -> list[int]:
        """The ports of all connections at the database, by which `pg_stat_activity` lists their sessions."""
        return [connection.port for connection in list(self._connections)]

    def restore(self) -> None:
        """Ends all disturbances."""
        self.delay, self.is_refusing, self.is_silent = 0.0, False, False

    def stop_next_commit(self, *, after: bool = False) -> StoppedCommit:
        """Stops the next COMMIT of a transaction that has written; see `StoppedCommit`."""
        self.next_commit = StoppedCommit(after)
        return self.next_commit

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the thread of the proxy."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _reset(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        return len(connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connects one client to the database until either side ends."""
        if self.is_refusing:
            return writer.transport.abort()
        try:
            database = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            return writer.transport.abort()
        connection = _Connection(self, (reader, writer), database)
        self._connections.add(connection)
        tasks = [asyncio.create_task(connection.pass_statements()), asyncio.create_task(connection.pass_answers())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        self._connections.discard(connection)
        connection.abort()
        for task in tasks:
            task.cancel()


class _Connection:
    """One client and its session at the database."""

    def __init__(
        self,
        proxy: DatabaseProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        database: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client
        self._database_reader, self._database_writer = database
        self.port: int = self._database_writer.get_extra_info("sockname")[1]
        self._statements = _StatementReader()
        self._answer_wait: StoppedCommit | None = None  # the commit whose answer is stopped

    def abort(self) -> None:
        """Resets both sides."""
        for writer in (self._client_writer, self._database_writer):
            writer.transport.abort()

    async def pass_statements(self) -> None:
        """Passes on what the client sends."""
        with contextlib.suppress(OSError):
            while chunk := await self._client_reader.read(CHUNK):
                commit = self._proxy.next_commit
                if self._statements.feed(chunk) and commit is not None:
                    self._proxy.next_commit = None
                    commit.client_port = self.port
                    if commit.after:
                        self._answer_wait = commit
                    else:
                        await commit.wait()
                await self._wait()
                self._database_writer.write(chunk)
                await self._database_writer.drain()

    async def pass_answers(self) -> None:
        """Passes on what the database answers."""
        with contextlib.suppress(OSError):
            while chunk := await self._database_reader.read(CHUNK):
                commit, self._answer_wait = self._answer_wait, None
                if commit is not None:
                    await commit.wait()
                await self._wait()
                self._client_writer.write(chunk)
                await self._client_writer.drain()

    async def _wait(self) -> None:
        """Waits as long as the proxy delays or passes on nothing."""
        if self._proxy.delay:
            await asyncio.sleep(self._proxy.delay)
        while self._proxy.is_silent:
            await asyncio.sleep(POLL_INTERVAL)


class _StatementReader:
    """Follows the statements of one client in what it sends."""

    def __init__(self) -> None:
        self._buffer, self._has_started, self._has_written = b"", False, False
        self._prepared: dict[bytes, bytes] = {}  # statements by name

    def feed(self, chunk: bytes) -> bool:
        """Reads the next bytes; returns whether they end with the COMMIT of a transaction that has written."""
        self._buffer += chunk
        is_commit = False
        while (message := self._next_message()) is not None:
            statement = self._read_statement(*message).lstrip().upper()
            if statement.startswith(b"BEGIN"):
                self._has_written = False
            elif statement.startswith(WRITES):
                self._has_written = True
            is_commit |= statement.startswith(b"COMMIT") and self._has_written
        return is_commit

    def _next_message(self) -> tuple[bytes, bytes] | None:
        """Type and content of the next complete message; those before the start-up have no type."""
        start = int(self._has_started)
        length = int.from_bytes(self._buffer[start : start + 4], "big")
        if len(self._buffer) < start + 4 or len(self._buffer) < start + length:
            return None
        kind, content = self._buffer[:start], self._buffer[start + 4 : start + length]
        self._buffer = self._buffer[start + length :]
        self._has_started |= int.from_bytes(content[:4], "big") == PROTOCOL and not kind
        return kind, content

    def _read_statement(self, kind: bytes, content: bytes) -> bytes:
        """The text of the statement that a message runs, or nothing."""
        if kind == b"Q":
            return content
        if kind == b"P":
            name, statement, *_ = content.split(b"\0")
            self._prepared[name] = statement
        if kind == b"B":
            _, name, *_ = content.split(b"\0")
            return self._prepared.get(name, b"")
        return b""
