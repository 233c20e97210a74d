"""The versions of the weights of branches: their records, what they were learned from, and the files that hold them.

A version is its parent plus one example; version 0 is the trained weights, and a restored version has no parent. The
module reads and writes records only: `journal` decides which version is current, and `snapshots` reads and writes the
files. It does not depend on how the learner works.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server.databases.base import Statement
from ontogeny.server.store import Store

MAX_INTEGER = 2**63  # of SQLite
PAGE_SIZE = 1000  # records of one statement


class BranchVersion(NamedTuple):
    """One version of the weights of a branch."""

    branch: str
    number: int
    parent: int | None
    example: int | None  # learned in addition to the parent's examples
    first_example: int | None  # the range of examples that the version was learned from
    last_example: int | None
    digest: str
    held_out_loss: float  # nats per token
    weight_distance: float  # from the trained weights, relative to their norm
    snapshot: str | None  # file name
    deleted: bool  # it was learned from an example that was erased
    created_at: float
    source_branch: str | None = None  # of a restored version: the version with the same weights, if it is known
    source_version: int | None = None
    root_version: int = 0  # the version without a parent from which it descends: 0, or a restored version
    steps: str | None = None  # of `partial_steps`, as JSON; None if all of the example was learned as a whole
    computed_by: str | None = None  # processor and packages on which the bits of the weights depend


ADD_LEARNED_VERSION = (
    f"INSERT INTO versions ({', '.join(BranchVersion._fields)}) "
    "SELECT branches.branch, current_version, parent.number, ?, coalesce(parent.first_example, ?), ?, ?, ?, ?, NULL, "
    "FALSE, ?, NULL, NULL, parent.root_version, ?, ? "
    "FROM branches JOIN versions AS parent ON parent.branch = branches.branch "
    "WHERE branches.branch = ? AND parent.number = ? ON CONFLICT DO NOTHING RETURNING *"
)


def get_version(store: Store, branch: str, number: int) -> BranchVersion:
    """Returns a version; raises `BadInput` if there is none of this number."""
    query = "SELECT * FROM versions WHERE branch = ? AND number = ?"
    version = store.select_one(BranchVersion, query, branch, number) if 0 <= number < MAX_INTEGER else None
    if version is None:
        newest = next_version(store, branch) - 1
        raise BadInput(f"the branch '{branch}' has no version {number}; its versions are 0 to {newest}")
    return version


def list_versions(store: Store, branch: str) -> list[BranchVersion]:
    """Returns the versions of a branch by number, deleted ones included."""
    return store.select(BranchVersion, "SELECT * FROM versions WHERE branch = ? ORDER BY number", branch)


def list_computations(store: Store, branch: str, first: int, last: int) -> list[str]:
    """Returns what the versions of a branch from `first` to `last` were computed by, as far as it is recorded."""
    query = "SELECT DISTINCT computed_by FROM versions WHERE branch = ? AND number BETWEEN ? AND ? ORDER BY computed_by"
    return [recorded for recorded in store.select_values(query, branch, first, last) if recorded is not None]


def count_current_computations(store: Store, deployment: str) -> dict[str, int]:
    """Returns what the current versions of a deployment were computed by, with the number of branches."""
    query = (
        "SELECT computed_by, count(*) FROM branches JOIN versions ON versions.branch = branches.branch "
        "AND versions.number = current_version WHERE deployment = ? AND computed_by IS NOT NULL "
        "GROUP BY computed_by ORDER BY computed_by"
    )
    return {recorded: count for recorded, count in store.execute(query, deployment)}


def next_version(store: Store, branch: str) -> int:
    """The number of the next version of a branch."""
    return store.select_value("SELECT coalesce(max(number) + 1, 0) FROM versions WHERE branch = ?", branch)


def add_version(
    store: Store,
    branch: str,
    number: int,
    digest: str,
    held_out_loss: float,
    weight_distance: float = 0.0,
    parent: BranchVersion | None = None,
    example: int | None = None,
    snapshot: str | None = None,
    source: BranchVersion | None = None,
    steps: str | None = None,
    computed_by: str | None = None,
) -> BranchVersion:
    """Adds a version that was learned from its parent and one example, or that has neither."""
    first = example if parent is None or parent.first_example is None else parent.first_example
    parent_number = None if parent is None else parent.number
    version = BranchVersion(
        branch, number, parent_number, example, first, example, digest, held_out_loss, weight_distance, snapshot, False,
        time.time(), None if source is None else source.branch, None if source is None else source.number,
        number if parent is None else parent.root_version, steps, computed_by,
    )  # fmt: skip
    store.insert("versions", version)
    return version


def learned_version(
    branch: str,
    parent: int,
    example: int,
    digest: str,
    held_out_loss: float,
    weight_distance: float,
    steps: str | None,
    computed_by: str | None,
) -> Statement:
    """The statement that adds a version, learned from its parent and one example, and returns it.

    The number of the version is the `current_version` that its branch has by then; no version is added if there is one.
    """
    parameters = (
        example, example, example, digest, held_out_loss, weight_distance, time.time(), steps, computed_by, branch,
        parent,
    )  # fmt: skip
    return Statement(ADD_LEARNED_VERSION, parameters)


def find_base(
    store: Store, version: BranchVersion, unusable: Collection[str]
) -> tuple[BranchVersion, list[BranchVersion]]:
    """Finds the nearest version from which the weights of a version can be computed.

    A restored version without a usable snapshot is computed like the version that was exported. Must be called in a
    transaction.

    Returns:
        The version to begin with, which is version 0 or has a snapshot, and the versions whose examples are to be
        learned after it, in order.

    Raises:
        BadInput: A restored version has no usable snapshot, and the version that was exported is unknown or deleted.
    """
    base, versions = version, list[BranchVersion]()
    while base.number and (base.snapshot is None or base.snapshot in unusable):
        source = find_source(store, base)
        if base.parent is not None and base.example is not None:
            versions.append(base)
            base = get_version(store, base.branch, base.parent)
        elif source is not None and not source.deleted:
            base = source
        else:
            raise BadInput(
                f"version {base.number} of '{base.branch}' was restored from an export, so it cannot be learned again, "
                f"and its snapshot '{base.snapshot}' is absent or damaged"
            )
    return base, versions[::-1]


def find_source(store: Store, version: BranchVersion) -> BranchVersion | None:
    """Returns the version from which a restored version was exported, or None if it is unknown."""
    if version.source_branch is None or version.source_version is None:
        return None
    return get_version(store, version.source_branch, version.source_version)


def describe_version(store: Store, version: BranchVersion) -> str:
    """Says in words what a version was learned from."""
    first = version.first_example
    last = version.last_example
    learned = "" if first is None else f"example {first}" if first == last else f"examples {first} to {last}"
    if not version.root_version:
        return learned or "the trained weights"
    query = "SELECT * FROM versions WHERE branch = ? AND number = ?"
    root = store.select_one(BranchVersion, query, version.branch, version.root_version)
    origin = "restored" if root is None else _describe_root(root)  # a damaged database may have lost the root
    return f"{origin}, then {learned}" if learned else origin


def _describe_root(version: BranchVersion) -> str:
    """Says where the weights of a restored version come from."""
    if version.source_branch is None:
        return "restored from an export"
    if version.source_branch == version.branch:
        return f"restored from an export of version {version.source_version}"
    return f"forked from version {version.source_version} of key {version.source_branch.rpartition('/')[2]}"


def list_digests(store: Store, deployment: str, *, deleted: bool) -> set[str]:
    """Returns the digests of the versions of a deployment that are deleted, or of those that are not."""
    query = "SELECT DISTINCT digest FROM versions JOIN branches USING (branch) WHERE deployment = ? AND deleted = ?"
    return set(store.select_values(query, deployment, deleted))


def add_snapshot(
    store: Store, version: BranchVersion, file: str, max_snapshots: int, confirm: Callable[[], None] = lambda: None
) -> list[str]:
    """Records the file that holds a version.

    Args:
        store: The database.
        version: What the file holds; it has no snapshot yet.
        file: The name of the file.
        max_snapshots: Per branch.
        confirm: Called in the transaction; raises `SnapshotExpired` if the file may be deleted.

    Returns:
        Files that may be deleted: the oldest surplus snapshots of the branch, or `file` itself if the version has
        been deleted or has a snapshot.
    """
    condition = "WHERE branch = ? AND number = ? AND NOT deleted AND snapshot IS NULL"
    with store.transaction(version.branch):
        name = version.branch
        if not store.execute(f"UPDATE versions SET snapshot = ? {condition}", file, name, version.number).rowcount:
            return [file]
        confirm()
        return forget_surplus_snapshots(store, version, max_snapshots)


def forget_surplus_snapshots(store: Store, newest: BranchVersion, max_snapshots: int) -> list[str]:
    """Records that the oldest surplus snapshots of a branch are no longer used, and returns their files.

    Versions that were uploaded from elsewhere keep their snapshots, because they cannot be computed without them. Must
    be called in a transaction.

    Args:
        store: The database.
        newest: The version whose snapshot was added last.
        max_snapshots: How many are kept, beside that of the current version.
    """
    query = (
        f"SELECT versions.* FROM branches {store.database.ordered_join} versions "
        f"{store.database.index_hint('versions_with_snapshot')} USING (branch) "
        "WHERE branch = ? AND snapshot IS NOT NULL AND NOT deleted AND "
        "(parent IS NOT NULL OR source_branch IS NOT NULL) AND number != current_version AND number != ? "
        "ORDER BY number DESC"
    )
    surplus = store.select(BranchVersion, query, newest.branch, newest.number)[max_snapshots - 1 :]
    for old in surplus:
        forget_snapshot(store, old)
    return [str(old.snapshot) for old in surplus]


def forget_snapshot(store: Store, version: BranchVersion) -> None:
    """Records that the file of a version is no longer used; must be called in a transaction."""
    query = "UPDATE versions SET snapshot = NULL WHERE branch = ? AND number = ? AND snapshot = ?"
    store.execute(query, version.branch, version.number, version.snapshot)


def find_snapshot(store: Store, branches: Collection[str], content: str) -> BranchVersion | None:
    """Returns a version of one of these branches whose file has this content, or None.

    Args:
        store: The database.
        branches: The names of branches.
        content: The part of the name of the file that depends on the content.
    """
    hint = store.database.index_hint("versions_with_snapshot")
    query = f"SELECT * FROM versions {hint} WHERE branch = ? AND snapshot IS NOT NULL AND NOT deleted"
    versions = (version for branch in branches for version in store.select(BranchVersion, query, branch))
    return next((version for version in versions if str(version.snapshot).startswith(f"{content}-")), None)


def uses_snapshot(store: Store, version: BranchVersion) -> bool:
    """Whether a version still has its file, and keeps it until the current transaction ends."""
    query = "SELECT 1 FROM versions WHERE branch = ? AND number = ? AND snapshot = ? AND NOT deleted"
    parameters = (version.branch, version.number, version.snapshot)
    return store.select_value(f"{query} {store.database.share_lock}", *parameters) is not None


def list_snapshots(store: Store) -> Iterator[str]:
    """The files that hold versions which are not deleted, by name, read in pages."""
    query = "SELECT DISTINCT snapshot FROM versions WHERE snapshot > ? AND NOT deleted ORDER BY snapshot LIMIT ?"
    page = [""]
    while page:
        page = store.select_values(query, page[-1], PAGE_SIZE)
        yield from page


def find_used_snapshots(store: Store, files: Sequence[str]) -> set[str]:
    """Returns those of some files that hold versions which are not deleted."""
    parameters = ", ".join("?" * len(files))
    query = f"SELECT DISTINCT snapshot FROM versions WHERE snapshot IN ({parameters}) AND NOT deleted"
    return set(store.select_values(query, *files))
