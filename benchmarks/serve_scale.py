"""How does a server scale with processes and keys? Speed, time to take over a branch, and the cost of an idle key.

    python benchmarks/serve_scale.py                              # all parts; trains a tiny model first
    python benchmarks/serve_scale.py RUN --parts databases many_keys
    python benchmarks/serve_scale.py --parts processes --processes 1 2 4 --keys 1 100 10000

    processes   requests, learned tokens and time to first token of 1, 2 and 4 processes, with 1 to 10,000 keys
    databases   PostgreSQL beside SQLite, one process
    take_over   seconds until a branch answers again after its process was killed or drained
    idle_keys   memory and disk of a key that nobody uses
    many_keys   start and requests with 100,000 keys in one database, beside 100

The model is tiny, so that the work of the server counts and not that of the model. Every process computes on one
thread. 1 % of the keys are active, at least one: each stream draws an active key, sends a request, reads the answer to
its end, and repeats; a tenth of the requests teach a text. PostgreSQL is private and waits for the disk at each commit
(`fsync`). Prints JSON lines.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from local_postgres import PostgresServer, running_postgres
from ontogeny.server import keys
from ontogeny.server.learning import journal
from ontogeny.server.store import Store
from server_group import Replica, make_tiny_run, send_request, wait_until

PARTS = ("processes", "databases", "take_over", "idle_keys", "many_keys")
MODEL = "/v1/models/story"
MAX_TOKENS, TEXT_LENGTH = 16, 200  # of an answer; characters of a text that is taught
WARM_UP = 3.0  # seconds
ACTIVE_SHARE, TEACHING_SHARE = 0.01, 0.1
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}  # fmt: skip
LEARNING = ("--online", "--learning-fraction", "1", "--max-forgetting", "5")


class Exchange(NamedTuple):
    """A request and its answer, by the clock of this process."""

    started_at: float
    first_token_at: float
    finished_at: float
    is_teaching: bool


class Group(NamedTuple):
    """Processes that share one database, and the texts of the active keys."""

    replicas: list[Replica]
    key_texts: list[str]
    state_dir: Path
    address: str


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    record = {"name": f"serve.scale.{name}", "value": round(value, 5), "unit": unit} | empty | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


class Scenario:
    """Starts groups of processes on databases of their own.

    Args:
        folder: Takes state folders and logs.
        run: The language model.
        postgres: The PostgreSQL server.
        seed: Of the choices of the clients.
        options: Further options of `ontogeny serve`.
    """

    def __init__(
        self, folder: Path, run: Path, postgres: PostgresServer, seed: int, options: Sequence[str] = ()
    ) -> None:
        self._folder, self._run, self._postgres, self._options = folder, run, postgres, options
        self.draw, self._number = random.Random(seed), 0

    @contextlib.contextmanager
    def start(self, num_keys: int, *, num_processes: int = 1, is_sqlite: bool = False) -> Iterator[Group]:
        """Runs processes whose database has this number of keys, 1 % of which are active."""
        with self.prepare(num_keys, num_processes=num_processes, is_sqlite=is_sqlite) as group:
            for replica in group.replicas:
                replica.start()
            for replica in group.replicas:
                replica.wait()
            yield group

    @contextlib.contextmanager
    def prepare(self, num_keys: int, *, num_processes: int = 1, is_sqlite: bool = False) -> Iterator[Group]:
        """Creates a database and processes that are not started; kills them at the end."""
        self._number += 1
        state_dir = self._folder / f"state{self._number}"
        address = "" if is_sqlite else self._postgres.address(f"scale{self._number}")
        num_active = max(1, round(num_keys * ACTIVE_SHARE))
        with Store(state_dir, database_url=address) as store:
            key_texts = [keys.create_key(store, f"active {number}")[1] for number in range(num_active)]
        arguments = ["--alias", f"story={self._run}", *LEARNING, "--state-dir", str(state_dir), *self._options]
        log = self._folder / f"log{self._number}"
        replicas = [Replica(number, arguments, address, log) for number in range(num_processes)]
        for replica in replicas:
            replica.environment = ONE_THREAD
        try:
            if num_keys > num_active:
                replicas[0].start()  # creates the branches that the idle ones are copies of
                replicas[0].wait()
                send_request(replicas[0].url, "GET", f"{MODEL}/branch", key=key_texts[0])
                replicas[0].terminate()
                with Store(state_dir, database_url=address) as store:
                    add_idle_keys(store, num_keys - num_active, key_texts[0])
            yield Group(replicas, key_texts, state_dir, address)
        finally:
            for replica in replicas:
                replica.kill()


def add_idle_keys(store: Store, num_keys: int, text: str) -> None:
    """Adds keys whose branches are at version 0, as copies of the key of this text and of its branch."""
    id = text.split("-", 2)[1]
    owner, branch = "'idle' || position", "'story/idle' || position"
    copies = {
        "keys": ("id", id, {"id": owner}),
        "branches": ("branch", f"story/{id}", {"branch": branch, "owner_key": owner}),
        "versions": ("branch", f"story/{id}", {"branch": branch}),
    }
    with store.transaction():
        for table, (column, original, expressions) in copies.items():
            columns = store.execute(f"SELECT * FROM {table} LIMIT 1").columns
            copied = ", ".join(expressions.get(name, f"original.{name}") for name in columns)
            query = (
                f"INSERT INTO {table} WITH RECURSIVE series (position) AS "
                "(SELECT 1 UNION ALL SELECT position + 1 FROM series WHERE position < ?) "
                f"SELECT {copied} FROM series CROSS JOIN {table} AS original WHERE original.{column} = ?"
            )
            store.execute(query, num_keys, original)


async def send_stream(port: int, key: str, body: dict[str, Any], path: str) -> tuple[float, float]:
    """Sends a request and reads its answer; returns the time of the first token and of the end."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    header = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{header}Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    first, status = 0.0, await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{path} was answered with {status.decode().strip()}")
    while line := await reader.readline():
        if line.startswith(b"data: {") and not first:
            first = time.perf_counter()
    writer.close()
    return first, time.perf_counter()


async def use(group: Group, draw: random.Random, end: float, exchanges: list[Exchange]) -> None:
    """Sends requests one after the other until a time."""
    while (started_at := time.perf_counter()) < end:
        key, is_teaching = draw.choice(group.key_texts), draw.random() < TEACHING_SHARE
        port = group.replicas[int(key.split("-", 2)[1], 16) % len(group.replicas)].port
        text = "".join(draw.choices("abcdefgh ", k=TEXT_LENGTH))
        if is_teaching:
            body, path = {"text": text}, f"{MODEL}/examples"
        else:
            body = {"model": "story", "prompt": text[:32], "max_tokens": MAX_TOKENS, "stream": True, "learn": False}
            path = "/v1/completions"
        first, finished_at = await send_stream(port, key, body, path)
        exchanges.append(Exchange(started_at, first, finished_at, is_teaching))


class Speed(NamedTuple):
    """What a group did in a measurement."""

    requests: float  # per second
    learned_tokens: float  # per second
    first_token: np.ndarray  # seconds of each request that generates
    teaching: np.ndarray  # seconds of each request that teaches


def measure_speed(group: Group, num_streams: int, seconds: float, draw: random.Random) -> Speed:
    """Lets streams use a group."""

    async def run() -> list[Exchange]:
        exchanges, end = list[Exchange](), time.perf_counter() + WARM_UP + seconds
        await asyncio.gather(*(use(group, random.Random(draw.random()), end, exchanges) for _ in range(num_streams)))
        return exchanges

    started_at, wall = time.perf_counter() + WARM_UP, time.time() + WARM_UP
    exchanges = asyncio.run(run())
    measured = [e for e in exchanges if e.started_at >= started_at and e.finished_at <= started_at + seconds]
    with Store(group.state_dir, database_url=group.address, read_only=True) as store:
        decisions = journal.list_decisions(store, "story")
    num_learned = sum(d.kind == "learned" and wall <= d.created_at < wall + seconds for d in decisions)
    first = np.array([e.first_token_at - e.started_at for e in measured if not e.is_teaching])
    teaching = np.array([e.finished_at - e.started_at for e in measured if e.is_teaching])
    return Speed(len(measured) / seconds, num_learned * TEXT_LENGTH / seconds, first, teaching)


def print_speed(prefix: str, speed: Speed, setting: dict[str, Any]) -> None:
    """Prints the records of a measurement."""
    print_record(f"{prefix}.requests", speed.requests, "requests per second", setting)
    print_record(f"{prefix}.learned", speed.learned_tokens, "tokens per second", setting)
    for share in (50, 99):
        print_record(f"{prefix}.first_token.p{share}", float(np.percentile(speed.first_token, share)), "s", setting)


def measure_processes(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Prints the speed of groups of different sizes, with different numbers of keys."""
    for num_processes in arguments.processes:
        for num_keys in arguments.keys:
            with scenario.start(num_keys, num_processes=num_processes) as group:
                speed = measure_speed(group, arguments.streams, arguments.seconds, scenario.draw)
            setting = {"processes": num_processes, "keys": num_keys, "streams": arguments.streams}
            print_speed("processes", speed, setting)


def measure_databases(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Prints the speed of one process with PostgreSQL beside that with SQLite, in turn."""
    speeds: dict[bool, list[Speed]] = {True: [], False: []}
    with scenario.start(100) as postgres, scenario.start(100, is_sqlite=True) as sqlite:
        for _ in range(arguments.rounds):
            for is_sqlite, group in ((False, postgres), (True, sqlite)):
                speeds[is_sqlite].append(measure_speed(group, arguments.streams, arguments.seconds, scenario.draw))
    setting = {"streams": arguments.streams, "rounds": arguments.rounds, "seconds": arguments.seconds}
    quantities = {
        "requests": ("requests per second", lambda speed: speed.requests),
        "learned": ("tokens per second", lambda speed: speed.learned_tokens),
        "first_token.p50": ("s", lambda speed: float(np.percentile(speed.first_token, 50))),
        "first_token.p99": ("s", lambda speed: float(np.percentile(speed.first_token, 99))),
        "teaching.p50": ("s", lambda speed: float(np.percentile(speed.teaching, 50))),
    }
    for name, (unit, quantity) in quantities.items():
        values, peer_values = ([quantity(speed) for speed in speeds[is_sqlite]] for is_sqlite in (False, True))
        ratios = [a / b for a, b in zip(values, peer_values, strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None
        mean, peer_mean = statistics.mean(values), statistics.mean(peer_values)
        print_record(
            f"databases.{name}", mean, unit, setting, peer="SQLite", peer_value=round(peer_mean, 5),
            ratio=round(statistics.mean(ratios), 4), se_of_ratio=None if error is None else round(error, 4),
        )  # fmt: skip


def measure_take_over(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Prints the seconds until branches answer again after their process was killed or drained."""
    for number, limit in ((signal.SIGTERM, 0.2), (signal.SIGKILL, 2.0)):
        times, control = list[float](), list[float]()
        with scenario.start(arguments.branches * 100, num_processes=2) as group:
            for trial in range(arguments.trials):
                owner, receiver = group.replicas[trial % 2], group.replicas[1 - trial % 2]
                for key in group.key_texts:  # so that the process owns the branches
                    send_request(owner.url, "POST", f"{MODEL}/examples", {"text": f"trial {trial} of a text"}, key)
                gaps = interrupt(group, owner, receiver, number)
                control += [before for before, _ in gaps]
                times += [after for _, after in gaps]
                owner.start()
                owner.wait()
        setting = {"signal": signal.Signals(number).name, "branches": arguments.branches, "trials": arguments.trials}
        for share in (50, 99):
            seconds = float(np.percentile(times, share))
            print_record(f"take_over.p{share}", seconds, "s", setting, peer="aim", peer_value=limit)
            print_record(f"take_over.before.p{share}", float(np.percentile(control, share)), "s", setting)


def interrupt(group: Group, owner: Replica, receiver: Replica, number: int) -> list[tuple[float, float]]:
    """Ends a process by a signal; returns the longest gap between answers of the other one, for each branch.

    The longest gap in the second before the signal is a control, the first of each pair. Some requests are sent to the
    owner, so that the branches do not change their owner before.
    """

    async def poll(port: int, pause: float, key: str, end: float) -> list[float]:
        body = {"model": "story", "prompt": "The", "max_tokens": 1, "learn": False, "stream": True}
        times = list[float]()
        while time.perf_counter() < end:
            with contextlib.suppress(OSError, SystemExit):
                await send_stream(port, key, body, "/v1/completions")
                times.append(time.perf_counter())
            await asyncio.sleep(pause)
        return times

    def count_elsewhere() -> int:
        query = "SELECT count(*) FROM branches JOIN processes ON owner = number WHERE url != ?"
        with Store(group.state_dir, database_url=group.address, read_only=True) as store:
            return store.select_value(query, owner.url)

    async def run() -> tuple[float, list[list[float]]]:
        end = time.perf_counter() + 6
        tasks = [asyncio.create_task(poll(receiver.port, 0.01, key, end)) for key in group.key_texts]
        owner_tasks = [asyncio.create_task(poll(owner.port, 0.1, key, end)) for key in group.key_texts]
        await asyncio.sleep(2)
        assert not count_elsewhere(), "another process owns a branch"
        owner.send_signal(number)
        interrupted_at, times = time.perf_counter(), list(await asyncio.gather(*tasks))
        await asyncio.gather(*owner_tasks)
        return interrupted_at, times

    interrupted_at, times = asyncio.run(run())
    with contextlib.suppress(Exception):
        assert owner.process is not None
        owner.process.wait(30)
    owner.kill()

    def longest_gap(answers: Sequence[float], begin: float, end: float) -> float:
        return max((b - a for a, b in pairwise(answers) if begin < b < end), default=0.0)

    return [
        (longest_gap(answers, interrupted_at - 1, interrupted_at), longest_gap(answers, interrupted_at, math.inf))
        for answers in times
    ]


def measure_idle_keys(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Prints the bytes of memory and of disk that a further key takes which nobody uses."""
    memory, disk = list[int](), list[int]()
    counts = (100, 100 + arguments.idle_keys)
    for num_keys in counts:
        with scenario.prepare(num_keys) as group:
            replica = group.replicas[0]
            replica.start()
            replica.wait()
            time.sleep(5)
            for _ in range(20):
                send_request(replica.url, "GET", f"{MODEL}/branch", key=group.key_texts[0])
            memory.append(replica.memory())
            with Store(group.state_dir, database_url=group.address, read_only=True) as store:
                tables = "('keys', 'branches', 'versions')"
                query = f"SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname IN {tables}"
                schema = " AND relnamespace = current_schema()::regnamespace"
                disk.append(int(store.select_value(query + schema)))
    setting = {"keys": list(counts)}
    for name, sizes in (("memory", memory), ("disk", disk)):
        print_record(f"idle_key.{name}", (sizes[1] - sizes[0]) / arguments.idle_keys, "bytes per key", setting)


def measure_many_keys(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Prints the seconds of a start and of requests with many keys, beside those with few."""
    results: dict[int, dict[str, float]] = {}
    for num_keys in (100, arguments.many_keys):
        with scenario.prepare(num_keys) as group:
            replica, starts = group.replicas[0], list[float]()
            for _ in range(arguments.rounds):
                replica.kill()
                started_at = time.perf_counter()
                replica.start()
                replica.wait()
                starts.append(time.perf_counter() - started_at)
            results[num_keys] = {"start": statistics.median(starts)} | time_requests(replica, group.key_texts)
    few, many = results[100], results[arguments.many_keys]
    for name, seconds in many.items():
        print_record(
            f"many_keys.{name}", seconds, "s", {"keys": arguments.many_keys}, peer="100 keys",
            peer_value=round(few[name], 5), ratio=round(seconds / few[name], 3),
        )  # fmt: skip


def time_requests(replica: Replica, key_texts: Sequence[str], num_requests: int = 100) -> dict[str, float]:
    """The seconds of requests to an idle server: reading a branch, generating, teaching, and learning the text."""
    key, times = key_texts[0], {"branch": list[float](), "completion": [], "example": [], "learned": []}
    body = {"model": "story", "prompt": "The agent", "max_tokens": 4, "learn": False}

    def measure(name: str, method: str, path: str, content: Any = None) -> None:
        started_at = time.perf_counter()
        answer = send_request(replica.url, method, path, content, key)
        assert answer.status == 200, answer
        times[name].append(time.perf_counter() - started_at)

    def is_learned() -> bool:
        return send_request(replica.url, "GET", f"{MODEL}/branch", key=key).content["num_pending"] == 0

    for number in range(num_requests):
        measure("branch", "GET", f"{MODEL}/branch")
        measure("completion", "POST", "/v1/completions", body)
        if number % 5 == 0:
            started_at = time.perf_counter()
            measure("example", "POST", f"{MODEL}/examples", {"text": f"a text of number {number} that is learned"})
            wait_until(is_learned, 60, "the text is learned")
            times["learned"].append(time.perf_counter() - started_at)
    medians = {f"{name}.p50": float(np.median(seconds)) for name, seconds in times.items()}
    return medians | {f"{name}.p99": float(np.percentile(seconds, 99)) for name, seconds in times.items()}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a language model; by default a tiny one is trained")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--keys", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement of speed")
    parser.add_argument("--rounds", type=int, default=5, help="of comparisons and starts")
    parser.add_argument("--branches", type=int, default=10, help="that are taken over at a time")
    parser.add_argument("--trials", type=int, default=10, help="of taking over")
    parser.add_argument("--idle-keys", type=int, default=10_000)
    parser.add_argument("--many-keys", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    functions = (measure_processes, measure_databases, measure_take_over, measure_idle_keys, measure_many_keys)
    with tempfile.TemporaryDirectory() as folder, running_postgres(fsync=True) as postgres:
        run = arguments.run or make_tiny_run(Path(folder) / "run")
        scenario = Scenario(Path(folder), run, postgres, arguments.seed)
        for part, measure in zip(PARTS, functions, strict=True):
            if part in arguments.parts:
                measure(scenario, arguments)


if __name__ == "__main__":
    main()
