"""Rate limits over the processes that share a PostgreSQL database, and usage that several of them count."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from database_proxy import DatabaseProxy
from ontogeny.server import keys
from ontogeny.server.key_lookup import FRESH_TIME
from ontogeny.server.keys import LOCAL
from ontogeny.server.learning import journal
from ontogeny.server.processes import reporting, shared_limits
from ontogeny.server.processes.membership import Load, Membership, list_processes
from ontogeny.server.processes.shared_limits import MAX_EXCESS, MIN_REQUESTS, SharedRateLimits
from ontogeny.server.quotas import QuotaExceeded
from ontogeny.server.store import Store
from serving import ServerProcess, share_snapshots, shared_run, wait_until

pytestmark = pytest.mark.sqlite
COMPLETION = {"model": "run", "prompt": "the little", "max_tokens": 4, "temperature": 0}


@contextlib.contextmanager
def limiters(number, folder, address, *, reporting=True):
    """The limits of several processes, each with a lease and connections of its own."""
    with contextlib.ExitStack() as stack:
        created = []
        for i in range(number):
            store = stack.enter_context(Store(folder / str(i), database_url=address))
            store.database.bound_waits()
            membership = Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
            membership.start(f"process {i}", f"http://127.0.0.1:{i}")
            stack.callback(membership.leave)
            created.append(SharedRateLimits(store))
            if reporting:
                created[-1].start()
                stack.callback(created[-1].stop)
            wait_until(lambda: len(list_processes(store)) > i)  # noqa: B023
        yield created


def hammer(processes, key, seconds, num_tokens=0):
    """Takes requests from all processes at once for a time; returns how many were granted, and the time.

    On a busy machine it takes longer, until several requests in succession are refused.
    """

    def take(limits):
        count, num_refused, end = 0, 0, time.monotonic() + seconds
        while time.monotonic() < end or num_refused < 5:
            is_granted = limits.acquire(key, num_tokens) == 0
            count, num_refused = count + is_granted, 0 if is_granted else num_refused + 1
            time.sleep(0.0005)
        return count

    started_at = time.monotonic()
    with ThreadPoolExecutor(len(processes)) as threads:
        return sum(threads.map(take, processes)), time.monotonic() - started_at


@pytest.mark.parametrize(("number", "per_minute"), [(2, 60), (3, 600)])
def test_all_processes_together_grant_the_limit_and_a_stated_excess(postgres, tmp_path, number, per_minute):
    key = LOCAL._replace(id="anna", requests_per_minute=per_minute)
    with limiters(number, tmp_path, postgres.address_for(tmp_path)) as processes:
        num_granted, seconds = hammer(processes, key, 1.5)
        excess = max(MAX_EXCESS * per_minute, number * MIN_REQUESTS)
        assert 0.9 * per_minute <= num_granted <= per_minute * (1 + seconds / 60) + excess
        time.sleep(0.1)
        num_granted, seconds = hammer(processes, key, 0.2)
        assert num_granted <= 2 * number + per_minute * seconds / 60  # the excess is not granted again
        assert all(limits.acquire(key._replace(id="bob"), 0) == 0 for limits in processes)


def test_tokens_are_limited_over_processes_and_returned_to_all(postgres, tmp_path):
    key = LOCAL._replace(id="anna", tokens_per_minute=10_000)
    with limiters(2, tmp_path, postgres.address_for(tmp_path)) as (first, second):
        num_granted, seconds = hammer((first, second), key, 1.0, num_tokens=100)
        assert 9_000 <= 100 * num_granted <= 10_000 * (1 + seconds / 60 + MAX_EXCESS)
        first.release_tokens(key, 5_000)
        wait_until(lambda: second.acquire(key, 3_000) == 0)
        wait_until(lambda: first.acquire(key, 1_500) == 0)
        assert second.acquire(key, 9_000) > 1


def test_processes_that_do_not_report_exceed_the_limit(postgres, tmp_path):
    key = LOCAL._replace(id="anna", requests_per_minute=60)
    with limiters(2, tmp_path, postgres.address_for(tmp_path), reporting=False) as processes:
        for limits in processes:
            limits._num_processes = 1
        assert hammer(processes, key, 0.5)[0] >= 120


def test_one_process_grants_the_allowance_of_a_minute_at_once(postgres, tmp_path):
    key = LOCAL._replace(id="anna", requests_per_minute=50)
    with limiters(1, tmp_path, postgres.address_for(tmp_path)) as (limits,):
        wait_until(lambda: limits.acquire(LOCAL._replace(id="x", requests_per_minute=1), 0) > 1)  # it knows that now
        assert [limits.acquire(key, 0) == 0 for _ in range(52)] == [True] * 50 + [False] * 2
        limits.release_request(key)
        assert limits.acquire(key, 0) == 0


def test_quotas_of_storage_hold_over_processes(postgres, tmp_path):
    address = postgres.address_for(tmp_path)
    stores = [Store(tmp_path / str(i), database_url=address) for i in range(4)]
    key, _ = keys.create_key(stores[0], "anna", max_pending_examples=10)
    for i in range(4):
        journal.open_branch(stores[0], f"model-{i}", key.id, "a", "b", 1.0)

    def add(i):
        count = 0
        for number in range(10):
            with contextlib.suppress(QuotaExceeded):
                journal.add_example(stores[i], f"model-{i}/{key.id}", key.id, f"text {number}")
                count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(add, range(4))) == 10
    assert stores[0].select_value("SELECT count(*) FROM examples") == 10
    for store in stores:
        store.close()


def test_reports_of_many_keys_do_not_wait_for_each_other(postgres, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_limits, "MAX_BATCH", 50)
    monkeypatch.setattr(reporting, "CLEANING_INTERVAL", 0.05)
    names = [LOCAL._replace(id=f"key {i}", requests_per_minute=1000) for i in range(200)]
    with limiters(3, tmp_path, postgres.address_for(tmp_path)) as processes:

        def take(limits, order):
            for key in order * 3:
                limits.acquire(key, 0)

        orders = (names, names[::-1], names[100:] + names[:100])
        threads = [threading.Thread(target=take, args=pair) for pair in zip(processes, orders, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        query = "SELECT count(*) FROM rate_limits WHERE unit = 'requests' AND 1000 - level BETWEEN 5 AND 9"
        wait_until(lambda: processes[0]._store.select_value(query) == 200)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_process_without_the_database_grants_its_part(postgres, tmp_path):
    key = LOCAL._replace(id="anna", requests_per_minute=60)
    address = postgres.address_for(tmp_path)
    with DatabaseProxy(postgres.port) as proxy:
        behind_proxy = address.replace(f":{postgres.port}/", f":{proxy.port}/")
        with limiters(1, tmp_path / "a", address) as (near,), limiters(1, tmp_path / "b", behind_proxy) as (far,):
            assert near.acquire(key, 0) == far.acquire(key, 0) == 0
            wait_until(lambda: far._num_processes == 2 and not far._changed)
            proxy.is_silent = True
            far.acquire(key, 0)
            wait_until(lambda: far._is_separated)
            started_at = time.monotonic()
            num_granted = sum(far.acquire(key, 0) == 0 for _ in range(200))
            assert 25 <= num_granted <= 30 + (time.monotonic() - started_at)
            proxy.restore()
            wait_until(lambda: not far._is_separated and not far._changed)
            num_left, _ = hammer((near,), key, 0.5)  # the requests of the other process count again
            assert num_left <= 60 - num_granted + time.monotonic() - started_at + 2 * MIN_REQUESTS


@pytest.mark.slow
def test_two_servers_hold_the_limits_of_a_key_and_add_its_usage(postgres, tmp_path_factory, tmp_path):
    run, address = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    environment = {"ONTOGENY_DATABASE_URL": address}
    share_snapshots(tmp_path / "state" / "snapshots", tmp_path / "first", tmp_path / "second")
    with Store(tmp_path / "state", database_url=address) as store:
        anna, text = keys.create_key(store, "anna", requests_per_minute=100)
        bob, other_text = keys.create_key(store, "bob", tokens_per_minute=1000)
        _, unlimited = keys.create_key(store, "carl")
        with (
            ServerProcess(tmp_path / "first", str(run), environment=environment) as first,
            ServerProcess(tmp_path / "second", str(run), environment=environment) as second,
        ):

            def send(server, key, seconds):
                statuses, end = [], time.monotonic() + seconds
                while time.monotonic() < end:
                    statuses.append(server.post("/v1/completions", COMPLETION, key)[0])
                return statuses

            usage_of_one = first.post("/v1/completions", COMPLETION, unlimited)[1]["usage"]
            num_tokens = usage_of_one["prompt_tokens"] + COMPLETION["max_tokens"]
            for key, secret, cost, limit in ((anna, text, 1, 100), (bob, other_text, num_tokens, 1000)):
                started_at = time.monotonic()
                with ThreadPoolExecutor(6) as threads:
                    futures = [threads.submit(send, server, secret, 8) for server in (first, second) for _ in range(3)]
                    statuses = [status for future in futures for status in future.result()]
                seconds = time.monotonic() - started_at
                num_granted = statuses.count(200)
                excess = max(MAX_EXCESS * limit, 2 * (MIN_REQUESTS if cost == 1 else cost))
                assert set(statuses) == {200, 429}
                assert 0.9 * limit <= num_granted * cost <= limit * (1 + seconds / 60) + excess

                def usage(key=key):
                    return sum(record.num_requests for record in keys.list_usage(store) if record.key == key.id)

                wait_until(lambda: usage() == num_granted, 20)  # noqa: B023
            keys.revoke_key(store, anna.id)
            time.sleep(FRESH_TIME)
            for server in (first, second):
                assert server.post("/v1/completions", COMPLETION, text)[0] == 401
                assert "Traceback" not in server.log.read_text()
