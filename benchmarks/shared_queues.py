"""By how much do several processes exceed the limit of waiting requests, and how many statements does it cost?

    python benchmarks/shared_queues.py                   # 2 and 4 processes, limit 64, 10 s for each
    python benchmarks/shared_queues.py --processes 2 --keys 1000 --rate 1

Each process has an engine that answers nothing, and receives requests of each key at random times. An admitted request
waits for a second. Requests begin at all processes at once, so that at first each admits what it would admit alone;
`excess.first` is the highest excess of the sum over the limit in the first second, `excess.later` that of the time
after it. `sum` is the sum of the waiting requests on average after the first second. `statements` are those of one
process per second, and `statement` the median of their time. Prints JSON lines.
"""

import argparse
import heapq
import json
import multiprocessing
import random
import tempfile
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from local_postgres import running_postgres
from ontogeny.content.transformer import make_config
from ontogeny.engine.engine import Engine, QueueFull, QueueReservation
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.shared_queues import REPORT, SharedQueues
from ontogeny.server.store import Store

WAITING_TIME = 1.0  # seconds of each admitted request
CONFIG = make_config("gpt2", 3, 8, num_layers=1, num_heads=1, width=4)


class Changes(NamedTuple):
    """What one process has done: (time, key, change of the number that waits), and the seconds of each report."""

    changes: list[tuple[float, int, int]]
    seconds: list[float]


def receive_requests(number: int, address: str, folder: Path, options: argparse.Namespace, parent: Connection) -> None:
    """Runs one process: requests arrive from the time that the parent sends, for `options.seconds`."""
    changes, seconds = list[tuple[float, int, int]](), list[float]()
    with Store(folder / str(number), database_url=address) as store:
        store.database.bound_waits()
        execute = store.execute

        def measure(query: str, *parameters: Any) -> Any:
            """Executes a statement, and measures reports."""
            begun_at = time.perf_counter()
            answer = execute(query, *parameters)
            if query is REPORT:
                seconds.append(time.perf_counter() - begun_at)
            return answer

        store.execute = measure  # type: ignore[method-assign]
        membership = Membership(store, "benchmark", allow_mixed=False, find_load=lambda: Load(0, 0))
        membership.start(f"process {number}", f"http://127.0.0.1:{number}")
        queues, engine = SharedQueues(store, membership), Engine(CONFIG, max_queue=options.limit)
        queues.add("model", {"requests": engine})
        queues.start()
        parent.send(None)
        rng, begun_at = random.Random(number), parent.recv()
        waiting, arrival, order = list[tuple[float, int, int, QueueReservation]](), begun_at, 0
        while arrival < begun_at + options.seconds:
            while waiting and waiting[0][0] <= arrival:
                end, _, key, reservation = heapq.heappop(waiting)
                time.sleep(max(0.0, end - time.monotonic()))
                reservation.release()
                changes.append((time.monotonic(), key, -1))
            time.sleep(max(0.0, arrival - time.monotonic()))
            key, order = rng.randrange(options.keys), order + 1
            try:
                reservation = engine.reserve(1, f"key {key}")
                changes.append((time.monotonic(), key, 1))
                heapq.heappush(waiting, (time.monotonic() + WAITING_TIME, order, key, reservation))
            except QueueFull:
                pass
            arrival += rng.expovariate(options.rate * options.keys)
        queues.stop()
        membership.leave()
    parent.send(Changes(changes, seconds))


def measure(num_processes: int, address: str, folder: Path, options: argparse.Namespace) -> None:
    """Runs all processes, and prints the records."""
    context, connections = multiprocessing.get_context("spawn"), list[Connection]()
    for number in range(num_processes):
        connection, child = context.Pipe()
        connections.append(connection)
        arguments = number, address, folder, options, child
        context.Process(target=receive_requests, args=arguments, daemon=True).start()
    for connection in connections:
        connection.recv()
    begun_at = time.monotonic() + 0.2
    for connection in connections:
        connection.send(begun_at)
    results: list[Changes] = [connection.recv() for connection in connections]
    sums, first, later = [0] * options.keys, 0, 0
    total, area = 0, 0.0
    changes = sorted(change for result in results for change in result.changes)
    for (changed_at, key, change), (until, _, _) in pairwise(changes):
        sums[key] += change
        total += change
        if changed_at < begun_at + 1:
            first = max(first, sums[key] - options.limit)
        elif changed_at < begun_at + options.seconds:
            later = max(later, sums[key] - options.limit)
            area += total * (until - changed_at)
    seconds = [value for result in results for value in result.seconds]
    setting = {
        "processes": num_processes, "limit": options.limit, "keys": options.keys,
        "requests per second of each key at each process": options.rate,
    }  # fmt: skip
    bound = (num_processes - 1) * options.limit

    def print_record(name: str, value: float, unit: str, **fields: Any) -> None:
        """Prints one JSON line."""
        record = {"name": f"shared_queues.{name}", "value": round(float(value), 5), "unit": unit}
        empty = dict.fromkeys(("se", "peer", "peer_value", "ratio"))
        print(json.dumps(record | empty | fields | {"seconds": options.seconds, "setting": setting}), flush=True)

    for name, excess in (("excess.first", first), ("excess.later", later)):
        peer = {"peer": "stated bound", "peer_value": bound, "ratio": round(excess / bound, 3)}
        print_record(name, excess, "requests", **peer)
    print_record("sum", area / (options.seconds - 1) / options.keys, "requests of a key", peer="limit",
                 peer_value=options.limit)  # fmt: skip
    print_record("statements", len(seconds) / num_processes / options.seconds, "1/s")
    print_record("statement", float(np.median(seconds)), "s")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--rate", type=float, default=150, help="requests per second of each key at each process")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_postgres() as postgres:
        for num_processes in options.processes:
            measure(num_processes, postgres.address(f"queues_{num_processes}"), Path(name), options)


if __name__ == "__main__":
    main()
