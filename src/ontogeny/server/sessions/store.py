"""The session store: named states on disk, each of one key, and the threads that work on the sessions of a deployment.

The state of a session is on disk before a request is acknowledged, so sessions survive crashes. Sessions of agents
and of texts share this module and differ in what a step does.
"""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from ontogeny.server import quotas
from ontogeny.server.fair_executor import FairExecutor, wait_for_call
from ontogeny.server.sessions.turns import SessionTurns
from ontogeny.server.store import Store

MAX_UNUSED_TIME = 30 * 24 * 3600.0  # seconds after which an unused session may be deleted for a new one
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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
    """The sessions of one deployment.

    The calls of one session run one after another; keys are served in turn.

    Args:
        name: The name of the deployment.
        store: The database.
        num_threads: How many sessions are worked on at the same time.
        max_waiting: Calls of one key that may wait.
    """

    def __init__(self, name: str, store: Store, *, num_threads: int = 1, max_waiting: float = float("inf")) -> None:
        self.name, self._store = name, store
        self.executor = FairExecutor(f"sessions of {name}", num_threads, max_waiting)
        self.turns = SessionTurns(max_waiting)

    def stop(self) -> None:
        """Finishes the current calls and cancels the waiting ones."""
        self.executor.stop()

    async def call(
        self,
        method: Callable[Concatenate[Any, str, Arguments], Result],
        key: str,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Calls a method of this manager on one of its threads, when it is the turn of the key.

        If the task that awaits the result is cancelled, a call that has not begun is dropped; a call that has begun
        may have changed a session, so its result is returned.

        Args:
            method: A method of the subclass.
            key: The id of the key that calls.
            *args: Passed to the method after the key.
            **kwargs: Passed to the method by name.

        Raises:
            QueueFull: `max_waiting` calls of this key wait.
        """
        return await wait_for_call(self.executor.submit(key, method, self, key, *args, **kwargs))

    async def call_in_turn(
        self,
        method: Callable[Concatenate[Any, str, str, Arguments], Result],
        key: str,
        id: str,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Calls a method on the session `id` like `call`, after the earlier calls on that session have ended."""
        async with self.turns.take(key, id):
            return await self.call(method, key, id, *args, **kwargs)

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
        """Creates a session; raises `QuotaExceeded` if the key may not store it."""
        id, state, created_at, store = secrets.token_hex(12), self._encode(session), time.time(), self._store
        with store.transaction():
            store.execute("DELETE FROM sessions WHERE key = ? AND used_at < ?", key, created_at - MAX_UNUSED_TIME)
            store.insert("sessions", (id, self.name, key, session.num_steps, state, created_at))
            quotas.check(store, key, "sessions", "stored_bytes")
        return session._replace(id=id)

    def _write(self, key: str, session: SessionT) -> SessionT:
        """Replaces the state of a session.

        Raises:
            UnknownSession: The session was deleted in the meantime.
            QuotaExceeded: The state has grown, and the key may not store it.
        """
        query = "UPDATE sessions SET num_steps = ?, state = ?, used_at = ? WHERE id = ? AND deployment = ? AND key = ?"
        state = self._encode(session)
        with self._store.transaction():
            num_bytes = self._store.select_value("SELECT length(state) FROM sessions WHERE id = ?", session.id)
            parameters = session.num_steps, state, time.time(), session.id, self.name, key
            if not self._store.execute(query, *parameters).rowcount:
                raise UnknownSession(session.id)
            if len(state) > num_bytes:
                quotas.check(self._store, key, "stored_bytes")
        return session

    @abstractmethod
    def _encode(self, session: SessionT) -> bytes:
        """Converts a session to a state file."""

    @abstractmethod
    def _decode(self, id: str, data: bytes) -> SessionT:
        """Reads a session from a state file; raises `BadInput` if the file is damaged or belongs elsewhere."""
