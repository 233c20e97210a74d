"""Branches: recomputed bit for bit, acceptance test, rollback, and erasure as if the example had never been learned."""

import asyncio
import itertools
import math
import os
import sys
from pathlib import Path
from string import ascii_lowercase

import jax
import numpy as np
import pytest

import stepping
import texts
from ontogeny import trees
from ontogeny.engine.engine import Engine
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.server import deployment_kinds, keys, quotas
from ontogeny.server.config import ServerConfig
from ontogeny.server.deployment_kinds import LanguageDeployment
from ontogeny.server.learning import branch_changes, journal, learner, versions
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.learning.journal import LearningDecision
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.sessions.texts import Continuation, TextSession, TextSessions
from ontogeny.server.states import read_metadata
from ontogeny.server.store import Store
from ontogeny.types import Weights
from selection import slow_except
from server_formats import copy_as_format
from serving import LimitedFileSize, family_run, load, read_stored, shared_run
from stepping import list_snapshot_paths, snapshot_path

pytestmark = pytest.mark.computes

TEXTS = [
    "The lighthouse keeper wrote a letter to the sea, and the sea answered.",
    "On the third day the ship of glass came in, and nobody was aboard.",
    "She counted the lamps twice; there was one too many.",
    "Then the bell rang below the water.",
]


ADAPTER = OnlineConfig(adapter_rank=4, learning_rate=1e-3, rehearsal_batch_size=2)
SETTINGS = [  # of which the first is tested by default, the others by `make test-slow`
    pytest.param((None, OnlineConfig()), id="gpt2"),
    pytest.param((None, ADAPTER), id="gpt2 adapter", marks=pytest.mark.slow),
    pytest.param(("qwen3", OnlineConfig()), id="qwen3", marks=pytest.mark.slow),
    pytest.param(("llama3", ADAPTER), id="llama3 adapter", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(shared_run(tmp_path_factory))


@pytest.fixture(scope="module", params=SETTINGS)
def branch_learner(request, tmp_path_factory) -> BranchLearner:
    """The learner of models of two families, with all weights or an adapter; only the guarantees depend on it."""
    family, config = request.param
    run = shared_run(tmp_path_factory) if family is None else family_run(tmp_path_factory, family)
    return learner.build(load(run), config)


@pytest.fixture
def branches(branch_learner, tmp_path) -> BranchManager:
    return open_branches(branch_learner, tmp_path / "state")


def open_branches(
    branch_learner: BranchLearner, folder: Path, max_forgetting: float = 5.0, **limits: int
) -> BranchManager:
    """Branches whose acceptance test accepts nearly everything, unless a test sets another limit."""
    config = BranchConfig(max_forgetting=max_forgetting, **limits)
    return BranchManager(Store(folder), "story", branch_learner, config=config)


def learn(branches: BranchManager, examples: list[str], owner: str = "a") -> list[int]:
    """Adds examples, learns all that are pending, and returns the numbers of the new ones."""
    numbers = [branches.add_example(owner, owner, text) for text in examples]
    for _ in range(100_000):
        if not branches.learn_next():
            break
    else:
        raise AssertionError("examples are still pending after 100,000 steps of the learner")
    return [number for number in numbers if number is not None]


def current_weights(branches: BranchManager, owner: str = "a") -> Weights:
    return branches.current(owner).weights


def snapshot_files(branches: BranchManager, *names: str) -> tuple[set[str], set[str]]:
    """The files in the snapshot folder, and those that the versions of these branches refer to."""
    branch_versions = [version for name in names for version in versions.list_versions(branches.store, name)]
    files = {path.name for path in list_snapshot_paths(branches.store)}
    return files, {version.snapshot for version in branch_versions if version.snapshot}


def test_examples_are_learned_in_order_and_each_is_a_version(branches):
    numbers = learn(branches, TEXTS)
    branch = journal.get_branch(branches.store, "story/a")
    assert (branch.current_version, branch.last_decided) == (4, numbers[-1])
    branch_versions = versions.list_versions(branches.store, "story/a")
    assert [version.example for version in branch_versions] == [None, *numbers]
    assert branch_versions[-1].first_example == numbers[0] and branch_versions[-1].last_example == numbers[-1]
    assert 0 < branch_versions[1].weight_distance < branch_versions[4].weight_distance
    assert len({version.digest for version in branch_versions}) == 5


@pytest.mark.parametrize("snapshot_interval", [1, 3, 100])
def test_versions_are_recomputed_bit_for_bit_after_a_crash(branch_learner, tmp_path, snapshot_interval):
    limits = {"snapshot_interval": snapshot_interval}
    branches = open_branches(branch_learner, tmp_path / "state", max_snapshots=2, **limits)
    learn(branches, TEXTS)
    weights = current_weights(branches)
    reopened = open_branches(branch_learner, tmp_path / "state", **limits)  # without a stop: as after kill -9
    assert trees.bitwise_equal(current_weights(reopened), weights)
    replayed = open_branches(branch_learner, tmp_path / "other")
    learn(replayed, TEXTS)
    assert trees.bitwise_equal(current_weights(replayed), weights)


def test_an_update_interrupted_before_its_commit_is_learned_once(branch_learner, tmp_path, monkeypatch):
    branches = open_branches(branch_learner, tmp_path / "state")
    learn(branches, TEXTS[:2])
    branches.add_example("a", "a", TEXTS[2])
    monkeypatch.setattr(journal, "commit_version", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        branches.learn_next()
    monkeypatch.undo()
    reopened = open_branches(branch_learner, tmp_path / "state")
    learn(reopened, [TEXTS[3]])
    undisturbed = open_branches(branch_learner, tmp_path / "other")
    learn(undisturbed, TEXTS)
    assert trees.bitwise_equal(current_weights(reopened), current_weights(undisturbed))


@pytest.mark.sqlite
@pytest.mark.parametrize("number", [3, 4, 5, 7])
def test_branches_and_sessions_of_a_database_of_an_earlier_format_answer_as_before(
    branch_learner, branches, model, tmp_path, number
):
    learn(branches, TEXTS[:2])
    session = TextSessions("story", model, Engine(model.config), branches.store).create("a", branches.trained_digest)
    branches.add_example("a", "a", TEXTS[2])
    copy_as_format(branches.store.folder, tmp_path / "earlier", number)
    converted = open_branches(branch_learner, tmp_path / "earlier")
    assert (
        TextSessions("story", model, Engine(model.config), converted.store).get("a", session.id).weights_digest
        == session.weights_digest
    )
    assert trees.bitwise_equal(current_weights(converted), current_weights(branches))
    learn(converted, TEXTS[3:])
    learn(branches, TEXTS[3:])
    assert trees.bitwise_equal(current_weights(converted), current_weights(branches))


def test_restoring_the_exports_of_a_branch_again_and_again_fills_no_disk(branch_learner, tmp_path):
    branches = open_branches(branch_learner, tmp_path / "state", max_snapshots=2)
    learn(branches, TEXTS[:1])
    exported, restored = branches.export("a"), []
    for _ in range(5):
        restored.append(branches.restore("a", exported, "a").number)
    files, used = snapshot_files(branches, "story/a")
    assert files == used and len(files) <= 3
    assert quotas.get_storage(branches.store, "a").num_stored_bytes < len(exported)
    branch_changes.rollback(branches.store, "story/a", restored[0], "test")  # its file is deleted, but not its source
    assert trees.digest(current_weights(branches)) == read_metadata(exported, "branch")["digest"]


def test_states_that_are_uploaded_from_elsewhere_count_for_the_key_of_the_branch(branch_learner, branches, tmp_path):
    elsewhere = open_branches(branch_learner, tmp_path / "other")
    learn(elsewhere, TEXTS[:1])
    exported = elsewhere.export("a")
    quotas.set_default_limits(branches.store, ServerConfig(max_stored_bytes=len(exported) * 3 // 2))
    branches.restore("a", exported, "a")
    assert quotas.get_storage(branches.store, "a").num_stored_bytes == pytest.approx(len(exported), rel=0.1)
    learn(elsewhere, TEXTS[1:2])
    with pytest.raises(quotas.QuotaExceeded, match="delete sessions or erase examples"):
        branches.restore("a", elsewhere.export("a"), "a")
    assert journal.get_branch(branches.store, "story/a").current_version == 1
    files, used = snapshot_files(branches, "story/a")
    assert files == used and len(files) == 1
    branches.restore("b", elsewhere.export("a"), "b")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the size limit of Linux")
def test_a_snapshot_that_does_not_fit_on_the_disk_stops_no_learning(model, tmp_path):
    branch_learner = learner.build(model, OnlineConfig())  # whose snapshots are larger than the journal
    branches = open_branches(branch_learner, tmp_path / "state", snapshot_interval=1, max_loaded=1)
    with LimitedFileSize(os.getpid(), num_bytes=700_000):  # enough for the journal
        learn(branches, TEXTS[:2])
        branches.current("b")  # the version of the other key leaves the memory without a snapshot
        assert not any(version.snapshot for version in versions.list_versions(branches.store, "story/a"))
        with pytest.raises(StorageUnavailable):
            branches.restore("b", branches.export("a"), "a")
        weights = current_weights(branches)
    assert journal.get_branch(branches.store, "story/b").current_version == 0
    assert not list(list_snapshot_paths(branches.store))
    learn(branches, TEXTS[2:3])
    assert versions.list_versions(branches.store, "story/a")[3].snapshot
    undisturbed = open_branches(branch_learner, tmp_path / "other")
    learn(undisturbed, TEXTS[:2])
    assert trees.bitwise_equal(weights, current_weights(undisturbed))


@pytest.mark.parametrize(("available", "expected"), [(None, 8), (0, 8), (2**26, 42), (2**40, 128)])
def test_the_memory_of_the_machine_decides_how_many_versions_stay_in_memory(monkeypatch, available, expected):
    fake = stepping.fake_learner()
    weights = jax.eval_shape(fake.init)
    version_bytes = trees.num_bytes(weights) + 2 * trees.num_bytes(weights.content)
    monkeypatch.setattr(deployment_kinds, "available_bytes", lambda: available)
    if available == 2**26:
        monkeypatch.setattr(deployment_kinds, "LOADED_SHARE", 42.5 * version_bytes / available)
    assert deployment_kinds.default_max_loaded(fake) == expected


def test_one_key_changes_no_bit_of_the_weights_of_another(branches):
    before = trees.digest(branches.current("b").full_weights)
    learn(branches, TEXTS * 3, "a")
    assert trees.digest(branches.current("b").full_weights) == before == branches.trained_digest
    assert trees.digest(branches.current("a").full_weights) != before


def test_a_shared_branch_learns_from_all_keys(branch_learner, tmp_path):
    branches = BranchManager(Store(tmp_path / "state"), "story", branch_learner, shared=True)
    learn(branches, TEXTS, "a")
    assert trees.bitwise_equal(current_weights(branches, "a"), current_weights(branches, "b"))
    assert journal.list_examples(branches.store, "story/shared")[0].key == "a"


def test_rollback_restores_an_earlier_version_and_learning_continues_from_it(branch_learner, branches, tmp_path):
    learn(branches, TEXTS[:3])
    branch_changes.rollback(branches.store, "story/a", 1, "test")
    undisturbed = open_branches(branch_learner, tmp_path / "other")
    learn(undisturbed, TEXTS[:1])
    assert trees.bitwise_equal(current_weights(branches), current_weights(undisturbed))
    learn(branches, [TEXTS[3]])
    learn(undisturbed, [TEXTS[3]])
    assert trees.bitwise_equal(current_weights(branches), current_weights(undisturbed))
    branch_changes.rollback(branches.store, "story/a", 3, "test")  # forward again
    complete = open_branches(branch_learner, tmp_path / "complete")
    learn(complete, TEXTS[:3])
    assert trees.bitwise_equal(current_weights(branches), current_weights(complete))
    branch_changes.rollback(branches.store, "story/a", 0, "test")
    assert trees.digest(branches.current("a").full_weights) == branches.trained_digest


@pytest.mark.parametrize(
    ("snapshot_interval", "erased"), slow_except([(1, 0), (100, 1)], itertools.product((1, 100), (0, 1, 3)))
)
def test_erasing_an_example_equals_never_having_learned_it(branch_learner, tmp_path, erased, snapshot_interval):
    branches = open_branches(branch_learner, tmp_path / "state", snapshot_interval=snapshot_interval)
    numbers = learn(branches, TEXTS)
    branches.erase_example(numbers[erased], "test")
    remaining = [text for i, text in enumerate(TEXTS) if i != erased]
    learn(branches, [])
    without = open_branches(branch_learner, tmp_path / "without")
    learn(without, remaining)
    assert trees.bitwise_equal(current_weights(branches), current_weights(without))
    reopened = open_branches(branch_learner, tmp_path / "state")
    assert trees.bitwise_equal(current_weights(reopened), current_weights(without))
    with pytest.raises(BadInput, match="erased"):
        branch_changes.rollback(branches.store, "story/a", 4, "test")
    branches.store.close()
    stored = read_stored(tmp_path / "state")
    assert TEXTS[erased].encode() not in stored and all(text.encode() in stored for text in remaining)
    files, referenced = snapshot_files(reopened, "story/a")
    assert files == referenced


def test_erasing_an_example_before_deferred_ones_keeps_them_deferred(branch_learner, tmp_path):
    branches = open_branches(branch_learner, tmp_path / "state")
    numbers = learn(branches, TEXTS[:3])
    branch_changes.rollback(branches.store, "story/a", 1, "test")
    learn(branches, [TEXTS[3]])
    branches.erase_example(numbers[0], "test")
    learn(branches, [])
    without = open_branches(branch_learner, tmp_path / "without")
    learn(without, [TEXTS[3]])  # the rollback deferred the second and third
    assert trees.bitwise_equal(current_weights(branches), current_weights(without))


def test_an_outdated_update_is_not_committed(branches):
    number = branches.add_example("a", "a", TEXTS[0])
    before = journal.get_branch(branches.store, "story/a")
    branches.erase_example(number, "test")
    assert journal.commit_version(branches.store, before, number, "digest", 1.0, 0.1, "late") is None
    assert not journal.reject_example(branches.store, before, number, 1.0, "late")
    assert journal.get_branch(branches.store, "story/a").current_version == 0


def poison(times: int) -> list[str]:
    """Texts sent to do harm: noise, one repeated sentence, and a text with exchanged letters."""
    draw = np.random.default_rng(0)
    noise = "".join(map(chr, draw.integers(1, 0x250, times * 8)))
    exchanged = texts.read_training().translate(str.maketrans(ascii_lowercase + " ", ascii_lowercase[::-1] + "e"))
    return [noise, "I am the best. " * times, (exchanged * (1 + times * 15 // len(exchanged)))[: times * 15]]


def learn_poison(branches: BranchManager, times: int, piece: int = 2000) -> list[LearningDecision]:
    """Learns poison, checks that every version keeps the limit and every rejection has a reason; returns these."""
    for text in poison(times):
        learn(branches, [text[start : start + piece] for start in range(0, len(text), piece)])
    limit = branches.learner.trained_loss + branches.config.max_forgetting
    branch_versions = versions.list_versions(branches.store, "story/a")
    assert max(version.held_out_loss for version in branch_versions) <= limit
    current = branches.current("a")
    loss = branches.learner.held_out_loss(current.full_weights, lambda: None)
    assert loss == current.version.held_out_loss
    decisions = journal.list_decisions(branches.store, "story")
    assert len(decisions) == len(journal.list_examples(branches.store, "story/a"))
    rejections = [decision for decision in decisions if decision.kind == "rejected"]
    for decision in rejections:
        assert "nats per token more" in decision.reason and decision.held_out_loss > limit
    return rejections


def test_the_acceptance_test_limits_a_learner_without_rehearsal(model, tmp_path):
    hasty = learner.build(model, OnlineConfig(rehearsal_batch_size=0, learning_rate=1e-3))
    branches = open_branches(hasty, tmp_path / "state", ServerConfig().max_forgetting)
    rejections = learn_poison(branches, 150)
    assert len(rejections) > len(journal.list_examples(branches.store, "story/a")) / 2


def test_poison_leaves_the_held_out_loss_within_the_limit(branch_learner, tmp_path):
    """A small amount, with rehearsal; the slow test learns much of it."""
    learn_poison(open_branches(branch_learner, tmp_path / "state", ServerConfig().max_forgetting), 200)


@pytest.mark.slow
def test_ten_thousand_sentences_of_poison_leave_the_held_out_loss_within_the_limit(branch_learner, tmp_path):
    learn_poison(open_branches(branch_learner, tmp_path / "state", ServerConfig().max_forgetting), 10_000)


def test_weights_that_are_not_finite_are_rejected(branch_learner, tmp_path):
    broken = branch_learner._replace(held_out_loss=lambda *_: float("nan"))
    branches = open_branches(broken, tmp_path / "state")
    learn(branches, TEXTS[:1])
    assert "the weights are not finite" in journal.list_decisions(branches.store, "story")[-1].reason
    assert trees.digest(branches.current("a").full_weights) == branches.trained_digest


def test_frozen_branches_accept_no_examples_and_new_ones_are_frozen_too(branches):
    learn(branches, TEXTS[:1])
    branch_changes.set_frozen(branches.store, "story", True, "test")
    assert branches.add_example("a", "a", TEXTS[1]) is None
    assert branches.add_example("new", "new", TEXTS[1]) is None
    branch_changes.set_frozen(branches.store, "story", False, "test")
    assert branches.add_example("a", "a", TEXTS[1]) is not None


def test_a_branch_is_exported_and_restored(branch_learner, branches, tmp_path):
    learn(branches, TEXTS[:2])
    state, weights = branches.export("a"), current_weights(branches)
    assert read_metadata(state, "branch")["version"] == "2"
    learn(branches, TEXTS[2:])
    assert not trees.bitwise_equal(current_weights(branches), weights)
    branches.restore("a", state, "test")
    assert trees.bitwise_equal(current_weights(branches), weights)
    elsewhere = open_branches(branch_learner, tmp_path / "other")
    elsewhere.restore("b", state, "test")
    assert trees.bitwise_equal(current_weights(elsewhere, "b"), weights)
    learn(elsewhere, TEXTS[2:], "b")
    reopened = open_branches(branch_learner, tmp_path / "other")
    assert trees.bitwise_equal(current_weights(reopened, "b"), current_weights(elsewhere, "b"))
    for damaged in (state[:100], b"", state[:-1] + bytes([state[-1] ^ 1]), b"\xff" * 100):
        with pytest.raises(BadInput):
            branches.restore("a", damaged, "test")


def test_erasing_an_example_reaches_forked_and_restored_branches(branch_learner, branches, tmp_path):
    first, _ = learn(branches, TEXTS[:2])
    state = branches.export("a")
    branches.fork("a", "b", "test")
    assert trees.bitwise_equal(current_weights(branches, "b"), current_weights(branches, "a"))
    learn(branches, [TEXTS[2]], "b")
    assert not trees.bitwise_equal(current_weights(branches, "b"), current_weights(branches, "a"))
    branches.restore("a", state, "test")
    learn(branches, [TEXTS[3]])
    branches.erase_example(first, "test")
    learn(branches, [])
    without = open_branches(branch_learner, tmp_path / "without")
    learn(without, [TEXTS[1], TEXTS[3]])
    assert trees.bitwise_equal(current_weights(branches), current_weights(without))
    learn(without, [TEXTS[2]], "b")  # of the forked state only the branch's own examples remain
    assert trees.bitwise_equal(current_weights(branches, "b"), current_weights(without, "b"))
    with pytest.raises(BadInput, match="erased"):
        branches.restore("c", state, "test")
    files, referenced = snapshot_files(branches, "story/a", "story/b")
    assert files == referenced


def test_a_branch_of_adapters_behaves_like_one_of_all_weights(model, tmp_path):
    config = OnlineConfig(adapter_rank=4, learning_rate=1e-3, rehearsal_batch_size=2)
    adapter_learner = learner.build(model, config, applies_adapters=True)
    branches = open_branches(adapter_learner, tmp_path / "state", snapshot_interval=2)
    numbers = learn(branches, TEXTS)
    loaded = branches.current("a")  # which has no weights of its own in memory
    assert loaded.served.weights is adapter_learner.trained_weights and loaded.served.adapter is loaded.weights.content
    digests = [trees.digest(branches.current(owner).full_weights) for owner in "ab"]
    assert digests[1] == branches.trained_digest != digests[0]
    num_bytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(adapter_learner.trained_weights))
    assert len(branches.export("a")) < num_bytes
    reopened = open_branches(adapter_learner, tmp_path / "state")
    assert trees.bitwise_equal(current_weights(reopened), current_weights(branches))
    branches.erase_example(numbers[1], "test")
    learn(branches, [])
    without = open_branches(adapter_learner, tmp_path / "without")
    learn(without, [TEXTS[0], *TEXTS[2:]])
    assert trees.bitwise_equal(current_weights(branches), current_weights(without))
    foreign = open_branches(learner.build(model, OnlineConfig()), tmp_path / "fourth").export("a")
    with pytest.raises(BadInput, match="other settings"):
        open_branches(adapter_learner, tmp_path / "third").restore("a", foreign, "test")


def test_a_branch_of_other_weights_or_settings_is_rejected(branch_learner, branches, tmp_path):
    learn(branches, TEXTS[:1])
    state = branches.export("a")
    scaled = jax.tree.map(lambda leaf: leaf * 1.01, branch_learner.trained_weights)
    foreign = branch_learner._replace(trained_weights=scaled)
    with pytest.raises(BadInput, match="belongs to weights"):
        BranchManager(Store(tmp_path / "other"), "story", foreign).restore("a", state, "test")
    with pytest.raises(BadInput, match="was learned from weights"):
        BranchManager(branches.store, "story", foreign)
    with pytest.raises(BadInput, match="other settings"):
        BranchManager(branches.store, "story", branch_learner._replace(digest="x"))
    harmful = branch_learner._replace(held_out_loss=lambda *_: 99.0)
    with pytest.raises(BadInput, match="acceptance test"):
        open_branches(harmful, tmp_path / "third").restore("a", state, "test")


@pytest.mark.parametrize("is_absent", [False, True])
def test_a_damaged_snapshot_is_rebuilt_and_named_in_the_log(branch_learner, tmp_path, caplog, is_absent):
    branches = open_branches(branch_learner, tmp_path / "state", snapshot_interval=2)
    learn(branches, TEXTS)
    weights, version = current_weights(branches), versions.get_version(branches.store, "story/a", 4)
    file = snapshot_path(branches.store, version)
    if is_absent:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\x80?")
    reopened = open_branches(branch_learner, tmp_path / "state")
    assert trees.bitwise_equal(current_weights(reopened), weights)
    [message] = [record.getMessage() for record in caplog.records]
    assert file.name in message and "version 4 was rebuilt by learning again (examples: 2)" in message
    assert trees.bitwise_equal(current_weights(open_branches(branch_learner, tmp_path / "state")), weights)
    assert len(caplog.records) == 1  # the snapshot has been replaced
    files, referenced = snapshot_files(reopened, "story/a")
    assert files == referenced and len(files) == 2


@pytest.fixture
def texts_of_sessions(model, tmp_path):
    """Sessions of texts, with the engine that continues them."""
    engine = Engine(model.config)
    engine.start(model.weights)
    sessions = TextSessions("story", model, engine, Store(tmp_path))
    yield sessions
    sessions.stop()
    engine.stop()


def test_activations_of_older_weights_are_computed_again(model, texts_of_sessions):
    scaled = jax.tree.map(lambda leaf: 1.5 * leaf, model.weights)
    sessions, sampling = texts_of_sessions, SamplingParams(1.0, 1.0, 0)
    first, second = (model.tokenizer.encode(text).tolist() for text in TEXTS[:2])

    def prefill(id: str, weights, digest: str, tokens: list[int]) -> TextSession:
        continuation = Continuation(weights, digest, sessions.epoch, tokens, 0, sampling, math.inf)
        return asyncio.run(sessions.complete("anna", id, continuation)).session

    old = sessions.create("anna", "trained").id
    prefill(old, model.weights, "trained", first[:20])
    continued = prefill(old, scaled, "scaled", second[:20])
    fresh = prefill(sessions.create("anna", "scaled").id, scaled, "scaled", first[:20] + second[:20])
    trained = sessions.create("anna", "trained").id
    unscaled = prefill(trained, model.weights, "trained", first[:20] + second[:20])
    assert continued.num_steps == fresh.num_steps == 40 and continued.weights_digest == "scaled"
    assert trees.bitwise_equal(continued.activations, fresh.activations)
    assert not trees.bitwise_equal(continued.activations, unscaled.activations)


def test_a_frozen_deployment_whose_weights_changed_is_unavailable(model, tmp_path):
    """A planted error: one number of one weight differs."""
    deployment = LanguageDeployment("story", model, Store(tmp_path), ServerConfig())
    deployment.check_weights()
    assert deployment.failure is None
    leaves, structure = jax.tree.flatten(deployment.model.weights)
    leaves[-1] = np.array(leaves[-1])
    leaves[-1].flat[0] = np.nextafter(leaves[-1].flat[0], np.inf)
    deployment.model = deployment.model._replace(weights=jax.tree.unflatten(structure, leaves))
    deployment.check_weights()
    assert deployment.failure is not None
    deployment.sessions.stop()


def test_numbers_beyond_the_range_of_the_database_are_rejected(branches):
    learn(branches, TEXTS[:1])
    for number in (10**23, -1):
        with pytest.raises(BadInput, match="has no version"):
            branch_changes.rollback(branches.store, "story/a", number, "test")
        with pytest.raises(BadInput, match="per minute"):
            keys.create_key(branches.store, "anna", tokens_per_minute=number)


def test_session_activations_of_deleted_versions_are_dropped(model, texts_of_sessions):
    sessions, sampling = texts_of_sessions, SamplingParams(0.0)

    def generate(id: str, digest: str, epoch: int | None = None) -> list[int]:
        epoch = sessions.epoch if epoch is None else epoch
        continuation = Continuation(model.weights, digest, epoch, [65, 66, 67], 4, sampling, math.inf)
        return asyncio.run(sessions.complete("anna", id, continuation)).tokens

    first, second = (sessions.create("anna", digest).id for digest in ("valid", "deleted"))
    assert generate(first, "valid") == generate(second, "deleted")
    sessions.drop_activations({"deleted"}, {"berta"})  # whose sessions alone are read
    assert sessions.get("anna", second).activations.num_cached
    sessions.drop_activations({"deleted"}, {"anna", "berta"})
    valid, dropped = sessions.get("anna", first).activations, sessions.get("anna", second).activations
    assert valid.num_cached and not dropped.num_cached
    assert dropped.tokens.tolist() == valid.tokens.tolist()
    assert generate(first, "valid") == generate(second, "new")  # prefilled again
    late = sessions.create("anna", "deleted").id
    generate(late, "deleted", epoch=sessions.epoch - 1)  # its weights were deleted while it was answered
    newer = "learned while the other one was deleted"
    for digest in ("valid", newer):
        generate(first, digest, epoch=sessions.epoch - 1)
        assert sessions.get("anna", first).weights_digest == digest
    assert not sessions.get("anna", late).activations.num_cached and sessions.get("anna", late).weights_digest == ""
    assert sessions.get("anna", first).activations.num_cached


def test_erasing_an_example_empties_the_prefix_cache_of_its_key(model, tmp_path):
    deployment = LanguageDeployment("story", model, Store(tmp_path), ServerConfig(online=True))
    number, prefix_cache = deployment.branches.add_example("anna", "anna", TEXTS[0]), deployment.engine.prefix_cache
    for owner in ("anna", "berta"):
        scope = (owner, deployment.served_weights(owner).digest)
        prefix_cache.insert(scope, b"\0" * 8, None, [np.zeros(1)], 0)
    deployment.erase_example(journal.find_example(deployment.branches.store, number), "anna")
    assert prefix_cache.lookup(("anna", deployment.digest), b"\0" * 8) is None and len(prefix_cache) == 1
    deployment.sessions.stop()
