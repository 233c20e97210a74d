"""A deployment's memory on disk: one SQLite database in WAL mode, and beside it a folder of snapshots.

What is committed is on the disk: every commit of the journal waits for it (`synchronous=FULL`). What is erased is
overwritten (`secure_delete`) and leaves the write-ahead log too. Several processes may use one database at a time: the
server, and commands beside it. Knows nothing of models and of HTTP.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from ontogeny.errors import BadInput

FILE = "ontogeny.sqlite"
SCHEMA = [  # what each format added to the one before
    """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL, admin INTEGER NOT NULL,
    requests_per_minute INTEGER, tokens_per_minute INTEGER, created REAL NOT NULL, revoked REAL
) WITHOUT ROWID;
CREATE TABLE usage (
    key TEXT NOT NULL, deployment TEXT NOT NULL, day TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (key, deployment, day)
) WITHOUT ROWID;
CREATE TABLE lines (
    line TEXT PRIMARY KEY, deployment TEXT NOT NULL, owner TEXT NOT NULL, base TEXT NOT NULL, learner TEXT NOT NULL,
    head INTEGER NOT NULL, position INTEGER NOT NULL, epoch INTEGER NOT NULL, frozen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE contributions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL, key TEXT NOT NULL, text TEXT,
    aside INTEGER NOT NULL DEFAULT 0, erased REAL, at REAL NOT NULL
);
CREATE INDEX contributions_by_line ON contributions (line, number);
CREATE TABLE versions (
    line TEXT NOT NULL, number INTEGER NOT NULL, parent INTEGER, contribution INTEGER, first INTEGER, last INTEGER,
    digest TEXT NOT NULL, held_out REAL NOT NULL, distance REAL NOT NULL, snapshot TEXT, gone INTEGER NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (line, number)
) WITHOUT ROWID;
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL, kind TEXT NOT NULL, contribution INTEGER,
    version INTEGER, held_out REAL, reason TEXT NOT NULL, at REAL NOT NULL
);
CREATE INDEX decisions_by_line ON decisions (line, number);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, deployment TEXT NOT NULL, key TEXT NOT NULL, steps INTEGER NOT NULL, state BLOB NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_by_key ON sessions (key, at);
""",
    """
CREATE TABLE inherited (
    line TEXT NOT NULL, version INTEGER NOT NULL, contribution INTEGER NOT NULL,
    PRIMARY KEY (line, version, contribution)
) WITHOUT ROWID;
CREATE INDEX inherited_by_contribution ON inherited (contribution);
""",
]
FORMAT = len(SCHEMA)


class Store:
    """A folder with a database; made where it is not there. Each thread has a connection of its own."""

    def __init__(self, folder: Path | str, *, make: bool = True) -> None:
        self.folder = Path(folder)
        self.snapshots = self.folder / "snapshots"
        if not make and not (self.folder / FILE).exists():
            raise BadInput(f"there is no deployment's memory in '{self.folder}'; name its folder with --state")
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.folder / FILE, os.O_RDWR | os.O_CREAT, 0o600))  # hashes are nobody else's business
        except OSError as error:
            raise BadInput(f"the folder '{self.folder}' cannot be used: {error.strerror}") from None
        self._of_thread = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            self._make_tables()
        except sqlite3.DatabaseError as error:
            raise BadInput(f"'{self.folder / FILE}' is damaged or no database of ours: {error}") from None

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection: for reading; what is written goes through `transaction`."""
        found = getattr(self._of_thread, "connection", None)
        if found is None:
            found = sqlite3.connect(self.folder / FILE, timeout=30, isolation_level=None, check_same_thread=False)
            found.row_factory = sqlite3.Row
            for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=30000"):
                found.execute(f"PRAGMA {setting}")
            self._of_thread.connection = found
            with self._lock:
                self._all.append(found)
        return found

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, alone among writers, on the disk when it is left."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def forget_log(self) -> None:
        """Empties the write-ahead log, in which what was overwritten might still be read."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._of_thread = threading.local()

    def _make_tables(self) -> None:
        with self.transaction() as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= found <= FORMAT:
                raise BadInput(f"'{self.folder / FILE}' has format {found}, this version reads formats up to {FORMAT}")
            for statement in filter(str.strip, ";".join(SCHEMA[found:]).split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={FORMAT}")
