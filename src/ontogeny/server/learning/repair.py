"""Checks and repairs the versions of a deployment without its model, for the command line.

A snapshot that is absent or damaged costs time: the server learns the examples of the version again. Only a restored
version whose snapshot is lost cannot be rebuilt. If it is part of the current version, the branch is unavailable until
it is repaired.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ontogeny import trees
from ontogeny.errors import BadInput
from ontogeny.server.learning import branch_changes, journal, versions
from ontogeny.server.learning.snapshots import delete_files
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.snapshot_stores.base import UnusableSnapshot
from ontogeny.server.states import decode_state, read_metadata
from ontogeny.server.store import Store


class BranchCheck(NamedTuple):
    """What is wrong with a branch."""

    branch: str
    damaged: list[tuple[BranchVersion, str]]  # versions whose snapshots are unusable, and why
    is_available: bool  # whether the current version can be computed
    newest_version: int  # the version nearest to the current one that can be computed: itself, or an earlier one


def check_branches(store: Store, deployment: str) -> list[BranchCheck]:
    """Reads the snapshots of all branches of a deployment; returns one result per branch."""
    return [_check_branch(store, branch.branch) for branch in journal.list_branches(store, deployment)]


def repair_branches(store: Store, deployment: str, actor: str) -> list[BranchCheck]:
    """Makes every branch of a deployment usable again.

    Damaged snapshots are deleted, and a branch whose current version cannot be computed returns to the newest version
    that can, from which the later examples are learned again. A running server uses the new state from the next
    request on.

    Args:
        store: The database.
        deployment: The name of the deployment.
        actor: Who repairs it, for the log of decisions.

    Returns:
        What was wrong before.
    """
    checks = check_branches(store, deployment)
    for check in checks:
        if not check.is_available:
            newest = versions.get_version(store, check.branch, check.newest_version)
            branch_changes.move_back(store, newest, f"by {actor}, to repair the branch")
        with store.transaction():
            for version, _ in check.damaged:
                versions.forget_snapshot(store, version)
        delete_files(store, [str(version.snapshot) for version, _ in check.damaged])
    return checks


def find_damage(store: Store, version: BranchVersion) -> str | None:
    """Reads the snapshot of a version; returns what is wrong with it, or None."""
    name = str(version.snapshot)
    try:
        content = store.snapshots.read(name)
        read_metadata(content, "branch", store.snapshots.path_of(name))
        digest = trees.digest(decode_state(content))
    except (UnusableSnapshot, BadInput) as error:
        return str(error)
    return None if digest == version.digest else f"it does not hold version {version.number}"


def _check_branch(store: Store, name: str) -> BranchCheck:
    """Reads the snapshots of one branch, and finds the newest version that can be computed."""
    branch_versions = [version for version in versions.list_versions(store, name) if not version.deleted]
    reasons = [(version, find_damage(store, version)) for version in branch_versions if version.snapshot is not None]
    damaged = [
        (version, reason)
        for version, reason in reasons
        # Otherwise the server has deleted or replaced the file in the meantime.
        if reason is not None and versions.get_version(store, name, version.number).snapshot == version.snapshot
    ]
    unusable = {str(version.snapshot) for version, _ in damaged}
    current = journal.get_branch(store, name).current_version
    candidates = _list_predecessors({version.number: version for version in branch_versions}, current)
    newest = next((version.number for version in candidates if _is_computable(store, version, unusable)), 0)
    return BranchCheck(name, damaged, newest == current, newest)


def _list_predecessors(branch_versions: dict[int, BranchVersion], current: int) -> Iterator[BranchVersion]:
    """A version with its ancestors, then the versions before them, newest first, without those that are deleted."""
    number: int | None = current
    while number is not None:
        current = number
        if number in branch_versions:
            yield branch_versions[number]
        number = branch_versions[number].parent if number in branch_versions else None
    yield from (branch_versions[number] for number in sorted(branch_versions, reverse=True) if number < current)


def _is_computable(store: Store, version: BranchVersion, unusable: set[str]) -> bool:
    """Whether a version can be computed without these snapshots."""
    try:
        with store.read_transaction():
            _, branch_versions = versions.find_base(store, version, unusable)
            examples = [journal.find_example(store, int(learned.example or 0)) for learned in branch_versions]
    except BadInput:
        return False
    return all(example is not None and example.text is not None for example in examples)
