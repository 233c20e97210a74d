"""A PostgreSQL database that hangs, is slow or refuses connections: calls fail early, and known keys are accepted."""

import asyncio
import os
import signal
import threading
import time
from functools import partial

import pytest

from database_proxy import DatabaseProxy
from ontogeny.errors import StorageUnavailable
from ontogeny.server import keys
from ontogeny.server.config import ServerConfig
from ontogeny.server.deployments import Deployments
from ontogeny.server.key_lookup import FRESH_TIME, KeyLookup
from ontogeny.server.keys import LOCAL
from ontogeny.server.learning import learning_loop
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.store import Store
from ontogeny.server.usage import UsageMeter
from serving import ServerProcess, shared_run, wait_until
from stepping import fake_learner

pytestmark = pytest.mark.sqlite
NUM_CALLS = 20
LONG = 30.0  # seconds: far more than a bounded call takes, and less than one without a bound
COMPLETION = {"prompt": "the little", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def proxy(postgres):
    with DatabaseProxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def store(postgres, proxy, tmp_path):
    """A store behind the proxy, whose calls are bounded like those of a server."""
    address = postgres.address_for(tmp_path).replace(f":{postgres.port}/", f":{proxy.port}/")
    with Store(tmp_path / "state", database_url=address) as store:
        store.database.bound_waits()
        yield store
        proxy.restore()


@pytest.fixture
def other_store(store, postgres, tmp_path):
    """The same database without the proxy, as another process uses it."""
    with Store(tmp_path / "other", database_url=postgres.address_for(tmp_path)) as second:
        yield second


def is_usable(store, scope="x"):
    try:
        with store.transaction(scope):
            store.execute("SELECT 1")
    except StorageUnavailable:
        return False
    return True


def find(lookup, *texts):
    """What requests with these keys receive that arrive at the same time."""

    async def find_all():
        return await asyncio.gather(*map(lookup.find, texts), return_exceptions=True)

    return asyncio.run(find_all())


def test_calls_fail_early_while_the_database_hangs(store, proxy):
    ends: list[bool] = []
    proxy.is_silent = True
    calls = [lambda i=i: ends.append(is_usable(store, f"scope {i}")) for i in range(NUM_CALLS)]
    threads = [threading.Thread(target=call) for call in calls]
    started_at = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert ends == [False] * NUM_CALLS and time.monotonic() - started_at < LONG
    assert store.database.failed_at is not None
    started_at = time.monotonic()
    for _ in range(1000):  # without waiting
        assert not is_usable(store)
    assert time.monotonic() - started_at < LONG
    proxy.restore()
    wait_until(lambda: is_usable(store), LONG)
    assert store.database.failed_at is None


def test_a_refused_connection_makes_calls_fail_until_a_probe_succeeds(store, proxy):
    assert is_usable(store)
    proxy.is_refusing = True
    proxy.cut()
    assert not is_usable(store)
    wait_until(lambda: store.database.failed_at is not None, LONG)
    proxy.restore()
    wait_until(lambda: store.database.failed_at is None, LONG)
    assert is_usable(store)


def test_a_lost_connection_ends_one_transaction_only(store, proxy):
    with pytest.raises(StorageUnavailable), store.transaction("x"):
        store.execute("SELECT 1")
        proxy.cut()
        store.execute("SELECT 1")
    assert is_usable(store)


def test_a_statement_that_takes_long_is_not_given_up_while_the_database_answers(store):
    assert store.select_value("SELECT 1 FROM pg_sleep(2.5)") == 1
    assert store.database.failed_at is None


def test_reserved_connections_are_free_while_all_others_are_occupied(store):
    begun, ending = threading.Semaphore(0), threading.Event()

    def occupy():
        with store.read_transaction():
            store.execute("SELECT 1")
            begun.release()
            ending.wait(LONG)

    threads = [threading.Thread(target=occupy) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert begun.acquire(timeout=LONG)
        with store.database.reserved_connection():
            assert store.select_value("SELECT 1") == 1
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def test_a_key_is_read_for_every_request_and_all_that_wait_in_one_statement(store, other_store, proxy, monkeypatch):
    lookup = KeyLookup(store, 60.0)
    assert find(lookup, "", "anything") == [LOCAL, LOCAL]
    created = [keys.create_key(other_store, f"key {i}") for i in range(5)]
    texts = [text for _, text in created]
    wrong = [texts[0] + "x", texts[0].replace(created[0][0].id, created[1][0].id), "", "og-x", "no key"]
    assert find(lookup, *texts, *wrong) == [key for key, _ in created] + [None] * len(wrong)
    statements: list[str] = []
    execute = store.execute
    monkeypatch.setattr(store, "execute", lambda query, *values: (statements.append(query), execute(query, *values))[1])
    assert find(lookup, *texts * 20) == [key for key, _ in created] * 20
    assert len(statements) <= 2 + len(texts)  # the first requests may be read before the others arrive
    keys.revoke_key(other_store, created[0][0].id)
    assert find(lookup, *texts) == [None] + [key for key, _ in created[1:]]
    del statements[:]
    find(lookup, texts[1])
    assert len(statements) == 1


def test_keys_are_accepted_for_the_grace_time_without_a_database(store, other_store, proxy):
    key, text = keys.create_key(other_store, "anna")
    _, unused = keys.create_key(other_store, "bob")
    revoked, revoked_text = keys.create_key(other_store, "carl")
    lookup, strict = KeyLookup(store, 60.0), KeyLookup(store, 0.0)
    for present in (lookup, strict):
        assert find(present, text, revoked_text) == [key, revoked]
    keys.revoke_key(other_store, revoked.id)
    assert find(lookup, revoked_text) == [None]
    proxy.is_silent = True
    time.sleep(FRESH_TIME)
    for _ in range(2):  # before the failure is noticed, and after it
        answers = find(lookup, text, unused, revoked_text, "og-x-y", "")
        assert answers[0] == key and all(isinstance(answer, StorageUnavailable) for answer in answers[1:])
        assert isinstance(find(strict, text)[0], StorageUnavailable)
        wait_until(lambda: store.database.failed_at is not None, LONG)
    keys.revoke_key(other_store, key.id)
    assert find(lookup, text) == [key]  # the revocation is not known here
    proxy.restore()
    wait_until(lambda: store.database.failed_at is None, LONG)
    assert find(lookup, text, unused)[0] is None


def test_a_revoked_key_is_refused_within_a_second_by_a_slow_database(store, other_store, proxy):
    key, text = keys.create_key(other_store, "anna")
    lookup = KeyLookup(store, 60.0)
    proxy.delay = 0.2  # in each direction, so that an answer takes longer than `SHORT_WAIT`
    wait_until(lambda: find(lookup, text) == [key], LONG)

    def seconds_to_find():
        started_at = time.monotonic()
        assert find(lookup, text) == [key]
        return time.monotonic() - started_at

    # From memory, before the database can have answered; on a busy machine not every time.
    wait_until(lambda: seconds_to_find() < 2 * proxy.delay, LONG)
    keys.revoke_key(other_store, key.id)
    time.sleep(FRESH_TIME)
    assert find(lookup, text) == [None]


def test_failures_of_an_outage_count_no_longer_than_the_outage(store, proxy, monkeypatch):
    """So that `/ready` answers 200 as soon as the database can be reached, and not after the next attempt."""
    branches = BranchManager(store, "story", fake_learner())
    meter = UsageMeter(Deployments([], store, ServerConfig()))
    meter.count(LOCAL, "story", 3, 4)
    proxy.is_silent = True
    wait_until(lambda: not is_usable(store) and store.database.failed_at is not None, LONG)
    branches.loop._attempt(learning_loop.ALL_BRANCHES, branches.learn_next)
    meter._write()
    assert branches.loop.general_failure and branches.loop.failure("story/anna") and meter.failure
    proxy.restore()
    wait_until(lambda: store.database.failed_at is None, LONG)
    assert not branches.loop.general_failure and not branches.loop.failure("story/anna") and not meter.failure
    branches.add_example("anna", "anna", "a text")
    monkeypatch.setattr("ontogeny.server.learning.loading.MIN_RETRY_INTERVAL", LONG)
    assert branches.loop._attempt(learning_loop.ALL_BRANCHES, branches.learn_next)  # at once
    assert not branches.loop._failures
    meter._write()
    assert keys.list_usage(store)[0].num_requests == 1
    monkeypatch.setattr(keys, "add_usage", partial(_fail, StorageUnavailable("the disk is full")))
    meter.count(LOCAL, "story", 3, 4)
    meter._write()
    assert meter.failure  # which is no outage


def _fail(error: Exception, *_: object) -> None:
    raise error


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["silent", "refused", "slow", "suspended"])
def test_frozen_models_answer_while_the_database_does_not(postgres, proxy, tmp_path_factory, tmp_path, fault):
    run, address = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    arguments = ("--alias", f"live={run}", "--alias", f"fixed={run}", "--freeze", "fixed", "--online")
    environment = {"ONTOGENY_DATABASE_URL": address.replace(f":{postgres.port}/", f":{proxy.port}/")}
    with Store(tmp_path / "other", database_url=address) as store:
        key, text = keys.create_key(store, "anna", admin=True)
        _, unused = keys.create_key(store, "bob")
        with ServerProcess(tmp_path / "state", *arguments, "--key-grace-time", "20", environment=environment) as server:
            acknowledged: list[int] = []

            def complete(model, text=text):
                return server.post("/v1/completions", {"model": model} | COMPLETION, text)[0]

            def teach(i):
                content = {"text": f"The keeper of lighthouse {i} wrote a letter to the sea. " * 3}
                status, answer = server.post("/v1/models/live/examples", content, text)
                acknowledged.extend([answer["number"]] if status == 200 else [])
                return status

            assert [complete("fixed"), complete("live"), teach(0)] == [200, 200, 200]
            disturb(fault, proxy, postgres)
            failed_at = time.monotonic()
            statuses, num_fixed = set(), 0
            while time.monotonic() - failed_at < 8:
                assert complete("fixed") == 200
                num_fixed += 1
                statuses |= {teach(num_fixed), complete("live")}
            assert statuses <= {200, 503} and 503 in statuses and num_fixed > 10
            assert complete("fixed", unused) == 503
            assert b"ontogeny_database_reachable 0.0" in server.get("/metrics", text)[1]
            wait_until(lambda: complete("fixed") == 503, 60)  # after the grace time
            assert time.monotonic() - failed_at > 19
            assert server.get("/ready")[0] == 503
            disturb("none", proxy, postgres)
            wait_until(lambda: (complete("live"), complete("fixed")) == (200, 200), 60)
            assert complete("fixed", unused) == 200
            assert server.get("/ready")[0] == 200
            texts = {record[0] for record in store.execute("SELECT number FROM examples")}
            assert texts.issuperset(acknowledged)

            def num_used():
                return sum(record.num_requests for record in keys.list_usage(store) if record.deployment == "fixed")

            wait_until(lambda: num_used() >= num_fixed + 3, 60)  # the meter has written what it counted meanwhile
            keys.revoke_key(store, key.id)
            assert complete("fixed") == 401
            assert "Traceback" not in server.log.read_text()


def disturb(fault, proxy, postgres):
    """Begins a fault, or ends all."""
    proxy.restore()
    pids = [int(line) for line in (postgres.data / "postmaster.pid").read_text().splitlines()[:1]]
    children = f"/proc/{pids[0]}/task/{pids[0]}/children"
    with open(children, encoding="ascii") as file:
        pids += map(int, file.read().split())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP if fault == "suspended" else signal.SIGCONT)
    if fault == "refused":
        proxy.is_refusing = True
        proxy.cut()
    proxy.is_silent, proxy.delay = fault == "silent", 1.5 if fault == "slow" else 0.0
