"""The session store: named states on disk, each of one key, and the threads that work on the sessions of a deployment.

The state of a session is on disk before a request is acknowledged, so sessions survive crashes. Sessions of agents
and of texts share this module and differ in what a step does.
"""

import contextlib
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from ontogeny.errors import CommitUnknown, StorageUnavailable
from ontogeny.server import quotas
from ontogeny.server.fair_executor import FairExecutor, wait_for_call
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.sessions import repeats
from ontogeny.server.sessions.repeats import FailedAttempts
from ontogeny.server.sessions.turns import SessionTurns
from ontogeny.server.store import Store

MAX_ATTEMPTS = 20  # of a call whose session another process changes again and again
MAX_UNUSED_TIME = 30 * 24 * 3600.0  # seconds after which an unused session may be deleted for a new one
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class UnknownSession(LookupError):
    """No session has this id, or it belongs to another key."""


class SessionChanged(Exception):
    """Another process has changed a session since it was read, so nothing was written."""


class StoredSession(Protocol):
    """The fields that every kind of session has."""

    @property
    def id(self) -> str: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def weights_digest(self) -> str: ...

    @property
    def revision(self) -> int: ...

    def _replace(self, *, id: str = ..., revision: int = ...) -> Self: ...


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
        self.turns, self.failed_attempts = SessionTurns(max_waiting), FailedAttempts()

    @property
    def queues(self) -> dict[str, FairExecutor | SessionTurns]:
        """The queues in which calls of a key wait, by name."""
        return {"session calls": self.executor, "session turns": self.turns}

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
        """Calls a method on the session `id` like `call`, after the earlier calls on that session have ended.

        It is called again if another process changes the session in the meantime.
        """
        async with self.turns.take(key, id):
            for _ in range(MAX_ATTEMPTS - 1):
                with contextlib.suppress(SessionChanged):
                    return await self.call(method, key, id, *args, **kwargs)
            return await self.call(method, key, id, *args, **kwargs)

    def get(self, key: str, id: str) -> SessionT:
        """Reads a session; raises `UnknownSession` if the key has none of this id."""
        query = "SELECT state, revision FROM sessions WHERE id = ? AND deployment = ? AND key = ?"
        for state, revision in self._store.execute(query, id, self.name, key):
            return self._decode(id, state)._replace(revision=revision)
        raise UnknownSession(id)

    def delete(self, key: str, id: str) -> None:
        """Deletes a session; raises `UnknownSession` if the key has none of this id."""
        with self._store.transaction():
            query = "DELETE FROM sessions WHERE id = ? AND deployment = ? AND key = ?"
            if not self._store.execute(query, id, self.name, key).rowcount:
                raise UnknownSession(id)

    def export(self, key: str, id: str) -> bytes:
        """Returns the state of a session as a state file."""
        return self._encode(self.get(key, id))

    def fork(self, key: str, id: str, request: RequestIdentity | None = None) -> SessionT:
        """Creates a new session that continues from the state of this one, once for an idempotency key."""
        return self._insert(key, self.get(key, id), request)

    def _find_answer(self, key: str, id: str, request: RequestIdentity | None) -> dict[str, Any] | None:
        """The stored part of the answer if the request repeats the last one of the session, otherwise None."""
        return None if request is None else repeats.find_answer(self._store, key, self.name, id, request)

    def _insert(self, key: str, session: SessionT, request: RequestIdentity | None) -> SessionT:
        """Creates a session, or returns the one that the request has created before.

        Raises:
            QuotaExceeded: The key may not store it.
        """
        id, state, created_at, store = secrets.token_hex(12), self._encode(session), time.time(), self._store
        with store.transaction():
            if request is not None:
                created = repeats.find_created_session(store, key, self.name, request)
                if created is not None:
                    return self.get(key, created)
            store.execute("DELETE FROM sessions WHERE key = ? AND used_at < ?", key, created_at - MAX_UNUSED_TIME)
            columns = id, self.name, key, session.num_steps, state, created_at, *_request_columns(request, {}), 0
            store.insert("sessions", columns)
            quotas.check(store, key, "sessions", "stored_bytes")
        return session._replace(id=id)

    def _write(
        self,
        key: str,
        session: SessionT,
        request: RequestIdentity | None = None,
        answer: Mapping[str, Any] = MappingProxyType({}),
    ) -> SessionT:
        """Replaces the state of a session, and its last request with the part of the answer that the state lacks.

        Raises:
            UnknownSession: The session was deleted in the meantime.
            SessionChanged: Another process has changed the session since it was read.
            QuotaExceeded: The state has grown, and the key may not store it.
        """
        query = (
            "UPDATE sessions SET num_steps = ?, state = ?, used_at = ?, request_digest = ?, idempotency_key = ?, "
            "answer = ?, revision = revision + 1 WHERE id = ? AND deployment = ? AND key = ? AND revision = ?"
        )
        state = self._encode(session)
        try:
            with self._store.transaction(session.id):
                num_bytes = self._store.select_value("SELECT length(state) FROM sessions WHERE id = ?", session.id)
                columns = session.num_steps, state, time.time(), *_request_columns(request, answer)
                if num_bytes is None:
                    raise UnknownSession(session.id)
                if not self._store.execute(query, *columns, session.id, self.name, key, session.revision).rowcount:
                    raise SessionChanged(session.id)
                if len(state) > num_bytes:
                    quotas.check(self._store, key, "stored_bytes")
        except CommitUnknown as error:
            self._confirm_write(session, state, error)
        return session._replace(revision=session.revision + 1)

    def _confirm_write(self, session: SessionT, state: bytes, error: CommitUnknown) -> None:
        """Finds out whether the transaction that wrote a session was committed.

        Raises:
            StorageUnavailable: It was not.
            CommitUnknown: The database cannot say at present.
        """
        query = "SELECT 1 FROM sessions WHERE id = ? AND revision = ? AND state = ?"
        try:
            with self._store.transaction(session.id):  # begins after the end of that transaction
                is_written = self._store.select_value(query, session.id, session.revision + 1, state) is not None
        except StorageUnavailable:
            raise error from None
        if not is_written:
            raise StorageUnavailable(str(error)) from error

    def _write_state(self, session: SessionT) -> None:
        """Replaces the state of a session, if it exists, by one that the next request continues alike."""
        query = "UPDATE sessions SET num_steps = ?, state = ?, revision = revision + 1 WHERE id = ? AND deployment = ?"
        state = self._encode(session)
        with self._store.transaction(session.id):
            parameters = session.num_steps, state, session.id, self.name, session.revision
            changed = self._store.execute(f"{query} AND revision = ?", *parameters)
            if not changed.rowcount and self._store.select_value("SELECT 1 FROM sessions WHERE id = ?", session.id):
                raise SessionChanged(session.id)

    @abstractmethod
    def _encode(self, session: SessionT) -> bytes:
        """Converts a session to a state file."""

    @abstractmethod
    def _decode(self, id: str, data: bytes) -> SessionT:
        """Reads a session from a state file; raises `BadInput` if the file is damaged or belongs elsewhere."""


def _request_columns(request: RequestIdentity | None, answer: Mapping[str, Any]) -> tuple[str | None, ...]:
    """The columns of a session that describe its last request."""
    return (None, None, None) if request is None else (request.digest, request.idempotency_key, json.dumps({**answer}))
