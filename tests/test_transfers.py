"""Branches that change their owner while the former owner still answers."""

import contextlib
import json
import threading

import pytest

from ontogeny.lm.tokenizer import ByteTokenizer
from ontogeny.server.learning import branch_changes, journal
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.intake import ExampleIntake
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes import transfers
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.processes.status import list_computations
from ontogeny.server.processes.transfers import NUM_FORWARDED, BranchTransfers
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store
from serving import wait_until
from stepping import fake_learner

pytestmark = pytest.mark.sqlite  # they use PostgreSQL in any case
LONG = 30.0  # seconds
ANNA = "story/anna"


class Process:
    """A process of a group, without HTTP."""

    def __init__(self, name, store, computed_by="test", **options):
        self.store = store
        self.member = Membership(store, computed_by, find_load=lambda: Load(0, 0), **{"allow_mixed": False} | options)
        self.branches = BranchManager(store, "story", fake_learner(), ownership=self.member)
        self.loaded = []
        self.transfers = BranchTransfers(store, self.member, self.branches.loader.save, self.load)
        self.transfers.start()
        self.member.start(name, f"http://{name}")

    def load(self, name):
        self.loaded.append((name, journal.get_branch(self.store, name).owner))
        return self.branches.loader.load(name)

    def owns(self, name=ANNA):
        return journal.get_branch(self.store, name).owner == self.member.number

    def stop(self):
        self.transfers.stop()
        self.member.leave()
        self.store.close()


@pytest.fixture
def start(postgres, tmp_path):
    """Starts processes that share a database."""
    with contextlib.ExitStack() as stack:

        def start_process(name, **options):
            process = Process(name, Store(tmp_path / name, database_url=postgres.address_for(tmp_path)), **options)
            stack.callback(process.stop)
            return process

        yield start_process


def teach(process, owner_key="anna"):
    process.branches.add_example(owner_key, owner_key, f"A text for {owner_key}.")
    process.branches.learn_next()
    return process.branches.current(owner_key).version


def test_branches_are_in_the_memory_of_their_new_owner_before_the_former_one_gives_them_up(start):
    first, second, third = map(start, ("first", "second", "third"))
    keys = [f"key{i}" for i in range(4)]
    versions = [teach(first, key) for key in keys]
    first.transfers.hand_over(first.branches.loader.list_branches(), LONG)
    owner = first.member.number
    assert all(former == owner for process in (second, third) for _, former in process.loaded)
    assert len(second.loaded) == len(third.loaded) == 2
    for name, _ in second.loaded:
        branch = journal.get_branch(second.store, name)
        assert second.owns(name) and branch.fence == 2
        assert second.branches.loader.find(branch).version == versions[keys.index(branch.owner_key)]
    with pytest.raises(OwnedElsewhere):
        first.branches.claim(keys[0])
    assert first.store.select_values("SELECT branch FROM offered_branches") == []


def test_an_offer_has_no_effect_once_the_owner_has_changed(start, monkeypatch):
    first, second = map(start, ("first", "second"))
    teach(first)
    reached, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(second.transfers, "_load", lambda name: (reached.set(), go_on.wait(LONG)))
    first.transfers._offer(ANNA, second.member.number)
    assert reached.wait(LONG)
    fence = journal.get_branch(first.store, ANNA).fence
    first.store.execute("UPDATE branches SET fence = fence + 1")
    go_on.set()
    wait_until(lambda: not first.store.select_values("SELECT branch FROM offered_branches"))
    assert first.owns() and journal.get_branch(first.store, ANNA).fence == fence + 1


@pytest.mark.parametrize("case", ["it cannot be loaded", "another kind of machine has computed it"])
def test_a_branch_stays_with_its_owner_if(start, monkeypatch, case):
    first, second = start("first"), start("second")
    if case == "it cannot be loaded":

        def fail(name):
            raise BranchUnavailable("a test")

        monkeypatch.setattr(second.transfers, "_load", fail)
    teach(first)
    if case != "it cannot be loaded":
        first.store.execute("UPDATE versions SET computed_by = 'another machine'")
    first.transfers.hand_over([ANNA], LONG)  # does not wait for nothing
    assert first.owns() and first.store.select_values("SELECT branch FROM offered_branches") == []


def test_nobody_waits_for_a_process_that_is_about_to_stop(start):
    first, second = start("first"), start("second")
    teach(first)
    second.member.announce_end()
    assert first.member.find_successor() is None
    first.transfers.hand_over([ANNA], LONG)
    assert first.owns()


def test_nothing_is_offered_to_a_process_that_ends_and_its_offers_are_deleted(start):
    """An offer describes prompts by their digests, which would otherwise stay after an erasure."""
    first, second = start("first"), start("second")
    teach(first)
    second.transfers.stop()
    first.transfers._offer(ANNA, second.member.number)
    assert first.store.select_values("SELECT branch FROM offered_branches") == [ANNA]
    second.member.leave()
    first.transfers._offer(ANNA, second.member.last_number)
    assert first.store.select_values("SELECT branch FROM offered_branches") == []


def test_a_process_that_is_about_to_stop_and_registers_again_gets_no_branches(start):
    first, second = start("first"), start("second")
    teach(first)
    second.member.announce_end()
    number = second.member.number
    second.store.execute("UPDATE processes SET expires_at = clock_timestamp() WHERE number = ?", number)
    wait_until(lambda: second.member.number not in (None, number))
    assert first.member.find_successor() is None
    first.transfers._offer(ANNA, second.member.number)
    assert first.store.select_values("SELECT branch FROM offered_branches") == []


def test_offers_to_a_process_without_a_lease_are_deleted(start):
    first, second = start("first"), start("second")
    teach(first)
    second.transfers.stop()
    first.transfers._offer(ANNA, second.member.number)
    second.member._thread.stop()
    first.transfers.hand_over([ANNA], LONG)  # until the lease has ended
    wait_until(lambda: not first.store.select_values("SELECT branch FROM offered_branches"))
    assert first.owns()


def test_prompts_that_the_former_owner_has_learned_are_not_learned_again_unless_they_were_erased(start):
    first, second = start("first"), start("second")
    prompts = ["A lamp in the window.", "A lamp in the window. A bell.", "Something else."]
    intakes = {process: ExampleIntake(process.store) for process in (first, second)}

    def send(process, prompt):
        identity = RequestIdentity(f"{process.member.name} {prompt}", None, 0, 0.0)
        return intakes[process].add_prompt(process.branches, "anna", prompt, ByteTokenizer(), identity)

    numbers = [send(first, prompt) for prompt in prompts]
    assert json.loads(intakes[first].export_prompts("story/berta")) == []
    assert len(json.loads(intakes[first].export_prompts("story/shared"))) == len(prompts)

    def export(branch):
        """An example is erased while the branch is offered."""
        description = intakes[first].export_prompts(branch)
        assert numbers[1] is not None
        branch_changes.erase_example(first.store, numbers[1], "test")
        return description

    first.transfers.export_prompts = export
    second.transfers.import_prompts = intakes[second].import_prompts
    first.transfers.hand_over([ANNA], LONG)
    assert second.owns()
    repeated = [send(second, prompt) for prompt in prompts]
    assert [number is None for number in repeated] == [True, False, True]


def test_a_branch_follows_the_requests_of_its_key(start, monkeypatch):
    first, second, third = map(start, ("first", "second", "third"))
    teach(first)
    for i in range(3 * NUM_FORWARDED):  # from everywhere
        first.transfers.count_request(ANNA, (None, second.member.number, third.member.number)[i % 3])
    for _ in range(NUM_FORWARDED):
        first.transfers.count_request(ANNA, 10**6)  # a client may send any number
    assert first.owns()
    monkeypatch.setattr(transfers, "MIN_INTERVAL", 0.0)
    for _ in range(NUM_FORWARDED):
        first.transfers.count_request(ANNA, second.member.number)
    wait_until(second.owns)
    assert second.branches.loader.find(journal.get_branch(second.store, ANNA)).version.number == 1


def test_the_last_process_of_a_kind_offers_its_branches_to_one_that_may_own_any(start):
    first, equal = start("first"), start("equal")
    refusing, mixed = start("refusing", computed_by="new"), start("mixed", computed_by="new", allow_mixed=True)
    version = teach(first)
    first.branches.loader.save_current()
    assert [process.name for process in first.member.find_successors()] == ["equal"]
    equal.member.announce_end()
    first.transfers.hand_over([ANNA], LONG)
    assert mixed.owns() and mixed.branches.current("anna").version == version._replace(
        snapshot=mixed.branches.current("anna").version.snapshot
    )
    later = teach(mixed)
    mixed.branches.rollback("anna", 0, "test")
    mixed.branches.claim("anna")
    mixed.branches.rollback("anna", version.number, "test")
    mixed.branches.claim("anna")
    assert later.computed_by == "new"
    mixed.stop()
    assert {computation.num_branches for computation in list_computations(first.store)} == {0}
    refusing.branches.claim("anna")  # the log of the branch says that its kind continues
    marks = [entry for entry in journal.list_decisions(refusing.store, "story") if entry.kind == "mixed"]
    assert [(mark.branch, mark.version) for mark in marks] == [(ANNA, version.number)]
    assert refusing.owns() and refusing.member.find_successor() is None


def test_a_branch_does_not_go_back_at_once(start):
    first, second = start("first"), start("second")
    teach(first)
    first.transfers._offer(ANNA, second.member.number)
    wait_until(second.owns)
    wait_until(lambda: not first.store.select_values("SELECT branch FROM offered_branches"))
    second.transfers.stop()  # so that offers would stay
    for _ in range(2 * NUM_FORWARDED):
        second.transfers.count_request(ANNA, first.member.number)
    assert second.transfers._to_offer == {}
