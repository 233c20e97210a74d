"""Lines of learning: rebuilt to the same bits, gated, gone back, erased as if never seen."""

import math
import sqlite3
from string import ascii_lowercase

import jax
import numpy as np
import pytest

import texts
from ontogeny import trees
from ontogeny.engine import programs
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.server import keys
from ontogeny.server.deployments import LanguageDeployment, ServerConfig
from ontogeny.server.learning import journal, learner
from ontogeny.server.learning.branches import BOUND, BranchManager, Settings, read_about
from ontogeny.server.sessions.texts import TextSessions
from ontogeny.server.store import FILE, FORMAT, SCHEMA, Store
from serving import load, shared_run

pytestmark = pytest.mark.computes

TEXTS = [
    "The lighthouse keeper wrote a letter to the sea, and the sea answered.",
    "On the third day the ship of glass came in, and nobody was aboard.",
    "She counted the lamps twice; there was one too many.",
    "Then the bell rang below the water.",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return learner.build(load(shared_run(tmp_path_factory)))


@pytest.fixture
def lines(made, tmp_path):
    return opened(made, tmp_path / "state")


def opened(made, folder, bound=5.0, **settings):
    """Lines whose gate is wide open, but where a test says otherwise."""
    return BranchManager(Store(folder), "story", made, settings=Settings(bound=bound, **settings))


def learn(lines, texts, owner="a"):
    numbers = [lines.contribute(owner, owner, text) for text in texts]
    while lines.advance():
        pass
    return numbers


def head(lines, owner="a"):
    return lines.current(owner).weights


def test_contributions_are_learned_in_order_and_each_is_a_version(lines):
    numbers = learn(lines, TEXTS)
    line = journal.line(lines.store, "story/a")
    assert (line.head, line.position) == (4, numbers[-1])
    versions = journal.versions(lines.store, "story/a")
    assert [v.contribution for v in versions] == [None, *numbers]
    assert versions[-1].first == numbers[0] and versions[-1].last == numbers[-1]
    assert 0 < versions[1].distance < versions[4].distance
    assert len({v.digest for v in versions}) == 5


@pytest.mark.parametrize("every", [1, 3, 100])
def test_what_is_held_in_memory_is_rebuilt_to_the_same_bits(made, tmp_path, every):
    lines = opened(made, tmp_path / "state", every=every, kept=2)
    learn(lines, TEXTS)
    before = head(lines)
    again = opened(made, tmp_path / "state", every=every)  # nothing is stopped: as after kill -9
    assert trees.bitwise_equal(head(again), before)
    replay = opened(made, tmp_path / "other")
    learn(replay, TEXTS)
    assert trees.bitwise_equal(head(replay), before)


def test_a_contribution_half_learned_is_learned_once(made, tmp_path, monkeypatch):
    lines = opened(made, tmp_path / "state")
    learn(lines, TEXTS[:2])
    lines.contribute("a", "a", TEXTS[2])
    monkeypatch.setattr(journal, "learned", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        lines.advance()
    monkeypatch.undo()
    again = opened(made, tmp_path / "state")
    learn(again, [TEXTS[3]])
    undisturbed = opened(made, tmp_path / "other")
    learn(undisturbed, TEXTS)
    assert trees.bitwise_equal(head(again), head(undisturbed))


def test_one_key_changes_no_bit_for_another(lines):
    before = trees.digest(lines.current("b").whole)
    learn(lines, TEXTS * 3, "a")
    assert trees.digest(lines.current("b").whole) == before == lines.base
    assert trees.digest(lines.current("a").whole) != before


def test_a_shared_line_is_one_for_all(made, tmp_path):
    lines = BranchManager(Store(tmp_path / "state"), "story", made, shared=True)
    learn(lines, TEXTS, "a")
    assert trees.bitwise_equal(head(lines, "a"), head(lines, "b"))
    assert journal.contributions(lines.store, "story/shared")[0].key == "a"


def test_going_back_makes_an_old_version_live_and_learning_goes_on_from_there(made, lines, tmp_path):
    learn(lines, TEXTS[:3])
    journal.rollback(lines.store, "story/a", 1, "test")
    undisturbed = opened(made, tmp_path / "other")
    learn(undisturbed, TEXTS[:1])
    assert trees.bitwise_equal(head(lines), head(undisturbed))
    learn(lines, [TEXTS[3]])
    learn(undisturbed, [TEXTS[3]])
    assert trees.bitwise_equal(head(lines), head(undisturbed))
    journal.rollback(lines.store, "story/a", 3, "test")  # and forward again
    whole = opened(made, tmp_path / "whole")
    learn(whole, TEXTS[:3])
    assert trees.bitwise_equal(head(lines), head(whole))
    journal.rollback(lines.store, "story/a", 0, "test")
    assert trees.digest(lines.current("a").whole) == lines.base


@pytest.mark.parametrize("erased", [0, 1, 3])
@pytest.mark.parametrize("every", [1, 100])
def test_erasing_equals_never_having_seen(made, tmp_path, erased, every):
    lines = opened(made, tmp_path / "state", every=every)
    numbers = learn(lines, TEXTS)
    lines.erase(numbers[erased], "test")
    kept = [text for i, text in enumerate(TEXTS) if i != erased]
    learn(lines, [])
    never = opened(made, tmp_path / "never")
    learn(never, kept)
    assert trees.bitwise_equal(head(lines), head(never))
    again = opened(made, tmp_path / "state")
    assert trees.bitwise_equal(head(again), head(never))
    with pytest.raises(BadInput, match="erased"):
        journal.rollback(lines.store, "story/a", 4, "test")
    lines.store.close()
    left = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert TEXTS[erased].encode() not in left and all(text.encode() in left for text in kept)
    snapshots = {path.name for path in (tmp_path / "state" / "snapshots").iterdir()}
    named = {v.snapshot for v in journal.versions(again.store, "story/a") if v.snapshot}
    assert snapshots == named


def test_erasing_what_was_set_aside_and_what_came_before_it(made, tmp_path):
    lines = opened(made, tmp_path / "state")
    numbers = learn(lines, TEXTS[:3])
    journal.rollback(lines.store, "story/a", 1, "test")
    learn(lines, [TEXTS[3]])
    lines.erase(numbers[0], "test")
    learn(lines, [])
    never = opened(made, tmp_path / "never")
    learn(never, [TEXTS[3]])  # the second and third were set aside
    assert trees.bitwise_equal(head(lines), head(never))


def test_work_that_was_overtaken_is_not_committed(lines):
    number = lines.contribute("a", "a", TEXTS[0])
    before = journal.line(lines.store, "story/a")
    lines.erase(number, "test")
    assert journal.learned(lines.store, before, number, "digest", 1.0, 0.1, "late") is None
    assert not journal.refused(lines.store, before, number, 1.0, "late")
    assert journal.line(lines.store, "story/a").head == 0


def poison(times):
    """What is sent to do harm: noise, one sentence again and again, a text in which letters stand for others."""
    draw = np.random.default_rng(0)
    noise = "".join(map(chr, draw.integers(1, 0x250, times * 8)))
    swapped = texts.read_training().translate(str.maketrans(ascii_lowercase + " ", ascii_lowercase[::-1] + "e"))
    return [noise, "I am the best. " * times, (swapped * (1 + times * 15 // len(swapped)))[: times * 15]]


def given_poison(lines, times, piece=2000):
    """Everything in contributions; no version of the line is beyond the bound, and what was refused says why."""
    for text in poison(times):
        learn(lines, [text[at : at + piece] for at in range(0, len(text), piece)])
    bound, trained = lines.settings.bound, lines.learner.trained
    versions = journal.versions(lines.store, "story/a")
    assert max(version.held_out for version in versions) <= trained + bound
    current = lines.current("a")
    assert lines.learner.held_out(current.whole, lambda: None) == current.version.held_out
    decided = journal.decisions(lines.store, "story")
    assert len(decided) == len(journal.contributions(lines.store, "story/a"))
    refused = [decision for decision in decided if decision.kind == "refused"]
    for decision in refused:
        assert "nats per token more" in decision.reason and decision.held_out > trained + bound
    return refused


def test_a_learner_that_does_not_look_back_is_held_by_the_gate(tmp_path, tmp_path_factory):
    hasty = OnlineConfig(rehearsal_batch_size=0, learning_rate=1e-3)
    lines = opened(learner.build(load(shared_run(tmp_path_factory)), hasty), tmp_path / "state", bound=BOUND)
    refused = given_poison(lines, 150)
    assert len(refused) > len(journal.contributions(lines.store, "story/a")) / 2


def test_poison_leaves_held_out_text_within_the_bound(made, tmp_path):
    """A little of it by the default plan, which rehearses; the whole of it: the slow test."""
    given_poison(opened(made, tmp_path / "state", bound=BOUND), 200)


@pytest.mark.slow
def test_ten_thousand_sentences_of_poison(made, tmp_path):
    given_poison(opened(made, tmp_path / "state", bound=BOUND), 10_000)


def test_weights_that_are_not_finite_are_refused(made, tmp_path):
    lines = opened(made._replace(held_out=lambda *_: float("nan")), tmp_path / "state")
    learn(lines, TEXTS[:1])
    assert journal.decisions(lines.store, "story")[-1].reason == "the weights are not finite"
    assert trees.digest(lines.current("a").whole) == lines.base


def test_frozen_lines_take_nothing_and_new_ones_are_frozen_too(lines):
    learn(lines, TEXTS[:1])
    journal.freeze(lines.store, "story", True, "test")
    assert lines.contribute("a", "a", TEXTS[1]) is None and lines.contribute("new", "new", TEXTS[1]) is None
    journal.freeze(lines.store, "story", False, "test")
    assert lines.contribute("a", "a", TEXTS[1]) is not None


def test_a_line_is_carried_away_and_back(made, lines, tmp_path):
    learn(lines, TEXTS[:2])
    data, then = lines.export("a"), head(lines)
    assert read_about(data)["version"] == "2"
    learn(lines, TEXTS[2:])
    assert not trees.bitwise_equal(head(lines), then)
    lines.restore("a", data, "test")
    assert trees.bitwise_equal(head(lines), then)
    elsewhere = opened(made, tmp_path / "other")
    elsewhere.restore("b", data, "test")
    assert trees.bitwise_equal(head(elsewhere, "b"), then)
    learn(elsewhere, TEXTS[2:], "b")
    again = opened(made, tmp_path / "other")
    assert trees.bitwise_equal(head(again, "b"), head(elsewhere, "b"))
    for damaged in (data[:100], b"", data[:-1] + bytes([data[-1] ^ 1]), b"\xff" * 100):
        with pytest.raises(BadInput):
            lines.restore("a", damaged, "test")


def test_what_was_carried_away_is_still_within_reach_of_erasure(made, lines, tmp_path):
    first, _ = learn(lines, TEXTS[:2])
    data = lines.export("a")
    lines.fork("a", "b", "test")
    assert trees.bitwise_equal(head(lines, "b"), head(lines, "a"))
    learn(lines, [TEXTS[2]], "b")
    assert not trees.bitwise_equal(head(lines, "b"), head(lines, "a"))
    lines.restore("a", data, "test")
    learn(lines, [TEXTS[3]])
    lines.erase(first, "test")
    learn(lines, [])
    never = opened(made, tmp_path / "never")
    learn(never, [TEXTS[1], TEXTS[3]])
    assert trees.bitwise_equal(head(lines), head(never))
    learn(never, [TEXTS[2]], "b")  # of what was brought there nothing is left but by its own journal
    assert trees.bitwise_equal(head(lines, "b"), head(never, "b"))
    with pytest.raises(BadInput, match="erased"):
        lines.restore("c", data, "test")
    snapshots = {path.name for path in lines.store.snapshots.iterdir()}
    named = {v.snapshot for name in "ab" for v in journal.versions(lines.store, f"story/{name}") if v.snapshot}
    assert snapshots == named


def test_an_adapter_is_a_line_like_any_other(tmp_path, tmp_path_factory):
    plan = OnlineConfig(adapter_rank=4, learning_rate=1e-3, rehearsal_batch_size=2)
    how = learner.build(load(shared_run(tmp_path_factory)), plan)
    lines = opened(how, tmp_path / "state", every=2)
    numbers = learn(lines, TEXTS)
    assert trees.digest(lines.current("b").whole) == lines.base != trees.digest(lines.current("a").whole)
    assert len(lines.export("a")) < sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(how.origin))
    assert trees.bitwise_equal(head(opened(how, tmp_path / "state")), head(lines))
    lines.erase(numbers[1], "test")
    learn(lines, [])
    never = opened(how, tmp_path / "never")
    learn(never, [TEXTS[0], *TEXTS[2:]])
    assert trees.bitwise_equal(head(lines), head(never))
    with pytest.raises(BadInput, match="other settings"):
        opened(how, tmp_path / "third").restore("a", opened(learner.build(load(shared_run(tmp_path_factory))),
                                                            tmp_path / "fourth").export("a"), "test")  # fmt: skip


def test_a_line_is_refused_where_it_does_not_belong(made, lines, tmp_path):
    learn(lines, TEXTS[:1])
    data = lines.export("a")
    other = jax.tree.map(lambda leaf: leaf * 1.01, made.origin)
    with pytest.raises(BadInput, match="belongs to weights"):
        BranchManager(Store(tmp_path / "other"), "story", made._replace(origin=other)).restore("a", data, "test")
    with pytest.raises(BadInput, match="went on learning from weights"):
        BranchManager(lines.store, "story", made._replace(origin=other))
    with pytest.raises(BadInput, match="other settings"):
        BranchManager(lines.store, "story", made._replace(digest="x"))
    poisoned = made._replace(held_out=lambda *_: 99.0)
    with pytest.raises(BadInput, match="gate"):
        opened(poisoned, tmp_path / "third").restore("a", data, "test")


def test_a_damaged_snapshot_is_named(made, tmp_path):
    lines = opened(made, tmp_path / "state", every=1)
    learn(lines, TEXTS[:1])
    file = next((tmp_path / "state" / "snapshots").iterdir())
    file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\x80?")
    with pytest.raises(BadInput, match=file.name):
        head(opened(made, tmp_path / "state"))


def test_a_folder_of_the_first_format_is_brought_up_to_date_and_loses_nothing(tmp_path):
    Store(tmp_path).close()  # its folders
    (tmp_path / FILE).unlink()
    old = sqlite3.connect(tmp_path / FILE)
    old.executescript(SCHEMA[0] + "PRAGMA user_version=1;")
    old.execute("INSERT INTO sessions VALUES ('one', 'story', 'anna', 3, x'00', 1.0)")
    old.commit()
    old.close()
    for _ in range(2):  # the second time there is nothing to be done
        store = Store(tmp_path)
        assert store.connection.execute("PRAGMA user_version").fetchone()[0] == FORMAT == 2
        assert store.connection.execute("SELECT count(*) FROM inherited").fetchone()[0] == 0
        assert store.connection.execute("SELECT steps FROM sessions WHERE id = 'one'").fetchone()[0] == 3
        store.close()
    newer = sqlite3.connect(tmp_path / FILE)
    newer.execute("PRAGMA user_version=3")
    newer.close()
    with pytest.raises(BadInput, match="has format 3"):
        Store(tmp_path)


def test_what_a_text_was_read_by_is_read_anew_by_weights_that_learned_since(tmp_path, tmp_path_factory):
    model = load(shared_run(tmp_path_factory))
    moved = jax.tree.map(lambda leaf: 1.5 * leaf, model.weights)
    sessions, taste = TextSessions("story", model, Store(tmp_path)), SamplingParams(1.0, 1.0, 0)
    first, then = (model.tokenizer.encode(text).tolist() for text in TEXTS[:2])

    def read(id, weights, digest, new):
        return sessions.go_on("anna", id, weights, digest, new, 0, taste, math.inf).session

    old = sessions.create("anna", "trained").id
    read(old, model.weights, "trained", first[:20])
    went_on = read(old, moved, "moved", then[:20])
    fresh = read(sessions.create("anna", "moved").id, moved, "moved", first[:20] + then[:20])
    stayed = read(sessions.create("anna", "trained").id, model.weights, "trained", first[:20] + then[:20])
    assert went_on.steps == fresh.steps == 40 and went_on.weights == "moved"
    assert trees.bitwise_equal(went_on.kept, fresh.kept) and not trees.bitwise_equal(went_on.kept, stayed.kept)
    sessions.stop()


def test_a_frozen_deployment_whose_weights_changed_answers_no_more(tmp_path, tmp_path_factory):
    """The planted error behind the proof of Case 2: one number of one weight is another."""
    made = LanguageDeployment("story", load(shared_run(tmp_path_factory)), Store(tmp_path), ServerConfig())
    made.verify()
    assert made.failure is None
    leaves, structure = jax.tree.flatten(made.model.weights)
    leaves[-1] = np.array(leaves[-1])
    leaves[-1].flat[0] = np.nextafter(leaves[-1].flat[0], np.inf)
    made.model = made.model._replace(weights=jax.tree.unflatten(structure, leaves))
    made.verify()
    assert made.failure is not None
    made.sessions.stop()


def test_numbers_beyond_all_counting_are_refused(lines):
    learn(lines, TEXTS[:1])
    for number in (10**23, -1):
        with pytest.raises(BadInput, match="has no version"):
            journal.rollback(lines.store, "story/a", number, "test")
        with pytest.raises(BadInput, match="per minute"):
            keys.create(lines.store, "anna", tokens_per_minute=number)


def test_what_erased_weights_made_of_a_text_is_dropped(tmp_path, tmp_path_factory):
    model = load(shared_run(tmp_path_factory))
    sessions = TextSessions("story", model, Store(tmp_path))
    taste = SamplingParams(0.0)

    def said(id, digest):
        return sessions.go_on("anna", id, model.weights, digest, [65, 66, 67], 4, taste, math.inf).tokens

    first, second = (sessions.create("anna", digest).id for digest in ("kept", "gone"))
    assert said(first, "kept") == said(second, "gone")
    sessions.forget({"kept"})
    assert sessions.get("anna", first).kept.keys[0].shape[1] and not sessions.get("anna", second).kept.keys[0].shape[1]
    assert sessions.get("anna", second).kept.tokens.tolist() == sessions.get("anna", first).kept.tokens.tolist()
    assert said(first, "kept") == said(second, "new")  # read anew
    sessions.stop()


def test_what_is_erased_is_not_held_in_memory_as_a_prompt_either(tmp_path, tmp_path_factory):
    made = LanguageDeployment("story", load(shared_run(tmp_path_factory)), Store(tmp_path), ServerConfig(online=True))
    number = made.lines.contribute("anna", "anna", TEXTS[0])
    row = programs.init_sequence_cache(made.model.config, made.engine.shape)
    for owner in ("anna", "berta"):
        made.engine.prefix_cache.insert((owner, made.answering(owner).digest), b"\0" * 8, row, np.zeros(1), 0)
    made.erase(journal.contribution(made.lines.store, number), "anna")
    assert made.engine.prefix_cache.lookup(("anna", made.digest), b"\0" * 8) is None and len(made.engine.prefix_cache) == 1
    made.sessions.stop()
