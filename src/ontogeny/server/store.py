"""The state folder of a server: one SQLite database in WAL mode, and a folder of weight snapshots beside it.

A committed transaction is on disk: every commit waits for the disk (`synchronous=FULL`). Erased text is overwritten
(`secure_delete`) and is removed from the write-ahead log too. Several processes may use one database at a time: the
server, and commands that run beside it. This module does not depend on models or on HTTP.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from ontogeny.errors import BadInput
from ontogeny.runs.folder import locked
from ontogeny.runs.formats import SERVER_DATABASE, check_format, refuse_run_folder
from ontogeny.server import schema

DATABASE = "ontogeny.sqlite"
Record = TypeVar("Record")


class Store:
    """A state folder with its database. Each thread has its own connection.

    Args:
        folder: The state folder, created unless `create` is false.
        create: Whether an absent database is created.
        read_only: Whether the database may only be read. One of an earlier format then stays as it is, and the store
            reads a converted copy in memory; otherwise it is converted.

    Raises:
        BadInput: The folder cannot be used, the database is absent and `create` is false, the file is damaged or of
            another format that cannot be converted, or it is to be converted while a server works in the folder.
    """

    def __init__(self, folder: Path | str, *, create: bool = True, read_only: bool = False) -> None:
        self.folder = Path(folder)
        self.snapshots = self.folder / "snapshots"
        self._path = self.folder / DATABASE
        if not self._path.exists():
            if not create:
                raise BadInput(
                    f"there is no server database in '{self.folder}'; name the state folder with --state-dir"
                )
            refuse_run_folder(self.folder, "the state of a server")
        self._thread_local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._create_tables(read_only)
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise BadInput(f"the folder '{self.folder}' cannot be used: {error.strerror}") from None
        except sqlite3.DatabaseError as error:
            raise BadInput(f"'{self._path}' is damaged or is not a database of ontogeny: {error}") from None

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread, for reading; writes go through `transaction`."""
        connection = getattr(self._thread_local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=30000"):
                connection.execute(f"PRAGMA {setting}")
            self._thread_local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Opens an atomic write of this thread that excludes other writers and is on disk when the context is left."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def select(self, kind: type[Record], query: str, *parameters: Any) -> list[Record]:
        """Runs a query whose columns are the fields of the NamedTuple `kind`, and returns one record per result."""
        create: Any = kind
        # SQLite stores truth values as integers.
        booleans = [name for name, type_ in kind.__annotations__.items() if type_ is bool]
        records = [dict(record) for record in self.execute(query, *parameters)]
        return [create(**(record | {name: bool(record[name]) for name in booleans})) for record in records]

    def select_one(self, kind: type[Record], query: str, *parameters: Any) -> Record | None:
        """Runs a query like `select`, and returns the first record, or None."""
        return next(iter(self.select(kind, query, *parameters)), None)

    def select_values(self, query: str, *parameters: Any) -> list[Any]:
        """Runs a query and returns the first column of its results."""
        return [record[0] for record in self.execute(query, *parameters)]

    def select_value(self, query: str, *parameters: Any) -> Any:
        """Runs a query and returns the first column of its first result, or None."""
        return next(iter(self.select_values(query, *parameters)), None)

    def execute(self, query: str, *parameters: Any) -> sqlite3.Cursor:
        """Runs a statement on the connection of this thread; a statement that writes must be in a `transaction`."""
        return self.connection.execute(query, parameters)

    def insert(self, table: str, record: tuple[Any, ...]) -> None:
        """Adds a record whose fields are the columns of a table; must be called in a `transaction`."""
        self.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(record))})", *record)

    def truncate_log(self) -> None:
        """Empties the write-ahead log, which may still hold overwritten text."""
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Closes the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._thread_local = threading.local()

    def _read_format(self, access: str) -> int:
        """Reads the format number of the database; `access` is a parameter of SQLite's file addresses."""
        address = f"{self._path.absolute().as_uri()}?{access}"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as reader:
            return int(reader.execute("PRAGMA user_version").fetchone()[0])

    def _create_tables(self, read_only: bool) -> None:
        """Creates the tables of a new database; checks the format of an existing one, and converts it if necessary."""
        if self._path.exists() and self._path.stat().st_size:
            has_log = self._path.with_name(f"{DATABASE}-wal").exists()
            # A database without a write-ahead log is read in a way that creates no files.
            version = self._read_format("mode=ro" if has_log else "immutable=1")
            if version == schema.OLDEST_CONVERTIBLE:
                return self._open_converted_copy() if read_only else self._convert()
            if version:
                return check_format(self._path, SERVER_DATABASE, version)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # only the owner may read the key hashes
        with self.transaction():
            if not self.select_value("PRAGMA user_version"):
                schema.create_tables(self.connection)

    def _convert(self) -> None:
        """Converts the database in place; a server of an earlier version that works in the folder prevents it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder))
            except BadInput as error:
                text = f"'{self._path}' has an earlier format and can be converted only while no server runs: {error}"
                raise BadInput(text) from None
            stack.enter_context(self.transaction())
            if self.select_value("PRAGMA user_version") == schema.OLDEST_CONVERTIBLE:
                schema.convert_tables(self.connection)
        self.truncate_log()

    def _open_converted_copy(self) -> None:
        """Makes a converted copy in memory the database of this thread."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        copy.row_factory = sqlite3.Row
        self.connection.backup(copy)
        self.close()
        schema.convert_tables(copy)
        self._thread_local.connection = copy
        self._connections.append(copy)
