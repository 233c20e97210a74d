"""A former owner of a branch writes nothing: each statement that writes a branch compares its fencing number."""

import pytest

from ontogeny.server.learning import branch_changes, journal, repeats
from ontogeny.server.learning.journal import BranchLost
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store

NAME = "story/anna"


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
