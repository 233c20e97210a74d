"""The session store: named states on disk, each of one key, and the thread that works on the sessions of a deployment.

The state of a session is on disk before a request is acknowledged, so sessions survive crashes. Sessions of agents
and of texts share this module and differ in what a step does.
"""

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, Self, TypeVar

from ontogeny.engine.engine import QueueFull
from ontogeny.errors import BadInput
from ontogeny.server.store import Store, select_value

MAX_SESSIONS = 1000  # per key
MAX_UNUSED_TIME = 30 * 24 * 3600.0  # seconds after which an unused session may be deleted for a new one
RETRY_AFTER = 1.0  # seconds


class UnknownSession(LookupError):
    """No session has this id, or it belongs to another key."""


class StoredSession(Protocol):
    """The fields that every kind of session has."""

    @property
    def id(self) -> str: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def weights_digest(self) -> str: ...

    def _replace(self, *, id: str) -> Self: ...


SessionT = TypeVar("SessionT", bound=StoredSession)


def describe_session(session: StoredSession) -> dict[str, Any]:
    """Returns the public description of a session."""
    fields = {name: getattr(session, name) for name in ("id", "num_steps", "weights_digest")}
    return {"object": "session", **fields}


class SessionStore:
    """The sessions of one deployment as bytes in the database."""

    def __init__(self, store: Store, deployment: str) -> None:
        self._store, self._deployment = store, deployment

    def insert(self, key: str, num_steps: int, state: bytes) -> str:
        """Creates a session and returns its id; raises `BadInput` if the key has `MAX_SESSIONS` sessions."""
        id, created_at = secrets.token_hex(12), time.time()
        with self._store.transaction() as connection:
            connection.execute(
                "DELETE FROM sessions WHERE key = ? AND used_at < ?", (key, created_at - MAX_UNUSED_TIME)
            )
            if select_value(connection, "SELECT count(*) FROM sessions WHERE key = ?", key) >= MAX_SESSIONS:
                raise BadInput(f"a key can have at most {MAX_SESSIONS} sessions; delete some")
            values = (id, self._deployment, key, num_steps, state, created_at)
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", values)
        return id

    def read(self, key: str, id: str) -> bytes:
        """Returns the state of a session; raises `UnknownSession` if the key has none of this id."""
        query = "SELECT state FROM sessions WHERE id = ? AND deployment = ? AND key = ?"
        state = select_value(self._store.connection, query, id, self._deployment, key)
        if state is None:
            raise UnknownSession(id)
        return state

    def write(self, key: str, id: str, num_steps: int, state: bytes) -> None:
        """Replaces the state of a session."""
        query = "UPDATE sessions SET num_steps = ?, state = ?, used_at = ? WHERE id = ? AND deployment = ? AND key = ?"
        with self._store.transaction() as connection:
            connection.execute(query, (num_steps, state, time.time(), id, self._deployment, key))

    def list_states(self) -> list[tuple[str, str, bytes]]:
        """Returns key, id and state of every session."""
        query = "SELECT key, id, state FROM sessions WHERE deployment = ?"
        return [tuple(record) for record in self._store.connection.execute(query, (self._deployment,))]

    def delete(self, key: str, id: str) -> None:
        """Deletes a session; raises `UnknownSession` if the key has none of this id."""
        self.read(key, id)
        with self._store.transaction() as connection:
            connection.execute("DELETE FROM sessions WHERE id = ?", (id,))


class SessionManager(ABC, Generic[SessionT]):
    """The sessions of one deployment. One thread works on one session at a time.

    Args:
        name: The name of the deployment.
        store: The database.
        max_waiting: Calls that may wait for the thread.
    """

    def __init__(self, name: str, store: Store, max_waiting: float = float("inf")) -> None:
        self.name, self._sessions = name, SessionStore(store, name)
        self._thread = ThreadPoolExecutor(1, f"sessions of {name}")
        self._lock, self._num_waiting, self._max_waiting = threading.Lock(), 0, max_waiting

    def stop(self) -> None:
        """Finishes the current call and cancels the waiting ones."""
        self._thread.shutdown(cancel_futures=True)

    def submit(self, method: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Calls a method of this manager on its thread; raises `QueueFull` if `max_waiting` calls wait."""
        with self._lock:
            if self._num_waiting >= self._max_waiting:
                raise QueueFull(RETRY_AFTER)
            self._num_waiting += 1
        future = self._thread.submit(method, self, *arguments)
        future.add_done_callback(self._finish)
        return future

    def get(self, key: str, id: str) -> SessionT:
        """Reads a session."""
        return self._decode(id, self._sessions.read(key, id))

    def delete(self, key: str, id: str) -> None:
        """Deletes a session."""
        self._sessions.delete(key, id)

    def export(self, key: str, id: str) -> bytes:
        """Returns the state of a session as a state file."""
        return self._encode(self.get(key, id))

    def fork(self, key: str, id: str) -> SessionT:
        """Creates a new session that continues from the state of this one."""
        return self._insert(key, self.get(key, id))

    def _insert(self, key: str, session: SessionT) -> SessionT:
        return session._replace(id=self._sessions.insert(key, session.num_steps, self._encode(session)))

    def _write(self, key: str, session: SessionT) -> SessionT:
        self._sessions.write(key, session.id, session.num_steps, self._encode(session))
        return session

    def _finish(self, _: Future[Any]) -> None:
        with self._lock:
            self._num_waiting -= 1

    @abstractmethod
    def _encode(self, session: SessionT) -> bytes:
        """Converts a session to a state file."""

    @abstractmethod
    def _decode(self, id: str, data: bytes) -> SessionT:
        """Reads a session from a state file; raises `BadInput` if the file is damaged or belongs elsewhere."""
