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
from ontogeny.server.store import Store

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


class SessionManager(ABC, Generic[SessionT]):
    """The sessions of one deployment. One thread works on one session at a time.

    Args:
        name: The name of the deployment.
        store: The database.
        max_waiting: Calls that may wait for the thread.
    """

    def __init__(self, name: str, store: Store, max_waiting: float = float("inf")) -> None:
        self.name, self._store = name, store
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
        """Reads a session; raises `UnknownSession` if the key has none of this id."""
        query = "SELECT state FROM sessions WHERE id = ? AND deployment = ? AND key = ?"
        state = self._store.select_value(query, id, self.name, key)
        if state is None:
            raise UnknownSession(id)
        return self._decode(id, state)

    def delete(self, key: str, id: str) -> None:
        """Deletes a session; raises `UnknownSession` if the key has none of this id."""
        with self._store.transaction():
            query = "DELETE FROM sessions WHERE id = ? AND deployment = ? AND key = ?"
            if not self._store.execute(query, id, self.name, key).rowcount:
                raise UnknownSession(id)

    def export(self, key: str, id: str) -> bytes:
        """Returns the state of a session as a state file."""
        return self._encode(self.get(key, id))

    def fork(self, key: str, id: str) -> SessionT:
        """Creates a new session that continues from the state of this one."""
        return self._insert(key, self.get(key, id))

    def _insert(self, key: str, session: SessionT) -> SessionT:
        """Creates a session; raises `BadInput` if the key has `MAX_SESSIONS` sessions."""
        id, state, created_at, store = secrets.token_hex(12), self._encode(session), time.time(), self._store
        with store.transaction():
            store.execute("DELETE FROM sessions WHERE key = ? AND used_at < ?", key, created_at - MAX_UNUSED_TIME)
            if store.select_value("SELECT count(*) FROM sessions WHERE key = ?", key) >= MAX_SESSIONS:
                raise BadInput(f"a key can have at most {MAX_SESSIONS} sessions; delete some")
            store.insert("sessions", (id, self.name, key, session.num_steps, state, created_at))
        return session._replace(id=id)

    def _write(self, key: str, session: SessionT) -> SessionT:
        """Replaces the state of a session."""
        query = "UPDATE sessions SET num_steps = ?, state = ?, used_at = ? WHERE id = ? AND deployment = ? AND key = ?"
        state = self._encode(session)
        with self._store.transaction():
            self._store.execute(query, session.num_steps, state, time.time(), session.id, self.name, key)
        return session

    def _finish(self, _: Future[Any]) -> None:
        """Frees the place of a call in the queue."""
        with self._lock:
            self._num_waiting -= 1

    @abstractmethod
    def _encode(self, session: SessionT) -> bytes:
        """Converts a session to a state file."""

    @abstractmethod
    def _decode(self, id: str, data: bytes) -> SessionT:
        """Reads a session from a state file; raises `BadInput` if the file is damaged or belongs elsewhere."""
