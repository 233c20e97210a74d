"""What a database offers to `server.store.Store`, which adds typed queries and the snapshots of weights.

Queries are one text for all databases: standard SQL with `?` for parameters. Where the databases differ, a query is
composed of the attributes of `Database`.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Self

from sqlalchemy import CursorResult

from ontogeny.errors import StorageDamaged

MAX_CONNECTIONS = 8  # of one process
MAX_PROBE_TIME = 2.0  # seconds in which a database that can be reached answers the simplest statement
MAX_WAIT = 30.0  # seconds for a lock that another thread or process holds


class Statement(NamedTuple):
    """A statement and its parameters."""

    query: str
    parameters: tuple[Any, ...] = ()


class QueryResult(list[tuple[Any, ...]]):
    """The records that a statement returned.

    Attributes:
        columns: The names of the columns.
        rowcount: The number of records that the statement changed.
    """

    def __init__(self, records: Sequence[tuple[Any, ...]], columns: Sequence[str], rowcount: int) -> None:
        super().__init__(records)
        self.columns, self.rowcount = columns, rowcount

    @classmethod
    def from_cursor(cls, cursor: CursorResult[Any]) -> Self:
        """Reads all records that a statement returned."""
        if not cursor.returns_rows:
            return cls([], [], cursor.rowcount)
        return cls([tuple(record) for record in cursor], list(cursor.keys()), cursor.rowcount)


class Database(ABC):
    """The records of a server. All threads share a limited number of connections.

    Attributes:
        label: The words with which messages name the database; no password is part of it.
        connection_name: The name under which a shared database lists the connections of this process.
        damage: Why the database cannot be used until it is repaired, or None.
        has_file: Whether the database is a file of the state folder, which `ontogeny deployments repair` can mend.
        is_shared: Whether several servers can use the database at the same time.
        ordered_join: A join that reads the left table first, because SQLite has no statistics to choose by.
        num_text_bytes: An expression for the size of the text of an example.
        share_lock: A clause after which no other transaction changes the selected records before the current one ends.
    """

    label: str
    connection_name: str = ""
    damage: str | None = None
    has_file: bool
    is_shared: bool
    ordered_join: str
    num_text_bytes: str
    share_lock: str

    @abstractmethod
    def transaction(
        self, scope: str | None = None, statements: Sequence[Statement] = ()
    ) -> AbstractContextManager[list[QueryResult]]:
        """Opens an atomic write of this thread that excludes other writers and is durable when the context is left.

        Args:
            scope: The branch or session that is written, or None. A transaction without a scope excludes all others;
                one with a scope may run at the same time as those of other scopes.
            statements: The first statements of the transaction. PostgreSQL receives them in one message with its
                beginning, so that the time for one answer passes instead of one for each.

        Returns:
            A context with the results of `statements`.

        Raises:
            StorageUnavailable: The database cannot be used at present; nothing was changed.
            CommitUnknown: The connection to the database ended at the COMMIT.
            StorageDamaged: The database is known to be damaged.
        """

    @abstractmethod
    def read_transaction(self) -> AbstractContextManager[None]:
        """Lets all queries of this thread read the same state of the database until the context is left."""

    @abstractmethod
    def bound_waits(self) -> None:
        """Lets calls fail early while the database does not answer, because requests wait for them."""

    @property
    def failed_at(self) -> float | None:
        """The time (`time.monotonic`) since which the database cannot be reached, or None."""
        return None

    def has_recovered(self, failed_at: float | None) -> bool:
        """Whether the database can be reached again.

        Args:
            failed_at: The value of `failed_at` when a call failed; None for a failure with another cause.
        """
        return failed_at is not None and self.failed_at is None

    def reserved_connection(self, max_wait: float = MAX_PROBE_TIME) -> AbstractContextManager[None]:
        """Lets the calls of this thread have a connection that others do not occupy, and a short time for an answer.

        It is for the few threads without which nothing else can go on; they open no transactions.

        Args:
            max_wait: Seconds until a statement is given up.
        """
        return contextlib.nullcontext()

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether this thread is in one of the two contexts."""

    @abstractmethod
    def execute(self, query: str, parameters: Sequence[Any]) -> QueryResult:
        """Runs a statement and reads all of its results; a statement that writes must be in a `transaction`."""

    @abstractmethod
    def index_hint(self, index: str) -> str:
        """The clause that makes a query use this index, or an empty text."""

    @abstractmethod
    def encode_text(self, text: str) -> str | bytes:
        """Converts the text of an example, which may contain any character, to the type of its column."""

    @abstractmethod
    def last_number(self, table: str) -> int:
        """The highest number that a record of a table with increasing numbers has had, deleted ones included."""

    @abstractmethod
    def reserve_numbers(self, table: str, last: int) -> None:
        """Lets the next record of a table have a number above `last`; must be called in a transaction."""

    @abstractmethod
    def check_tables(self) -> None:
        """Quickly checks that all tables can be read and have the current format.

        Raises:
            StorageDamaged: Tables are absent or damaged, or another program has changed their format.
            StorageUnavailable: The database cannot be used at present.
        """

    @abstractmethod
    def check_integrity(self) -> None:
        """Checks the database before a server uses it, as thoroughly as can be done at every start."""

    @abstractmethod
    def update_statistics(self) -> None:
        """Lets the database choose its query plans by its present contents, as after a copy or a restored back-up."""

    @abstractmethod
    def truncate_log(self) -> bool:
        """Removes overwritten text from the database's own log; returns False if that must be tried again later."""

    @abstractmethod
    def vacuum(self) -> None:
        """Writes the files of the tables anew, without the texts that were erased; other programs wait meanwhile."""

    @abstractmethod
    def lock_server(self, *, exclusive: bool = False) -> AbstractContextManager[None]:
        """Registers a server of this database.

        Args:
            exclusive: Whether the database must be used by nobody else, as for a copy or a repair.

        Raises:
            BadInput: Another program uses the database alone, or `exclusive` is set and a server uses it.
        """

    @abstractmethod
    def end_connections(self, name: str) -> None:
        """Closes the connections of another process of a shared database, and rolls its open transactions back.

        Args:
            name: Its `connection_name`.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes all connections that no thread uses."""

    def note_damage(self, reason: str, advice: str = "") -> StorageDamaged:
        """Remembers that the database is damaged, so that nothing more is written, and returns the error to raise.

        Args:
            reason: What is wrong.
            advice: A further clause of the sentence.
        """
        if self.damage is None:
            text = f"{self.label} is damaged or is not a database of ontogeny: {' '.join(reason.split())}"
            self.damage = f"{text}; {advice}" if advice else text
        return StorageDamaged(self.damage)
