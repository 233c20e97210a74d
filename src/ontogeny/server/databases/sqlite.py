"""SQLite in WAL mode, through SQLAlchemy: one file of the state folder, which several processes may use at a time.

A committed transaction is on disk: every commit waits for the disk (`synchronous=FULL`). Erased text is overwritten
(`secure_delete`) and is removed from the write-ahead log too. Every failure of the disk is a `StorageUnavailable`,
after which the database can be used as before; a database that is damaged is a `StorageDamaged`, and nothing is written
to it any more.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, exc, pool

from ontogeny.errors import BadInput, StorageDamaged, StorageUnavailable
from ontogeny.runs.folder import locked
from ontogeny.runs.formats import FORMATS, SERVER_DATABASE, check_format
from ontogeny.server import schema
from ontogeny.server.databases.base import MAX_CONNECTIONS, MAX_WAIT, Database, QueryResult, Statement
from ontogeny.server.snapshot_stores.base import STORE_ID

DATABASE = "ontogeny.sqlite"
RECOVERED = f"{DATABASE}.recovered"  # a repair has not yet put it into the place of the damaged database
OWNER_FILE, OWNER_FOLDER = 0o600, 0o700  # nobody else may read texts, weights and the hashes of keys
CACHE_SIZE = 256  # KiB of pages that a connection keeps; the system caches the file once for all of them
SETTINGS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",
    f"busy_timeout={int(MAX_WAIT * 1000)}",
    f"cache_size=-{CACHE_SIZE}",
)
log = logging.getLogger(__name__)


class SQLiteDatabase(Database):
    """The database in a state folder.

    Args:
        folder: The state folder, which exists.
        snapshots: The folder of snapshots; they are never left without the database that describes them.
        read_only: Whether the database may only be read. One of an earlier format then stays as it is, and queries
            read a converted copy in memory; otherwise it is converted.

    Raises:
        BadInput: The database is of another format that cannot be converted, or it is to be converted while a server
            works in the folder.
        StorageDamaged: The file is damaged.
        StorageUnavailable: The disk is full or fails.
    """

    has_file, is_shared = True, False
    ordered_join = "CROSS JOIN"
    num_text_bytes = "length(CAST(text AS BLOB))"
    share_lock = ""

    def __init__(self, folder: Path, snapshots: Path, *, read_only: bool) -> None:
        self._folder, self._snapshots = folder, snapshots
        self._path = folder / DATABASE
        self.label = f"'{self._path}'"
        self._file: tuple[int, int] | None = None  # the file that was opened: device and number
        self._thread_local = threading.local()  # the connection of a thread that is in a transaction
        self._engine = sqlalchemy.create_engine(
            "sqlite://", creator=self._connect, poolclass=pool.QueuePool, pool_size=MAX_CONNECTIONS, max_overflow=0,
            pool_timeout=MAX_WAIT, pool_use_lifo=True, isolation_level="AUTOCOMMIT",
        )  # fmt: skip
        weakref.finalize(self, self._engine.dispose)
        self._write_lock = threading.Lock()  # so that waiting writers use no connections
        self._create_tables(read_only)
        status = self._path.stat()
        self._file = status.st_dev, status.st_ino

    @contextlib.contextmanager
    def transaction(
        self, scope: str | None = None, statements: Sequence[Statement] = ()
    ) -> Iterator[list[QueryResult]]:
        """Opens an atomic write of this thread that excludes other writers and is on disk when the context is left.

        Raises:
            StorageUnavailable: The disk is full or fails, or the database stays locked; nothing was changed.
            StorageDamaged: The database is known to be damaged, or its file is gone.
        """
        if self.damage is not None:
            raise StorageDamaged(self.damage)
        self._check_file()
        assert not self.in_transaction, "a transaction cannot contain another one"
        if not self._write_lock.acquire(timeout=MAX_WAIT):
            raise StorageUnavailable(f"the database '{self._path}' is locked")
        try:
            with self._open_transaction("BEGIN IMMEDIATE"):
                yield [self.execute(*statement) for statement in statements]
        finally:
            self._write_lock.release()

    @contextlib.contextmanager
    def read_transaction(self) -> Iterator[None]:
        """Lets all queries of this thread read the same state of the database until the context is left."""
        assert not self.in_transaction, "a transaction cannot contain another one"
        with self._open_transaction("BEGIN"):
            yield

    def bound_waits(self) -> None:
        """Does nothing: only another program that writes can be waited for, and `MAX_WAIT` limits that."""

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a transaction."""
        return getattr(self._thread_local, "connection", None) is not None

    def execute(self, query: str, parameters: Sequence[Any]) -> QueryResult:
        """Runs a statement; see `Database`."""
        with self._borrowed_connection() as connection:
            return QueryResult.from_cursor(connection.exec_driver_sql(query, tuple(parameters)))

    def index_hint(self, index: str) -> str:
        """The clause that makes a query use this index."""
        return f"INDEXED BY {index}"

    def encode_text(self, text: str) -> str:
        """The text itself."""
        return text

    def last_number(self, table: str) -> int:
        """The highest number so far; see `Database`."""
        return next(iter(self.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))), (0,))[0]

    def reserve_numbers(self, table: str, last: int) -> None:
        """Reserves numbers; see `Database`."""
        self.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last))

    def check_tables(self) -> None:
        """Checks that the file of the database is the one that was opened and that all tables can be read from it.

        Only the first record of each table is read, so this is quick.

        Raises:
            StorageDamaged: The file is absent, replaced or damaged.
            StorageUnavailable: The disk fails.
        """
        self._check_file()
        # Another connection does not see what present ones have in memory.
        with self._storage_errors(), contextlib.closing(self._connect()) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = {record[0] for record in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if absent := set(schema.TABLES) - tables:
                raise self._damaged(f"it lacks the tables {', '.join(sorted(absent))}")
            if version != FORMATS[SERVER_DATABASE]:
                raise self._damaged(f"its format has changed to {version}")
            for table in schema.TABLES:
                connection.execute(f"SELECT 1 FROM {table} NOT INDEXED LIMIT 1").fetchone()

    def check_integrity(self) -> None:
        """Reads the whole database; raises `StorageDamaged` if it is damaged or its repair was interrupted."""
        if (self._folder / RECOVERED).exists():
            raise self._damaged("its repair was interrupted")
        self.check_tables()
        problem = self.execute("PRAGMA quick_check(1)", ())[0][0]
        if problem != "ok":
            raise self._damaged(problem)

    def update_statistics(self) -> None:
        """Does nothing: the statements themselves fix how they are carried out."""

    def truncate_log(self) -> bool:
        """Empties the write-ahead log, which may still hold overwritten text.

        Returns:
            False if the log stays, on a full disk or while another thread or process reads.
        """
        try:
            return not self.execute("PRAGMA wal_checkpoint(TRUNCATE)", ())[0][0]
        except StorageUnavailable as error:
            log.warning("the write-ahead log cannot be emptied at present: %s", error)
            return False

    def vacuum(self) -> None:
        """Does nothing: erased text is overwritten at once."""

    @contextlib.contextmanager
    def lock_server(self, *, exclusive: bool = False) -> Generator[None]:
        """Excludes nobody: a server locks its state folder, which holds the database."""
        yield

    def end_connections(self, name: str) -> None:
        """Does nothing: connections end with their process."""

    def close(self) -> None:
        """Closes all connections that no thread uses."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _open_transaction(self, begin: str) -> Generator[None]:
        """Runs the statements of this thread between `begin` and COMMIT; the pool rolls back what is not committed."""
        with self._borrowed_connection() as connection:
            connection.exec_driver_sql(begin)
            self._thread_local.connection = connection
            try:
                yield
                connection.exec_driver_sql("COMMIT")
            finally:
                self._thread_local.connection = None

    @contextlib.contextmanager
    def _borrowed_connection(self) -> Generator[Connection]:
        """The connection of the transaction of this thread, or one that this thread uses alone."""
        connection: Connection | None = getattr(self._thread_local, "connection", None)
        with self._storage_errors():
            if connection is not None:
                yield connection
                return
            with self._engine.connect() as connection:
                yield connection

    def _connect(self) -> sqlite3.Connection:
        """Opens a connection."""
        connection = sqlite3.connect(self._path, timeout=MAX_WAIT, isolation_level=None, check_same_thread=False)
        try:
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Converts the errors of SQLite that are no mistakes in a statement to `StorageUnavailable`."""
        try:
            yield
        except exc.TimeoutError as error:
            raise StorageUnavailable(
                f"the database '{self._path}' cannot be used: all connections are in use"
            ) from error
        except (sqlite3.DatabaseError, exc.DBAPIError) as wrapped:
            error = wrapped.orig if isinstance(wrapped, exc.DBAPIError) else wrapped
            if not isinstance(error, sqlite3.DatabaseError):
                raise
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(str(error)) from error
            if not isinstance(error, sqlite3.OperationalError) or code == sqlite3.SQLITE_ERROR:
                raise error from None
            raise StorageUnavailable(f"the database '{self._path}' cannot be used: {error}") from error

    def _damaged(self, reason: str) -> StorageDamaged:
        """Remembers that the database is damaged; see `note_damage`."""
        advice = f"`ontogeny deployments check --state-dir {self._folder}` finds what can be repaired"
        return self.note_damage(reason, advice)

    def _check_file(self) -> None:
        """Raises `StorageDamaged` if the file was removed or replaced: what is written to the old one would be lost."""
        if self._file is None:
            return
        try:
            status = self._path.stat()
            if (status.st_dev, status.st_ino) != self._file:
                raise self._damaged("the file was replaced by another one while it was in use")
            if not status.st_size:  # SQLite would delete the write-ahead log
                raise self._damaged("the file was emptied while it was in use")
        except (FileNotFoundError, NotADirectoryError):
            raise self._damaged("the file was removed while it was in use") from None
        except OSError as error:
            raise StorageUnavailable(f"the database '{self._path}' cannot be used: {error.strerror}") from None

    def _read_format(self, access: str) -> int:
        """Reads the format number of the database; `access` is a parameter of SQLite's file addresses."""
        address = f"{self._path.absolute().as_uri()}?{access}"
        with self._storage_errors(), contextlib.closing(sqlite3.connect(address, uri=True)) as reader:
            return int(reader.execute("PRAGMA user_version").fetchone()[0])

    def _create_tables(self, read_only: bool) -> None:
        """Creates the tables of a new database; checks the format of an existing one, and converts it if necessary."""
        if self._path.exists() and self._path.stat().st_size:
            has_log = self._path.with_name(f"{DATABASE}-wal").exists()
            # A database without a write-ahead log is read in a way that creates no files.
            version = self._read_format("mode=ro" if has_log else "immutable=1")
            if version in schema.CONVERSIONS:
                return self._open_converted_copy(version) if read_only else self._convert()
            if version:
                return check_format(self._path, SERVER_DATABASE, version)
        # A new database would leave snapshots without owners.
        if self._snapshots.is_dir() and any(path.name != STORE_ID for path in self._snapshots.iterdir()):
            raise self._damaged("the file is empty or absent, but there are snapshots")
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, OWNER_FILE))  # SQLite creates its other files alike
        with self.transaction():
            if not self.execute("PRAGMA user_version", ())[0][0]:
                with self._borrowed_connection() as connection:
                    schema.create_tables(_driver(connection))

    def _convert(self) -> None:
        """Converts the database in place; a server of an earlier version that works in the folder prevents it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._folder))
            except BadInput as error:
                text = f"'{self._path}' has an earlier format and can be converted only while no server runs: {error}"
                raise BadInput(text) from None
            stack.enter_context(self.transaction())
            version = self.execute("PRAGMA user_version", ())[0][0]
            if version in schema.CONVERSIONS:  # another process may have converted it
                schema.convert_tables(_driver(stack.enter_context(self._borrowed_connection())), version)
        self.truncate_log()

    def _open_converted_copy(self, version: int) -> None:
        """Makes a converted copy in memory the only connection."""
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with self._borrowed_connection() as connection:
            _driver(connection).backup(copy)
        self.close()
        schema.convert_tables(copy, version)
        self._engine = sqlalchemy.create_engine(
            "sqlite://", creator=lambda: copy, poolclass=pool.StaticPool, isolation_level="AUTOCOMMIT"
        )


def _driver(connection: Connection) -> sqlite3.Connection:
    """The connection of Python's module for SQLite."""
    driver: Any = connection.connection.driver_connection
    return driver
