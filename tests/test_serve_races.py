"""Branches that change while they are learned, read and restored: every interleaving ends as without one."""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from journal_checks import check_decisions
from ontogeny import trees
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server.learning import branch_changes, journal, learning_loop, loading, partial_steps, versions
from ontogeny.server.learning.acceptance import Pause, do_not_pause
from ontogeny.server.learning.branches import WARM_UP_TEXT, BranchConfig, BranchManager
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.learning.repair import check_branches, repair_branches
from ontogeny.server.learning.snapshots import delete_unused
from ontogeny.server.states import decode_state, read_metadata
from ontogeny.server.store import Store
from ontogeny.types import Weights
from selection import slow_except
from serving import ROOT, copy_state_folder, shared_run
from stepping import SteppedStore, SteppedThread, fake_learner, list_snapshot_paths, snapshot_path
from workload import AcknowledgedExamples, Workload

MAX_STEPS = 20_000  # after which a test has hung
INDICES = st.integers(0, 10**6)  # of one of several things, modulo their number
KEYS = ["anna", "bob", "carl"]
LIMITS = BranchConfig(snapshot_interval=2, max_snapshots=2, max_loaded=2)
TEXTS = ["A lamp.", "A bell under water.", "A ship of glass.", "A letter to the sea."]


def replay(learner: BranchLearner, weights: Weights, examples: list[str]) -> Weights:
    """Learns examples one after another, without branches or a journal."""
    for text in examples:
        try:
            tokens = learner.encode(text)
        except BadInput:
            continue
        if partial_steps.count_chunks(learner, tokens):
            pauses = {"learning": do_not_pause, "testing": do_not_pause}
            weights = partial_steps.learn_text(learner, weights, tokens, LIMITS.max_forgetting, **pauses).weights
    return weights


def list_learned_examples(store: Store, version: versions.BranchVersion) -> set[int]:
    """The examples that a version was learned from, those that a restored version inherited included."""
    query = "SELECT example FROM inherited_examples WHERE branch = ? AND version = ?"
    examples = set(store.select_values(query, version.branch, version.root_version))
    while version.parent is not None:
        examples.add(int(version.example or 0))
        version = versions.get_version(store, version.branch, version.parent)
    return examples


def call_beside(stepped: list[SteppedThread], function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function on a thread of its own; stepped threads go on only where it waits for their locks."""
    result = Future[Any]()

    def work() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(0.05)
    for _ in range(MAX_STEPS):
        if not thread.is_alive():
            return result.result()
        for stepped_thread in stepped:
            stepped_thread.advance()
        thread.join(0.01)
    raise AssertionError(f"{function} has not returned")


class LearnerWithRequests(RuleBasedStateMachine):
    """The learner and one slow request, advanced piece by piece, between requests that change the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.learner = Path(tempfile.mkdtemp()), fake_learner(rejects_weights=True)
        self.texts: dict[int, str] = {}  # of all examples
        self.erased: set[int] = set()
        self.damaged: set[str] = set()  # snapshots
        self.states: dict[str, Weights] = {}  # exported ones by digest
        self.exports: list[bytes] = []
        self.abandoned: list[SteppedThread] = []
        self.request: SteppedThread | None = None
        self.records: list[logging.LogRecord] = []
        self.handler = logging.Handler()
        self.handler.emit = self.records.append  # type: ignore[method-assign]
        logging.getLogger("ontogeny").addHandler(self.handler)
        self.open()

    def open(self) -> None:
        """Starts a server in the folder: a manager and its learning thread."""
        store = SteppedStore(self.folder / "state")
        self.manager = self.running = BranchManager(store, "story", self.learner, config=LIMITS)
        delete_unused(self.manager.store)
        self.manager.store.truncate_log()
        self.manager.finish_erasures()
        self.thread = SteppedThread(partial(self.learn, self.manager))

    def learn(self, manager: BranchManager) -> None:
        """What the learning thread does, without waiting for new examples."""
        while manager is self.running:
            manager.learn_next()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Sends a request; the stepped threads go on only where it waits for them."""
        return call_beside([self.thread] + ([] if self.request is None else [self.request]), function, *arguments)

    @initialize()
    def begin(self) -> None:
        for key in KEYS:
            self.call(self.manager.open, key)

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(["text", "text", "text", "text", "short", "strange"]))
    def teach(self, key: str, kind: str) -> None:
        text = f"{kind} number {len(self.texts) + 1} of {key}."
        number = self.call(self.manager.add_example, key, key, text)
        if number is not None:
            assert number == len(self.texts) + 1
            self.texts[number] = text

    @rule(index=INDICES)
    def erase(self, index: int) -> None:
        if not (numbers := sorted(self.texts.keys() - self.erased)):
            return
        number = numbers[index % len(numbers)]
        self.erased.add(number)
        self.call(self.manager.erase_example, number, "test")
        self.check_that_nothing_is_left_of(number)

    @rule(key=st.sampled_from(KEYS), index=INDICES)
    def roll_back(self, key: str, index: int) -> None:
        branch_versions = self.call(versions.list_versions, self.manager.store, f"story/{key}")
        version = branch_versions[index % len(branch_versions)]
        try:
            self.call(branch_changes.rollback, self.manager.store, f"story/{key}", version.number, "test")
        except BadInput:
            assert version.deleted
        else:
            assert not version.deleted

    @rule(owner_key=st.sampled_from(KEYS), target_key=st.sampled_from(KEYS))
    def fork(self, owner_key: str, target_key: str) -> None:
        self.remember_state(self.call(self.manager.export, owner_key))
        self.call(self.manager.fork, owner_key, target_key, "test")

    @rule(key=st.sampled_from(KEYS))
    def export(self, key: str) -> None:
        self.remember_state(self.call(self.manager.export, key))

    @rule(key=st.sampled_from(KEYS), index=INDICES)
    def restore(self, key: str, index: int) -> None:
        if not self.exports:
            return
        state = self.exports[index % len(self.exports)]
        metadata = read_metadata(state, "branch")
        source = versions.get_version(self.manager.store, metadata["branch"], int(metadata["version"]))
        try:
            self.call(self.manager.restore, key, state, "test")
        except BadInput:
            assert source.deleted
        else:
            assert not source.deleted

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.call(branch_changes.set_frozen, self.manager.store, "story", frozen, "test")

    @rule(key=st.sampled_from(KEYS))
    def ask(self, key: str) -> None:
        loaded = self.call(self.manager.current, key)
        weights = loaded.weights if loaded.version.number else loaded.full_weights
        assert trees.digest(weights) == loaded.version.digest

    @rule(key=st.sampled_from(KEYS), name=st.sampled_from(["current", "export", "fork"]))
    def begin_slow_request(self, key: str, name: str) -> None:
        if self.request is not None:
            return
        manager = self.manager
        actions = {
            "current": lambda: manager.current(key),
            "export": lambda: self.remember_state(manager.export(key)),
            "fork": lambda: self.remember_state(manager.export("bob")) or manager.fork("bob", key, "test"),
        }
        self.request = SteppedThread(actions[name])

    @rule(steps=st.integers(1, 12))
    def advance_request(self, steps: int) -> None:
        if self.request is not None and any(self.request.advance() for _ in range(steps)):
            self.request.result.result()
            self.request = None

    @rule(key=st.sampled_from(KEYS), steps=st.integers(1, 60))
    def teach_and_advance(self, key: str, steps: int) -> None:
        for _ in range(2):
            self.teach(key, "text")
        self.advance_learner(steps)

    @rule(steps=st.integers(1, 30))
    def advance_learner(self, steps: int) -> None:
        for _ in range(steps):
            self.thread.advance()
        self.check_threads()

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        abandoned = [self.thread] + ([] if self.request is None else [self.request])
        if not is_killed:
            self.running = None  # the learning thread ends after its update
            for thread in abandoned:
                while not thread.advance():
                    pass
                thread.result.result()
            self.manager.stop()
            self.manager.store.close()
        self.abandoned += abandoned
        self.request = None
        self.open()

    @rule(index=INDICES, is_absent=st.booleans())
    def damage_snapshot(self, index: int, is_absent: bool) -> None:
        """A snapshot of a version that can be learned again."""
        store = self.manager.store
        branch_versions = [v for key in KEYS for v in self.call(versions.list_versions, store, f"story/{key}")]
        files = sorted(str(v.snapshot) for v in branch_versions if v.snapshot is not None and v.parent is not None)
        if files:
            path = Path(store.snapshots.path_of(files[index % len(files)]))
            self.damaged.add(path.name)
            path.unlink(missing_ok=True) if is_absent else path.write_bytes(b"damaged")

    def remember_state(self, state: bytes) -> None:
        """Keeps an export for `restore`, and its weights for the replay of branches into which it is restored."""
        weights = trees.from_arrays(self.learner.init(), decode_state(state))
        self.states[read_metadata(state, "branch")["digest"]] = weights
        self.exports.append(state)

    def check_that_nothing_is_left_of(self, number: int) -> None:
        """No version in memory or on disk was learned from an erased example, and no file holds its text."""
        store = self.manager.store
        digests = versions.list_digests(store, "story", deleted=False)
        assert {loaded.version.digest for loaded in self.manager.loader._loaded.values()} <= digests
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # the learner replaces its snapshots
                assert self.texts[number].encode() not in path.read_bytes(), path
        for key in KEYS:
            for version in versions.list_versions(store, f"story/{key}"):
                assert version.deleted or number not in list_learned_examples(store, version)
                assert not (version.deleted and version.snapshot)

    def check_threads(self) -> None:
        """No thread has failed, and nothing worse than a damaged snapshot is in the log."""
        if self.thread.result.done():
            self.thread.result.result()
        assert not self.manager.loop._failures
        for record in self.records:
            assert any(f"snapshot '{file}'" in record.getMessage() for file in self.damaged), record.getMessage()

    def check_replay(self, branch: str) -> None:
        """The branch equals one that learns its surviving examples from the trained or the restored weights."""
        store = self.manager.store
        current = versions.get_version(store, branch, journal.get_branch(store, branch).current_version)
        root = versions.get_version(store, branch, current.root_version)
        weights = self.states[root.digest] if root.number else self.learner.init()
        examples = [e for e in journal.list_examples(store, branch) if e.erased_at is None and not e.deferred]
        replayed = replay(self.learner, weights, [str(example.text) for example in examples])
        assert trees.digest(replayed if current.number else replayed.content) == current.digest

    def teardown(self) -> None:
        try:
            if self.request is not None:
                self.call(lambda: self.request and self.request.result.result())
                self.request = None
            self.freeze(False)
            store = self.manager.store
            for _ in range(MAX_STEPS):
                self.thread.advance()
                if not any(journal.num_pending(store, branch) for branch in journal.list_branches(store, "story")):
                    break
            else:
                raise AssertionError("examples stay pending")
            self.check_threads()
            for key in KEYS:
                check_decisions(self.manager.store, f"story/{key}")
                self.check_replay(f"story/{key}")
                self.ask(key)
            for number in self.erased:
                self.check_that_nothing_is_left_of(number)
            for _ in range(30):
                self.thread.advance()  # past a snapshot that is being written
            files = {path.name for path in list_snapshot_paths(self.manager.store)}
            assert files <= set(versions.list_snapshots(self.manager.store))
            self.check_threads()
        finally:
            logging.getLogger("ontogeny").removeHandler(self.handler)
            threads = [self.thread, *self.abandoned] + ([] if self.request is None else [self.request])
            for thread in threads:
                thread.kill()
            for thread in threads:  # one may wait for the lock of another
                thread.join()
            self.manager.store.close()
            shutil.rmtree(self.folder)


def test_every_interleaving_ends_like_a_replay():
    run_state_machine_as_test(LearnerWithRequests, settings=settings(max_examples=12, stateful_step_count=40))


def open_branches(folder: Path, learner: BranchLearner | None = None, **limits: int) -> BranchManager:
    """Branches of the fake learner, which keeps its promises in any folder."""
    return BranchManager(SteppedStore(folder), "story", learner or fake_learner(), config=BranchConfig(**limits))


def learn(branches: BranchManager, owner: str, *examples: str) -> list[int]:
    """Adds examples and learns all that are pending."""
    numbers = [branches.add_example(owner, owner, text) for text in examples]
    for _ in range(MAX_STEPS):
        if not branches.learn_next():
            return [number for number in numbers if number is not None]
    raise AssertionError("examples stay pending")


def check_files(branches: BranchManager) -> None:
    """The snapshot folder holds the snapshots of versions that are not deleted, and nothing else."""
    store = branches.store
    assert {path.name for path in list_snapshot_paths(store)} == set(versions.list_snapshots(store))
    for branch in journal.list_branches(store, "story"):
        assert not any(v.deleted and v.snapshot for v in versions.list_versions(store, branch.branch))


def test_erasing_an_example_while_another_is_learned_stops_nothing(tmp_path):
    first, second, slow = TEXTS[:3]

    def on_learn(text: str) -> None:
        if text == slow:
            branches.add_example("bob", "bob", second)
            branches.erase_example(number, "test")

    branches = open_branches(tmp_path / "state", fake_learner(on_learn))
    [number] = learn(branches, "bob", first)
    learn(branches, "anna", slow)
    for owner, text in (("anna", slow), ("bob", second)):
        expected = replay(fake_learner(), branches.learner.init(), [text])
        assert trees.bitwise_equal(branches.current(owner).weights, expected)
    kinds = Counter(decision.kind for decision in journal.list_decisions(branches.store, "story"))
    assert kinds == {"learned": 3, "erased": 1}


CHANGES: dict[str, Callable[[BranchManager, int, bytes], Any]] = {
    "erase": lambda branches, first, state: branches.erase_example(first, "test"),
    "roll back": lambda branches, first, state: branch_changes.rollback(branches.store, "story/anna", 1, "test"),
    "restore": lambda branches, first, state: branches.restore("anna", state, "test"),
}
READS: dict[str, Callable[[BranchManager], Any]] = {
    "current": lambda branches: branches.current("anna"),
    "export": lambda branches: branches.export("anna"),
    "fork": lambda branches: branches.fork("anna", "carl", "test"),
    "learn": lambda branches: learn(branches, "anna"),
}
QUICK_PAIRS = [("current", "erase"), ("export", "restore"), ("fork", "roll back"), ("learn", "erase")]


@pytest.mark.parametrize(("read", "change"), slow_except(QUICK_PAIRS, itertools.product(READS, CHANGES)))
def test_a_version_is_read_although_the_branch_changes_at_any_point(tmp_path, read, change):
    branches = open_branches(tmp_path / "state", snapshot_interval=2)
    first, *_ = learn(branches, "anna", *TEXTS[:2])
    state = branches.export("anna")
    learn(branches, "anna", TEXTS[2])
    branches.add_example("anna", "anna", TEXTS[3])
    branches.store.close()
    has_ended, num_steps = False, 0
    while not has_ended:
        num_steps += 1
        folder = tmp_path / f"after {num_steps}"
        copy_state_folder(tmp_path / "state", folder)
        branches = open_branches(folder, snapshot_interval=2)
        thread = SteppedThread(partial(READS[read], branches))
        has_ended = any(thread.advance() for _ in range(num_steps))
        call_beside([thread], CHANGES[change], branches, first, state)
        assert any(thread.advance() for _ in range(MAX_STEPS))
        thread.result.result()
        learn(branches, "anna")
        texts_left = {"erase": TEXTS[1:], "roll back": TEXTS[:1], "restore": TEXTS[:2]}[change]
        expected = replay(branches.learner, branches.learner.init(), texts_left)
        assert trees.digest(branches.current("anna").weights) == trees.digest(expected)
        check_files(branches)
        branches.store.close()
        shutil.rmtree(folder)
    assert num_steps > 3


def test_a_branch_that_is_being_computed_holds_up_no_other_key(tmp_path):
    slow, quick = TEXTS[:2]
    branches = open_branches(tmp_path / "state")
    learn(branches, "anna", slow)
    learn(branches, "bob", quick)
    may_continue, has_begun = threading.Event(), threading.Event()

    def on_learn(text: str) -> None:
        if text == slow:
            has_begun.set()
            assert may_continue.wait(60)

    branches = open_branches(tmp_path / "state", fake_learner(on_learn))

    async def request_both() -> list[int]:
        waiting = [asyncio.create_task(branches.request_current("anna")) for _ in range(100)]
        await asyncio.to_thread(has_begun.wait, 60)
        assert (await branches.request_current("bob")).version.number == 1
        assert not any(task.done() for task in waiting)
        may_continue.set()
        return [loaded.version.number for loaded in await asyncio.gather(*waiting)]

    assert asyncio.run(request_both()) == [1] * 100


def test_a_server_stops_while_it_recomputes_a_branch(tmp_path, caplog):
    learn(open_branches(tmp_path / "state"), "anna", *TEXTS[:3])
    has_begun, may_continue, learned = threading.Event(), threading.Event(), list[str]()

    def on_learn(text: str) -> None:
        learned.append(text)
        if text == TEXTS[0]:
            has_begun.set()
            assert may_continue.wait(60)

    branches = open_branches(tmp_path / "state", fake_learner(on_learn))
    starting = threading.Thread(target=branches.start)
    starting.start()
    assert has_begun.wait(60)
    branches.interrupt()
    may_continue.set()
    starting.join(60)
    branches.stop()
    assert learned == [WARM_UP_TEXT, TEXTS[0]] and not caplog.records


def test_a_server_stops_while_it_learns_a_long_text_and_learns_it_after_the_next_start(tmp_path, caplog):
    has_begun, may_continue, learned = threading.Event(), threading.Event(), list[str]()

    def on_learn(text: str) -> None:
        learned.append(text)
        if text != WARM_UP_TEXT and not may_continue.is_set():
            has_begun.set()
            assert may_continue.wait(60)

    branches = open_branches(tmp_path / "state", fake_learner(on_learn))
    branches.start()
    branches.add_example("anna", "anna", TEXTS[0])
    assert has_begun.wait(60)
    branches.interrupt()
    may_continue.set()
    branches.stop()  # at the next piece of the update, not at its end
    assert journal.get_branch(branches.store, "story/anna").current_version == 0
    reopened = open_branches(tmp_path / "state", fake_learner(on_learn))
    learn(reopened, "anna")
    assert learned == [WARM_UP_TEXT, TEXTS[0], TEXTS[0]] and not caplog.records
    assert journal.get_branch(reopened.store, "story/anna").current_version == 1


def test_erasing_a_long_text_while_it_is_learned_ends_its_update(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(learning_loop, "CHECK_INTERVAL", 0.0)
    learned, ended = list[str](), list[str]()
    fake = fake_learner(learned.append)

    def learn_text(weights: Weights, tokens: np.ndarray, chunks: range, pause: Pause = do_not_pause) -> Weights:
        text = tokens.tobytes().decode()
        if text == TEXTS[0]:
            branches.erase_example(1, "anna")
        after = fake.learn(weights, tokens, chunks, pause)
        ended.append(text)
        return after

    branches = open_branches(tmp_path / "state", fake._replace(learn=learn_text))
    learn(branches, "anna", *TEXTS[:2])
    assert (learned, ended) == ([TEXTS[0], TEXTS[1]], [TEXTS[1]]) and not caplog.records


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("out of memory")])
def test_a_failure_in_one_branch_stops_no_other_and_heals(tmp_path, monkeypatch, caplog, error):
    monkeypatch.setattr(loading, "MIN_RETRY_INTERVAL", 0.0)
    errors = [error] * 3

    def on_learn(text: str) -> None:
        if text == TEXTS[0] and errors:
            raise errors.pop()

    branches = open_branches(tmp_path / "state", fake_learner(on_learn))
    branches.add_example("anna", "anna", TEXTS[0])
    branches.add_example("bob", "bob", TEXTS[1])
    assert branches.learn_next()
    assert branches.current("bob").version.number == 1 and branches.current("anna").version.number == 0
    assert str(error) in str(branches.failure("anna")) and branches.failure("bob") is None
    while errors:
        branches.learn_next()
    learn(branches, "anna")
    assert branches.current("anna").version.number == 1 and branches.failure("anna") is None
    assert len(caplog.records) == 1 and "story/anna" in caplog.text  # one line for three failures
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)


def test_the_failure_of_a_branch_that_has_nothing_to_learn_any_more_is_forgotten(tmp_path):
    """Otherwise a process whose branch another process has learned meanwhile would never be ready again."""

    def on_learn(text: str) -> None:
        raise StorageUnavailable("the connection was lost")

    branches = open_branches(tmp_path / "state", fake_learner(on_learn))
    branches.add_example("anna", "anna", TEXTS[0])
    branches.learn_next()
    assert branches.failure("anna") is not None and branches.loop.general_failure is not None
    branch_changes.rollback(branches.store, "story/anna", 0, "test")  # the example is decided, as by another process
    branches.learn_next()
    assert branches.failure("anna") is None and branches.loop.general_failure is None


def test_a_branch_whose_restored_state_is_lost_is_unavailable_until_it_is_repaired(tmp_path, caplog):
    exporting = open_branches(tmp_path / "source")
    learn(exporting, "anna", *TEXTS[:2])
    branches = open_branches(tmp_path / "state")
    learn(branches, "anna", TEXTS[0])
    learn(branches, "bob", TEXTS[1])
    restored = branches.restore("anna", exporting.export("anna"), "test")
    learn(branches, "anna", TEXTS[2])
    check_files(branches)
    snapshot_path(branches.store, restored).unlink()
    reopened = open_branches(tmp_path / "state")
    for _ in range(2):
        with pytest.raises(BranchUnavailable, match=str(restored.snapshot)):
            reopened.current("anna")
    assert reopened.current("bob").version.number == 1 and len(caplog.records) == 1
    anna, bob, _ = check_branches(reopened.store, "story")
    assert not anna.is_available and anna.newest_version == 1 and bob.is_available
    assert [(version.number, reason) for version, reason in anna.damaged] == [
        (2, "it cannot be read: No such file or directory")
    ]
    repair_branches(reopened.store, "story", "test")
    assert trees.bitwise_equal(
        reopened.current("anna").weights, replay(branches.learner, branches.learner.init(), TEXTS[:1])
    )
    assert all(check.is_available for check in check_branches(reopened.store, "story"))


def test_a_fork_whose_snapshot_is_lost_is_learned_again_from_its_source(tmp_path):
    branches = open_branches(tmp_path / "state")
    learn(branches, "anna", *TEXTS[:2])
    version = branches.fork("anna", "bob", "test")
    weights = branches.current("bob").weights
    snapshot_path(branches.store, version).unlink()
    assert all(check.is_available for check in check_branches(branches.store, "story"))
    assert trees.bitwise_equal(open_branches(tmp_path / "state").current("bob").weights, weights)


def test_two_versions_of_equal_weights_share_a_snapshot_which_stays_while_one_is_in_use(tmp_path):
    branches = open_branches(tmp_path / "state", snapshot_interval=1, max_snapshots=1)
    learn(branches, "anna", *TEXTS[:2])
    state, learned = branches.export("anna"), versions.get_version(branches.store, "story/anna", 2)
    assert branches.restore("anna", state, "test").snapshot == learned.snapshot is not None
    learn(branches, "anna", *TEXTS[2:])
    branch_changes.rollback(branches.store, "story/anna", 3, "test")
    check_files(branches)
    reopened = open_branches(tmp_path / "state")
    assert trees.bitwise_equal(
        reopened.current("anna").weights, replay(branches.learner, branches.learner.init(), TEXTS[:2])
    )


def test_the_decision_log_says_where_restored_and_forked_weights_come_from(tmp_path, call_cli):
    elsewhere = open_branches(tmp_path / "elsewhere")
    learn(elsewhere, "anna", *TEXTS[:2])
    branches = open_branches(tmp_path / "state")
    learn(branches, "anna", *TEXTS[:2])
    state = branches.export("anna")
    branch_changes.rollback(branches.store, "story/anna", 0, "test")
    branches.restore("anna", state, "test")
    learn(branches, "anna", TEXTS[2])
    branches.fork("anna", "bob", "test")
    learn(elsewhere, "carl", "A text that this server never received.")
    branches.restore("carl", elsewhere.export("carl"), "test")
    branch_changes.rollback(branches.store, "story/bob", 0, "test")
    branches.store.close()
    code, output, _ = call_cli("deployments", "log", "story", "--state-dir", str(tmp_path / "state"))
    assert code == 0
    for line in (
        "(examples 1 to 2)",
        "story/anna  rollback, version 0",
        "(the trained weights)",
        "(restored from an export of version 2)",
        "(restored from an export of version 2, then example 3)",
        "(forked from version 4 of key anna)",
        "(restored from an export)",
    ):
        assert line in output, (line, output)
    assert "no examples" not in output


def test_a_workload_reads_examples_while_other_threads_add_some():
    examples, finished, draw = AcknowledgedExamples(), threading.Event(), random.Random(0)
    for number in range(20_000):
        examples.add(number, "anna")

    def add() -> None:
        for number in itertools.count(20_000):
            if finished.is_set():
                return
            examples.add(number, "anna", "A lamp.")

    def let_others_continue(*_: object) -> None:
        """A callback of the garbage collector, like that of JAX."""
        time.sleep(0)

    thread = threading.Thread(target=add)
    thread.start()
    gc.callbacks.append(let_others_continue)
    try:
        chosen = [examples.erase_one("anna", draw) for _ in range(20)]
        erased = {example.number for example in examples.list_all() if example.is_erased}
    finally:
        gc.callbacks.remove(let_others_continue)
        finished.set()
        thread.join()
    assert len(set(chosen)) == 20 and erased == set(chosen)


def test_the_soak_benchmark_counts_descriptors_by_kind(tmp_path):
    count = runpy.run_path(str(ROOT / "benchmarks" / "soak.py"))["count_descriptors"]
    script = (
        "import socket, sys; from pathlib import Path; sockets = socket.socketpair(); print(1, flush=True);"
        "sys.stdin.read(1); file = Path(sys.argv[1], 'ontogeny.sqlite-wal').open('w'); print(2, flush=True);"
        "sys.stdin.read(1)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        before = count(process.pid)
        process.stdin.write("x")
        process.stdin.flush()
        process.stdout.readline()
        after = count(process.pid)
        process.stdin.close()
    assert before.num_sockets == 2 and before.num_database_files == 0 and before.num_others >= 3
    assert after == before._replace(num_database_files=1)


@pytest.mark.slow
def test_keys_that_share_a_killed_server_end_with_their_own_replays(tmp_path_factory, tmp_path):
    """Five minutes, or the seconds in ONTOGENY_WORKLOAD_SECONDS."""
    seconds = float(os.environ.get("ONTOGENY_WORKLOAD_SECONDS", "300"))
    with Workload(shared_run(tmp_path_factory), tmp_path) as workload:
        workload.run_for(seconds)
        workload.check()
        assert workload.statuses["200 POST /v1/models/story/examples"] > seconds / 2, workload.statuses
