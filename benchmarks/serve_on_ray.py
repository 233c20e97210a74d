"""What does a request to a server on Ray cost beside one to the process that answers it?

    python benchmarks/serve_on_ray.py                   # trains a tiny model first; needs the extra `ray`
    python benchmarks/serve_on_ray.py RUN --requests 500

Two processes on a local Ray cluster share a private PostgreSQL database; all programs share the processors of this
machine. Requests of one key are sent one after another, each on a connection of its own: through Ray, to the process
that owns the branch, and to the other process, which passes them on. The ways take turns, so that a change of the
machine's load meets all of them. The last figures are the processor time of the replicas while nobody sends requests,
before and after Ray has learned of many keys. Prints JSON lines.
"""

import argparse
import contextlib
import http.client
import json
import os
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from local_postgres import running_postgres
from ontogeny.server import keys
from ontogeny.server.learning import journal
from ontogeny.server.processes.membership import list_processes
from ontogeny.server.store import Store
from server_group import Replica, make_tiny_run, send_request

MAX_TOKENS = 16
IDLE_TIME = 20.0  # seconds
TITLE = b"ray::ServeReplica:ontogeny:replicas"
DIRECT = "owner"


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    record = {"name": f"serve.ray.{name}", "value": round(value, 5), "unit": unit} | empty | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


def measure(url: str, key: str) -> tuple[float, float]:
    """Sends one request for a stream; returns the seconds until its first piece and until its end."""
    body = {"model": "story", "prompt": "the little", "max_tokens": MAX_TOKENS, "stream": True, "learn": False}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Connection": "close"}
    started_at = time.perf_counter()
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        response.read1()
        first_at = time.perf_counter()
        assert response.read().endswith(b"data: [DONE]\n\n"), response.status
    return first_at - started_at, time.perf_counter() - started_at


def processor_time() -> float:
    """The processor seconds of the replicas so far, of this machine."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cmdline").read_bytes().startswith(TITLE):
                ticks += sum(map(int, (path / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_ways(ways: dict[str, str], key: str, num_requests: int) -> None:
    """Sends requests in turn on each way, and prints how long they took."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    started_at = time.monotonic()
    for number in range(num_requests + 10):
        for way, url in ways.items():
            times = measure(url, key)
            if number >= 10:
                seconds[way].append(times)
    elapsed = time.monotonic() - started_at
    for position, name in enumerate(("first_token", "answer")):
        for quantile in (50, 99):
            values = {way: np.percentile([s[position] for s in samples], quantile) for way, samples in seconds.items()}
            for way in ways:
                compared = {"peer": DIRECT, "peer_value": round(values[DIRECT], 5),
                            "ratio": round(values[way] / values[DIRECT], 3)} if way != DIRECT else {}  # fmt: skip
                setting = {"requests": num_requests, "max_tokens": MAX_TOKENS}
                print_record(
                    f"{name}_p{quantile}.{way}", values[way], "s", setting, seconds=round(elapsed, 1), **compared
                )


def measure_idle(setting: dict[str, Any]) -> None:
    """Prints the share of a processor that a replica takes while nobody sends requests."""
    time.sleep(3)
    before = processor_time()
    time.sleep(IDLE_TIME)
    print_record("idle_processor", (processor_time() - before) / IDLE_TIME / 2, "processors per process", setting,
                 seconds=IDLE_TIME)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--keys", type=int, default=1000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, running_postgres(fsync=True) as postgres:
        folder = Path(name)
        run = options.run or make_tiny_run(folder / "run")
        address = postgres.address("ray")
        with Store(folder / "state", database_url=address) as store:
            texts = [keys.create_key(store, f"key {number}")[1] for number in range(options.keys)]
            command = ("--alias", f"story={run}", "--online", "--state-dir", str(folder / "state"), "--on", "ray")
            server = Replica(0, command, address, folder / "log")
            try:
                server.start()
                server.wait()
                measure_idle({"keys": 0})
                measure(server.url, texts[0])
                owner = journal.get_branch(store, f"story/{texts[0].split('-')[1]}").owner
                urls = {process.number == owner: process.url for process in list_processes(store)}
                ways = {DIRECT: urls[True], "other_process": urls[False], "ray": server.url}
                measure_ways(ways, texts[0], options.requests)
                for text in texts:
                    assert send_request(server.url, "GET", "/v1/models", key=text).status == 200
                measure_idle({"keys": options.keys})
                measure_ways(ways, texts[0], options.requests)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
