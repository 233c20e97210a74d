"""How many machines, database writes and bytes do 10^3, 10^5 and 10^7 keys need, and what breaks first?

    python benchmarks/capacity.py                       # prints the table, from the measured inputs
    python benchmarks/capacity.py --model-tokens 590 --branch-bytes 3500000 --active 0.05
    python benchmarks/capacity.py --measure > docs/results/server-capacity.jsonl
    python benchmarks/capacity.py --check docs/results/server-scale.jsonl

`--measure` starts one server with PostgreSQL and counts what requests and texts cost the database and the snapshots:
transactions, written records, bytes of the write-ahead log and files, which do not depend on the speed of the machine.
It prints JSON lines. The table needs these counts, and speeds: tokens per second of one core (`serve.py`) and seconds
of one core per kB that is learned (`serve_learning.py`). Prices and the speed of a database are assumptions, which are
options. The page docs/results/server-capacity.md has the formulas. `--check` compares what the formulas suppose with
figures of `serve_scale.py`.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from local_postgres import running_postgres
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.store import Store
from serve_scale import MODEL, Group, Scenario, add_idle_keys
from server_group import make_tiny_run, send_request

INPUTS = Path(__file__).parents[1] / "docs" / "results" / "server-capacity.jsonl"
PREFIX = "serve.capacity."
KEYS = (10**3, 10**5, 10**7)
NUM_BRANCHES, NUM_IDLE_KEYS = 24, 5000  # of the measurement
MAX_SNAPSHOTS, SNAPSHOT_INTERVAL = BranchConfig().max_snapshots, BranchConfig().snapshot_interval
NUM_LOADED = 8  # branches of a process whose weights are in memory
CONNECTIONS_PER_PROCESS = 14
PUBLICATION_TIME = 11.0  # seconds after which PostgreSQL has published what an idle connection has done
MONTH = 30 * 24 * 3600  # seconds


class Counts(NamedTuple):
    """What the database and the store of snapshots have done so far, and the time."""

    transactions: int  # also those that only read
    writes: int  # records that were added, changed or deleted
    log_bytes: int
    files: int
    file_bytes: int
    time: float


def read_counts(store: Store, folder: Path) -> Counts:
    """Reads the counters, after PostgreSQL has published them."""
    time.sleep(PUBLICATION_TIME)
    transactions, writes, log_bytes = store.execute(
        "SELECT xact_commit, tup_inserted + tup_updated + tup_deleted, pg_current_wal_lsn() - '0/0'::pg_lsn "
        "FROM pg_stat_database WHERE datname = current_database()"
    )[0]
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return Counts(int(transactions), int(writes), int(log_bytes), len(sizes), sum(sizes), time.monotonic())


class Meter:
    """Counts what a piece of work costs, without what the server does by itself in the same time.

    Args:
        store: The database.
        folder: The snapshots.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        before, after = read_counts(store, folder), (time.sleep(10), read_counts(store, folder))[1]
        seconds = after.time - before.time
        rates = ("transactions", "writes", "log_bytes")
        self.idle = {name: (getattr(after, name) - getattr(before, name)) / seconds for name in rates}

    def measure(self, work: Callable[[], None], count: int) -> dict[str, float]:
        """Returns the counts per unit of work."""
        before = read_counts(self._store, self._folder)
        work()
        after = read_counts(self._store, self._folder)
        seconds = after.time - before.time
        amounts = {name: getattr(after, name) - getattr(before, name) for name in Counts._fields if name != "time"}
        for name, rate in self.idle.items():
            amounts[name] = max(0.0, amounts[name] - rate * seconds)
        return {name: amount / count for name, amount in amounts.items()}


def print_record(name: str, value: float, unit: str, setting: dict[str, Any]) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    print(json.dumps({"name": PREFIX + name, "value": round(value, 3), "unit": unit} | empty | {"setting": setting}))


def measure() -> None:
    """Counts what one server costs its database and its snapshots."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_postgres(options=["max_wal_size=2GB", "autovacuum=off"]) as postgres,
    ):
        options = ("--max-loaded-branches", str(NUM_LOADED))
        scenario = Scenario(Path(folder), make_tiny_run(Path(folder) / "run"), postgres, 0, options)
        with (
            scenario.start(NUM_BRANCHES * 100) as group,
            Store(group.state_dir, database_url=group.address) as store,
        ):
            measure_group(group, store)


def measure_group(group: Group, store: Store) -> None:
    """Prints the counts of a running server."""
    url, texts = group.replicas[0].url, group.key_texts

    def send(key: str, path: str, body: dict[str, Any]) -> None:
        assert send_request(url, "POST", path, body, key).status == 200

    def complete(keys: Sequence[str]) -> None:
        for key in keys:
            body = {"model": "story", "prompt": "The agent", "max_tokens": 4, "learn": False}
            send(key, "/v1/completions", body)

    def teach(keys: Sequence[str]) -> None:
        for number, key in enumerate(keys):
            send(key, f"{MODEL}/examples", {"text": f"Text {number} of {len(keys)}. " * 40})
        undecided = "SELECT count(*) FROM branches WHERE newest_example > last_decided"
        while store.select_value(undecided):
            time.sleep(1)

    complete(texts)
    setting = {"keys": NUM_BRANCHES * 100, "active": NUM_BRANCHES}
    with Store(group.state_dir, database_url=group.address) as writer:  # its end publishes what it has written
        print_record("idle_key.disk", measure_idle_keys(writer, texts[0]), "bytes", setting)
    meter = Meter(store, group.state_dir / "snapshots")
    for name, rate in meter.idle.items():
        print_record(f"idle.{name}", rate, f"{name} per second", setting)
    works: dict[str, tuple[Callable[[], None], int]] = {
        "request.one_key": (lambda: complete(texts[:1] * 100), 100),
        "text.one_key": (lambda: teach(texts[:1] * 32), 32),
        "text.many_keys": (lambda: teach(texts * 2), 2 * NUM_BRANCHES),
        "request.many_keys": (lambda: complete(texts * 4), 4 * NUM_BRANCHES),
    }
    for name, (work, count) in works.items():
        for quantity, amount in meter.measure(work, count).items():
            print_record(f"{name}.{quantity}", amount, f"{quantity} each", setting | {"count": count})


def measure_idle_keys(store: Store, text: str) -> float:
    """Replaces the idle keys by more of them; returns the bytes of one in the files of the tables."""
    query = (
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
        "AND relname IN ('keys', 'branches', 'versions')"
    )
    with store.transaction():
        store.execute("DELETE FROM keys WHERE id LIKE 'idle%'")
        for table in ("versions", "branches"):
            store.execute(f"DELETE FROM {table} WHERE branch LIKE 'story/idle%'")
    store.database.vacuum()
    before = int(store.select_value(query))
    add_idle_keys(store, NUM_IDLE_KEYS, text)
    return (int(store.select_value(query)) - before) / NUM_IDLE_KEYS


class Demand(NamedTuple):
    """What a number of keys needs; rates are per second, sizes in bytes."""

    keys: int
    requests: float
    texts: float
    cores: float
    processes: int
    machines: int
    transactions: float
    writes: float  # records of the database
    log_bytes: float
    snapshot_reads: float
    snapshot_writes: float
    snapshot_bytes: float  # that are transferred
    stored_bytes: float  # of snapshots
    table_bytes: float
    cost: float  # dollars per month
    limits: dict[str, float]  # part of a limit that is used, by what is limited


def compute(num_keys: int, inputs: dict[str, float], settings: argparse.Namespace) -> Demand:
    """The demand of a number of keys; the page {doc}`/results/server-capacity` has the formulas."""
    active = num_keys * settings.active
    requests = active * settings.requests_per_minute / 60
    texts = requests * settings.teaching
    answer_cores = (requests - texts) * settings.answer_tokens / settings.model_tokens
    learning_cores = texts * settings.text_bytes / 1000 * settings.learning_seconds
    cores = (answer_cores + learning_cores) / settings.utilization
    processes = max(2, math.ceil(cores))
    miss = max(0.0, 1 - NUM_LOADED * processes / active)  # share of requests whose version is not in memory
    reads = requests * miss
    writes = texts * max(miss * inputs["text.many_keys.files"], 1 / SNAPSHOT_INTERVAL)

    def total(name: str) -> float:
        """The rate of the database in a quantity."""
        rate = processes * inputs[f"idle.{name}"] + texts * inputs[f"text.many_keys.{name}"]
        return rate + (requests - texts) * inputs[f"request.many_keys.{name}"]

    transactions, log_bytes = total("transactions"), total("log_bytes")
    stored = num_keys * settings.learned * settings.snapshots * settings.branch_bytes
    tables = num_keys * inputs["idle_key.disk"]
    database_cores = max(2.0, transactions / settings.transactions_per_core)
    cost = (max(cores, 2.0) + 2 * database_cores) * settings.core_price + stored / 1e9 * settings.stored_price
    cost += MONTH * (writes * settings.write_price + reads * settings.read_price) / 1e6
    limits = {
        "cores of two processes": cores / 2,
        "versions in memory": active / processes / NUM_LOADED,
        "connections of the database": processes * CONNECTIONS_PER_PROCESS / settings.connections,
        "transactions of one database": transactions / settings.transactions_per_database,
        "writes of one S3 prefix": writes / 3500,
        "log of one database at 50 MB/s": log_bytes / 50e6,
    }
    machines = max(2, math.ceil(cores / settings.cores_per_machine))
    traffic = (reads + writes) * settings.branch_bytes
    return Demand(
        num_keys, requests, texts, cores, processes, machines, transactions, total("writes"), log_bytes, reads, writes,
        traffic, stored, tables, cost, limits,
    )  # fmt: skip


def read_inputs(path: Path = INPUTS) -> dict[str, float]:
    """The measured counts by name, without the prefix of all names."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["name"].removeprefix(PREFIX): record["value"] for record in records}


def check(path: Path, inputs: dict[str, float]) -> str:
    """A table of what the formulas suppose, beside the figures of `serve_scale.py` in a file; absent ones are named."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    figures = {record["name"].removeprefix("serve.scale."): record for record in records}
    lines = [("supposed by the formulas", "supposed", "measured")]

    def add(text: str, supposed: float, measured: float | None) -> None:
        lines.append((text, f"{supposed:,.3g}", "missing" if measured is None else f"{measured:,.3g}"))

    idle = figures.get("idle_key.disk")
    add("bytes of the tables per idle key", inputs["idle_key.disk"], None if idle is None else idle["value"])
    for name in ("start", "completion.p50", "example.p50", "learned.p50"):
        record = figures.get(f"many_keys.{name}")
        text = f"time with 100,000 keys in ratio to 100: {name}"
        add(text, 1, None if record is None else record["ratio"])
    speeds = {
        (record["setting"]["processes"], record["setting"]["keys"]): record["value"]
        for record in records
        if record["name"] == "serve.scale.processes.requests"
    }
    for num_processes in (2, 4):
        for num_keys in sorted({keys for _, keys in speeds}) or [100]:
            speed, group_speed = speeds.get((1, num_keys)), speeds.get((num_processes, num_keys))
            text = f"requests per second of {num_processes} processes in ratio to one, {num_keys:,} keys"
            add(text, num_processes, None if not speed or group_speed is None else group_speed / speed)
    lines.insert(1, ("---", "---", "---"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_table(demands: Sequence[Demand]) -> str:
    """The table of the page, in Markdown."""
    lines: dict[str, Callable[[Demand], str]] = {
        "requests per second": lambda d: f"{d.requests:,.1f}",
        "texts to learn per second": lambda d: f"{d.texts:,.2f}",
        "cores": lambda d: f"{d.cores:,.1f}",
        "processes; machines": lambda d: f"{d.processes:,}; {d.machines:,}",
        "transactions of the database per second": lambda d: f"{d.transactions:,.0f}",
        "records that it writes per second": lambda d: f"{d.writes:,.0f}",
        "write-ahead log, MB per second": lambda d: f"{d.log_bytes / 1e6:,.2f}",
        "snapshots read; written per second": lambda d: f"{d.snapshot_reads:,.1f}; {d.snapshot_writes:,.2f}",
        "traffic of snapshots, MB per second": lambda d: f"{d.snapshot_bytes / 1e6:,.1f}",
        "snapshots stored, GB": lambda d: f"{d.stored_bytes / 1e9:,.1f}",
        "tables without texts, GB": lambda d: f"{d.table_bytes / 1e9:,.3f}",
        "dollars per month": lambda d: f"{d.cost:,.0f}",
        "limits, most used first": lambda d: "; ".join(
            f"{name} ({share:.2g})" for name, share in sorted(d.limits.items(), key=lambda x: -x[1])[:3]
        ),
    }
    heading = ["", *(f"{demand.keys:,} keys" for demand in demands)]
    table = [heading, ["---"] * len(heading)]
    table += [[name, *(text(demand) for demand in demands)] for name, text in lines.items()]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in table)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="count the inputs and print them")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the figures of serve_scale.py")
    options: dict[str, tuple[float, str]] = {
        "active": (0.01, "share of the keys that are in use"),
        "requests-per-minute": (2, "of a key in use"),
        "teaching": (0.1, "share of the requests that teach a text"),
        "answer-tokens": (96, "of a prompt and its answer, processed per request"),
        "text-bytes": (1000, "of a text that is taught"),
        "model-tokens": (1171, "per second and core, when sixteen streams are answered"),
        "learning-seconds": (1.14, "of a core, per kB that is learned"),
        "branch-bytes": (1_456_672, "of a snapshot"),
        "learned": (0.1, "share of the keys that have ever taught a text"),
        "snapshots": (MAX_SNAPSHOTS, "of each of these keys"),
        "utilization": (0.6, "of the cores, at most"),
        "cores-per-machine": (16, "cores"),
        "connections": (100, "max_connections of PostgreSQL"),
        "transactions-per-database": (20_000, "per second of one PostgreSQL server (assumed)"),
        "transactions-per-core": (2000, "per second and core of the database (assumed)"),
        "core-price": (30, "dollars per core and month (assumed)"),
        "stored-price": (0.023, "dollars per GB and month of snapshots (assumed)"),
        "write-price": (5, "dollars per million written snapshots (assumed)"),
        "read-price": (0.4, "dollars per million read snapshots (assumed)"),
    }
    for name, (default, help) in options.items():
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{help} (default: %(default)s)")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures the inputs, or prints the table."""
    settings = parse_arguments()
    if settings.measure:
        return measure()
    inputs = read_inputs()
    if settings.check is not None:
        return print(check(settings.check, inputs))
    print(format_table([compute(num_keys, inputs, settings) for num_keys in KEYS]))


if __name__ == "__main__":
    main()
