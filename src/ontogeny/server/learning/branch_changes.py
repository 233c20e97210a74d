"""Changes of the branches of online learning other than learning itself: rollback, restoring, freezing and erasure.

A rollback makes another version current. Erasing an example rolls the branch back to before the example and lets the
learner replay the later examples without it. Each change is one transaction and increases the `epoch` of the branch.
"""

import time
from collections.abc import Callable, Iterable

from ontogeny.errors import BadInput
from ontogeny.server import quotas
from ontogeny.server.learning import journal, repeats, text_scores, versions
from ontogeny.server.learning.journal import TrainingExample
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store

# The versions that lead to a version and their examples, for queries; the parameters are branch, number and branch.
PATH = (
    "WITH RECURSIVE path (parent, example) AS (SELECT parent, example FROM versions WHERE branch = ? AND number = ? "
    "AND example IS NOT NULL UNION ALL SELECT versions.parent, versions.example FROM path JOIN versions "
    "ON number = path.parent WHERE branch = ? AND versions.example IS NOT NULL) "
)


class ErasedSource(BadInput):
    """The uploaded weights were learned from an example that was erased."""


def set_frozen(store: Store, deployment: str, frozen: bool, actor: str) -> list[str]:
    """Stops or resumes learning in every branch of a deployment; returns the names of the branches."""
    with store.transaction():
        names = [branch.branch for branch in journal.list_branches(store, deployment)]
        for name in names:
            store.execute("UPDATE branches SET frozen = ?, epoch = epoch + 1 WHERE branch = ?", frozen, name)
            journal.log_decision(store, name, "freeze" if frozen else "unfreeze", None, None, None, f"by {actor}")
    return names


class ChangeRepeated(Exception):
    """A request repeats an earlier one, which has made a version current; nothing was changed.

    Args:
        version: That version.
    """

    def __init__(self, version: BranchVersion) -> None:
        super().__init__(f"version {version.number} is current by an earlier request")
        self.version = version


def rollback(
    store: Store,
    branch: str,
    number: int,
    actor: str,
    fence: int | None = None,
    request: RequestIdentity | None = None,
) -> BranchVersion:
    """Makes an earlier version current, from which learning continues. Later examples are deferred: not learned again.

    Args:
        store: The database.
        branch: The version history that is changed.
        number: The version that becomes current.
        actor: Who wants it, for the log of decisions.
        fence: See `journal.add_example`.
        request: The request of the key `actor`, if it has an idempotency key; it takes effect once.

    Raises:
        BadInput: There is no such version, or it was learned from an example that was erased.
        BranchLost: The branch has another fence by now.
        IdempotencyKeyReused: The idempotency key belongs to another request.
    """
    with store.transaction():
        version = versions.get_version(store, branch, number)
        if request is not None and repeats.find_record(store, actor, request) is not None:
            return version
        if version.deleted:
            raise _erased(version)
        _set_current(store, version, fence)
        if request is not None:
            repeats.add_record(store, actor, request, None)
        journal.log_decision(store, branch, "rollback", None, number, version.held_out_loss, f"by {actor}")
    return version


def move_back(store: Store, version: BranchVersion, reason: str) -> int:
    """Makes a version current, as where the present one is lost; the later examples become undecided again.

    Examples that a rollback deferred stay deferred.

    Args:
        store: The database.
        version: One that can be computed.
        reason: For the log of decisions.

    Returns:
        How many examples will be learned again.

    Raises:
        BadInput: The version was learned from an example that has been erased.
    """
    branch = version.branch
    with store.transaction():
        if versions.get_version(store, branch, version.number).deleted:
            raise _erased(version)
        last_decided = version.example or 0
        if version.number and version.parent is None:  # restored when all examples of that time had been decided
            query = "SELECT coalesce(max(number), 0) FROM examples WHERE branch = ? AND created_at <= ?"
            last_decided = store.select_value(query, branch, version.created_at)
        _move_branch(store, branch, version.number, last_decided)
        reason = f"{reason}; the examples after number {last_decided} are learned again"
        journal.log_decision(store, branch, "rollback", None, version.number, version.held_out_loss, reason)
        return journal.num_pending(store, journal.get_branch(store, branch))


def restore_version(
    store: Store,
    name: str,
    digest: str,
    held_out_loss: float,
    weight_distance: float,
    file: str,
    actor: str,
    *,
    source_digest: str,
    exported_from: tuple[str, int] | None = None,
    is_fork: bool = False,
    fence: int | None = None,
    confirm: Callable[[], None] = lambda: None,
    request: RequestIdentity | None = None,
) -> BranchVersion:
    """Makes uploaded weights a new version without a parent, and makes it current.

    Weights that were learned on this server are recognized by their digest. Their examples are recorded as inherited,
    so that erasing one of them reaches this version too.

    Args:
        store: The database.
        name: The branch.
        digest: The digest of the uploaded weights.
        held_out_loss: Nats per token on held-out text.
        weight_distance: From the trained weights, relative to their norm.
        file: The snapshot that holds the weights.
        actor: Who restores them.
        source_digest: The digest that the version from which the weights were exported has.
        exported_from: The branch and version that the upload names as its origin; several can have equal weights.
        is_fork: Whether the weights come from another branch of this server instead of from an upload.
        fence: See `journal.add_example`.
        confirm: See `versions.add_snapshot`.
        request: See `rollback`.

    Raises:
        BranchLost: The branch has another fence by now.
        ChangeRepeated: An equal request has been carried out.
        ErasedSource: The weights were learned from an example that was erased.
        QuotaExceeded: The key of the branch may not store the weights.
    """
    with store.transaction():
        refuse_repetition(store, name, actor, request)
        source = _recognize(store, journal.get_branch(store, name).deployment, source_digest, exported_from)
        if source is not None and source.deleted:
            raise ErasedSource("this state was learned from an example that was erased")
        number = versions.next_version(store, name)
        version = versions.add_version(
            store, name, number, digest, held_out_loss, weight_distance, snapshot=file, source=source
        )
        confirm()
        quotas.check(store, journal.get_branch(store, name).owner_key, "stored_bytes")
        if source is not None:
            _inherit_examples(store, source, name, number)
        _set_current(store, version, fence)
        if request is not None:
            repeats.add_record(store, actor, request, -number)
        kind = "forked" if is_fork else "restored"
        journal.log_decision(
            store, name, kind, None, number, held_out_loss, f"by {actor}; {versions.describe_version(store, version)}"
        )
    return version


def refuse_repetition(store: Store, branch: str, key: str, request: RequestIdentity | None) -> None:
    """Raises `ChangeRepeated` if a request to restore or fork repeats one that has been carried out.

    Args:
        store: The database.
        branch: The branch that gets the weights.
        key: The key that sent the request.
        request: The request, if it has an idempotency key.
    """
    record = None if request is None else repeats.find_record(store, key, request)
    if record is not None:
        raise ChangeRepeated(versions.get_version(store, branch, -(record.example or 0)))


def _recognize(
    store: Store, deployment: str, digest: str, exported_from: tuple[str, int] | None
) -> BranchVersion | None:
    """Returns the version of a deployment that uploaded weights were exported from, or None.

    Several versions can have the same weights. The one that the upload names comes first, then those that are not
    deleted.
    """
    branch, number = exported_from or ("", 0)
    query = (
        "SELECT versions.* FROM versions JOIN branches USING (branch) WHERE deployment = ? AND digest = ? "
        "ORDER BY (branch = ? AND number = ?) DESC, deleted, branch, number LIMIT 1"
    )
    return store.select_one(BranchVersion, query, deployment, digest, branch, number)


def erase_example(store: Store, number: int, actor: str) -> None:
    """Deletes the text of an example and every version that was learned from it.

    The branch of the example, and every branch into which such a version was restored, returns to a version before
    the example at once. The learner then replays the later examples. The erasure is unfinished until the snapshots
    are deleted and the write-ahead log is empty; see `list_unfinished_erasures`. Raises `BadInput` for an unknown
    example.
    """
    with store.transaction():
        example = journal.find_example(store, number)
        if example is None or example.erased_at is not None:
            raise BadInput(f"there is no example {number}")
        store.execute("UPDATE examples SET text = NULL, erased_at = ? WHERE number = ?", time.time(), number)
        text_scores.erase_score(store, number)
        for name in sorted(list_branches_with(store, example)):
            _remove_example(store, name, number, actor)
        store.insert("unfinished_erasures", (number,))


def list_branches_with(store: Store, example: TrainingExample) -> set[str]:
    """Returns the branches whose versions may have been learned from an example: its own, and those that inherit it."""
    query = "SELECT DISTINCT branch FROM inherited_examples WHERE example = ?"
    return {example.branch, *store.select_values(query, example.number)}


def list_unfinished_erasures(store: Store, deployment: str) -> list[TrainingExample]:
    """Returns the erased examples of a deployment of which caches, snapshots or the log may still hold something."""
    query = (
        "SELECT examples.* FROM unfinished_erasures JOIN examples ON example = number JOIN branches USING (branch) "
        "WHERE deployment = ?"
    )
    return store.select(TrainingExample, query, deployment)


def list_erased_snapshots(store: Store) -> list[BranchVersion]:
    """Returns the deleted versions of all deployments whose snapshots may still exist."""
    return store.select(BranchVersion, "SELECT * FROM versions WHERE deleted AND snapshot IS NOT NULL")


def finish_erasures(
    store: Store, examples: Iterable[TrainingExample], erased_versions: Iterable[BranchVersion] = ()
) -> None:
    """Records that nothing is left of erased examples, and that the snapshots of these versions are deleted."""
    with store.transaction():
        for version in erased_versions:
            versions.forget_snapshot(store, version)
        for example in examples:
            store.execute("DELETE FROM unfinished_erasures WHERE example = ?", example.number)


def _remove_example(store: Store, branch: str, number: int, actor: str) -> None:
    """Deletes the versions of one branch that were learned from an example."""
    query = "SELECT version FROM inherited_examples WHERE branch = ? AND example = ?"
    affected = set(store.select_values(query, branch, number))
    parents: dict[int, int | None] = {}
    query = "SELECT number, parent, example FROM versions WHERE branch = ? ORDER BY number"
    for version, parent, example in store.execute(query, branch):  # parents come before their children
        parents[version] = parent
        if example == number or parent in affected:
            affected.add(version)
    for version in sorted(affected):
        query = "UPDATE versions SET deleted = TRUE WHERE branch = ? AND number = ?"
        store.execute(query, branch, version)
    state = journal.get_branch(store, branch)
    current, last_decided = state.current_version, state.last_decided
    reason = "it was not part of the current version"
    while current in affected:
        # Later examples become undecided again unless a rollback deferred them; earlier rejections stand.
        last_decided, parent = number, parents[current]
        if parent is None:  # an uploaded version: the branch's own examples that were part of it count again
            inherited = "SELECT example FROM inherited_examples WHERE branch = ? AND version = ?"
            query = f"UPDATE examples SET deferred = FALSE WHERE branch = ? AND number IN ({inherited})"
            store.execute(query, branch, branch, current)
            last_decided = 0
        reason = f"the examples after number {last_decided} are learned again"
        current = parent or 0
    _move_branch(store, branch, current, last_decided)
    held_out_loss = versions.get_version(store, branch, current).held_out_loss
    journal.log_decision(store, branch, "erased", number, current, held_out_loss, f"by {actor}; {reason}")


def _erased(version: BranchVersion) -> BadInput:
    """The error of a deleted version that cannot become current."""
    return BadInput(f"version {version.number} of '{version.branch}' was learned from an example that was erased")


def _set_current(store: Store, version: BranchVersion, fence: int | None = None) -> None:
    """Makes a version current: every example so far counts as decided, and those outside the version are deferred."""
    branch = version.branch
    for deferred, condition in ((True, "NOT deferred AND number NOT IN"), (False, "deferred AND number IN")):
        query = f"UPDATE examples SET deferred = ? WHERE branch = ? AND {condition} (SELECT example FROM path)"
        store.execute(PATH + query, branch, version.number, branch, deferred, branch)
    newest = store.select_value("SELECT coalesce(max(number), 0) FROM examples WHERE branch = ?", branch)
    _move_branch(store, branch, version.number, newest, fence)


def _move_branch(store: Store, branch: str, current_version: int, last_decided: int, fence: int | None = None) -> None:
    """Changes the current version otherwise than by learning; a fence of None fits any owner."""
    epoch = journal.get_branch(store, branch).epoch + 1
    changes = {"current_version": current_version, "last_decided": last_decided, "epoch": epoch}
    journal.fenced_update(store, branch, fence, **changes)


def _inherit_examples(store: Store, source: BranchVersion, branch: str, number: int) -> None:
    """Records the examples that a version was learned from, those that it inherited included, for a restored one."""
    inherited = "SELECT example FROM inherited_examples WHERE branch = ? AND version = ?"
    learned = f"SELECT example FROM path UNION {inherited}"
    query = f"INSERT INTO inherited_examples SELECT ?, ?, example FROM ({learned}) AS learned"
    path = (source.branch, source.number, source.branch)
    store.execute(PATH + query, *path, branch, number, source.branch, source.root_version)
