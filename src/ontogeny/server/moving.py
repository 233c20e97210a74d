"""Copies the state of a server from one database to another: from SQLite to PostgreSQL, or back.

The copy of all records is one transaction, so that a target is complete or empty; snapshots are files, which are
copied before it, if the target keeps them in another place. An interrupted copy is repeated, and finds the snapshots
that are there.
"""

from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server import relations, schema
from ontogeny.server.learning import versions
from ontogeny.server.snapshot_stores import identity
from ontogeny.server.snapshot_stores.base import CONTENT_NAME, SnapshotStore, UnusableSnapshot
from ontogeny.server.store import Store

BOOLEANS = {"is_admin", "frozen", "deferred", "deleted"}  # columns that SQLite stores as integers
EXCLUDED = {"storage", "snapshot_store"}  # tables that triggers fill, or that are about the source alone
NUMBERED = ("examples", "decisions", "text_scores")  # tables whose numbers are never used again


class MovedState(NamedTuple):
    """What was copied."""

    num_records: dict[str, int]  # by table
    num_snapshots: int


def copy_state(source: Store, target: Store) -> MovedState:
    """Copies all records and the snapshots that versions refer to; the source stays as it is.

    Args:
        source: A store that no server uses.
        target: A store without keys and branches, which no server uses.

    Raises:
        BadInput: The target holds the state of a server, or a snapshot is absent, or the source uses another store.
    """
    for table in ("keys", "branches", "sessions", "examples"):
        if target.select_value(f"SELECT 1 FROM {table} LIMIT 1") is not None:
            raise BadInput(f"{target.database.label} already holds the state of a server; name another target")
    identity.check_identity(source.database, source.snapshots)
    num_files = copy_snapshots(source, source.snapshots, target.snapshots)
    counts: dict[str, int] = {}
    is_beside = identity.is_beside(target.database, target.snapshots)
    target_id = None if is_beside else target.snapshots.require_id()
    with source.read_transaction(), target.transaction():
        for table in schema.TABLES:
            if table not in EXCLUDED:
                counts[table] = _copy_table(source, target, table)
        identity.record_identity(target.database, target_id)
        for table in NUMBERED:
            target.database.reserve_numbers(table, source.database.last_number(table))
    broken = [fault for fault in relations.find_broken(target) if fault not in relations.find_broken(source)]
    if broken:
        raise BadInput(f"the copy differs from the source: {broken[0].place}: {broken[0].problem}")
    return MovedState(counts, num_files)


def copy_snapshots(records: Store, source: SnapshotStore, target: SnapshotStore) -> int:
    """Copies the files that versions refer to, unless the target has them; returns the number of these files.

    Args:
        records: The store whose database has the versions.
        source: Where the files are.
        target: Where they are copied to. An interrupted copy is repeated and goes on.

    Raises:
        BadInput: A file is absent from the source, or damaged.
    """
    is_copied, count = source.path_of("") != target.path_of(""), 0
    for file in versions.list_snapshots(records):
        count += 1
        if is_copied:
            _copy_snapshot(source, target, file)
    return count


def _copy_snapshot(source: SnapshotStore, target: SnapshotStore, file: str) -> None:
    """Copies one file unless an equal one is there."""
    has_content_name = CONTENT_NAME.fullmatch(file) is not None
    if has_content_name and target.holds(file):
        return
    try:
        content = source.read(file)
    except UnusableSnapshot as error:
        raise BadInput(
            f"the snapshot '{source.path_of(file)}' cannot be copied: {error}; "
            "`ontogeny deployments check` finds what can be repaired"
        ) from None
    if has_content_name or not target.holds(file) or target.fetch(file) != content:
        target.write_as(file, content)


def _copy_table(source: Store, target: Store, table: str) -> int:
    """Copies the records of a table and returns their number; must be called in a transaction of the target."""
    target_columns = set(target.execute(f"SELECT * FROM {table} LIMIT 0").columns)
    records = source.execute(f"SELECT * FROM {table}")
    columns = [column for column in records.columns if column in target_columns and column != "rowid"]
    indices = [records.columns.index(column) for column in columns]
    target.execute(f"DELETE FROM {table}")
    query = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    for record in records:
        target.execute(query, *(_convert(target, table, records.columns[i], record[i]) for i in indices))
    return len(records)


def _convert(target: Store, table: str, column: str, field: Any) -> Any:
    """The value of a column in the type of the target."""
    if field is None or (table, column) == ("branches", "owner"):  # a process of the source
        return None
    if column in BOOLEANS:
        return bool(field)
    if (table, column) == ("examples", "text"):
        return target.database.encode_text(field if isinstance(field, str) else bytes(field).decode())
    return field
