"""The cost of requests does not grow with the journal: instructions of SQLite are earlier, which no load changes."""

from functools import partial

import pytest
from sqlalchemy import event

from ontogeny.server import quotas
from ontogeny.server.learning import branch_changes, journal, listing, text_scores, versions
from ontogeny.server.learning.listing import DecisionCount, PageRequest
from ontogeny.server.store import Store

SHORT, LONG = 1_000, 20_000  # examples
NAME, EMPTY = "story/anna", "story/bob"
NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "


class CountingStore(Store):
    """A store that counts the instructions of SQLite in units of 100."""

    num_steps = 0

    def __init__(self, folder):
        super().__init__(folder)
        if self.database.has_file:  # PostgreSQL has no such counter
            self.database.close()  # a connection that was opened without the counter
            event.listen(self.database._engine, "connect", self._watch)

    def _watch(self, connection, _):
        connection.set_progress_handler(self._count, 100)

    def _count(self):
        self.num_steps += 1
        return 0

    def steps_of(self, call, *arguments, **options):
        before = self.num_steps
        call(self, *arguments, **options)
        return self.num_steps - before


def make_journal(folder, count):
    """A branch that has learned so many examples, one version and one decision each."""
    store = CountingStore(folder)
    for name in ("anna", "bob"):
        journal.open_branch(store, "story", name, "a" * 64, "b" * 64, 1.0)
    columns = ", ".join(versions.BranchVersion._fields)
    values = f"'{NAME}', n, n - 1, n, 1, n, 'digest' || n, 1.0, 0.1, NULL, FALSE, 1.0, NULL, NULL, 0, NULL, NULL"
    text = "'text ' || n" if store.database.has_file else "convert_to('text ' || n, 'UTF8')"
    with store.transaction():
        for statement in (
            f"INSERT INTO examples (branch, key, text, created_at) SELECT '{NAME}', 'anna', {text}, 1.0",
            f"INSERT INTO versions ({columns}) SELECT {values}",
            f"INSERT INTO decisions (branch, kind, example, version, reason, created_at, share) "
            f"SELECT '{NAME}', 'learned', n, n, 'reason', 1.0, CASE n % 10 WHEN 0 THEN 0.5 ELSE 1 END",
            f"INSERT INTO text_scores SELECT n, '{NAME}', n, n - 1, 100, 300.0, 298.0, 1.0, n, 100.0 * n, 1e4 * n, "
            "300.0 * n, 2.0 * n, 4.0 * n, 200.0 * n",
        ):
            store.execute(f"{NUMBERS.format(count=count)} {statement} FROM numbers")
        query = "UPDATE branches SET current_version = ?, last_decided = ?, newest_example = ? WHERE branch = ?"
        store.execute(query, count, count, count, NAME)
    return store


@pytest.fixture(scope="module")
def journals(tmp_path_factory):
    stores = [make_journal(tmp_path_factory.mktemp("journal") / "state", count) for count in (SHORT, LONG)]
    yield stores
    for store in stores:
        store.close()


PAGE = PageRequest(limit=20)
READS = {
    "branch": lambda store: journal.get_branch(store, NAME),
    "current version": lambda store: versions.describe_version(
        store, versions.get_version(store, NAME, journal.get_branch(store, NAME).current_version)
    ),
    "last decisions": lambda store: journal.list_recent_decisions(store, NAME, 20),
    "pending examples": lambda store: journal.num_pending(store, journal.get_branch(store, NAME)),
    "pending examples of all": lambda store: listing.num_pending_of_deployment(store, "story"),
    "next example": lambda store: journal.read_task(store, NAME),
    "examples": lambda store: listing.list_examples_of_key(store, NAME, "anna", PAGE),
    "last examples": lambda store: listing.list_examples_of_key(store, NAME, "anna", PAGE._replace(is_descending=True)),
    "middle examples": lambda store: listing.list_examples_of_key(store, NAME, "anna", PAGE._replace(after=500)),
    "examples of a key without any": lambda store: listing.list_examples_of_key(store, NAME, "carl", PAGE),
    "versions": lambda store: listing.list_versions_of_branch(store, NAME, PAGE),
    "scores": lambda store: listing.list_scores(store, NAME, PAGE),
    "last scores": lambda store: listing.list_scores(store, NAME, PAGE._replace(is_descending=True)),
    "interval": lambda store: text_scores.find_newest(store, NAME),
    "one example": lambda store: journal.find_example(store, SHORT),
    "storage of a key": lambda store: quotas.get_storage(store, "anna"),
    "snapshots": lambda store: set(versions.list_snapshots(store)),
    "used snapshots": lambda store: versions.find_used_snapshots(store, [f"{i}.safetensors" for i in range(100)]),
    "new snapshot": lambda store: versions.add_snapshot(
        store, versions.get_version(store, NAME, SHORT), f"{SHORT}.safetensors", 4
    ),
    "new example": lambda store: journal.add_example(store, EMPTY, "bob", "a text"),
}


@pytest.mark.sqlite
def test_the_counter_sees_a_search_through_the_journal(journals):
    """The control of the next test."""
    query = "SELECT count(*) FROM examples WHERE text = 'absent'"
    short, long = (store.steps_of(Store.execute, query) for store in journals)
    assert long > 10 * short > 0


@pytest.mark.parametrize("name", READS)
def test_the_cost_of_a_request_does_not_grow_with_the_journal(journals, name):
    short, long = (store.steps_of(READS[name]) for store in journals)
    assert long <= short + 2, (short, long)


def test_the_cost_of_metrics_does_not_grow_with_the_journal(journals):
    costs = []
    for store, length in zip(journals, (SHORT, LONG), strict=True):
        earlier = listing.continue_count(store, "story", DecisionCount())
        assert earlier == (length, length, length // 10, 0, 0.95 * length, length)
        costs.append(store.steps_of(listing.continue_count, "story", earlier))
        branch = journal.get_branch(store, EMPTY)
        number = journal.add_example(store, EMPTY, "bob", "a text")
        assert number is not None and journal.reject_example(store, branch, number, None, "a reason")
        assert listing.continue_count(store, "story", earlier)[:4] == (length + 1, length, length // 10, 1)
    assert costs[1] <= costs[0] + 2


def test_a_list_says_what_has_become_of_each_example(tmp_path):
    def statuses():
        listed, _ = listing.list_examples_of_key(store, NAME, "anna", PageRequest())
        assert all(example.reason == ("too short" if example.status == "rejected" else None) for example in listed)
        return [example.status for example in listed]

    def reject(number, reason):
        assert journal.reject_example(store, journal.get_branch(store, NAME), number, None, reason)

    with make_journal(tmp_path / "state", 3) as store:
        for number in (4, 5):
            assert journal.add_example(store, NAME, "anna", "a text") == number
        reject(4, "too short")
        learned, rejected, waiting, set_aside = "learned", "rejected", "waiting", "set_aside"
        assert statuses() == [learned, learned, learned, rejected, waiting]
        branch_changes.rollback(store, NAME, 1, "me")
        assert statuses() == [learned, set_aside, set_aside, rejected, set_aside]
        branch_changes.rollback(store, NAME, 3, "me")
        assert statuses() == [learned, learned, learned, rejected, set_aside]
        restored = {"digest": "digest2", "source_digest": "digest2", "exported_from": (NAME, 2)}
        branch_changes.restore_version(
            store, NAME, held_out_loss=1.0, weight_distance=0.1, file="file", actor="me", **restored
        )
        assert statuses() == [learned, learned, set_aside, rejected, set_aside]
        branch_changes.erase_example(store, 1, "me")  # the restored version goes too
        assert statuses() == [waiting, set_aside, rejected, set_aside]


@pytest.mark.parametrize("change", ["rollback", "restore", "erase", "erase restored"])
def test_the_cost_of_a_change_is_no_more_than_proportional_to_the_journal(tmp_path, change):
    costs = []
    for length in (500, 4_000):
        digest = f"digest{length - 10}"
        restored = {"digest": digest, "source_digest": digest, "exported_from": (NAME, length - 10)}
        restored |= {"held_out_loss": 1.0, "weight_distance": 0.1, "file": "file", "actor": "me"}
        with make_journal(tmp_path / str(length), length) as store:
            if change == "erase restored":
                branch_changes.restore_version(store, NAME, **restored)
            if change == "rollback":
                costs.append(store.steps_of(branch_changes.rollback, NAME, length // 2, "me"))
            elif change == "restore":
                costs.append(store.steps_of(branch_changes.restore_version, NAME, **restored))
            else:
                costs.append(store.steps_of(branch_changes.erase_example, 3, "me"))
    assert costs[1] <= 20 * costs[0], costs


def test_pages_of_a_list_hold_every_entry_once(tmp_path):
    store = make_journal(tmp_path / "state", 25)
    branch_changes.erase_example(store, 24, "me")
    for list_page, expected in (
        (partial(listing.list_examples_of_key, store, NAME, "anna"), [*range(1, 24), 25]),
        (partial(listing.list_versions_of_branch, store, NAME), list(range(26))),
        (partial(listing.list_scores, store, NAME), [*range(1, 24), 25]),
    ):
        for is_descending in (False, True):
            numbers, after, has_more = [], None, True
            while has_more:
                entries, has_more = list_page(PageRequest(4, after, is_descending))
                assert 0 < len(entries) <= 4
                numbers += [entry.number for entry in entries]
                after = numbers[-1]
            assert numbers == (expected[::-1] if is_descending else expected)
    store.close()
