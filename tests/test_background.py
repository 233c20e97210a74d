"""The threads of a server outlive every exception: planted ones are logged, and the threads go on."""

import re
import threading
import time
from pathlib import Path

import pytest

import ontogeny
from ontogeny.server import keys
from ontogeny.server.background import BackgroundThread, LoggedErrors
from ontogeny.server.config import ServerConfig
from ontogeny.server.databases import availability
from ontogeny.server.databases.availability import Availability
from ontogeny.server.deployments import Deployments
from ontogeny.server.learning import journal, snapshots
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.processes import membership, reporting
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.shared_limits import SharedRateLimits
from ontogeny.server.store import Store
from ontogeny.server.usage import UsageMeter
from serving import wait_until
from stepping import fake_learner

SERVER = Path(ontogeny.__file__).parent / "server"
# Threads that repeat nothing, that end the server when they fail, or whose callers receive every exception.
FREE_THREADS = {"background.py", "clusters/replica.py", "connections.py", "deployments.py", "fair_executor.py"}


class PlantedError(RuntimeError):
    """An exception that no step expects."""


class Planted:
    """A function that raises an exception at its first two calls, and then is the original one."""

    def __init__(self, function=lambda *_, **__: None) -> None:
        self.function, self.num_calls = function, 0

    def __call__(self, *args, **kwargs):
        self.num_calls += 1
        if self.num_calls <= 2:
            raise PlantedError(f"planted {self.num_calls}")
        return self.function(*args, **kwargs)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "state", database_url="") as store:
        yield store


@pytest.fixture
def shared(postgres, tmp_path):
    with Store(tmp_path / "shared", database_url=postgres.address_for(tmp_path)) as store:
        yield store


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(BackgroundThread.__init__, "__kwdefaults__", {"pause": 0.01, "delay": 0.0})


def test_a_thread_goes_on_after_exceptions_and_waits_in_between(caplog):
    step = Planted(lambda: 0.01)
    thread = BackgroundThread("test", step, pause=0.1)
    begun_at = time.monotonic()
    thread.start()
    while step.num_calls < 4:
        thread.wake()  # does not shorten the pause
    assert time.monotonic() - begun_at >= 0.2
    thread.stop()
    assert [record.exc_info[0] for record in caplog.records] == [PlantedError] * 2
    assert "the thread 'test' failed and goes on: PlantedError('planted 1')" in caplog.text
    assert thread.is_stopping and not thread.has_failed


def test_a_thread_waits_for_its_delay_for_seconds_and_for_a_call():
    calls = list[float]()
    thread = BackgroundThread("test", lambda: calls.append(time.monotonic()), delay=0.1)  # which returns None
    begun_at = time.monotonic()
    thread.start()
    wait_until(lambda: calls)
    assert calls[0] - begun_at >= 0.1
    time.sleep(0.05)
    assert len(calls) == 1
    thread.wake()
    wait_until(lambda: len(calls) == 2)
    thread.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_by_itself_is_noticed():
    def end() -> None:
        raise SystemExit

    thread = BackgroundThread("test", end)
    assert not thread.has_failed
    thread.start()
    wait_until(lambda: thread.has_failed)
    thread.stop()


def test_equal_exceptions_are_logged_once_a_minute(caplog, monkeypatch):
    errors = LoggedErrors("the test")
    for text in ("a", "a", "b", "b"):
        with errors:
            raise PlantedError(text)
    monkeypatch.setattr("ontogeny.server.background.LOG_INTERVAL", 0.0)
    with errors:
        raise PlantedError("b")
    assert [record.args[1] for record in caplog.records] == [f"PlantedError('{text}')" for text in "abb"]
    with pytest.raises(KeyboardInterrupt), errors:
        raise KeyboardInterrupt


def test_the_lease_outlives_exceptions(shared, caplog, monkeypatch):
    monkeypatch.setattr(membership, "RENEWAL_INTERVAL", 0.05)
    member = Membership(shared, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
    member.start("first", "http://127.0.0.1:1")
    number, find_load = member.number, Planted(lambda: Load(0, 7))
    member._find_load = find_load
    query = "SELECT num_waiting FROM processes WHERE number = ?"
    wait_until(lambda: shared.select_value(query, number) == 7)
    assert (
        member.number == number
        and find_load.num_calls > 2
        and caplog.text.count("the thread 'lease' failed and goes on") == 2
    )
    member.leave()


def test_the_probe_of_the_database_outlives_exceptions(caplog, monkeypatch):
    monkeypatch.setattr(availability, "PROBE_INTERVAL", 0.01)
    probes = Planted()
    present = Availability("the database", probes)
    present.is_watched = True
    note = Planted(present._note)
    monkeypatch.setattr(present, "_note", note)
    present.suspect()
    wait_until(lambda: present._thread is None)
    assert note.num_calls == 2 and probes.num_calls == 3 and present.failed_at is None
    assert caplog.text.count("the thread 'database probe' failed and goes on") == 2


def test_a_probe_that_cannot_be_started_is_tried_again(monkeypatch):
    present = Availability("the database", lambda: None)
    present.is_watched = True
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Planted())
        present.suspect()
    assert present._thread is None
    present.suspect()
    wait_until(lambda: present._thread is None)


def test_the_learner_outlives_exceptions(store, caplog, monkeypatch):
    branches = BranchManager(store, "story", fake_learner())
    monkeypatch.setattr(branches.loop, "_attempt", Planted(branches.loop._attempt))
    branches.add_example("anna", "anna", "a text")
    branches.loop.start()
    wait_until(lambda: journal.get_branch(store, "story/anna").current_version == 1)
    assert caplog.text.count("the thread 'learner of story' failed and goes on") == 2
    branches.loop.stop()


def test_the_reports_of_rate_limits_outlive_exceptions(shared, caplog, monkeypatch):
    limits = SharedRateLimits(shared)
    monkeypatch.setattr(reporting, "RETRY_INTERVAL", 0.01)
    report = Planted(limits._report)
    monkeypatch.setattr(limits, "_report", report)
    key = keys.LOCAL._replace(id="anna", requests_per_minute=100)
    limits.start()
    limits.acquire(key, 0)
    wait_until(lambda: shared.select_value("SELECT count(*) FROM rate_limits WHERE key = 'anna' AND level < 100"))
    assert caplog.text.count("the thread 'rate limits' failed and goes on") == 2
    limits.stop()


def test_the_collection_and_the_checks_outlive_exceptions(store, caplog, monkeypatch):
    monkeypatch.setattr("ontogeny.server.deployments.COLLECTION_INTERVAL", 0.01)
    monkeypatch.setattr("ontogeny.server.deployments.STATUS_INTERVAL", 0.01)
    monkeypatch.setattr("ontogeny.server.deployments.TABLE_CHECK_INTERVAL", 0.01)
    deployments = Deployments([], store, ServerConfig())
    collect, check_tables = Planted(snapshots.delete_unused), Planted(store.check_tables)
    monkeypatch.setattr(snapshots, "delete_unused", collect)
    monkeypatch.setattr(store, "check_tables", check_tables)
    monkeypatch.setattr(deployments, "_check_available", lambda: None)  # there are none
    deployments.start()
    wait_until(lambda: collect.num_calls > 3 and check_tables.num_calls > 3)
    deployments.stop()
    assert deployments.error is None
    assert caplog.text.count("the thread 'unused snapshots' failed and goes on") == 2
    assert caplog.text.count("the check of the tables failed and goes on") == 2


def test_the_usage_meter_outlives_exceptions(store, caplog, monkeypatch):
    monkeypatch.setattr("ontogeny.server.usage.WRITE_INTERVAL", 0.01)
    monkeypatch.setattr(keys, "add_usage", Planted(keys.add_usage))
    meter = UsageMeter(Deployments([], store, ServerConfig()))
    meter.count(keys.LOCAL, "story", 3, 4)
    meter.start()
    wait_until(lambda: keys.list_usage(store))
    assert keys.list_usage(store)[0][3:] == (1, 3, 4)
    wait_until(lambda: meter.failure is None)
    assert caplog.text.count("the thread 'usage meter' failed and goes on") == 2
    meter.stop()


def test_all_repeated_work_is_done_by_such_threads():
    users = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        if re.search(r"threading\.Thread\(", path.read_text(encoding="utf-8"))
    }
    assert users == FREE_THREADS
