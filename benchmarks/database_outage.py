"""How long do requests take while the database does not answer, and by how much do several processes exceed a limit?

    python benchmarks/database_outage.py            # both parts; trains a tiny model first
    python benchmarks/database_outage.py RUN --parts limits --processes 2 4

    outage   one process behind a proxy that cuts, delays or loses its connections to PostgreSQL: seconds of requests to
             a model that does not learn, and of refused texts for one that does, from the beginning of the fault on
    limits   several processes, all of which receive as many requests of one key as they can answer: how many more than
             its limit per minute they grant together

Prints JSON lines; `peer` is the same without a fault, or the bound that the documentation states.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from database_proxy import DatabaseProxy
from local_postgres import PostgresServer, running_postgres
from ontogeny.server import keys
from ontogeny.server.processes.shared_limits import MAX_EXCESS, MIN_REQUESTS
from ontogeny.server.store import Store
from server_group import Replica, make_tiny_run, send_request, wait_until

PARTS = ("outage", "limits")
COMPLETION = {"prompt": "The agent", "max_tokens": 4, "temperature": 0}
FAULTS: dict[str, Callable[[DatabaseProxy], Any]] = {
    "none": lambda proxy: None,
    "slow (0.4 s per answer)": lambda proxy: setattr(proxy, "delay", 0.2),
    "slow (3 s per answer)": lambda proxy: setattr(proxy, "delay", 1.5),
    "silent": lambda proxy: setattr(proxy, "is_silent", True),
    "refused": lambda proxy: (setattr(proxy, "is_refusing", True), proxy.cut()),
}


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    record = {"name": f"database_outage.{name}", "value": round(value, 4), "unit": unit} | empty | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


def repeat(send: Callable[[], int], seconds: float) -> list[tuple[int, float]]:
    """Sends one request after another for a time; returns the status and the seconds of each."""
    answers, end = list[tuple[int, float]](), time.perf_counter() + seconds
    while (started_at := time.perf_counter()) < end:
        status = send()
        answers.append((status, time.perf_counter() - started_at))
    return answers


def measure_outage(folder: Path, run: Path, postgres: PostgresServer, options: argparse.Namespace) -> None:
    """Prints the seconds of requests in each fault."""
    address = postgres.address("outage")
    with Store(folder / "outage", database_url=address) as store:
        text = keys.create_key(store, "anna")[1]
    names = ("--alias", f"fixed={run}", "--alias", f"live={run}", "--freeze", "fixed", "--online")
    with DatabaseProxy(postgres.port) as proxy:
        behind_proxy = address.replace(f":{postgres.port}/", f":{proxy.port}/")
        arguments = [*names, "--state-dir", str(folder / "outage")]
        replica = Replica(0, arguments, behind_proxy, folder / "outage.log")
        replica.start()
        try:
            replica.wait()
            answers = {}
            for fault, begin in FAULTS.items():
                answers[fault] = disturb(replica.url, text, proxy, begin, options.seconds)
            print_outages(answers, options.seconds)
        finally:
            replica.kill()


def disturb(
    url: str, text: str, proxy: DatabaseProxy, begin: Callable[[DatabaseProxy], Any], seconds: float
) -> dict[str, list[tuple[int, float]]]:
    """Begins a fault, sends requests to both models, and ends the fault."""

    def complete() -> int:
        return send_request(url, "POST", "/v1/completions", {"model": "fixed"} | COMPLETION, text).status

    def teach() -> int:
        return send_request(url, "POST", "/v1/models/live/examples", {"text": "A letter to the sea."}, text).status

    wait_until(lambda: complete() == teach() == 200, 60, "both models answer")
    answers: dict[str, list[tuple[int, float]]] = {}
    begin(proxy)
    threads = [
        threading.Thread(target=lambda name=name, send=send: answers.update({name: repeat(send, seconds)}))
        for name, send in (("fixed", complete), ("live", teach))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.restore()
    return answers


def print_outages(answers: dict[str, dict[str, list[tuple[int, float]]]], seconds: float) -> None:
    """Prints percentiles of the seconds of all answers."""
    for fault, by_model in answers.items():
        for model, sent in by_model.items():
            durations = [duration for _, duration in sent]
            statuses = [status for status, _ in sent]
            undisturbed = [duration for _, duration in answers["none"][model]]
            setting: dict[str, Any] = {"fault": fault, "requests": len(sent), "seconds": seconds}
            setting["statuses"] = {str(status): statuses.count(status) for status in sorted(set(statuses))}
            for name, percentile in (("p50", 50), ("p99", 99), ("max", 100)):
                value, peer_value = (float(np.percentile(present, percentile)) for present in (durations, undisturbed))
                ratio = round(value / peer_value, 2)
                peer = {"peer": "no fault", "peer_value": round(peer_value, 4), "ratio": ratio}
                print_record(f"{model}.{name}", value, "s", setting, **peer)


def measure_limits(folder: Path, run: Path, postgres: PostgresServer, options: argparse.Namespace) -> None:
    """Prints how many requests beyond a limit several processes grant."""
    for number in options.processes:
        address = postgres.address(f"limits{number}")
        arguments = ["--alias", f"fixed={run}", "--state-dir", str(folder / f"limits{number}")]
        replicas = [Replica(i, arguments, address, folder / f"limits{number}-{i}.log") for i in range(number)]
        try:
            for replica in replicas:
                replica.start()
            for replica in replicas:
                replica.wait()
            with Store(folder / f"limits{number}", database_url=address) as store:
                for per_minute in options.limits:
                    text = keys.create_key(store, "anna", requests_per_minute=per_minute)[1]
                    print_excess([replica.url for replica in replicas], text, per_minute, options)
        finally:
            for replica in replicas:
                replica.kill()


def print_excess(urls: Sequence[str], text: str, per_minute: int, options: argparse.Namespace) -> None:
    """Sends requests of one key to all processes at once, and prints by how many the granted ones exceed the limit."""

    def send(url: str) -> list[tuple[int, float]]:
        body = {"model": "fixed"} | COMPLETION
        return repeat(lambda: send_request(url, "POST", "/v1/completions", body, text).status, options.seconds)

    started_at = time.perf_counter()
    with ThreadPoolExecutor(options.streams * len(urls)) as threads:
        answers = [answer for sent in threads.map(send, list(urls) * options.streams) for answer in sent]
    seconds = time.perf_counter() - started_at
    num_granted = sum(status == 200 for status, _ in answers)
    excess = (num_granted - per_minute * (1 + seconds / 60)) / per_minute
    bound = max(MAX_EXCESS, len(urls) * MIN_REQUESTS / per_minute)
    setting = {"processes": len(urls), "limit": per_minute, "granted": num_granted, "requests": len(answers)}
    peer = {"peer": "stated bound", "peer_value": bound, "ratio": round(excess / bound, 3)}
    print_record("limits.excess", excess, "share of a minute", setting, seconds=round(seconds, 2), **peer)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a language model; by default a tiny one is trained")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=10, help="of each fault, and of each limit")
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--limits", type=int, nargs="+", default=[60, 300], help="requests per minute")
    parser.add_argument("--streams", type=int, default=4, help="of requests, per process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_postgres() as postgres:
        folder = Path(name)
        run = options.run or make_tiny_run(folder / "run")
        for part, measure in zip(PARTS, (measure_outage, measure_limits), strict=True):
            if part in options.parts:
                measure(folder, run, postgres, options)


if __name__ == "__main__":
    main()
