"""The storage of a server: a database, and a store of weight snapshots beside it.

The database is SQLite in the state folder, or PostgreSQL (see `databases`); snapshots are files of the state folder or
objects of an S3-compatible store (see `snapshot_stores`).
Every failure of a disk or a connection is a `StorageUnavailable`, after which the store can be used as before. This
module does not depend on models or on HTTP.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from ontogeny.errors import BadInput, StorageDamaged
from ontogeny.optional_packages import import_optional
from ontogeny.runs.folder import locked
from ontogeny.runs.formats import refuse_run_folder
from ontogeny.server.databases.base import Database, QueryResult, Statement
from ontogeny.server.databases.sqlite import DATABASE, OWNER_FOLDER, SQLiteDatabase
from ontogeny.server.snapshot_stores import identity
from ontogeny.server.snapshot_stores.base import SnapshotStore
from ontogeny.server.snapshot_stores.folder import FolderSnapshots
from ontogeny.server.snapshot_stores.objects import ObjectSnapshots

DATABASE_URL = "ONTOGENY_DATABASE_URL"  # the environment variable with the address of a PostgreSQL database
SNAPSHOT_URL = "ONTOGENY_SNAPSHOT_URL"  # the environment variable with the address of an S3-compatible store
SNAPSHOT_FOLDER = "snapshots"
Record = TypeVar("Record")


class Store:
    """A state folder with its database.

    Args:
        folder: The state folder, created unless `create` is false.
        create: Whether an absent database is created.
        read_only: Whether the database may only be read. A SQLite database of an earlier format then stays as it is,
            and a converted copy in memory is read; otherwise it is converted.
        database_url: The address of a PostgreSQL database, or an empty text for SQLite in the state folder. None for
            the address in the environment variable `ONTOGENY_DATABASE_URL`, or for SQLite if there is none.
        snapshot_url: The address of an S3-compatible store, or an empty text for the folder `snapshots`. None for the
            address in the environment variable `ONTOGENY_SNAPSHOT_URL`, or for the folder if there is none.

    Attributes:
        snapshots: The files with weights.
        is_shared: Whether several processes may write snapshots: all cases but SQLite with the folder. Files that no
            version refers to are then deleted only after a while; see `learning.snapshots`.
        snapshot_lock: Held by a thread of a process that shares no snapshots while it writes and records them, or
            deletes them.

    Raises:
        BadInput: The folder or the database cannot be used, or the database is absent and `create` is false.
        StorageUnavailable: The disk is full or fails.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        create: bool = True,
        read_only: bool = False,
        database_url: str | None = None,
        snapshot_url: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.snapshots = _open_snapshots(self.folder, snapshot_url)
        self.process_number: int | None = None  # of the server, where several share the database
        self.snapshot_lock = threading.RLock()
        address = find_address(self.folder, database_url)
        if address is None and not (self.folder / DATABASE).exists():
            if not create:
                raise BadInput(f"there is no server database in '{self.folder}'; name the state folder of a server")
            refuse_run_folder(self.folder, "the state of a server")
        try:
            self.database = self._open(address, create, read_only)
            self.is_shared = self.database.is_shared or not isinstance(self.snapshots, FolderSnapshots)
            if not read_only:
                self.folder.mkdir(mode=OWNER_FOLDER, parents=True, exist_ok=True)
                if isinstance(self.snapshots, FolderSnapshots):
                    self.snapshots.create()
                self._restrict_access()
        except OSError as error:
            raise BadInput(f"the folder '{self.folder}' cannot be used: {error.strerror}") from None
        except StorageDamaged as error:
            raise BadInput(str(error)) from None

    @property
    def damage(self) -> str | None:
        """Why the database cannot be used until it is repaired, or None."""
        return self.database.damage

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Registers a server of the state; raises `BadInput` if it cannot be used, as by a second server of SQLite."""
        with contextlib.nullcontext() if self.database.is_shared else locked(self.folder), self.database.lock_server():
            yield

    @contextlib.contextmanager
    def transaction(
        self, scope: str | None = None, statements: Sequence[Statement] = ()
    ) -> Generator[list[QueryResult]]:
        """Opens an atomic write of this thread that excludes other writers and is durable when the context is left.

        Args:
            scope: The branch or session that is written, or None; see `Database.transaction`.
            statements: The first statements of the transaction, whose results the context has; see there.

        Raises:
            StorageUnavailable: The database cannot be used at present; nothing was changed.
            StorageDamaged: The database is known to be damaged.
        """
        with self.database.transaction(scope, statements) as results:
            yield results

    @contextlib.contextmanager
    def read_transaction(self) -> Generator[None]:
        """Lets all queries of this thread read the same state of the database until the context is left."""
        with self.database.read_transaction():
            yield

    def select(self, kind: type[Record], query: str, *parameters: Any) -> list[Record]:
        """Runs a query whose columns are the fields of the NamedTuple `kind`, and returns one record per result."""
        return self.read_records(kind, self.execute(query, *parameters))

    def read_records(self, kind: type[Record], records: QueryResult) -> list[Record]:
        """Converts the result of a statement whose columns are the fields of the NamedTuple `kind`."""
        create: Any = kind
        annotations = kind.__annotations__
        converters = [_converter(annotations[column]) for column in records.columns]
        return [
            create(**{
                column: field if convert is None or field is None else convert(field)
                for column, convert, field in zip(records.columns, converters, record, strict=True)
            })
            for record in records
        ]  # fmt: skip

    def select_one(self, kind: type[Record], query: str, *parameters: Any) -> Record | None:
        """Runs a query like `select`, and returns the first record, or None."""
        return next(iter(self.select(kind, query, *parameters)), None)

    def select_values(self, query: str, *parameters: Any) -> list[Any]:
        """Runs a query and returns the first column of its results."""
        return [record[0] for record in self.execute(query, *parameters)]

    def select_value(self, query: str, *parameters: Any) -> Any:
        """Runs a query and returns the first column of its first result, or None."""
        return next(iter(self.select_values(query, *parameters)), None)

    def execute(self, query: str, *parameters: Any) -> QueryResult:
        """Runs a statement and returns its whole result; a statement that writes must be in a `transaction`."""
        return self.database.execute(query, parameters)

    def run(self, statement: Statement) -> QueryResult:
        """Runs a statement like `execute`."""
        return self.execute(statement.query, *statement.parameters)

    def insert(self, table: str, record: tuple[Any, ...]) -> None:
        """Adds a record whose fields are the columns of a table; must be called in a `transaction`."""
        self.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(record))})", *record)

    def write_snapshot(self, content: bytes) -> str:
        """Writes a file of the snapshots and returns its name; raises `StorageUnavailable` if that fails."""
        return self.snapshots.write(content)

    def check_snapshots(self) -> None:
        """Checks the store of snapshots before a server uses it.

        Raises:
            BadInput: It cannot be used, or it belongs to another database, or the database uses another store.
        """
        self.snapshots.check()
        has_branches = not self.is_shared or self.select_value("SELECT 1 FROM branches LIMIT 1") is not None
        if not has_branches and next(iter(self.snapshots.list_files()), None) is not None:
            raise BadInput(
                f"{self.snapshots.label} has files, but {self.database.label} has no branches: every database needs a "
                "store of its own; name another folder or prefix, or copy the state with `ontogeny deployments move`"
            )
        identity.register_store(self.database, self.snapshots)

    def check_tables(self) -> None:
        """Quickly checks the tables; see `Database.check_tables`."""
        self.database.check_tables()

    def check_integrity(self) -> None:
        """Checks the database before a server uses it; raises `StorageDamaged` if it is damaged."""
        self.database.check_integrity()

    def update_statistics(self) -> None:
        """Lets the database choose its query plans by its present contents; see `Database.update_statistics`."""
        self.database.update_statistics()

    def truncate_log(self) -> bool:
        """Removes overwritten text from the database's own log; returns False if that must be tried again later."""
        return self.database.truncate_log()

    def close(self) -> None:
        """Closes all connections that no thread uses."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, address: str | None, create: bool, read_only: bool) -> Database:
        """Opens the database."""
        if address is None:
            self.folder.mkdir(mode=OWNER_FOLDER, parents=True, exist_ok=True)
            return SQLiteDatabase(self.folder, self.folder / SNAPSHOT_FOLDER, read_only=read_only)
        for module in ("alembic", "psycopg", "httpx2"):
            import_optional(module, "postgres", "states of a server in PostgreSQL", module)
        from ontogeny.server.databases.postgres import PostgresDatabase

        return PostgresDatabase(address, create=create, read_only=read_only)

    def _restrict_access(self) -> None:
        """Takes the permissions of others away from files that an earlier version has written.

        The state folder keeps the permissions of its creator, because it may be a folder with another purpose.
        """
        for path in self.folder.glob(f"{DATABASE}*"):
            with contextlib.suppress(OSError):  # the files of somebody else, or a file that is gone
                if (mode := path.stat().st_mode) & 0o077:
                    path.chmod(mode & OWNER_FOLDER)


def find_address(folder: Path, database_url: str | None) -> str | None:
    """The address of the PostgreSQL database that a command uses for a state folder; None for SQLite."""
    return (default_address(folder) if database_url is None else database_url) or None


def default_address(folder: Path) -> str | None:
    """The address of the database of every state folder, from the environment; None for SQLite."""
    return os.environ.get(DATABASE_URL) or None


def default_snapshot_url(folder: Path) -> str | None:
    """The address of the store of every state folder's snapshots, from the environment; None for its folder."""
    return os.environ.get(SNAPSHOT_URL) or None


def _open_snapshots(folder: Path, snapshot_url: str | None) -> SnapshotStore:
    """The store of the snapshots of a state folder; nothing is read or written."""
    address = (default_snapshot_url(folder) if snapshot_url is None else snapshot_url) or None
    return FolderSnapshots(folder / SNAPSHOT_FOLDER) if address is None else ObjectSnapshots(address)


def _converter(annotation: Any) -> Callable[[Any], Any] | None:
    """The function for the values of a column whose type differs between databases, or None.

    SQLite stores truth values as integers, and PostgreSQL stores texts that may contain any character as bytes.
    """
    types = get_args(annotation) or (annotation,)
    return bool if bool in types else _decode if str in types else None


def _decode(stored: str | bytes) -> str:
    """The text of a column."""
    return stored if isinstance(stored, str) else bytes(stored).decode()
