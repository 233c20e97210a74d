"""Recovers the records of a damaged database into a new one.

SQLite reads a table in the order of its keys until it reaches a damaged page. A damaged table is therefore read from
both ends, and what is left between them is divided again and again, so that only the records on the damaged pages are
lost. The first page holds the list of tables; if it is damaged, that of a new database takes its place.
"""

import contextlib
import heapq
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.server import schema

PAGE_SIZE, HEADER_SIZE = 4096, 100  # bytes; the page size is that of every database that the server creates
TEXT_SIZE = 80  # bytes of a text that are compared
MAX_INTEGER = 2**62
MAX_SPANS, MAX_TEXT_SPANS = 50_000, 10_000  # parts of a table that are tried; there are more texts than numbers
LOG_SUFFIX = "-wal"


class TableLayout(NamedTuple):
    """The order of a table.

    Attributes:
        name: The name of the table.
        key: The columns that order the table.
        is_text: Whether the first of them holds texts; otherwise it holds numbers.
        by_branch: Whether the order is that within each branch.
    """

    name: str
    key: tuple[str, ...] = ("rowid",)
    is_text: bool = False
    by_branch: bool = False


LAYOUTS = (  # `storage` is not among them: triggers write it
    TableLayout("keys", ("id",), is_text=True),
    TableLayout("usage", ("key", "deployment", "day"), is_text=True),
    TableLayout("branches", ("branch",), is_text=True),
    TableLayout("examples"),
    TableLayout("decisions"),
    TableLayout("text_scores"),
    TableLayout("versions", ("number",), by_branch=True),
    TableLayout("inherited_examples", ("version", "example"), by_branch=True),
    TableLayout("unfinished_erasures"),
    TableLayout("learned_requests"),
    TableLayout("default_limits"),
    TableLayout("snapshot_store"),
    TableLayout("sessions", ("id",), is_text=True),
)


class RecoveredTable(NamedTuple):
    """The records of a table that were read."""

    name: str
    num_records: int
    is_complete: bool


class RecoveredDatabase(NamedTuple):
    """The records of a database that were read.

    Attributes:
        tables: The result for each table.
        lost_examples: The branches, by number, of examples of which nothing else is known.
        num_unknown_examples: Further examples, of which not even the branch is known.
    """

    tables: list[RecoveredTable]
    lost_examples: dict[int, str]
    num_unknown_examples: int


def copy_database(database: Path, folder: Path) -> Path:
    """Copies the files of a database that no process uses, byte by byte; returns the copy."""
    for path in (database, database.with_name(database.name + LOG_SUFFIX)):
        if path.exists():
            shutil.copy(path, folder / path.name)
    return folder / database.name


def recover_database(damaged: Path, target: Path) -> RecoveredDatabase:
    """Writes what can be read of a database to a new file.

    Args:
        damaged: The database, which may be changed: pass a copy.
        target: The new database.
    """
    with contextlib.closing(_connect(target)) as connection:
        connection.execute("BEGIN")
        schema.create_tables(connection)
        connection.execute("COMMIT")
        with contextlib.closing(_open_damaged(damaged, target)) as source:
            connection.execute("BEGIN")
            tables = [_recover_table(source, connection, layout) for layout in LAYOUTS]
            lost_examples = _find_lost_examples(source, connection)
            num_examples = _advance_sequences(source, connection)
            connection.execute(schema.UPDATE_ROOTS)
            # Which erasures had not been finished may be lost, and to finish one again does no harm.
            connection.execute(
                "INSERT OR IGNORE INTO unfinished_erasures SELECT number FROM examples WHERE erased_at IS NOT NULL"
            )
            connection.execute("COMMIT")
            num_examples -= _value(connection, "SELECT count(*) FROM examples") + len(lost_examples)
    return RecoveredDatabase(tables, lost_examples, num_examples)


def _connect(path: Path) -> sqlite3.Connection:
    """Opens a database without a write-ahead log of its own."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _open_damaged(path: Path, template: Path) -> sqlite3.Connection:
    """Opens a damaged database, with the first page or its header from another one if it cannot be read otherwise."""
    first_page = template.read_bytes()[:PAGE_SIZE]
    for num_bytes in (0, HEADER_SIZE, PAGE_SIZE):
        if num_bytes:
            header = bytearray(first_page[:num_bytes])
            header[28:40] = bytes(12)  # unknown: the number of pages, and the list of free ones
            with path.open("r+b") as file:
                file.write(header)
        connection = sqlite3.connect(path, isolation_level=None)
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA writable_schema=ON")  # opens a file that is too short
            connection.execute("PRAGMA cell_size_check=ON")
            tables = {record[0] for record in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if {"keys", "branches", "examples", "versions"} <= tables:
                return connection
        connection.close()
    return sqlite3.connect(":memory:", isolation_level=None)  # nothing can be read


class _TableReader:
    """Copies the records of a table, or of one branch in it, as far as they can be read."""

    def __init__(self, source: sqlite3.Connection, target: sqlite3.Connection, layout: TableLayout) -> None:
        self._source, self._target, self._layout = source, target, layout
        present = {record[1] for record in source.execute(f"PRAGMA table_info({layout.name})")}
        columns = [record[1] for record in target.execute(f"PRAGMA table_info({layout.name})") if record[1] in present]
        self._columns, self._branch = columns, None
        places = ", ".join("?" * len(columns))
        self._insertion = f"INSERT OR IGNORE INTO {layout.name} ({', '.join(columns)}) VALUES ({places})"
        self.is_complete = bool(columns)

    def copy_all(self) -> None:
        """Copies a table that is not damaged in one go; raises `sqlite3.Error` otherwise."""
        for record in self._source.execute(f"SELECT {', '.join(self._columns)} FROM {self._layout.name} NOT INDEXED"):
            self._target.execute(self._insertion, record)

    def copy_span(self, largest: int, branch: str | None = None) -> None:
        """Copies the records between damaged pages.

        Args:
            largest: A number that no key exceeds, for a table whose end is damaged.
            branch: The branch, if the table is ordered within each branch.
        """
        self._branch = branch
        highest = 256**TEXT_SIZE - 1 if self._layout.is_text else MAX_INTEGER
        spans, num_spans = [(-highest, 0, highest)], 0
        while spans and num_spans < (MAX_TEXT_SPANS if self._layout.is_text else MAX_SPANS):
            _, low, high = heapq.heappop(spans)  # the widest one
            num_spans += 1
            after = self._copy_until_damage(low, high, is_descending=False)
            if after is None:
                continue
            before = self._copy_until_damage(low, high, is_descending=True)
            if before is None:
                continue
            if before == high == MAX_INTEGER and not self._layout.is_text:  # the end of the table is damaged
                before = max(after, largest)
            self.is_complete = False
            if after < before:
                middle = (after + before) // 2
                for part in ((after, middle), (middle + 1, before)):
                    heapq.heappush(spans, (part[0] - part[1], *part))

    def _copy_until_damage(self, low: int, high: int, *, is_descending: bool) -> int | None:
        """Copies records one by one from one end of a span.

        Returns:
            Where the unread rest of the span begins (ends, if descending), or None if nothing is left.
        """
        key, order = self._layout.key, "DESC" if is_descending else "ASC"
        first, last = ("low", "high") if not is_descending else ("high", "low")
        parameters: dict[str, Any] = {"low": self._to_key(low), "high": self._to_key(high), "branch": self._branch}
        name = "CAST(:{} AS TEXT)" if self._layout.is_text else ":{}"
        compare = ("<=", "<") if is_descending else (">=", ">")
        beyond = f"{key[0]} {'>=' if is_descending else '<='} {name.format(last)}"
        condition = f"{key[0]} {compare[0]} {name.format(first)}"
        position = high if is_descending else low
        previous: tuple[Any, ...] | None = None
        while True:
            query = (
                f"SELECT {', '.join((*key, *self._columns))} FROM {self._layout.name} NOT INDEXED "
                f"WHERE {'branch = :branch AND ' if self._layout.by_branch else ''}{condition} AND {beyond} "
                f"ORDER BY {', '.join(f'{column} {order}' for column in key)} LIMIT 1"
            )
            try:
                record = self._source.execute(query, parameters).fetchone()
                if record is None:
                    return None
                values: tuple[Any, ...] = record[: len(key)]
                # A damaged page can hold keys in any order, and its records are none of this table.
                if previous is not None and not (values < previous if is_descending else values > previous):
                    return position
                previous = values
                self._target.execute(self._insertion, record[len(key) :])
            except (sqlite3.Error, OverflowError, UnicodeError, TypeError):
                return position
            parameters |= {f"key{i}": value for i, value in enumerate(values)}
            condition = f"({', '.join(key)}) {compare[1]} ({', '.join(f':key{i}' for i in range(len(key)))})"
            step = 0 if len(key) > 1 else -1 if is_descending else 1  # a first column can have several records
            position = self._to_position(values[0]) + step

    def _to_key(self, position: int) -> int | bytes:
        """The key at a position."""
        return position.to_bytes(TEXT_SIZE, "big").rstrip(b"\0") if self._layout.is_text else position

    def _to_position(self, key: Any) -> int:
        """The position of a key."""
        if not self._layout.is_text:
            return int(key)
        return int.from_bytes(str(key).encode()[:TEXT_SIZE].ljust(TEXT_SIZE, b"\0"), "big")


def _recover_table(source: sqlite3.Connection, target: sqlite3.Connection, layout: TableLayout) -> RecoveredTable:
    """Copies the records of a table that can be read."""
    is_complete = False
    with contextlib.suppress(sqlite3.Error):
        reader = _TableReader(source, target, layout)
        try:
            reader.copy_all()
        except (sqlite3.Error, UnicodeError):
            if not reader.is_complete:  # the table is absent
                raise
            largest = _find_largest_number(source, target, layout.name)
            for branch in _list_branches(target) if layout.by_branch else [None]:
                reader.copy_span(largest, branch)
            reader.is_complete = False
        is_complete = reader.is_complete
    return RecoveredTable(layout.name, _value(target, f"SELECT count(*) FROM {layout.name}"), is_complete)


def _list_branches(target: sqlite3.Connection) -> list[str]:
    """The names of all branches that recovered records mention."""
    names = "SELECT branch FROM branches UNION SELECT branch FROM examples UNION SELECT branch FROM decisions"
    return [record[0] for record in target.execute(names)]


def _find_largest_number(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> int:
    """A number that no key of a table exceeds, from what can be read elsewhere; 0 if nothing is known."""
    sequence = f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'"
    queries = {
        "examples": [(source, sequence), (target, "SELECT max(last_decided) FROM branches")],
        "decisions": [(source, sequence)],
        "versions": [
            (target, "SELECT max(current_version) FROM branches"),
            (target, "SELECT max(version) FROM decisions"),
        ],
        "inherited_examples": [(target, "SELECT max(number) FROM versions")],
        "learned_requests": [(target, "SELECT max(rowid) + 10000 FROM learned_requests")],
    }.get(table, [])
    return max((_value(connection, query) for connection, query in queries), default=0)


def _find_lost_examples(source: sqlite3.Connection, target: sqlite3.Connection) -> dict[int, str]:
    """The examples whose texts are lost, by what other tables and the index of the examples say."""
    lost: dict[int, str] = {}
    for connection, query in (
        (source, "SELECT number, branch FROM examples INDEXED BY examples_by_branch ORDER BY branch, number"),
        (target, "SELECT example, branch FROM versions"),
        (target, "SELECT example, branch FROM decisions"),
    ):
        with contextlib.suppress(sqlite3.Error):
            lost |= {number: branch for number, branch in _read_records(connection, query) if isinstance(number, int)}
    present = {record[0] for record in target.execute("SELECT number FROM examples")}
    return {number: branch for number, branch in sorted(lost.items()) if number not in present}


def _read_records(connection: sqlite3.Connection, query: str) -> Iterator[Any]:
    """The results of a query up to a damaged page."""
    with contextlib.suppress(sqlite3.Error):
        yield from connection.execute(query)


def _advance_sequences(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    """Takes care that no number of a lost record is used again; returns how many examples there were."""
    numbers = {}
    for table in ("examples", "decisions"):
        number = max(_find_largest_number(source, target, table), _value(target, f"SELECT max(number) FROM {table}"))
        if table == "examples":
            number = max(number, _value(target, "SELECT max(example) FROM decisions"))
        target.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        target.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, number))
        numbers[table] = number
    return numbers["examples"]


def _value(connection: sqlite3.Connection, query: str) -> int:
    """The number that a query returns; 0 if there is none or it cannot be read."""
    record = next(_read_records(connection, query), None)
    return record[0] if record is not None and isinstance(record[0], int) else 0
