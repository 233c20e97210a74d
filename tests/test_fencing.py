"""A former owner of a branch writes nothing: each statement that writes a branch compares its fencing number."""

import threading

import psycopg
import pytest

from ontogeny.server.learning import branch_changes, journal, repeats
from ontogeny.server.learning.journal import Branch, BranchLost
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store
from serving import wait_until

NAME = "story/anna"
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND state = 'active'"


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "state") as store:
        journal.open_branch(store, "story", "anna", "a" * 64, "b" * 64, 1.0)
        assert journal.add_example(store, NAME, "anna", "a text", fence=0) is not None
        yield store


def change_owner(store):
    """Gives the branch another owner; returns it as the former one has read it."""
    before = journal.get_branch(store, NAME)
    with store.transaction():
        store.execute("UPDATE branches SET owner = 7, fence = fence + 1 WHERE branch = ?", NAME)
    return before


def read_all(store):
    return [
        list(store.execute(f"SELECT * FROM {table}")) for table in ("branches", "examples", "versions", "decisions")
    ]


def test_a_former_owner_adds_no_example_and_rolls_nothing_back(store):
    before = change_owner(store)
    records = read_all(store)
    with pytest.raises(BranchLost):
        journal.add_example(store, NAME, "anna", "another text", fence=before.fence)
    with pytest.raises(BranchLost):
        branch_changes.rollback(store, NAME, 0, "anna", fence=before.fence)
    assert read_all(store) == records


def test_a_former_owner_commits_and_rejects_nothing(store):
    before = change_owner(store)
    records = read_all(store)
    assert journal.commit_version(store, before, 1, "c" * 64, 1.0, 0.1, "a reason") is None
    assert not journal.reject_example(store, before, 1, 1.0, "a reason")
    assert read_all(store) == records


CONSTANT = {"branch", "deployment", "owner_key", "trained_digest"}  # columns of a branch that never change


@pytest.mark.parametrize("column", [name for name in Branch._fields if name not in CONSTANT | {"owner"}])
def test_a_decision_counts_only_if_its_branch_is_as_it_was_apart_from_new_examples(store, column):
    before = journal.get_branch(store, NAME)
    changed = "c" * 64 if column == "learner_digest" else column == "frozen" or getattr(before, column) + 1
    with store.transaction():
        store.execute(f"UPDATE branches SET {column} = ? WHERE branch = ?", changed, NAME)
    is_example = column == "newest_example"
    assert journal.has_changed(store, before) != is_example
    assert (journal.commit_version(store, before, 1, "c" * 64, 1.0, 0.1, "a reason") is not None) == is_example
    assert not journal.reject_example(store, before, 1, 1.0, "a reason")


@pytest.mark.parametrize("work", ["add", "commit", "reject"])
def test_a_former_owner_changes_nothing_if_the_owner_changes_between_its_statements(postgres, tmp_path, work):
    address, results = postgres.address_for(tmp_path), []

    def write():
        if work == "add":
            try:
                results.append(journal.add_example(store, NAME, "anna", "another text", fence=before.fence))
            except BranchLost:
                results.append(None)
        elif work == "commit":
            results.append(journal.commit_version(store, before, 1, "c" * 64, 1.0, 0.1, "a reason"))
        else:
            results.append(journal.reject_example(store, before, 1, 1.0, "a reason") or None)

    with Store(tmp_path / "state", database_url=address) as store:
        before = journal.open_branch(store, "story", "anna", "a" * 64, "b" * 64, 1.0)
        journal.add_example(store, NAME, "anna", "a text", fence=before.fence)
        before, records = journal.get_branch(store, NAME), read_all(store)
        thread = threading.Thread(target=write)
        with psycopg.connect(address) as successor, psycopg.connect(address, autocommit=True) as observer:
            successor.execute("UPDATE branches SET fence = fence + 1, owner = 7")
            thread.start()  # it waits for the lock of the record
            wait_until(lambda: observer.execute(BLOCKED).fetchone() != (0,))
            successor.commit()
            thread.join()
        after = [[tuple(record) for record in table] for table in read_all(store)]
        assert results == [None] and after[1:] == records[1:]
        assert journal.get_branch(store, NAME) == before._replace(fence=before.fence + 1, owner=7)


@pytest.mark.parametrize("work", ["add to a frozen branch", "commit", "reject"])
def test_a_write_sees_what_was_committed_while_it_waited_for_its_turn(postgres, tmp_path, work):
    """As an erasure or a freeze by another process: all statements of a write are sent before it has its locks."""
    address, results = postgres.address_for(tmp_path), []
    calls = {
        "add to a frozen branch": lambda: journal.add_example(store, NAME, "anna", "another text", fence=before.fence),
        "commit": lambda: journal.commit_version(store, before, 1, "c" * 64, 1.0, 0.1, "a reason"),
        "reject": lambda: journal.reject_example(store, before, 1, 1.0, "a reason") or None,
    }
    with Store(tmp_path / "state", database_url=address) as store:
        journal.open_branch(store, "story", "anna", "a" * 64, "b" * 64, 1.0)
        journal.add_example(store, NAME, "anna", "a text", fence=0)
        before, records = journal.get_branch(store, NAME), read_all(store)
        thread = threading.Thread(target=lambda: results.append(calls[work]()))
        with Store(tmp_path / "other", database_url=address) as another:
            with another.transaction():
                another.execute("UPDATE branches SET epoch = epoch + 1, frozen = ?", work.startswith("add"))
                thread.start()
                wait_until(lambda: store.select_value(BLOCKED) != 0)
            thread.join()
        assert results == [None] and read_all(store)[1:] == records[1:]
        assert journal.get_branch(store, NAME).current_version == journal.num_pending(store, before) - 1 == 0


def test_the_statement_itself_compares_the_fence(store):
    before = change_owner(store)
    with pytest.raises(BranchLost), store.transaction(NAME):
        journal.fenced_update(store, NAME, before.fence, last_decided=1)
    with store.transaction(NAME):
        journal.fenced_update(store, NAME, before.fence + 1, last_decided=1)
    assert journal.get_branch(store, NAME).last_decided == 1


def test_a_frozen_branch_adds_nothing_but_knows_the_requests_of_before(store):
    requests = [RequestIdentity(digest, digest, 0, 0.0) for digest in ("first", "second")]
    journal.open_branch(store, "story", "bob", "a" * 64, "b" * 64, 1.0)
    number = journal.add_example(store, NAME, "anna", "another text", requests[0], fence=0)
    branch_changes.set_frozen(store, "story", True, "test")
    records = read_all(store)
    assert journal.add_example(store, NAME, "anna", "another text", requests[0], fence=0) == number
    for name in (NAME, "story/bob"):
        assert journal.add_example(store, name, "anna", "another text", requests[1], fence=0) is None
    assert read_all(store) == records and repeats.find_record(store, "anna", requests[1]) is None
