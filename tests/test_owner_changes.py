"""Changes of a branch while it gets another owner, as in a database that several processes share."""

import json
import threading

import pytest

from fault_checks import check_restorations
from ontogeny.server.learning import branch_changes, journal, loading, versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.request_identity import IdempotencyKeyReused, RequestIdentity
from ontogeny.server.store import Store
from stepping import fake_learner

TEXTS = ["A lamp.", "A bell under water."]
LONG = 30.0  # seconds


@pytest.fixture
def branches(tmp_path):
    with Store(tmp_path / "state") as store:
        branches = BranchManager(store, "story", fake_learner())
        for text in TEXTS:
            branches.add_example("anna", "anna", text)
        while branches.learn_next():
            pass
        yield branches


def change_owner(store, name="story/anna"):
    """Lets another process become the owner and give the branch up again."""
    store.execute("UPDATE branches SET fence = fence + 1 WHERE branch = ?", name)


def test_a_restoration_that_loses_the_branch_is_made_again(branches, monkeypatch):
    state, store = branches.export("anna"), branches.store
    write, num_writes = store.write_snapshot, []

    def write_slowly(content):
        num_writes.append(len(content))
        if len(num_writes) == 1:
            with store.transaction():
                change_owner(store)
        return write(content)

    monkeypatch.setattr(store, "write_snapshot", write_slowly)
    branches.rollback("anna", 0, "test")
    version = branches.restore("anna", state, "test")
    assert len(num_writes) == 2 and branches.current("anna").version == version
    assert [present.number for present in versions.list_versions(store, "story/anna")] == [0, 1, 2, 3]
    assert len(list(store.snapshots.list_files())) == 1


@pytest.mark.parametrize("change", ["erase", "roll back", "move back"])
def test_a_change_that_no_owner_makes_succeeds_while_the_owner_changes(branches, monkeypatch, change):
    store, read = branches.store, journal.get_branch
    number = journal.list_examples(store, "story/anna")[-1].number

    def read_before_a_change(store, name):
        branch = read(store, name)
        change_owner(store, name)
        return branch

    monkeypatch.setattr(journal, "get_branch", read_before_a_change)
    if change == "erase":
        branch_changes.erase_example(store, number, "test")
    elif change == "roll back":
        branch_changes.rollback(store, "story/anna", 1, "test")
    else:
        branch_changes.move_back(store, versions.get_version(store, "story/anna", 1), "test")
    monkeypatch.undo()
    branch = journal.get_branch(store, "story/anna")
    assert branch.current_version == 1 and branch.fence > 0


def test_a_slow_database_does_not_hold_up_the_search_for_weights_in_memory(branches, monkeypatch):
    branch, read = journal.get_branch(branches.store, "story/anna"), journal.get_branch
    loaded, reached, go_on = branches.current("anna"), threading.Event(), threading.Event()

    def read_slowly(store, name):
        reached.set()
        go_on.wait(LONG)
        return read(store, name)

    monkeypatch.setattr(loading.journal, "get_branch", read_slowly)
    work = threading.Thread(target=branches.loader.replace, args=(loaded, loaded, -1))
    work.start()
    reached.wait(LONG)
    search = threading.Thread(target=branches.loader.find, args=(branch,))  # as on the event loop
    search.start()
    search.join(LONG / 2)
    is_blocked = search.is_alive()
    go_on.set()
    work.join()
    search.join()
    assert not is_blocked and branches.loader.find(branch) is loaded


def test_changes_with_an_idempotency_key_take_effect_once(branches):
    store, state = branches.store, branches.export("anna")

    def identity(digest):
        return RequestIdentity(digest, digest, 0, 0.0)

    calls = {
        "roll back": lambda: branches.rollback("anna", 0, "anna", identity("roll back")),
        "restore": lambda: branches.restore("anna", state, "anna", identity("restore")),
        "fork": lambda: branches.fork("anna", "carl", "anna", identity("fork")),
    }
    for name, call in calls.items():
        first = call()
        if name == "restore":
            branches.restore("anna", state, "somebody else")
        branches.add_example("anna", "anna", f"a text after the first call: {name}")
        while branches.learn_next():
            pass
        before = [journal.get_branch(store, f"story/{owner}") for owner in ("anna", "carl") if name == "fork"]
        current = branches.current("anna").version
        assert call() == first and branches.current("anna").version == current
        assert before == [journal.get_branch(store, branch.branch) for branch in before]
    with pytest.raises(IdempotencyKeyReused):
        branches.rollback("anna", 1, "anna", RequestIdentity("another", "fork", 0, 0.0))
    kinds = [decision.kind for decision in journal.list_decisions(store, "story") if decision.example is None]
    assert kinds == ["rollback", "restored", "restored", "forked"]
    assert len(list(store.snapshots.list_files())) == len(list(versions.list_snapshots(store)))


def test_a_repeated_restoration_that_overtakes_the_first_one_leaves_no_file(branches, monkeypatch):
    store, state, identity = branches.store, branches.export("anna"), RequestIdentity("a", "a", 0, 0.0)
    branches.rollback("anna", 0, "test")
    refuse, calls = branch_changes.refuse_repetition, []

    def overtake(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            branches.restore("anna", state, "anna", identity)  # passes this place, too
            return
        refuse(*arguments)

    monkeypatch.setattr(branch_changes, "refuse_repetition", overtake)
    version = branches.restore("anna", state, "anna", identity)
    assert version.number == 3 == versions.next_version(store, "story/anna") - 1
    assert len(list(store.snapshots.list_files())) == 1


def test_the_campaign_of_faults_detects_an_upload_that_is_made_twice(branches, tmp_path):
    store, state, history = branches.store, branches.export("anna"), tmp_path / "history.jsonl"
    numbers = [branches.restore("anna", state, "anna").number for _ in range(2)]

    def check(*answers):
        operations = [
            {"operation": "restore", "key": "anna", "status": answer and 200, "answer": answer and {"version": answer}}
            for answer in answers
        ]
        history.write_text("".join(f"{json.dumps(operation)}\n" for operation in operations))
        return check_restorations(store, history)

    assert check(*numbers) == check(numbers[1], None) == check(None, None, None) == []
    assert check(numbers[0]) and check(numbers[1], numbers[1]) and check(*numbers, numbers[1] + 1)


def test_new_examples_of_any_branch_are_learned_while_the_list_of_branches_is_not_read(branches, monkeypatch):
    """They come right after the learner has read the list, and right after it has read that a branch has none."""
    store, loop, read_list = branches.store, branches.loop, branches.ownership.list_branches_to_learn
    read_task, lists = journal.read_task, []

    def num_learned(name):
        return journal.get_branch(store, f"story/{name}").current_version

    def read_list_before_an_example(deployment):
        lists.append(read_list(deployment))
        branches.add_example("carl", "carl", "a text that comes after the list was read")
        return lists[-1]

    def read_task_before_an_example(store, name):
        task = read_task(store, name)
        if task.example is None:
            monkeypatch.setattr(journal, "read_task", read_task)
            branches.add_example("anna", "anna", "a text that comes after none was there")
        return task

    for text in TEXTS:
        branches.add_example("anna", "anna", text)
    branches.add_example("bob", "bob", "a text")
    while branches.learn_next():
        pass
    before = num_learned("anna")
    for text in TEXTS:
        branches.add_example("anna", "anna", text)
    with monkeypatch.context() as patch:
        patch.setattr(branches.ownership, "list_branches_to_learn", read_list_before_an_example)
        assert branches.learn_next() and lists == [["story/anna"]] and num_learned("anna") == before + 1
    assert branches.learn_next() and num_learned("carl") == 1 and num_learned("anna") == before + 2
    loop.wake()
    monkeypatch.setattr(journal, "read_task", read_task_before_an_example)
    branches.add_example("anna", "anna", "another text")
    while branches.learn_next():
        pass
    assert num_learned("anna") == before + 4
