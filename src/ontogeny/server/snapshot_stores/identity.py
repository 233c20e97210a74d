"""Which store of snapshots belongs to a database that several processes share.

Each process would otherwise delete files of the others as unused, or not find them. The database records the identity
of the store when the first process starts. The identity is a random number in a file of the store, so that processes
may reach the store by different paths or addresses. SQLite records nothing: its only process uses the folder beside
it, and a copy of both is another state of its own.
"""

from ontogeny.errors import BadInput
from ontogeny.server.databases.base import Database
from ontogeny.server.snapshot_stores.base import SnapshotStore

MAX_CREATION_TIME = 120.0  # seconds to read and write the identity, while other processes wait for the record
NUM_COMPARED = 100  # files that versions refer to


def check_identity(database: Database, snapshots: SnapshotStore) -> None:
    """Raises `BadInput` if a database has recorded another store; a database without a record may use any store."""
    if not database.is_shared:
        return
    recorded = find_identity(database)
    if recorded is None:
        return
    present = snapshots.read_id()
    if present != recorded:
        identity = "none" if present is None else f"'{present}'"
        raise BadInput(
            f"{database.label} has its snapshots in the store of the identity '{recorded}', but {snapshots.label} has "
            f"{identity}: all processes use one store, which --snapshot-url or --state-dir names; if this store is to "
            "take its place, as after a back-up was restored, run `ontogeny deployments use-snapshots`"
        )


def register_store(database: Database, snapshots: SnapshotStore) -> None:
    """Records the store at the first start of a process, and compares it at every further one; see `check_identity`.

    Raises:
        BadInput: The database has recorded another store.
        StorageUnavailable: The store or the database cannot be used at present.
    """
    if database.is_shared and find_identity(database) is None:
        with database.transaction():  # in which other first starts wait
            if find_identity(database) is None:
                limit = f"{int(MAX_CREATION_TIME * 1000)}"
                database.execute(f"SET LOCAL idle_in_transaction_session_timeout = {limit}", ())
                record_identity(database, snapshots.require_id())
    check_identity(database, snapshots)


def adopt_store(database: Database, snapshots: SnapshotStore) -> None:
    """Records another store instead of the present one; nobody else uses the database or the store.

    Raises:
        BadInput: The database records no store, or this one belongs to another database.
    """
    if not database.is_shared:
        raise BadInput(f"{database.label} records no store of snapshots: a server with SQLite uses any")
    query = "SELECT snapshot FROM versions WHERE snapshot IS NOT NULL AND NOT deleted LIMIT ?"
    names = [name for (name,) in database.execute(query, (NUM_COMPARED,))]
    is_empty = next(iter(snapshots.list_files()), None) is None
    if not is_empty and not any(map(snapshots.holds, names)):
        raise BadInput(
            f"{snapshots.label} has files, but none of those that {len(names)} versions of {database.label} refer to: "
            "it seems to belong to another database, whose files a server would delete as unused"
        )
    id = snapshots.require_id()
    with database.transaction():
        record_identity(database, id)


def find_identity(database: Database) -> str | None:
    """Returns the identity that a shared database has recorded, or None."""
    return next(iter(database.execute("SELECT id FROM snapshot_store", ())), (None,))[0]


def record_identity(database: Database, id: str) -> None:
    """Replaces the recorded identity of a shared database; must be called in a transaction."""
    database.execute("DELETE FROM snapshot_store", ())
    database.execute("INSERT INTO snapshot_store VALUES (?)", (id,))
