"""The journal of online learning: branches, training examples, and decisions of the learner; see `versions`, too.

A branch is one version history of weights that starts at the trained weights. It belongs to one key, or to all keys
if it is shared. Examples have increasing numbers that never change. A version is its parent plus one example;
version 0 is the trained weights. `current_version` is the version that answers requests, and `last_decided` is the
last example that the learner accepted or rejected. Every change of the current version other than learning, all of
which `branch_changes` holds, increases `epoch`, so that an update computed before the change is not committed after
it. In a shared database one process at a time owns a branch; `fence` goes up whenever the owner changes, and statements
that write a branch compare it, so that a former owner changes nothing. This module does not depend on how the learner
works.

Values that several queries read can be outdated as soon as they are returned: other threads and the command line
change the same branches. Functions that read more than one record read all of them in one transaction, and functions
that write compare the branch with the one on which the decision was based.
"""

import contextlib
import time
from collections.abc import Collection
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server import quotas
from ontogeny.server.databases.base import QueryResult, Statement
from ontogeny.server.learning import repeats, text_scores, versions
from ontogeny.server.learning.text_scores import TextScore
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.request_identity import IdempotencyKeyReused, RequestIdentity
from ontogeny.server.schema import UNDECIDED
from ontogeny.server.store import Store

SHARED = "shared"
CURRENT_VERSION = "(SELECT current_version FROM branches WHERE branch = ?)"
NEWEST_EXAMPLE = "(SELECT newest_example FROM branches WHERE branch = ?)"
PENDING = f"branch = ? AND number > ? AND {UNDECIDED}"  # the condition of an undecided example


class Branch(NamedTuple):
    """One version history of weights."""

    branch: str  # DEPLOYMENT/OWNER
    deployment: str
    owner_key: str  # the id of a key, or "shared"
    trained_digest: str
    learner_digest: str  # of everything that an update depends on, apart from the machine and the packages
    current_version: int
    last_decided: int
    epoch: int
    frozen: bool
    owner: int | None = None  # the process that answers and learns; None if there is no other one
    fence: int = 0
    newest_example: int = 0  # the number of the last example, decided or not


class BranchLost(Exception):
    """Another process has become the owner of a branch, so nothing was written."""


class TrainingExample(NamedTuple):
    """A text in the journal of a branch."""

    number: int
    branch: str
    key: str
    text: str | None  # None once it is erased
    deferred: bool  # a rollback took it out of use
    erased_at: float | None
    created_at: float


class LearningTask(NamedTuple):
    """What a branch learns next."""

    branch: Branch
    example: TrainingExample | None  # the first undecided one; None if there is none or the branch is frozen
    has_score: bool  # of the example, from an earlier attempt


class VersionRecipe(NamedTuple):
    """How the weights of a version are computed, as one transaction read it."""

    version: BranchVersion  # the current one of its branch
    base: BranchVersion  # a version whose weights are known: version 0, or one with a snapshot
    texts: list[tuple[str, str | None]]  # to learn after it, in order, each with the `steps` of its version


TASK = (
    f"SELECT {', '.join(f'branches.{column}' for column in Branch._fields)}, "
    f"{', '.join(f'examples.{column}' for column in TrainingExample._fields)}, "
    "EXISTS (SELECT 1 FROM text_scores WHERE example = examples.number) "
    "FROM branches LEFT JOIN examples ON NOT frozen AND examples.number = (SELECT number FROM examples AS pending "
    f"WHERE branch = branches.branch AND number > last_decided AND {UNDECIDED} ORDER BY number LIMIT 1) "
    "WHERE branches.branch = ?"
)


class LearningDecision(NamedTuple):
    """An entry of the log of a branch."""

    number: int
    branch: str
    kind: str  # learned, rejected, rollback, erased, restored, forked, freeze, unfreeze, mixed
    example: int | None
    version: int | None
    held_out_loss: float | None
    reason: str
    created_at: float
    share: float | None = None  # of the step of the example that was taken; 0 for a rejected one, None without a step
    process: int | None = None  # the server process that decided, where several share the database


class _BranchChanged(Exception):
    """Undoes a transaction whose statements are based on an earlier state of the branch."""


class _NothingAdded(Exception):
    """Undoes the transaction in which an example was to be added."""


def open_branch(
    store: Store, deployment: str, owner_key: str, trained_digest: str, learner_digest: str, held_out_loss: float
) -> Branch:
    """Returns a branch, which is created if it does not exist.

    Raises:
        BadInput: The branch was learned from other weights or with another learner.
    """
    name = f"{deployment}/{owner_key}"
    branch = _find_branch(store, name)
    if branch is None:
        with store.transaction():
            branch = _find_branch(store, name)  # another thread may have created it
            if branch is None:
                query = "SELECT 1 FROM branches WHERE deployment = ? AND frozen LIMIT 1"
                frozen = store.select_value(query, deployment)  # a new branch is frozen if the others are
                branch = Branch(name, deployment, owner_key, trained_digest, learner_digest, 0, 0, 0, bool(frozen))
                store.insert("branches", branch)
                versions.add_version(store, name, 0, trained_digest, held_out_loss)
    if branch.trained_digest != trained_digest:
        raise BadInput(
            f"'{deployment}' was learned from weights {branch.trained_digest[:16]}, but the model has weights "
            f"{trained_digest[:16]}: serve it under another name or with another --state-dir"
        )
    if branch.learner_digest != learner_digest:
        raise BadInput(
            f"'{deployment}' was learned with other settings (--learning) or texts, or by an earlier version of "
            "ontogeny with other versions of packages, so its weights could not be rebuilt: use the same ones, or "
            "serve it under another name or with another --state-dir"
        )
    return branch


def get_branch(store: Store, name: str) -> Branch:
    """Returns the branch of this name; raises `BadInput` if there is none."""
    branch = _find_branch(store, name)
    if branch is None:
        raise BadInput(f"there is no branch '{name}'")
    return branch


def find_learner_digest(store: Store, deployment: str) -> str | None:
    """Returns the digest of the learner of the branches of a deployment, or None if it has none."""
    return store.select_value("SELECT learner_digest FROM branches WHERE deployment = ? LIMIT 1", deployment)


def list_branches(store: Store, deployment: str) -> list[Branch]:
    """Returns the branches of a deployment by name."""
    query = "SELECT * FROM branches WHERE deployment = ? ORDER BY branch"
    return store.select(Branch, query, deployment)


def list_deployments(store: Store) -> list[str]:
    """Returns the names of all deployments that have branches."""
    return store.select_values("SELECT DISTINCT deployment FROM branches ORDER BY deployment")


def add_example(
    store: Store, branch: str, key: str, text: str, request: RequestIdentity | None = None, fence: int | None = None
) -> int | None:
    """Writes an example to the journal, with a record of the request that sent it, if there is one.

    Args:
        store: The database with the journal.
        branch: The branch that learns the example.
        key: The key that sent it.
        text: The text to learn.
        request: The request that sent it.
        fence: The value that the branch had when this process became its owner; None if any value is right.

    Returns:
        The number of the example once it is on disk, or None if the branch is frozen.

    Raises:
        BranchLost: The branch has another fence by now.
        IdempotencyKeyReused: The idempotency key belongs to another request.
        QuotaExceeded: The key may not store the example.
    """
    condition, compared = ("branch = ?", (branch,)) if fence is None else ("branch = ? AND fence = ?", (branch, fence))
    addition = f"SELECT branch, ?, ?, ? FROM branches WHERE {condition} AND NOT frozen"
    parameters = key, store.database.encode_text(text), time.time(), *compared
    repeated = None if fence is None else request  # another process may have written it a moment ago
    if repeated is not None:
        record = repeats.record_query(key, repeated)
        addition, parameters = f"{addition} AND NOT EXISTS ({record.query})", (*parameters, *record.parameters)
    newest = "(SELECT coalesce(max(number), 0) FROM examples WHERE branch = ?)"
    statements = [
        Statement(f"INSERT INTO examples (branch, key, text, created_at) {addition} RETURNING number", parameters),
        Statement(f"UPDATE branches SET newest_example = {newest} WHERE {condition}", (branch, *compared)),
        *quotas.storage_statements(store, key),
        *(repeats.record_statements(key, request, NEWEST_EXAMPLE, branch) if request is not None else []),
    ]
    with contextlib.suppress(_NothingAdded), store.transaction(branch, statements) as (added, updated, *results):
        if not added or not updated.rowcount:  # the owner may change between the two statements
            raise _NothingAdded
        quotas.check_storage(quotas.read_storage(store, key, results[:2]), "pending_examples", "stored_bytes")
        if request is not None and not results[-1].rowcount:
            raise IdempotencyKeyReused
        return added[0][0]
    record = None if repeated is None else repeats.find_record(store, key, repeated)
    if record is not None:
        return record.example
    if not get_branch(store, branch).frozen:
        raise BranchLost(f"another process owns the branch '{branch}' now")
    return None


def fenced_update(store: Store, branch: str, fence: int | None, **columns: int) -> None:
    """Changes columns of a branch if its fence is still `fence`; must be called in a transaction.

    A fence of None fits any owner: for changes that no owner makes, which must succeed also while the owner changes.

    Raises:
        BranchLost: The branch has another fence by now.
    """
    settings = ", ".join(f"{column} = ?" for column in columns)
    condition, parameters = ("", ()) if fence is None else (" AND fence = ?", (fence,))
    query = f"UPDATE branches SET {settings} WHERE branch = ?{condition}"
    if not store.execute(query, *columns.values(), branch, *parameters).rowcount:
        raise BranchLost(f"another process owns the branch '{branch}' now")


def has_changed(store: Store, branch: Branch) -> bool:
    """Whether a branch has another state than an earlier query returned, apart from the arrival of examples."""
    present = _find_branch(store, branch.branch)
    return present is None or present._replace(newest_example=branch.newest_example) != branch


def list_branches_to_learn(store: Store, deployment: str, condition: str = "TRUE", *parameters: int) -> list[str]:
    """Returns the names of the branches that may have undecided examples.

    Args:
        store: The database.
        deployment: Its branches are listed.
        condition: A further condition of a branch, for the query.
        *parameters: Of the condition.
    """
    query = "SELECT branch FROM branches WHERE deployment = ? AND newest_example > last_decided AND NOT frozen"
    return store.select_values(f"{query} AND {condition} ORDER BY branch", deployment, *parameters)


def skip_decided(store: Store, branch: Branch) -> None:
    """Records that a branch has no undecided example up to its newest one, so that it is not looked at again."""
    with store.transaction(branch.branch):
        if get_branch(store, branch.branch) == branch:
            fenced_update(store, branch.branch, branch.fence, last_decided=branch.newest_example)


def read_task(store: Store, name: str) -> LearningTask:
    """Reads a branch and its first undecided example in one statement; raises `BadInput` if there is no such branch.

    Both may have changed when they are used; `commit_version`, `reject_example` and `skip_decided` notice that.
    """
    records = store.execute(TASK, name)
    if not records:
        raise BadInput(f"there is no branch '{name}'")
    start, end = len(Branch._fields), -1
    (branch,) = store.read_records(Branch, QueryResult([records[0][:start]], Branch._fields, 1))
    if records[0][start] is None:
        return LearningTask(branch, None, False)
    (example,) = store.read_records(TrainingExample, QueryResult([records[0][start:end]], TrainingExample._fields, 1))
    return LearningTask(branch, example, bool(records[0][end]))


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


def read_recipe(store: Store, name: str, unusable: Collection[str] = ()) -> VersionRecipe:
    """Reads how the weights of the current version of a branch are computed.

    Args:
        store: The database.
        name: The branch.
        unusable: Snapshots that are absent or damaged.

    Raises:
        BadInput: The version cannot be computed without the unusable snapshots.
    """
    with store.read_transaction():
        version = versions.get_version(store, name, get_branch(store, name).current_version)
        base, learned_versions = versions.find_base(store, version, unusable)
        examples = [find_example(store, int(learned.example or 0)) for learned in learned_versions]
    texts = [
        (example.text, learned.steps)
        for example, learned in zip(examples, learned_versions, strict=True)
        if example is not None and example.text is not None
    ]
    if len(texts) < len(learned_versions):
        raise BadInput(f"the journal lacks examples of version {version.number} of '{name}'")
    return VersionRecipe(version, base, texts)


def list_decisions(store: Store, deployment: str) -> list[LearningDecision]:
    """Returns the decisions about all branches of a deployment, oldest first."""
    query = "SELECT decisions.* FROM decisions JOIN branches USING (branch) WHERE deployment = ? ORDER BY number"
    return store.select(LearningDecision, query, deployment)


def find_last_erasure(store: Store) -> int:
    """Returns the number of the last decision to erase an example, or 0."""
    return store.select_value("SELECT coalesce(max(number), 0) FROM decisions WHERE kind = 'erased'")


def list_erased_examples(store: Store, deployment: str, after: int) -> list[TrainingExample]:
    """Returns the examples of a deployment whose erasure was decided after the decision of a number."""
    query = (
        "SELECT * FROM examples WHERE number IN (SELECT example FROM decisions JOIN branches USING (branch) "
        "WHERE kind = 'erased' AND decisions.number > ? AND deployment = ?) ORDER BY number"
    )
    return store.select(TrainingExample, query, after, deployment)


def list_recent_decisions(store: Store, branch: str, max_decisions: int) -> list[LearningDecision]:
    """Returns the last decisions about a branch, newest first."""
    query = "SELECT * FROM decisions WHERE branch = ? ORDER BY number DESC LIMIT ?"
    return store.select(LearningDecision, query, branch, max_decisions)


def commit_version(
    store: Store,
    branch: Branch,
    example: int,
    digest: str,
    held_out_loss: float,
    weight_distance: float,
    reason: str,
    *,
    share: float = 1.0,
    steps: str | None = None,
    score: TextScore | None = None,
    computed_by: str | None = None,
) -> BranchVersion | None:
    """Makes a new version, learned from this example, the current one.

    Args:
        store: The database.
        branch: The branch on which the update was based.
        example: The number of the example.
        digest: Of the weights and scratch of the version.
        held_out_loss: Nats per token.
        weight_distance: From the trained weights, relative to their norm.
        reason: For the log of decisions.
        share: The share of the step of the example that was taken.
        steps: See `BranchVersion`.
        score: The score of the example's text before it was learned.
        computed_by: See `BranchVersion`.

    Returns:
        The version, or None (and nothing is changed) if the branch differs from `branch` by now.
    """
    name, (condition, compared) = branch.branch, _unchanged(branch)
    number = "(SELECT max(number) + 1 FROM versions WHERE branch = ?)"
    query = (
        f"UPDATE branches SET current_version = {number}, last_decided = ? WHERE {condition} RETURNING current_version"
    )
    statements = [
        Statement(query, (name, example, *compared)),
        versions.learned_version(
            name, branch.current_version, example, digest, held_out_loss, weight_distance, steps, computed_by
        ),
        _decision(store, name, "learned", example, name, held_out_loss, reason, share=share, version=CURRENT_VERSION),
        *([] if score is None else [text_scores.score_statement(name, example, branch.current_version, score)]),
    ]
    with contextlib.suppress(_BranchChanged), store.transaction(name, statements) as (changed, added, *_):
        if not changed.rowcount:
            raise _BranchChanged
        if not added:  # a damaged database may have lost the parent
            versions.get_version(store, name, branch.current_version)
        return store.read_records(BranchVersion, added)[0]
    return None


def reject_example(
    store: Store,
    branch: Branch,
    example: int,
    held_out_loss: float | None,
    reason: str,
    *,
    score: TextScore | None = None,
) -> bool:
    """Records that this example is not learned; returns False, and changes nothing, if the branch differs by now."""
    name, (condition, compared) = branch.branch, _unchanged(branch)
    statements = [
        Statement(f"UPDATE branches SET last_decided = ? WHERE {condition}", (example, *compared)),
        _decision(store, name, "rejected", example, None, held_out_loss, reason, share=0.0),
        *([] if score is None else [text_scores.score_statement(name, example, branch.current_version, score)]),
    ]
    with contextlib.suppress(_BranchChanged), store.transaction(name, statements) as (changed, *_):
        if not changed.rowcount:
            raise _BranchChanged
        return True
    return False


def _unchanged(branch: Branch) -> tuple[str, tuple[object, ...]]:
    """The condition that a branch is as it was read, apart from the arrival of examples, and its parameters.

    The fence goes up with every change of the owner, and the columns that are not compared never change.
    """
    columns = ("branch", "learner_digest", "current_version", "last_decided", "epoch", "frozen", "fence")
    return " AND ".join(f"{column} = ?" for column in columns), tuple(getattr(branch, column) for column in columns)


def _find_branch(store: Store, name: str) -> Branch | None:
    """Returns the branch of this name, or None."""
    return store.select_one(Branch, "SELECT * FROM branches WHERE branch = ?", name)


def log_decision(
    store: Store, branch: str, kind: str, *outcome: int | float | str | None, share: float | None = None
) -> None:
    """Adds a decision; `outcome` is its example, version, held-out loss and reason."""
    store.run(_decision(store, branch, kind, *outcome, share=share))


def _decision(
    store: Store,
    branch: str,
    kind: str,
    *outcome: int | float | str | None,
    share: float | None = None,
    version: str = "?",
) -> Statement:
    """The statement that adds a decision; `version` is the expression for its version. See `log_decision`."""
    columns = "branch, kind, example, version, held_out_loss, reason, created_at, share, process"
    query = f"INSERT INTO decisions ({columns}) VALUES (?, ?, ?, {version}, ?, ?, ?, ?, ?)"
    return Statement(query, (branch, kind, *outcome, time.time(), share, store.process_number))
