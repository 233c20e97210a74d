"""Checks and repairs a state folder without the models: database, branches, snapshots and sessions.

A check only reads, also beside a running server. A repair first copies what it changes to a folder
`damaged-TIME` in the state folder. It never needs the weights of a model: a snapshot or a session is intact if its
arrays have the digest that was recorded with them.
"""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.runs.files import sync_folder, write_bytes
from ontogeny.runs.folder import locked
from ontogeny.runs.formats import FORMATS, SERVER_DATABASE, check_format
from ontogeny.server import keys, relations, schema
from ontogeny.server.databases.sqlite import DATABASE, OWNER_FILE, OWNER_FOLDER, RECOVERED
from ontogeny.server.learning import journal, snapshots, versions
from ontogeny.server.learning.repair import check_branches, repair_branches
from ontogeny.server.recovery import LOG_SUFFIX, copy_database, recover_database
from ontogeny.server.snapshot_stores import identity
from ontogeny.server.snapshot_stores.base import UnusableSnapshot
from ontogeny.server.states import check_digest, decode_state, read_metadata
from ontogeny.server.store import Store, find_address

MIN_LEFTOVER_AGE = 60.0  # seconds; a younger file may belong to a running server
MAX_PROBLEMS = 5  # of a damaged database that are named
TRANSIENT_TABLES = ("learned_requests", "default_limits")  # the server writes them again
LOST_RECORDS = "the records of the table {} on damaged pages"
SESSION_KINDS = ("agent session", "text session")


class StateFault(NamedTuple):
    """Something that is wrong in a state folder."""

    place: str
    problem: str
    repair: str  # what `repair_state` does about it


class Repair(NamedTuple):
    """What a repair did.

    Attributes:
        copy: The folder with what was there before, or None if nothing was wrong.
        actions: What was done.
        losses: What could not be recovered.
    """

    copy: Path | None
    actions: list[str]
    losses: list[str]


def check_state(folder: Path, database_url: str | None = None, snapshot_url: str | None = None) -> list[StateFault]:
    """Reads a whole state folder, or its database and snapshots elsewhere, and returns what is wrong with it.

    Raises:
        BadInput: The folder holds no state of a server, or one of a format that this version does not read; or the
            database uses another store of snapshots.
    """
    if find_address(folder, database_url) is None:
        _require_state(folder)
        problem = _find_damage(folder / DATABASE)
        if (folder / RECOVERED).exists():
            problem = "its repair was interrupted"
        if problem is not None:
            repair = "the records that can be read are recovered"
            return [StateFault(f"the database '{folder / DATABASE}'", problem, repair)]
    with Store(folder, create=False, read_only=True, database_url=database_url, snapshot_url=snapshot_url) as store:
        identity.check_identity(store.database, store.snapshots)
        faults = [StateFault(*broken) for broken in relations.find_broken(store)]
        for deployment in journal.list_deployments(store):
            faults += _check_versions(store, deployment)
        faults += [
            StateFault(f"the session {id} of '{deployment}'", problem, "the state is set aside and the session deleted")
            for id, deployment, problem in _find_damaged_sessions(store)
        ]
        return faults + list(_find_leftovers(store))


def repair_state(
    folder: Path,
    actor: str,
    database_url: str | None = None,
    snapshot_url: str | None = None,
    *,
    lost_snapshots: bool = False,
) -> Repair:
    """Makes a state folder usable again and says what was done and lost.

    Args:
        folder: The state folder.
        actor: Who repairs it, for the log of decisions.
        database_url: That of `Store`. Of PostgreSQL, records that contradict each other are mended, as in SQLite;
            damaged files are the matter of PostgreSQL and its back-ups.
        snapshot_url: That of `Store`.
        lost_snapshots: Whether to repair although the store has no snapshots, while the database refers to some.

    Raises:
        BadInput: A server works in the folder, or the folder holds no state of a server, or it has no snapshots.
        StorageUnavailable: The disk is full or fails; the repair can be repeated.
    """
    has_file = find_address(folder, database_url) is None
    if has_file:
        _require_state(folder)
    with locked(folder):
        if not check_state(folder, database_url, snapshot_url):
            return Repair(None, [], [])
        if not lost_snapshots and (not has_file or _find_damage(folder / DATABASE) is None):
            _require_snapshots(folder, database_url, snapshot_url)
        copy = _make_copy_folder(folder)
        actions, losses = list[str](), list[str]()
        lost_examples: dict[int, str] = {}
        if not has_file:
            actions.append("the records of the database are not copied; make a back-up of it with pg_dump")
        elif (folder / RECOVERED).exists():
            copy_database(folder / DATABASE, copy)
            _finish_replacement(folder)
            actions.append("the database recovered by an interrupted repair is in use")
        elif _find_damage(folder / DATABASE) is None:
            with contextlib.closing(_connect_read_only(folder / DATABASE)) as source:
                _back_up(source, copy / DATABASE)
        else:
            lost_examples = _replace_database(folder, copy, actions, losses)
        with (
            Store(folder, create=False, database_url=database_url, snapshot_url=snapshot_url) as store,
            store.database.lock_server(exclusive=True),
        ):
            identity.check_identity(store.database, store.snapshots)
            if any(loss == LOST_RECORDS.format("keys") for loss in losses) and not keys.has_keys(store):
                keys.revoke_key(store, keys.create_key(store, "lost keys")[0].id)
                actions.append("no key could be recovered, so every request is refused until you create keys")
            actions += relations.mend(store, lost_examples)
            for deployment in journal.list_deployments(store):
                _repair_versions(store, deployment, actor, copy, actions, losses)
            _set_sessions_aside(store, copy, actions, losses)
            _remove_leftovers(store, copy, actions, keep=bool(lost_examples))
            store.truncate_log()
    return Repair(copy, actions, losses)


def _require_snapshots(folder: Path, database_url: str | None, snapshot_url: str | None) -> None:
    """Raises `BadInput` if no file is in the store, as when another store was meant, although versions have files."""
    with Store(folder, create=False, read_only=True, database_url=database_url, snapshot_url=snapshot_url) as store:
        if next(iter(store.snapshots.list_files()), None) is not None:
            return
        if count := sum(1 for _ in versions.list_snapshots(store)):
            raise BadInput(
                f"{store.snapshots.label} has none of the {count:,} snapshots that versions refer to; name their "
                "store with --snapshot-url or --state-dir, or add --lost-snapshots if they are lost"
            )


def _require_state(folder: Path) -> None:
    """Raises `BadInput` unless a folder holds a database."""
    if not (folder / DATABASE).is_file():
        raise BadInput(f"there is no server database in '{folder}'; name the state folder of a server")


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Opens a database so that nothing is written, not even by the recovery of its log."""
    has_log = path.with_name(path.name + LOG_SUFFIX).exists()
    return sqlite3.connect(f"{path.absolute().as_uri()}?{'mode=ro' if has_log else 'immutable=1'}", uri=True)


def _find_damage(path: Path) -> str | None:
    """Reads a whole database; returns what is wrong with it, or None; a foreign format raises `BadInput`."""
    try:
        with contextlib.closing(_connect_read_only(path)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, *schema.CONVERSIONS, FORMATS[SERVER_DATABASE]):
                check_format(path, SERVER_DATABASE, version)
            tables = {record[0] for record in connection.execute("SELECT name FROM sqlite_master")}
            problems = [record[0] for record in connection.execute("PRAGMA integrity_check")]
    except sqlite3.DatabaseError as error:
        return f"it is damaged: {error}"
    if problems != ["ok"]:
        more = f" and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        return f"it is damaged: {' '.join('; '.join(problems[:MAX_PROBLEMS]).split())}{more}"
    expected = schema.TABLES if version == FORMATS[SERVER_DATABASE] else ("keys", "branches", "examples", "versions")
    absent = sorted(set(expected) - tables)
    return f"it lacks the tables {', '.join(absent)}" if absent else None


def _back_up(source: sqlite3.Connection, path: Path) -> None:
    """Copies a database that can be read, with what is in its log."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, OWNER_FILE))
    with contextlib.closing(sqlite3.connect(path)) as target:
        source.backup(target)


def _make_copy_folder(folder: Path) -> Path:
    """Creates the folder for what was there before."""
    name = datetime.now(UTC).strftime("damaged-%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            (folder / f"{name}{suffix}").mkdir(mode=OWNER_FOLDER)
            return folder / f"{name}{suffix}"
    raise BadInput(f"'{folder / name}' exists")


def _replace_database(folder: Path, copy: Path, actions: list[str], losses: list[str]) -> dict[int, str]:
    """Copies a damaged database and puts what can be recovered in its place; returns the lost examples."""
    copy_database(folder / DATABASE, copy)
    work = copy / "work"
    work.mkdir(mode=OWNER_FOLDER)
    try:
        path = work / RECOVERED
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, OWNER_FILE))
        recovered = recover_database(copy_database(folder / DATABASE, work), path)
        os.replace(path, folder / RECOVERED)
        sync_folder(folder)
    finally:
        shutil.rmtree(work)
    _finish_replacement(folder)
    for table in recovered.tables:
        actions.append(f"table {table.name}: {table.num_records} records recovered")
        if not table.is_complete and table.name not in TRANSIENT_TABLES:
            losses.append(LOST_RECORDS.format(table.name))
    losses += [f"the text of example {number} of '{branch}'" for number, branch in recovered.lost_examples.items()]
    if recovered.num_unknown_examples > 0:
        losses.append(f"{recovered.num_unknown_examples} further examples, of unknown branches")
    return recovered.lost_examples


def _finish_replacement(folder: Path) -> None:
    """Puts the recovered database into the place of the damaged one, whose log must not be applied to it."""
    for suffix in (LOG_SUFFIX, "-shm"):
        (folder / f"{DATABASE}{suffix}").unlink(missing_ok=True)
    sync_folder(folder)
    os.replace(folder / RECOVERED, folder / DATABASE)
    sync_folder(folder)


def _check_versions(store: Store, deployment: str) -> Iterator[StateFault]:
    """The damaged snapshots of a deployment, and the branches that cannot be used without them."""
    for check in check_branches(store, deployment):
        for version, reason in check.damaged:
            place = f"the snapshot '{version.snapshot}' of '{check.branch}'"
            if version.parent is None and version.source_branch is None:
                repair = "the file is set aside; the upload is lost"
            else:
                repair = "the file is set aside; the server learns the examples again"
            yield StateFault(place, reason, repair)
        if not check.is_available:
            problem = "the current version cannot be computed"
            repair = f"version {check.newest_version} becomes current, and the later examples are learned again"
            yield StateFault(f"the branch '{check.branch}'", problem, repair)


def _repair_versions(
    store: Store, deployment: str, actor: str, copy: Path, actions: list[str], losses: list[str]
) -> None:
    """Sets damaged snapshots aside and makes all branches of a deployment usable."""
    for check in check_branches(store, deployment):
        for version, _ in check.damaged:
            _copy_file(store, str(version.snapshot), copy)
            actions.append(f"{check.branch}: snapshot '{version.snapshot}' of version {version.number} set aside")
            if version.parent is None and version.source_branch is None:
                losses.append(f"version {version.number} of '{check.branch}', which was uploaded")
    for check in repair_branches(store, deployment, actor):
        if not check.is_available:
            num_pending = journal.num_pending(store, journal.get_branch(store, check.branch))
            version = f"{check.branch}: version {check.newest_version}"
            actions.append(f"{version} is current; {num_pending} examples will be learned again")


def _find_damaged_sessions(store: Store) -> Iterator[tuple[str, str, str]]:
    """Id, deployment and fault of every session whose state is damaged."""
    for id, deployment in store.execute("SELECT id, deployment FROM sessions ORDER BY id"):
        data = store.select_value("SELECT state FROM sessions WHERE id = ?", id)
        if data is not None and (problem := _find_fault(data)) is not None:
            yield id, deployment, problem


def _find_fault(data: bytes) -> str | None:
    """What is wrong with the state of a session, or None."""
    problems = []
    for kind in SESSION_KINDS:
        try:
            metadata = read_metadata(data, kind, "the state")
            return check_digest(decode_state(data), metadata)
        except BadInput as error:
            problems.append(str(error))
    return problems[-1]


def _set_sessions_aside(store: Store, copy: Path, actions: list[str], losses: list[str]) -> None:
    """Moves damaged states of sessions to files, and deletes the sessions."""
    for id, deployment, _ in list(_find_damaged_sessions(store)):
        state = store.select_value("SELECT state FROM sessions WHERE id = ?", id)
        path = copy / f"session-{id}.safetensors"
        write_bytes(path, state, OWNER_FILE)
        with store.transaction():
            store.execute("DELETE FROM sessions WHERE id = ?", id)
        actions.append(f"session {id} of '{deployment}' set aside as '{path}'")
        losses.append(f"the session {id} of '{deployment}'")


def _copy_file(store: Store, name: str, copy: Path) -> None:
    """Copies a file of the snapshots, as far as it can be read."""
    with contextlib.suppress(UnusableSnapshot):
        write_bytes(copy / name, store.snapshots.fetch(name), OWNER_FILE)


def _list_leftovers(store: Store) -> list[str]:
    """Files that a crash has left; those of a shared store that are younger may be unused without any fault."""
    min_age = 2 * snapshots.MIN_AGE if store.is_shared else MIN_LEFTOVER_AGE
    newest = time.time() - min_age
    files = (file.name for file in store.snapshots.list_files() if file.written_at < newest)
    pages = snapshots.split_pages(files)  # each is compared after it was listed, because files are written first
    return sorted(file for page in pages for file in set(page) - versions.find_used_snapshots(store, page))


def _find_leftovers(store: Store) -> Iterator[StateFault]:
    """The files that a crash has left."""
    for name in _list_leftovers(store):
        path = store.snapshots.path_of(name)
        yield StateFault(f"the file '{path}'", "nothing refers to it", "it is deleted, also by a server")


def _remove_leftovers(store: Store, copy: Path, actions: list[str], *, keep: bool) -> None:
    """Deletes the files that a crash has left; after a loss of records they are moved to the copy."""
    for name in _list_leftovers(store):
        if keep:
            _copy_file(store, name, copy)
        snapshots.delete_files(store, [name])
        actions.append(f"file '{store.snapshots.path_of(name)}' {'set aside' if keep else 'deleted'}")
    snapshots.delete_unused(store)
