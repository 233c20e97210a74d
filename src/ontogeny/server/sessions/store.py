"""Where sessions are kept: rows of bytes on the disk, each of one key. Knows nothing of what a session is."""

import secrets
import time
from collections.abc import Mapping

from ontogeny.errors import BadInput
from ontogeny.server.store import Store

MOST = 1000  # sessions of a key
MOST_STEPS = 2**62  # of a session; beyond it a database could not count
AGE = 30 * 24 * 3600.0  # seconds after which a session that nobody used may be dropped for a new one


class NoSession(LookupError):
    """There is no session of that name, or it is another key's."""


def steps_of(about: Mapping[str, str]) -> int:
    """How many steps a state says that it has taken."""
    text = about.get("steps", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < MOST_STEPS):
        raise BadInput(f"this state is damaged: it has taken '{text[:40]}' steps")
    return int(text)


class SessionStore:
    """The sessions of one deployment."""

    def __init__(self, store: Store, deployment: str) -> None:
        self._store, self._deployment = store, deployment

    def insert(self, key: str, steps: int, state: bytes) -> str:
        """A new session's name; `BadInput` where this key has too many."""
        id, now = secrets.token_hex(12), time.time()
        with self._store.transaction() as connection:
            connection.execute("DELETE FROM sessions WHERE key = ? AND at < ?", (key, now - AGE))
            if connection.execute("SELECT count(*) FROM sessions WHERE key = ?", (key,)).fetchone()[0] >= MOST:
                raise BadInput(f"a key has at most {MOST} sessions; delete some")
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", (id, self._deployment, key, steps, state, now)
            )
        return id

    def read(self, key: str, id: str) -> tuple[int, bytes]:
        """Steps and state; `NoSession` where it is not this key's."""
        row = self._store.connection.execute(
            "SELECT * FROM sessions WHERE id = ? AND deployment = ? AND key = ?", (id, self._deployment, key)
        ).fetchone()
        if row is None:
            raise NoSession(id)
        return row["steps"], row["state"]

    def write(self, key: str, id: str, steps: int, state: bytes) -> None:
        with self._store.transaction() as connection:
            connection.execute(
                "UPDATE sessions SET steps = ?, state = ?, at = ? WHERE id = ? AND deployment = ? AND key = ?",
                (steps, state, time.time(), id, self._deployment, key),
            )

    def all(self) -> list[tuple[str, str, bytes]]:
        """Key, name and state of every session."""
        asked = "SELECT key, id, state FROM sessions WHERE deployment = ?"
        return [tuple(row) for row in self._store.connection.execute(asked, (self._deployment,))]

    def drop(self, key: str, id: str) -> None:
        self.read(key, id)
        with self._store.transaction() as connection:
            connection.execute("DELETE FROM sessions WHERE id = ?", (id,))
