"""Which store of snapshots belongs to a database.

Processes that share a database would otherwise delete files of each other as unused, or not find them, and a server
whose snapshots were copied to an S3-compatible store would learn everything again if its address were forgotten. The
database records the identity of the store when the first process starts. The identity is a random number in a file of
the store, so that processes may reach the store by different paths or addresses. The folder beside a SQLite database
needs no record: only one process uses it, and a copy of both is another state of its own.
"""

from ontogeny.errors import BadInput
from ontogeny.server.databases.base import Database
from ontogeny.server.snapshot_stores.base import SnapshotStore
from ontogeny.server.snapshot_stores.folder import FolderSnapshots

MAX_CREATION_TIME = 120.0  # seconds to read and write the identity, while other processes wait for the record
NUM_COMPARED = 100  # files that versions refer to


def check_identity(database: Database, snapshots: SnapshotStore) -> None:
    """Raises `BadInput` if a database has recorded another store; a database without a record may use any store."""
    recorded = find_identity(database)
    if recorded is None:
        return
    if is_beside(database, snapshots):
        raise BadInput(
            f"{database.label} has its snapshots in an S3-compatible store (of the identity '{recorded}'), whose "
            "address is absent: name it with --snapshot-url or ONTOGENY_SNAPSHOT_URL, copy the snapshots back with "
            "`ontogeny deployments move s3://BUCKET/PREFIX FOLDER`, or give them up with `ontogeny deployments "
            "use-snapshots`"
        )
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
    if not is_beside(database, snapshots) and find_identity(database) is None:
        with database.transaction():  # in which other first starts wait
            if find_identity(database) is None:
                if database.is_shared:
                    limit = f"{int(MAX_CREATION_TIME * 1000)}"
                    database.execute(f"SET LOCAL idle_in_transaction_session_timeout = {limit}", ())
                record_identity(database, snapshots.require_id())
    check_identity(database, snapshots)


def adopt_store(database: Database, snapshots: SnapshotStore) -> None:
    """Records another store instead of the present one; nobody else uses the database or the store.

    Raises:
        BadInput: The store belongs to another database.
    """
    query = "SELECT snapshot FROM versions WHERE snapshot IS NOT NULL AND NOT deleted LIMIT ?"
    names = [name for (name,) in database.execute(query, (NUM_COMPARED,))]
    is_empty = next(iter(snapshots.list_files()), None) is None
    if not is_empty and not any(map(snapshots.holds, names)):
        raise BadInput(
            f"{snapshots.label} has files, but none of those that {len(names)} versions of {database.label} refer to: "
            "it seems to belong to another database, whose files a server would delete as unused"
        )
    id = None if is_beside(database, snapshots) else snapshots.require_id()
    with database.transaction():
        record_identity(database, id)


def is_beside(database: Database, snapshots: SnapshotStore) -> bool:
    """Whether a store is the folder beside a SQLite database, which has no record."""
    return not database.is_shared and isinstance(snapshots, FolderSnapshots)


def find_identity(database: Database) -> str | None:
    """Returns the identity that a database has recorded, or None."""
    return next(iter(database.execute("SELECT id FROM snapshot_store", ())), (None,))[0]


def record_identity(database: Database, id: str | None) -> None:
    """Replaces the recorded identity of a database, or deletes it; must be called in a transaction."""
    database.execute("DELETE FROM snapshot_store", ())
    if id is not None:
        database.execute("INSERT INTO snapshot_store VALUES (?)", (id,))
