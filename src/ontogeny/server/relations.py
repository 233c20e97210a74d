"""Relations between the tables of a database that must hold, and their repair.

They cannot be violated by a crash, because every change is one transaction; but a database from which damaged pages
were removed violates them.
"""

from typing import NamedTuple

from ontogeny.server import schema
from ontogeny.server.learning import journal
from ontogeny.server.store import Store

ABSENT_BRANCHES = (
    "SELECT branch FROM (SELECT branch FROM versions UNION SELECT branch FROM examples) AS present "
    "WHERE branch NOT IN (SELECT branch FROM branches) ORDER BY branch"
)
BRANCHES_WITHOUT_ROOT = (
    "SELECT branch FROM branches WHERE NOT EXISTS "
    "(SELECT 1 FROM versions WHERE versions.branch = branches.branch AND number = 0) ORDER BY branch"
)
LOST_EXAMPLES = (
    "SELECT DISTINCT example, branch FROM versions WHERE example IS NOT NULL "
    "AND example NOT IN (SELECT number FROM examples) ORDER BY example"
)
ORPHANS = {  # records that mean nothing without those that they refer to
    "inherited_examples": "NOT EXISTS (SELECT 1 FROM versions WHERE versions.branch = inherited_examples.branch "
    "AND number = version)",
    "unfinished_erasures": "example NOT IN (SELECT number FROM examples)",
}
STORAGE = (  # with the size of a text
    "SELECT key, sum(num_sessions), sum(session_bytes), sum(example_bytes) FROM "
    "(SELECT key, 0 AS num_sessions, 0 AS session_bytes, coalesce({size} + 1000, 0) AS example_bytes FROM examples "
    "UNION ALL SELECT key, 1, length(state), 0 FROM sessions) AS parts GROUP BY key"
)
WRONG_STORAGE = (
    f"SELECT key FROM (SELECT * FROM storage EXCEPT {STORAGE}) AS surplus "
    "WHERE num_sessions != 0 OR session_bytes != 0 OR example_bytes != 0 "
    f"UNION SELECT key FROM ({STORAGE} EXCEPT SELECT * FROM storage) AS missing"
)


class BrokenRelation(NamedTuple):
    """A violated relation: its place, what is wrong, and what `mend` does about it."""

    place: str
    problem: str
    repair: str


def find_broken(store: Store) -> list[BrokenRelation]:
    """Returns the violated relations, as one transaction read them."""
    with store.read_transaction():
        absent, no_root = (store.select_values(query) for query in (ABSENT_BRANCHES, BRANCHES_WITHOUT_ROOT))
        lost = [(record[0], record[1]) for record in store.execute(LOST_EXAMPLES)]
        orphans = {
            table: store.select_value(f"SELECT count(*) FROM {table} WHERE {condition}")
            for table, condition in ORPHANS.items()
        }
        keys = _list_wrong_storage(store)
    relearned = "its examples are learned again where its versions cannot be computed"
    broken = [BrokenRelation(f"the branch '{name}'", "its record is lost", relearned) for name in absent]
    broken += [BrokenRelation(f"the branch '{name}'", "version 0 is lost", "the version is added") for name in no_root]
    broken += [
        BrokenRelation(f"example {number} of '{name}'", "its text is lost", "it is listed without a text")
        for number, name in lost
    ]
    broken += [
        BrokenRelation(f"the table {table}", f"{count} records refer to absent ones", "these records are deleted")
        for table, count in orphans.items()
        if count
    ]
    broken += [
        BrokenRelation(f"the storage of key {key}", "it is not counted correctly", "it is counted again")
        for key in keys
    ]
    return broken


def mend(store: Store, lost_examples: dict[int, str]) -> list[str]:
    """Restores the relations between the records that are left.

    A branch whose current version is lost is left for `learning.repair`.

    Args:
        store: The database.
        lost_examples: Further examples whose texts are lost: branches by number.

    Returns:
        What was done.
    """
    actions = []
    with store.transaction():
        for name in store.select_values(ABSENT_BRANCHES):
            actions.append(_add_branch(store, name))
        for name in store.select_values(BRANCHES_WITHOUT_ROOT):
            _add_root(store, name)
            actions.append(f"{name}: version 0 added")
        lost = lost_examples | {record[0]: record[1] for record in store.execute(LOST_EXAMPLES)}
        for number, name in sorted(lost.items()):
            # Without a text and deferred, it is not learned; its owner can erase it and what was learned from it.
            query = (
                "INSERT INTO examples (number, branch, key, deferred, created_at) VALUES (?, ?, ?, TRUE, 0) "
                "ON CONFLICT DO NOTHING"
            )
            if store.execute(query, number, name, name.rpartition("/")[2]).rowcount > 0:
                actions.append(f"{name}: example {number} is listed without a text")
        for table, condition in ORPHANS.items():
            if count := store.execute(f"DELETE FROM {table} WHERE {condition}").rowcount:
                actions.append(f"table {table}: {count} records deleted that referred to absent ones")
        if _list_wrong_storage(store):
            store.execute("DELETE FROM storage")
            store.execute("INSERT INTO storage " + STORAGE.format(size=store.database.num_text_bytes))
            actions.append("the storage of all keys counted again")
    return actions


def _list_wrong_storage(store: Store) -> list[str]:
    """The keys of which more or less is stored than their record says."""
    return store.select_values(WRONG_STORAGE.format(size=store.database.num_text_bytes))


def _add_branch(store: Store, name: str) -> str:
    """Adds the record of a branch, or removes its versions where that is impossible; returns what was done."""
    deployment, _, owner_key = name.rpartition("/")
    sibling = next(iter(journal.list_branches(store, deployment)), None)
    if sibling is None:
        for table in ("versions", "inherited_examples", "decisions"):
            store.execute(f"DELETE FROM {table} WHERE branch = ?", name)
        num_examples = store.select_value(
            f"SELECT count(*) FROM examples WHERE branch = ? AND {schema.UNDECIDED}", name
        )
        return f"{name}: the branch begins anew with its next request; {num_examples} examples will be learned again"
    newest = store.select_value("SELECT max(number) FROM versions WHERE branch = ? AND NOT deleted", name) or 0
    last = store.select_value("SELECT max(example) FROM versions WHERE branch = ? AND NOT deleted", name) or 0
    branch = sibling._replace(
        branch=name, owner_key=owner_key, current_version=newest, last_decided=last, epoch=sibling.epoch + 1
    )
    store.insert("branches", branch)
    return f"{name}: the record of the branch added, with version {newest} as the current one"


def _add_root(store: Store, name: str) -> None:
    """Adds version 0 of a branch, whose weights are those of the model."""
    query = "SELECT held_out_loss FROM versions WHERE number = 0 AND digest = ? LIMIT 1"
    digest = journal.get_branch(store, name).trained_digest
    loss = store.select_value(query, digest) or 0.0
    query = (
        "INSERT INTO versions (branch, number, digest, held_out_loss, weight_distance, deleted, created_at) "
        "VALUES (?, 0, ?, ?, 0, FALSE, 0)"
    )
    store.execute(query, name, digest, loss)
