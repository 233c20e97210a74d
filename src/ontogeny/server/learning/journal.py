"""What a line of learning was given, and what became of it: contributions, versions of the weights, decisions.

A line is one course of learning from the trained weights: a key's own, or one that is shared. Contributions are
numbered upwards and never renumbered. A version is its parent and one contribution more; version 0 is the trained
weights. `head` is the version that is live, `position` the last contribution that was decided on. Going back makes
another version the head; erasing goes back to before the contribution and lets the learner come forward again without
it. Every change of a head but by learning raises `epoch`, so that work begun before it is not committed after it.
Knows nothing of how is learned.
"""

import sqlite3
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server.store import Store

SHARED = "shared"
MOST_PENDING = 10_000  # of one line


class Branch(NamedTuple):
    line: str
    deployment: str
    owner: str  # a key's id, or "shared"
    base: str  # digest of the trained weights
    learner: str  # digest of all that decides how is learned
    head: int
    position: int
    epoch: int
    frozen: bool


class TrainingExample(NamedTuple):
    number: int
    line: str
    key: str
    text: str | None  # None once it is erased
    aside: bool  # went out of use by going back
    erased: float | None
    at: float


class BranchVersion(NamedTuple):
    line: str
    number: int
    parent: int | None
    contribution: int | None  # what it has learned beyond its parent
    first: int | None  # the range of the journal that it learned from
    last: int | None
    digest: str
    held_out: float  # nats per token
    distance: float  # from the trained weights, relative to their length
    snapshot: str | None
    gone: bool  # an erased contribution is in it
    at: float


class LearningDecision(NamedTuple):
    number: int
    line: str
    kind: str  # learned, refused, rollback, erased, restored, freeze, thaw
    contribution: int | None
    version: int | None
    held_out: float | None
    reason: str
    at: float


class JournalFull(Exception):
    """So much waits to be learned that no more is taken."""


def open_line(store: Store, deployment: str, owner: str, base: str, learner: str, held_out: float) -> Branch:
    """The line, made where it is not there. One that learned from other weights, or otherwise, raises `BadInput`."""
    name = f"{deployment}/{owner}"
    with store.transaction() as connection:
        row = connection.execute("SELECT * FROM lines WHERE line = ?", (name,)).fetchone()
        if row is None:
            asked = (
                "SELECT coalesce(max(frozen), 0) FROM lines WHERE deployment = ?"  # a new line freezes with the others
            )
            frozen = connection.execute(asked, (deployment,)).fetchone()[0]
            connection.execute(
                "INSERT INTO lines VALUES (?, ?, ?, ?, ?, 0, 0, 0, ?)", (name, deployment, owner, base, learner, frozen)
            )
            connection.execute(
                "INSERT INTO versions VALUES (?, 0, NULL, NULL, NULL, NULL, ?, ?, 0, NULL, 0, ?)",
                (name, base, held_out, time.time()),
            )
            row = connection.execute("SELECT * FROM lines WHERE line = ?", (name,)).fetchone()
    found = _line(row)
    if found.base != base:
        raise BadInput(
            f"'{deployment}' went on learning from weights {found.base[:16]}, here are {base[:16]}: "
            "serve these under another name, or with another --state"
        )
    if found.learner != learner:
        raise BadInput(
            f"'{deployment}' has learned with other settings, texts or versions: its weights could not be rebuilt; "
            "use those, serve under another name, or with another --state"
        )
    return found


def line(store: Store, name: str) -> Branch:
    row = store.connection.execute("SELECT * FROM lines WHERE line = ?", (name,)).fetchone()
    if row is None:
        raise BadInput(f"there is no line '{name}'")
    return _line(row)


def lines(store: Store, deployment: str) -> list[Branch]:
    found = store.connection.execute("SELECT * FROM lines WHERE deployment = ? ORDER BY line", (deployment,))
    return [_line(row) for row in found]


def deployments(store: Store) -> list[str]:
    """The names of all that ever learned."""
    return [row[0] for row in store.connection.execute("SELECT DISTINCT deployment FROM lines ORDER BY deployment")]


def contribute(store: Store, line: str, key: str, text: str) -> int | None:
    """Journals what is to be learned and returns its number when it is on the disk; None where the line is frozen."""
    with store.transaction() as connection:
        row = connection.execute("SELECT * FROM lines WHERE line = ?", (line,)).fetchone()
        if row["frozen"]:
            return None
        if _pending(connection, line, row["position"], "count(*)")[0] >= MOST_PENDING:
            raise JournalFull
        made = connection.execute(
            "INSERT INTO contributions (line, key, text, at) VALUES (?, ?, ?, ?)", (line, key, text, time.time())
        )
        return made.lastrowid


def next_contribution(store: Store, line: Branch) -> TrainingExample | None:
    """The first one that nothing was decided about."""
    row = _pending(store.connection, line.line, line.position, "*")
    return None if row is None else _contribution(row)


def pending(store: Store, line: Branch) -> int:
    return _pending(store.connection, line.line, line.position, "count(*)")[0]


def contribution(store: Store, number: int) -> TrainingExample | None:
    row = store.connection.execute("SELECT * FROM contributions WHERE number = ?", (number,)).fetchone()
    return None if row is None else _contribution(row)


def contributions(store: Store, line: str) -> list[TrainingExample]:
    found = store.connection.execute("SELECT * FROM contributions WHERE line = ? ORDER BY number", (line,))
    return [_contribution(row) for row in found]


def version(store: Store, line: str, number: int) -> BranchVersion:
    row = store.connection.execute("SELECT * FROM versions WHERE line = ? AND number = ?", (line, number)).fetchone()
    if row is None:
        raise BadInput(f"the line '{line}' has no version {number}")
    return _version(row)


def versions(store: Store, line: str) -> list[BranchVersion]:
    found = store.connection.execute("SELECT * FROM versions WHERE line = ? ORDER BY number", (line,))
    return [_version(row) for row in found]


def decisions(store: Store, deployment: str, most: int = 1_000_000) -> list[LearningDecision]:
    """The last decisions about any line of a deployment, oldest first."""
    found = store.connection.execute(
        "SELECT decisions.* FROM decisions JOIN lines USING (line) WHERE deployment = ? "
        "ORDER BY decisions.number DESC LIMIT ?",
        (deployment, most),
    ).fetchall()
    return [LearningDecision(*row) for row in reversed(found)]


def count_decisions(store: Store, deployment: str) -> int:
    asked = "SELECT count(*) FROM decisions JOIN lines USING (line) WHERE deployment = ?"
    return store.connection.execute(asked, (deployment,)).fetchone()[0]


def chain(store: Store, line: str, number: int) -> list[BranchVersion]:
    """The versions that lead to this one, from version 0 or the nearest one with a snapshot on."""
    found = [version(store, line, number)]
    while found[-1].snapshot is None and found[-1].parent is not None:
        found.append(version(store, line, found[-1].parent))
    return found[::-1]


def learned(
    store: Store, before: Branch, number: int, digest: str, held_out: float, distance: float, reason: str
) -> BranchVersion | None:
    """Makes a new version of this contribution the head. None, and nothing done, if the head was moved meanwhile."""
    with store.transaction() as connection:
        if not _unmoved(connection, before):
            return None
        made = _new_version(connection, before.line, before.head, number, digest, held_out, distance)
        connection.execute("UPDATE lines SET head = ?, position = ? WHERE line = ?", (made.number, number, before.line))
        _decide(connection, before.line, "learned", number, made.number, held_out, reason)
    return made


def refused(store: Store, before: Branch, number: int, held_out: float | None, reason: str) -> bool:
    """Records that this contribution is not learned from. False, and nothing done, if the head was moved meanwhile."""
    with store.transaction() as connection:
        if not _unmoved(connection, before):
            return False
        connection.execute("UPDATE lines SET position = ? WHERE line = ?", (number, before.line))
        _decide(connection, before.line, "refused", number, None, held_out, reason)
    return True


def snapshot(store: Store, line: str, number: int, file: str | None) -> None:
    """Says in which file a version is; None: no longer in any."""
    with store.transaction() as connection:
        connection.execute("UPDATE versions SET snapshot = ? WHERE line = ? AND number = ?", (file, line, number))


def drop_unnamed(store: Store, files: Iterable[str] | None = None) -> None:
    """Deletes those of these snapshots, or of all files beside them, that no version is in.

    With all of them only while nobody writes snapshots: what a crash left over goes, and what was erased is in none.
    """
    found = [path.name for path in store.snapshots.iterdir()] if files is None else list(files)
    asked = "SELECT DISTINCT snapshot FROM versions WHERE snapshot IS NOT NULL"
    named = {row[0] for row in store.connection.execute(asked)}
    for file in found:
        if file not in named:
            (store.snapshots / file).unlink(missing_ok=True)


def rollback(store: Store, line: str, to: int, who: str) -> BranchVersion:
    """Makes an earlier version live again; what was contributed since is set aside, and learning goes on from here."""
    with store.transaction() as connection:
        target = _reachable(connection, line, to)
        _move(connection, line, target, _newest(connection, line))
        _decide(connection, line, "rollback", None, to, target.held_out, f"by {who}")
    return target


def restored(
    store: Store, before: Branch, digest: str, held_out: float, distance: float, file: str, who: str
) -> BranchVersion | None:
    """Makes weights that were brought in a new version, which stands on no other but its snapshot.

    Weights that were learned here are known by their digest, and with them what they learned from; if any of that was
    erased since, `BadInput`.
    """
    with store.transaction() as connection:
        if not _unmoved(connection, before):
            return None
        known = _known(connection, before.deployment, digest)
        if known is not None and known.gone:
            raise BadInput("this state learned from a contribution that was erased")
        made = _new_version(connection, before.line, None, None, digest, held_out, distance, file)
        inherited = set() if known is None else set.union(*_learned_from(connection, known))
        connection.executemany(
            "INSERT INTO inherited VALUES (?, ?, ?)", [(before.line, made.number, number) for number in inherited]
        )
        _move(connection, before.line, made, _newest(connection, before.line))
        _decide(connection, before.line, "restored", None, made.number, held_out, f"by {who}")
    return made


def erase(store: Store, number: int, who: str) -> None:
    """Deletes what was contributed, and every version that learned from it, with its snapshots.

    The head of its line, and of each into which such a version was brought, goes back to before it, at once; the
    learner learns again what came after it.
    """
    with store.transaction() as connection:
        row = connection.execute("SELECT * FROM contributions WHERE number = ?", (number,)).fetchone()
        if row is None or row["erased"] is not None:
            raise BadInput(f"there is no contribution {number}")
        connection.execute("UPDATE contributions SET text = NULL, erased = ? WHERE number = ?", (time.time(), number))
        asked = "SELECT DISTINCT line FROM inherited WHERE contribution = ?"
        names = {row["line"]} | {found[0] for found in connection.execute(asked, (number,))}
        files = [file for name in sorted(names) for file in _take_out(connection, name, number, who)]
    store.forget_log()
    drop_unnamed(store, files)


def _take_out(connection: sqlite3.Connection, line: str, number: int, who: str) -> list[str]:
    """One line without a contribution."""
    every = [
        _version(row) for row in connection.execute("SELECT * FROM versions WHERE line = ? ORDER BY number", (line,))
    ]
    asked = "SELECT version FROM inherited WHERE line = ? AND contribution = ?"
    tainted = {row[0] for row in connection.execute(asked, (line, number))}
    for version in every:  # parents come before their children
        if version.contribution == number or version.parent in tainted:
            tainted.add(version.number)
    connection.executemany(
        "UPDATE versions SET gone = 1, snapshot = NULL WHERE line = ? AND number = ?",
        [(line, version) for version in tainted],
    )
    by_number = {version.number: version for version in every}
    head, position = by_number[connection.execute("SELECT head FROM lines WHERE line = ?", (line,)).fetchone()[0]], None
    while head.number in tainted:
        # What came after it is undecided again, unless it went out of use by going back; what was refused before it
        # stays refused.
        position = number
        if head.parent is None:  # brought in with the contribution in it: what of the rest is this line's own counts
            connection.execute(
                "UPDATE contributions SET aside = 0 WHERE line = ? AND number IN "
                "(SELECT contribution FROM inherited WHERE line = ? AND version = ?)",
                (line, line, head.number),
            )
            position = 0
        head = by_number[head.parent or 0]
    if position is None:
        connection.execute("UPDATE lines SET epoch = epoch + 1 WHERE line = ?", (line,))
        why = "it was not in what is live"
    else:
        connection.execute(
            "UPDATE lines SET head = ?, position = ?, epoch = epoch + 1 WHERE line = ?", (head.number, position, line)
        )
        why = "learned again from here"
    _decide(connection, line, "erased", number, head.number, head.held_out, f"by {who}; {why}")
    return [version.snapshot for version in every if version.number in tainted and version.snapshot is not None]


def freeze(store: Store, deployment: str, frozen: bool, who: str) -> list[str]:
    """Stops or resumes learning in every line of a deployment; returns their names."""
    with store.transaction() as connection:
        names = [r[0] for r in connection.execute("SELECT line FROM lines WHERE deployment = ?", (deployment,))]
        for name in names:
            connection.execute("UPDATE lines SET frozen = ?, epoch = epoch + 1 WHERE line = ?", (frozen, name))
            _decide(connection, name, "freeze" if frozen else "thaw", None, None, None, f"by {who}")
    return names


def _pending(connection: sqlite3.Connection, line: str, position: int, what: str) -> Any:
    return connection.execute(
        f"SELECT {what} FROM contributions WHERE line = ? AND number > ? AND NOT aside AND erased IS NULL "
        "ORDER BY number LIMIT 1",
        (line, position),
    ).fetchone()


def _unmoved(connection: sqlite3.Connection, before: Branch) -> bool:
    row = connection.execute("SELECT * FROM lines WHERE line = ?", (before.line,)).fetchone()
    return _line(row) == before


def _newest(connection: sqlite3.Connection, line: str) -> int:
    found = connection.execute("SELECT coalesce(max(number), 0) FROM contributions WHERE line = ?", (line,))
    return found.fetchone()[0]


def _reachable(connection: sqlite3.Connection, line: str, number: int) -> BranchVersion:
    asked = "SELECT * FROM versions WHERE line = ? AND number = ?"
    row = connection.execute(asked, (line, number)).fetchone() if 0 <= number < 2**63 else None
    if row is None:
        last = connection.execute("SELECT max(number) FROM versions WHERE line = ?", (line,)).fetchone()[0]
        raise BadInput(f"the line '{line}' has no version {number}; it has 0 to {last}")
    if row["gone"]:
        raise BadInput(f"version {number} of '{line}' learned from a contribution that was erased")
    return _version(row)


def _move(connection: sqlite3.Connection, line: str, to: BranchVersion, position: int) -> None:
    """A new head that learning goes on from; only what led to it still counts of what was contributed so far."""
    counted = _learned_from(connection, to)[0]
    connection.execute("UPDATE contributions SET aside = 1 WHERE line = ?", (line,))
    connection.executemany("UPDATE contributions SET aside = 0 WHERE number = ?", [(number,) for number in counted])
    connection.execute(
        "UPDATE lines SET head = ?, position = ?, epoch = epoch + 1 WHERE line = ?", (to.number, position, line)
    )


def _learned_from(connection: sqlite3.Connection, at: BranchVersion) -> tuple[set[int], set[int]]:
    """The contributions that a version learned from in its line, and before it was brought in there."""
    here: set[int] = set()
    while at.parent is not None:
        assert at.contribution is not None
        here.add(at.contribution)
        asked = "SELECT * FROM versions WHERE line = ? AND number = ?"
        at = _version(connection.execute(asked, (at.line, at.parent)).fetchone())
    asked = "SELECT contribution FROM inherited WHERE line = ? AND version = ?"
    return here, {row[0] for row in connection.execute(asked, (at.line, at.number))}


def _known(connection: sqlite3.Connection, deployment: str, digest: str) -> BranchVersion | None:
    """A version that has this digest; where there is one, one that no erased contribution is in."""
    row = connection.execute(
        "SELECT versions.* FROM versions JOIN lines USING (line) WHERE deployment = ? AND digest = ? "
        "ORDER BY gone LIMIT 1",
        (deployment, digest),
    ).fetchone()
    return None if row is None else _version(row)


def _new_version(
    connection: sqlite3.Connection,
    line: str,
    parent: int | None,
    contribution: int | None,
    digest: str,
    held_out: float,
    distance: float,
    file: str | None = None,
) -> BranchVersion:
    number = connection.execute("SELECT max(number) + 1 FROM versions WHERE line = ?", (line,)).fetchone()[0]
    first = contribution
    if parent is not None:
        row = connection.execute("SELECT first FROM versions WHERE line = ? AND number = ?", (line, parent)).fetchone()
        first = contribution if row["first"] is None else row["first"]
    made = BranchVersion(
        line, number, parent, contribution, first, contribution, digest, held_out, distance, file, False, time.time()
    )
    connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", made)
    return made


def _decide(
    connection: sqlite3.Connection,
    line: str,
    kind: str,
    contribution: int | None,
    version: int | None,
    held_out: float | None,
    reason: str,
) -> None:
    connection.execute(
        "INSERT INTO decisions (line, kind, contribution, version, held_out, reason, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (line, kind, contribution, version, held_out, reason, time.time()),
    )


def _line(row: sqlite3.Row) -> Branch:
    named: dict[str, Any] = dict(row)
    named["frozen"] = bool(named["frozen"])
    return Branch(**named)


def _contribution(row: sqlite3.Row) -> TrainingExample:
    named: dict[str, Any] = dict(row)
    named["aside"] = bool(named["aside"])
    return TrainingExample(**named)


def _version(row: sqlite3.Row) -> BranchVersion:
    named: dict[str, Any] = dict(row)
    named["gone"] = bool(named["gone"])
    return BranchVersion(**named)
