"""The journal of online learning: training examples, versions of the weights, and decisions of the learner.

A branch is one version history of weights that starts at the trained weights. It belongs to one key, or to all keys
if it is shared. Examples have increasing numbers that never change. A version is its parent plus one example;
version 0 is the trained weights. `current_version` is the version that answers requests, and `last_decided` is the
last example that the learner accepted or rejected. A rollback makes another version current. Erasing an example
rolls the branch back to before the example and lets the learner replay the later examples without it. Every change
of the current version other than learning increases `epoch`, so that an update computed before the change is not
committed after it. This module does not depend on how the learner works.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server.store import Store

SHARED = "shared"
MAX_PENDING = 10_000  # examples of one branch
MAX_INTEGER = 2**63  # of SQLite
PENDING = "branch = ? AND number > ? AND NOT deferred AND erased_at IS NULL"  # the condition of an undecided example


class Branch(NamedTuple):
    """One version history of weights."""

    branch: str  # DEPLOYMENT/OWNER
    deployment: str
    owner_key: str  # the id of a key, or "shared"
    trained_digest: str
    learner_digest: str  # of everything that an update depends on
    current_version: int
    last_decided: int
    epoch: int
    frozen: bool


class TrainingExample(NamedTuple):
    """A text in the journal of a branch."""

    number: int
    branch: str
    key: str
    text: str | None  # None once it is erased
    deferred: bool  # a rollback took it out of use
    erased_at: float | None
    created_at: float


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


class LearningDecision(NamedTuple):
    """An entry of the log of a branch."""

    number: int
    branch: str
    kind: str  # learned, rejected, rollback, erased, restored, freeze, unfreeze
    example: int | None
    version: int | None
    held_out_loss: float | None
    reason: str
    created_at: float


class JournalFull(Exception):
    """The branch has too many undecided examples to accept another one."""


def open_branch(
    store: Store, deployment: str, owner_key: str, trained_digest: str, learner_digest: str, held_out_loss: float
) -> Branch:
    """Returns a branch, which is created if it does not exist.

    Raises:
        BadInput: The branch was learned from other weights or with another learner.
    """
    name = f"{deployment}/{owner_key}"
    with store.transaction():
        branch = _find_branch(store, name)
        if branch is None:
            query = "SELECT coalesce(max(frozen), 0) FROM branches WHERE deployment = ?"
            frozen = store.select_value(query, deployment)  # a new branch is frozen if the others are
            branch = Branch(name, deployment, owner_key, trained_digest, learner_digest, 0, 0, 0, bool(frozen))
            store.insert("branches", branch)
            _add_version(store, name, 0, trained_digest, held_out_loss)
    if branch.trained_digest != trained_digest:
        raise BadInput(
            f"'{deployment}' was learned from weights {branch.trained_digest[:16]}, but the model has weights "
            f"{trained_digest[:16]}: serve it under another name or with another --state-dir"
        )
    if branch.learner_digest != learner_digest:
        raise BadInput(
            f"'{deployment}' was learned with other settings, texts or versions, so its weights could not be rebuilt: "
            "use the same ones, or serve it under another name or with another --state-dir"
        )
    return branch


def get_branch(store: Store, name: str) -> Branch:
    """Returns the branch of this name; raises `BadInput` if there is none."""
    branch = _find_branch(store, name)
    if branch is None:
        raise BadInput(f"there is no branch '{name}'")
    return branch


def list_branches(store: Store, deployment: str) -> list[Branch]:
    """Returns the branches of a deployment by name."""
    query = "SELECT * FROM branches WHERE deployment = ? ORDER BY branch"
    return store.select(Branch, query, deployment)


def list_deployments(store: Store) -> list[str]:
    """Returns the names of all deployments that have branches."""
    return store.select_values("SELECT DISTINCT deployment FROM branches ORDER BY deployment")


def add_example(store: Store, branch: str, key: str, text: str) -> int | None:
    """Writes an example to the journal.

    Returns:
        The number of the example once it is on disk, or None if the branch is frozen.

    Raises:
        JournalFull: The branch has `MAX_PENDING` undecided examples.
    """
    with store.transaction():
        state = get_branch(store, branch)
        if state.frozen:
            return None
        if num_pending(store, state) >= MAX_PENDING:
            raise JournalFull
        query = "INSERT INTO examples (branch, key, text, created_at) VALUES (?, ?, ?, ?)"
        return store.execute(query, branch, key, text, time.time()).lastrowid


def next_example(store: Store, branch: Branch) -> TrainingExample | None:
    """Returns the first undecided example."""
    query = f"SELECT * FROM examples WHERE {PENDING} ORDER BY number LIMIT 1"
    return store.select_one(TrainingExample, query, branch.branch, branch.last_decided)


def num_pending(store: Store, branch: Branch) -> int:
    """The number of undecided examples."""
    query = f"SELECT count(*) FROM examples WHERE {PENDING}"
    return store.select_value(query, branch.branch, branch.last_decided)


def find_example(store: Store, number: int) -> TrainingExample | None:
    """Returns the example of this number, or None."""
    return store.select_one(TrainingExample, "SELECT * FROM examples WHERE number = ?", number)


def list_examples(store: Store, branch: str) -> list[TrainingExample]:
    """Returns the examples of a branch by number, erased ones included."""
    query = "SELECT * FROM examples WHERE branch = ? ORDER BY number"
    return store.select(TrainingExample, query, branch)


def get_version(store: Store, branch: str, number: int) -> BranchVersion:
    """Returns a version; raises `BadInput` if there is none of this number."""
    query = "SELECT * FROM versions WHERE branch = ? AND number = ?"
    version = store.select_one(BranchVersion, query, branch, number) if 0 <= number < MAX_INTEGER else None
    if version is None:
        newest = _next_version(store, branch) - 1
        raise BadInput(f"the branch '{branch}' has no version {number}; its versions are 0 to {newest}")
    return version


def list_versions(store: Store, branch: str) -> list[BranchVersion]:
    """Returns the versions of a branch by number, deleted ones included."""
    return store.select(BranchVersion, "SELECT * FROM versions WHERE branch = ? ORDER BY number", branch)


def version_path(store: Store, branch: str, number: int) -> list[BranchVersion]:
    """Returns the versions that lead to this one, from the nearest snapshot or version 0 on."""
    path = [get_version(store, branch, number)]
    while path[-1].snapshot is None and path[-1].parent is not None:
        path.append(get_version(store, branch, path[-1].parent))
    return path[::-1]


def list_decisions(store: Store, deployment: str) -> list[LearningDecision]:
    """Returns the decisions about all branches of a deployment, oldest first."""
    query = "SELECT decisions.* FROM decisions JOIN branches USING (branch) WHERE deployment = ? ORDER BY number"
    return store.select(LearningDecision, query, deployment)


def list_recent_decisions(store: Store, branch: str, max_decisions: int) -> list[LearningDecision]:
    """Returns the last decisions about a branch, newest first."""
    query = "SELECT * FROM decisions WHERE branch = ? ORDER BY number DESC LIMIT ?"
    return store.select(LearningDecision, query, branch, max_decisions)


def num_decisions(store: Store, deployment: str) -> int:
    """The number of decisions about all branches of a deployment."""
    query = "SELECT count(*) FROM decisions JOIN branches USING (branch) WHERE deployment = ?"
    return store.select_value(query, deployment)


def commit_version(
    store: Store, branch: Branch, example: int, digest: str, held_out_loss: float, weight_distance: float, reason: str
) -> BranchVersion | None:
    """Makes a new version, learned from this example, the current one.

    Returns:
        The version, or None (and nothing is changed) if the branch differs from `branch` by now.
    """
    with store.transaction():
        if _find_branch(store, branch.branch) != branch:
            return None
        parent = get_version(store, branch.branch, branch.current_version)
        number = _next_version(store, branch.branch)
        version = _add_version(store, branch.branch, number, digest, held_out_loss, weight_distance, parent, example)
        query = "UPDATE branches SET current_version = ?, last_decided = ? WHERE branch = ?"
        store.execute(query, number, example, branch.branch)
        _log(store, branch.branch, "learned", example, number, held_out_loss, reason)
    return version


def reject_example(store: Store, branch: Branch, example: int, held_out_loss: float | None, reason: str) -> bool:
    """Records that this example is not learned; returns False, and changes nothing, if the branch differs by now."""
    with store.transaction():
        if _find_branch(store, branch.branch) != branch:
            return False
        store.execute("UPDATE branches SET last_decided = ? WHERE branch = ?", example, branch.branch)
        _log(store, branch.branch, "rejected", example, None, held_out_loss, reason)
    return True


def set_snapshot(store: Store, branch: str, number: int, file: str | None) -> None:
    """Records the file that holds a version, or None for no file."""
    with store.transaction():
        store.execute("UPDATE versions SET snapshot = ? WHERE branch = ? AND number = ?", file, branch, number)


def delete_unused_snapshots(store: Store, files: Iterable[str] | None = None) -> None:
    """Deletes those of these files, or of all files in the snapshot folder, that no version refers to.

    All files may be examined only while no snapshot is being written; this removes the remains of a crash.
    """
    candidates = [path.name for path in store.snapshots.iterdir()] if files is None else files
    used = set(store.select_values("SELECT DISTINCT snapshot FROM versions WHERE snapshot IS NOT NULL"))
    for file in set(candidates) - used:
        (store.snapshots / file).unlink(missing_ok=True)


def set_frozen(store: Store, deployment: str, frozen: bool, actor: str) -> list[str]:
    """Stops or resumes learning in every branch of a deployment; returns the names of the branches."""
    with store.transaction():
        names = [branch.branch for branch in list_branches(store, deployment)]
        for name in names:
            store.execute("UPDATE branches SET frozen = ?, epoch = epoch + 1 WHERE branch = ?", frozen, name)
            _log(store, name, "freeze" if frozen else "unfreeze", None, None, None, f"by {actor}")
    return names


def rollback(store: Store, branch: str, number: int, actor: str) -> BranchVersion:
    """Makes an earlier version current, from which learning continues. Later examples are deferred: not learned again.

    Raises:
        BadInput: There is no such version, or it was learned from an example that was erased.
    """
    with store.transaction():
        version = get_version(store, branch, number)
        if version.deleted:
            raise BadInput(f"version {number} of '{branch}' was learned from an example that was erased")
        _set_current(store, version)
        _log(store, branch, "rollback", None, number, version.held_out_loss, f"by {actor}")
    return version


def restore_version(
    store: Store, branch: Branch, digest: str, held_out_loss: float, weight_distance: float, file: str, actor: str
) -> BranchVersion | None:
    """Makes uploaded weights, which the snapshot `file` holds, a new version without a parent, and makes it current.

    Weights that were learned on this server are recognized by their digest. Their examples are recorded as inherited,
    so that erasing one of them reaches this version too.

    Returns:
        The version, or None (and nothing is changed) if the branch differs from `branch` by now.

    Raises:
        BadInput: The weights were learned from an example that was erased.
    """
    with store.transaction():
        if _find_branch(store, branch.branch) != branch:
            return None
        query = (
            "SELECT versions.* FROM versions JOIN branches USING (branch) WHERE deployment = ? AND digest = ? "
            "ORDER BY deleted LIMIT 1"
        )
        source = store.select_one(BranchVersion, query, branch.deployment, digest)
        if source is not None and source.deleted:
            raise BadInput("this state was learned from an example that was erased")
        number = _next_version(store, branch.branch)
        version = _add_version(store, branch.branch, number, digest, held_out_loss, weight_distance, snapshot=file)
        for example in set[int]() if source is None else set.union(*_examples_of(store, source)):
            store.insert("inherited_examples", (branch.branch, number, example))
        _set_current(store, version)
        _log(store, branch.branch, "restored", None, number, held_out_loss, f"by {actor}")
    return version


def erase_example(store: Store, number: int, actor: str) -> None:
    """Deletes the text of an example and every version that was learned from it, with its snapshots.

    The branch of the example, and every branch into which such a version was restored, returns to a version before
    the example at once. The learner then replays the later examples. Raises `BadInput` for an unknown example.
    """
    with store.transaction():
        example = find_example(store, number)
        if example is None or example.erased_at is not None:
            raise BadInput(f"there is no example {number}")
        store.execute("UPDATE examples SET text = NULL, erased_at = ? WHERE number = ?", time.time(), number)
        query = "SELECT DISTINCT branch FROM inherited_examples WHERE example = ?"
        names = {example.branch, *store.select_values(query, number)}
        files = [file for name in sorted(names) for file in _remove_example(store, name, number, actor)]
    store.truncate_log()
    delete_unused_snapshots(store, files)


def _remove_example(store: Store, branch: str, number: int, actor: str) -> list[str]:
    """Deletes the versions of one branch that were learned from an example; returns their snapshots."""
    versions = {version.number: version for version in list_versions(store, branch)}
    query = "SELECT version FROM inherited_examples WHERE branch = ? AND example = ?"
    affected = set(store.select_values(query, branch, number))
    for version in versions.values():  # parents come before their children
        if version.example == number or version.parent in affected:
            affected.add(version.number)
    for version in affected:
        query = "UPDATE versions SET deleted = 1, snapshot = NULL WHERE branch = ? AND number = ?"
        store.execute(query, branch, version)
    state = get_branch(store, branch)
    current, last_decided = versions[state.current_version], state.last_decided
    reason = "it was not part of the current version"
    while current.number in affected:
        # Later examples become undecided again unless a rollback deferred them; earlier rejections stand.
        last_decided, reason = number, "replayed from here"
        if current.parent is None:  # an uploaded version: the branch's own examples that were part of it count again
            inherited = "SELECT example FROM inherited_examples WHERE branch = examples.branch AND version = ?"
            query = f"UPDATE examples SET deferred = 0 WHERE branch = ? AND number IN ({inherited})"
            store.execute(query, branch, current.number)
            last_decided = 0
        current = versions[current.parent or 0]
    _move_branch(store, branch, current.number, last_decided)
    _log(store, branch, "erased", number, current.number, current.held_out_loss, f"by {actor}; {reason}")
    return [file for version in affected if (file := versions[version].snapshot) is not None]


def _find_branch(store: Store, name: str) -> Branch | None:
    """Returns the branch of this name, or None."""
    return store.select_one(Branch, "SELECT * FROM branches WHERE branch = ?", name)


def _next_version(store: Store, branch: str) -> int:
    """The number of the next version of a branch."""
    return store.select_value("SELECT coalesce(max(number) + 1, 0) FROM versions WHERE branch = ?", branch)


def _add_version(
    store: Store,
    branch: str,
    number: int,
    digest: str,
    held_out_loss: float,
    weight_distance: float = 0.0,
    parent: BranchVersion | None = None,
    example: int | None = None,
    snapshot: str | None = None,
) -> BranchVersion:
    """Adds a version that was learned from its parent and one example, or that has neither."""
    first = example if parent is None or parent.first_example is None else parent.first_example
    parent_number = None if parent is None else parent.number
    version = BranchVersion(
        branch, number, parent_number, example, first, example, digest, held_out_loss, weight_distance, snapshot, False,
        time.time(),
    )  # fmt: skip
    store.insert("versions", version)
    return version


def _set_current(store: Store, version: BranchVersion) -> None:
    """Makes a version current: every example so far counts as decided, and those outside the version are deferred."""
    branch = version.branch
    store.execute("UPDATE examples SET deferred = 1 WHERE branch = ?", branch)
    for example in _examples_of(store, version)[0]:
        store.execute("UPDATE examples SET deferred = 0 WHERE number = ?", example)
    newest = store.select_value("SELECT coalesce(max(number), 0) FROM examples WHERE branch = ?", branch)
    _move_branch(store, branch, version.number, newest)


def _move_branch(store: Store, branch: str, current_version: int, last_decided: int) -> None:
    """Changes the current version otherwise than by learning."""
    query = "UPDATE branches SET current_version = ?, last_decided = ?, epoch = epoch + 1 WHERE branch = ?"
    store.execute(query, current_version, last_decided, branch)


def _examples_of(store: Store, version: BranchVersion) -> tuple[set[int], set[int]]:
    """The examples that a version was learned from: those of its branch, and those inherited by an upload."""
    examples: set[int] = set()
    while version.parent is not None:
        assert version.example is not None
        examples.add(version.example)
        version = get_version(store, version.branch, version.parent)
    query = "SELECT example FROM inherited_examples WHERE branch = ? AND version = ?"
    return examples, set(store.select_values(query, version.branch, version.number))


def _log(store: Store, branch: str, kind: str, *outcome: int | float | str | None) -> None:
    """Adds a decision; `outcome` is its example, version, held-out loss and reason."""
    columns = "branch, kind, example, version, held_out_loss, reason, created_at"
    query = f"INSERT INTO decisions ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)"
    store.execute(query, branch, kind, *outcome, time.time())
