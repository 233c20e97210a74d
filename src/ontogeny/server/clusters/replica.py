"""One server process as a replica of Ray Serve: it starts, answers at an address of its node, and ends in order.

Neither JAX nor Ray is imported before a replica starts.
"""

import asyncio
import contextlib
import http.client
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ontogeny.server.config import ServerConfig

if TYPE_CHECKING:
    from ontogeny.server.app import ListeningServer
    from ontogeny.server.store import Store

MAX_PROBE_TIME = 5.0  # seconds in which a process that works answers
MAX_NOTED_KEYS = 100_000


class ReplicaSettings(NamedTuple):
    """What all replicas of a server have in common. Its text hides the addresses, which may contain passwords.

    Attributes:
        runs: Name and folder of each deployment; the folders exist on every machine.
        state_dir: The state folder, which is created where it is absent.
        database_url: The address of the database that the replicas share.
        snapshot_url: The address of the snapshots, or None for the state folder.
        environment: Variables with which libraries connect to the database and to the snapshots.
        config: The settings of the server; host and port are those at which clients connect.
        prepare: Called before JAX is imported.
    """

    runs: Sequence[tuple[str, Path]]
    state_dir: Path
    database_url: str
    snapshot_url: str | None
    environment: Mapping[str, str]
    config: ServerConfig
    prepare: Callable[[], None]

    def __repr__(self) -> str:
        return f"ReplicaSettings({[name for name, _ in self.runs]})"


class ServerReplica:
    """A server process.

    Args:
        settings: The settings of all replicas.
        name: The name of this process among those that share the database.
        host: The address of the machine at which other processes reach this one.

    Raises:
        BadInput: The server cannot start with these settings.
        ServerFailed: It cannot start.
    """

    def __init__(self, settings: ReplicaSettings, name: str, host: str) -> None:
        self._server: ListeningServer | None = None
        self._store: Store | None = None
        self._error: BaseException | None = None
        self._started, self._noted_keys = threading.Event(), set[str]()
        os.environ.update(settings.environment)
        settings.prepare()
        self._thread = threading.Thread(target=self._run, args=(settings, name, host), name="server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise RuntimeError("the server has ended before it could answer")

    async def find_url(self, hint: str) -> str:
        """Returns the address of this process, and notes that it receives the requests with this hint.

        Args:
            hint: The id of a key, or an empty text.
        """
        if hint and await self._is_known(hint):
            await self.note_key(hint)
        assert self._server is not None
        return self._server.url

    async def note_key(self, key: str) -> bool:
        """Notes for the cluster that this replica receives the requests of a key."""
        return True

    async def check_health(self) -> None:
        """Raises an exception if this process does not answer.

        It answers also while the database cannot be reached, which another process would not change.
        """
        if self._server is None or not self._thread.is_alive():
            raise RuntimeError(f"the server has ended: {self._error}")
        await asyncio.to_thread(_probe, self._server.url)

    def __del__(self) -> None:
        """Gives the branches of this process to the others, and ends it."""
        server, self._server = getattr(self, "_server", None), None
        if server is not None:
            server.stop()
            self._thread.join()

    def _run(self, settings: ReplicaSettings, name: str, host: str) -> None:
        """Opens the state and answers requests until the server is told to stop."""
        try:
            from ontogeny.server import app, process_memory
            from ontogeny.server.deployments import opened_deployments
            from ontogeny.server.store import Store

            process_memory.limit_memory_arenas()
            config = settings.config.model_copy(update={"process_name": name})
            self._store = Store(
                settings.state_dir, database_url=settings.database_url, snapshot_url=settings.snapshot_url
            )
            with opened_deployments(settings.runs, self._store, config) as deployments:
                deployments.on_started = process_memory.exclude_from_collection
                deployments.on_ready = self._started.set
                self._server = app.open_server(deployments, (host, 0))
                self._server.run()
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _is_known(self, hint: str) -> bool:
        """Whether a hint is the id of a valid key, so that nobody fills the list of keys with other texts."""
        from ontogeny.errors import StorageUnavailable
        from ontogeny.server import keys

        if hint in self._noted_keys:
            return True
        assert self._store is not None
        with contextlib.suppress(StorageUnavailable):
            if await asyncio.to_thread(keys.is_valid_id, self._store, hint):
                if len(self._noted_keys) >= MAX_NOTED_KEYS:
                    self._noted_keys.clear()
                self._noted_keys.add(hint)
                return True
        return False


def _probe(url: str) -> None:
    """Raises an exception if the server does not answer."""
    connection = http.client.HTTPConnection(url.partition("://")[2], timeout=MAX_PROBE_TIME)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        if (status := connection.getresponse().status) != 200:
            raise RuntimeError(f"the server answers with status {status}")


def find_environment(variables: Mapping[str, Any]) -> dict[str, str]:
    """The variables with which libraries connect to a PostgreSQL database and to an S3-compatible store.

    Args:
        variables: Those of the process that starts the replicas.
    """
    return {name: text for name, text in variables.items() if name.startswith(("PG", "AWS_"))}
