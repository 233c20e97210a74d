"""The limit of waiting requests over the processes that share a PostgreSQL database."""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from database_proxy import DatabaseProxy
from ontogeny.content.transformer import make_config
from ontogeny.engine.engine import Engine, QueueFull
from ontogeny.engine.requests import GenerationRequest
from ontogeny.engine.sampling import SamplingParams
from ontogeny.server import keys
from ontogeny.server.fair_executor import FairExecutor
from ontogeny.server.processes import membership, shared_queues
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.reporting import MAX_AGE, REPORT_INTERVAL
from ontogeny.server.processes.shared_queues import MAX_COPY_AGE, REPORT, SAME_QUEUE, SharedQueues
from ontogeny.server.sessions.turns import SessionTurns
from ontogeny.server.store import Store
from serving import ServerProcess, share_snapshots, shared_run, wait_until

pytestmark = pytest.mark.sqlite
CONFIG = make_config("gpt2", 3, 8, num_layers=1, num_heads=1, width=4)
LIMIT = 4
NUM_TOKENS = 4096  # of an answer that lasts until the server stops
PLANTED = {  # errors in the statement
    "a process counts its own requests": ("stored.process <> ? AND", "?::bigint IS NOT NULL AND"),
    "a number that is 0 stays": ("AND reported.num_waiting = 0", "AND FALSE"),
    "a number is never changed": ("SET num_waiting = excluded.num_waiting", "SET num_waiting = stored.num_waiting"),
    "all keys count as one": (SAME_QUEUE, "(stored.deployment, stored.queue) = (reported.deployment, reported.queue)"),
    "a process without a lease counts": (f"AND {membership.IS_ALIVE}\n), (", "\n), ("),
}


@contextlib.contextmanager
def sharing(number, folder, *addresses, started=True):
    """The engines of several processes, which are not started, so that requests wait; with leases and reports."""
    with contextlib.ExitStack() as stack:
        created = []
        for i in range(number):
            store = stack.enter_context(Store(folder / str(i), database_url=addresses[i % len(addresses)]))
            store.database.bound_waits()
            process = Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
            queues, engine = SharedQueues(store, process), Engine(CONFIG, max_queue=LIMIT)
            queues.add("story", {"requests": engine})
            if started:
                process.start(f"process {i}", f"http://127.0.0.1:{i}")
                stack.callback(process.leave)
                queues.start()
                stack.callback(queues.stop)
            else:
                process._keep_lease()
            created.append((engine, queues, process))
        yield created


def is_admitted(engine, owner="anna"):
    """Whether a request would be admitted; it does not stay."""
    try:
        engine.reserve(1, owner).release()
    except QueueFull:
        return False
    return True


def compare_with_model(processes, seed, num_steps=250):
    """Lets requests arrive and leave and processes report at random; compares each answer and the sum of all numbers.

    The sum exceeds the limit by at most what the other processes have admitted and the last answer does not contain.
    """
    rng, stacks = random.Random(seed), [{key: [] for key in "ab"} for _ in processes]
    reported, answers = [Counter() for _ in processes], [Counter() for _ in processes]
    for _ in range(num_steps):
        i, key = rng.randrange(len(processes)), rng.choice("ab")
        engine, queues, _ = processes[i]
        if (kind := rng.random()) < 0.5:
            waiting, num_new = engine.count_waiting()[key], rng.randint(1, 2)
            num_visible = waiting + answers[i][key]
            try:
                stacks[i][key].append(engine.reserve(num_new, key))
                admitted = True
            except QueueFull:
                admitted = False
            assert admitted == (num_visible == 0 or num_visible + num_new <= LIMIT)
            total = sum(process[0].count_waiting()[key] for process in processes)
            elsewhere = total - engine.count_waiting()[key]
            if admitted:
                assert total <= LIMIT + max(0, elsewhere - answers[i][key])
        elif kind < 0.75:
            if stacks[i][key]:
                stacks[i][key].pop(rng.randrange(len(stacks[i][key]))).release()
        else:
            for _ in range(2):  # a request that leaves before the second look is not reported
                queues._report()
            before, reported[i] = reported[i], engine.count_waiting()
            for name in before.keys() | reported[i].keys():
                answers[i][name] = sum(counts[name] for j, counts in enumerate(reported) if j != i)
                assert engine.count_elsewhere(name) == answers[i][name]
    store, (_, _, ended) = processes[0][1]._store, processes[2]
    for i, num_elsewhere in ((0, 0), (1, 1), (2, 2), (0, 2)):
        engine, queues, _ = processes[i]
        engine.reserve(engine.count_waiting()["carl"] == 0, "carl")
        for _ in range(2):
            queues._report()
        assert engine.count_elsewhere("carl") == num_elsewhere
    query = "UPDATE processes SET expires_at = clock_timestamp() - INTERVAL '1 second' WHERE number = ?"
    store.execute(query, ended.last_number)
    processes[0][1]._report()
    assert processes[0][0].count_elsewhere("carl") == 1


@pytest.fixture
def slow_clocks(monkeypatch):
    """Every report asks for all numbers, and neither leases nor copies end by themselves."""
    monkeypatch.setattr(shared_queues, "MAX_AGE", 0.0)
    monkeypatch.setattr(shared_queues, "MAX_COPY_AGE", 1000.0)
    monkeypatch.setattr(membership, "LEASE", 1000.0)


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_the_numbers_of_the_other_processes(postgres, tmp_path, slow_clocks, seed):
    with sharing(3, tmp_path, postgres.address_for(tmp_path), started=False) as processes:
        compare_with_model(processes, seed)


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_in_the_report_are_detected(postgres, tmp_path, slow_clocks, monkeypatch, error):
    assert PLANTED[error][0] in REPORT
    monkeypatch.setattr(shared_queues, "REPORT", REPORT.replace(*PLANTED[error]))
    with (
        sharing(3, tmp_path, postgres.address_for(tmp_path), started=False) as processes,
        pytest.raises(AssertionError),
    ):
        compare_with_model(processes, 0)


def test_queues_compare_the_sum_with_their_limit():
    weights: Any = None  # the engines do not run
    request = GenerationRequest(weights, (1,), 1, SamplingParams(), owner="anna")
    for num_own, elsewhere, num_new in itertools.product(range(LIMIT + 1), range(LIMIT + 2), range(1, LIMIT + 2)):
        engine = Engine(CONFIG, max_queue=LIMIT)
        if num_own:
            engine.submit_all([request] * num_own, [lambda output: None] * num_own)
        engine.count_elsewhere = {"anna": elsewhere, "bob": 0}.__getitem__
        assert engine.count_waiting() == Counter(anna=num_own)
        num_visible = num_own + elsewhere
        expected = (
            contextlib.nullcontext() if not num_visible or num_visible + num_new <= LIMIT else pytest.raises(QueueFull)
        )
        with expected:
            engine.reserve(num_new, "anna")
        engine.reserve(LIMIT + 9, "bob").release()

    async def enter(turns, stack):
        await stack.enter_async_context(turns.take("anna", str(turns.count_waiting())))

    async def fill(elsewhere):
        turns, executor, blocked = SessionTurns(LIMIT), FairExecutor("test", 1, LIMIT), threading.Event()
        executor.submit("carl", blocked.wait)
        wait_until(lambda: executor.num_waiting == 0)
        turns.count_elsewhere = executor.count_elsewhere = lambda key: elsewhere
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(LIMIT - elsewhere):
                await enter(turns, stack)
                executor.submit("anna", lambda: None)
            with pytest.raises(QueueFull):
                await enter(turns, stack)
            with pytest.raises(QueueFull):
                executor.submit("anna", lambda: None)
            expected = {"anna": LIMIT - elsewhere} if elsewhere < LIMIT else {}
            assert turns.count_waiting() == executor.count_waiting() == expected
        blocked.set()
        executor.stop()

    for elsewhere in range(LIMIT + 1):
        asyncio.run(fill(elsewhere))


def test_the_limit_holds_over_processes_and_ends_with_them(postgres, tmp_path, monkeypatch):
    address = postgres.address_for(tmp_path)
    with sharing(2, tmp_path, address) as ((first, first_queues, _), (second, _, membership_of_second)):
        store, times = first_queues._store, list[float]()
        execute = store.execute

        def note(query, *parameters):
            if query is REPORT:
                times.append(time.monotonic())
            return execute(query, *parameters)

        monkeypatch.setattr(store, "execute", note)
        first.reserve(1, "anna").release()
        time.sleep(5 * REPORT_INTERVAL)
        assert not times  # a request that does not wait is not reported
        places, other_places = first.reserve(2, "anna"), second.reserve(2, "anna")
        wait_until(lambda: not is_admitted(first) and not is_admitted(second))
        assert is_admitted(first, "bob")
        time.sleep(0.1)
        num_before, begun_at = len(times), time.monotonic()
        time.sleep(0.6)
        assert len(times) - num_before <= 1 + (time.monotonic() - begun_at) / MAX_AGE
        other_places.release()
        wait_until(lambda: is_admitted(first))
        wait_until(lambda: store.select_value("SELECT count(*) FROM waiting_requests") == 1)
        more_places = first.reserve(3, "carl")
        time.sleep(0.1)
        burst = [second.reserve(1, "carl") for _ in range(LIMIT)]  # no report of it has been answered
        wait_until(lambda: not is_admitted(first, "carl"))
        assert all(later - earlier >= REPORT_INTERVAL for earlier, later in itertools.pairwise(times))
        membership_of_second._thread.stop()  # as if the process had been killed
        wait_until(lambda: is_admitted(first, "carl"))
        for reservation in (places, more_places, *burst):
            reservation.release()
        wait_until(lambda: not first_queues._reported)
        num_before = len(times)
        time.sleep(2 * MAX_AGE)
        assert len(times) == num_before  # nothing is reported while no request waits
    with Store(tmp_path / "later", database_url=address) as store:
        store.execute("INSERT INTO waiting_requests VALUES ('story', 'requests', 'anna', 999, 7)")
        store.execute(shared_queues.CLEANING)
        assert store.select_value("SELECT count(*) FROM waiting_requests") == 0


def test_the_limit_holds_per_process_without_the_database(postgres, tmp_path):
    address = postgres.address_for(tmp_path)
    with DatabaseProxy(postgres.port) as proxy:
        behind_proxy = address.replace(f":{postgres.port}/", f":{proxy.port}/")
        with sharing(2, tmp_path, address, behind_proxy) as ((near, _, _), (far, queues, _)):
            near.reserve(3, "anna")
            far.reserve(2, "anna")
            wait_until(lambda: not is_admitted(far))
            proxy.is_silent = True
            silent_at = time.monotonic()
            wait_until(lambda: is_admitted(far))
            assert time.monotonic() - silent_at < MAX_COPY_AGE + 10  # without the age, the copy would stay
            far.reserve(2, "anna")
            assert not is_admitted(far)  # its own limit
            wait_until(lambda: queues._elsewhere == {})
            proxy.restore()
            far.release(far.reserve(1, "bob"))
            wait_until(lambda: far.count_elsewhere("anna") == 3)


@pytest.mark.slow
def test_two_servers_hold_the_limit_of_waiting_requests(postgres, tmp_path_factory, tmp_path):
    run, address = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    environment = {"ONTOGENY_DATABASE_URL": address}
    share_snapshots(tmp_path / "state" / "snapshots", tmp_path / "first", tmp_path / "second")
    options = (
        "--alias", f"frozen={run}", "--alias", f"learning={run}", "--online", "--freeze", "frozen",
        "--max-num-seqs", "1", "--max-queue", "3",
    )  # fmt: skip
    with Store(tmp_path / "state", database_url=address) as store:
        _, text = keys.create_key(store, "anna")
        with (
            ServerProcess(tmp_path / "first", *options, environment=environment) as first,
            ServerProcess(tmp_path / "second", *options, environment=environment) as second,
        ):

            def begin(server, model, number):
                """Sends requests that last until the servers stop."""
                body = {"model": model, "prompt": "the little", "max_tokens": NUM_TOKENS, "min_tokens": NUM_TOKENS}
                for _ in range(number):
                    threading.Thread(target=post, args=(server, body), daemon=True).start()

            def post(server, body):
                with contextlib.suppress(OSError):
                    server.post("/v1/completions", body, text)

            def read(model):
                query = "SELECT process, num_waiting FROM waiting_requests WHERE deployment = ? AND queue = 'requests'"
                return sorted(map(tuple, store.execute(query, model)))

            begin(first, "frozen", 3)
            wait_until(lambda: [number for _, number in read("frozen")] == [2])
            begin(second, "frozen", 2)
            wait_until(lambda: [number for _, number in read("frozen")] == [2, 1])
            time.sleep(2 * MAX_AGE)  # until both have asked
            body = {"model": "frozen", "prompt": "the little", "max_tokens": 1}
            for server in (first, second):
                status, answer = server.post("/v1/completions", body, text)
                assert status == 429 and answer["error"]["code"] == "queue_full"
            assert first.post("/v1/completions", body | {"model": "learning"}, text)[0] == 200
            owner = read("frozen")[0][0]
            begin(second, "learning", 3)  # which passes them on
            wait_until(lambda: read("learning") == [(owner, 2)])
            time.sleep(2 * MAX_AGE)
            assert read("learning") == [(owner, 2)]
