"""Faults in a group of server processes under load: is anything lost, applied twice, or answered wrongly?

    python benchmarks/server_faults.py --faults 300                # trains a tiny model first
    python benchmarks/server_faults.py --faults 20 --kinds kill pause --seed 7

Starts a private PostgreSQL 15, processes of `ontogeny serve` that share it, each behind a proxy of the database, and
clients that teach, ask, erase, roll back, export and restore. Then it injects faults that a seed determines: processes
are killed, paused for longer than their lease, drained, started twice and given a wrong clock; the database is
restarted, unreachable and full; connections to it are cut, slow and silent. Some faults aim at an open transaction, at
an upload and at a hand-over of branches; what they hit is counted by evidence (a COMMIT that a proxy has stopped, a
request that is not answered yet, branches whose owner the database still records).

At the end, all processes run again, everything is learned, and these checks follow: no answer had a status 5xx but 503
with `Retry-After`; every acknowledged example is in the journal, and no text is there twice; every upload made one
version; no version had two digests; every branch equals a fresh replay of its journal to the bit; `ontogeny deployments
check` finds nothing; and the history of each branch is linearizable, which Porcupine checks (`--checker`). Prints JSON
lines; exits with 1 if anything is wrong.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fault_checks import check_branches, check_journal, check_linearizability, check_restorations, check_state
from fault_cluster import Cluster, read_time
from fault_injection import HITS, Fault, Injector
from ontogeny.server.store import Store


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    record = {"name": f"serve.faults.{name}", "value": round(value, 4), "unit": unit} | empty | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


def inject_faults(cluster: Cluster, arguments: argparse.Namespace) -> list[Fault]:
    """Injects faults until there are enough or the time has passed."""
    draw = random.Random(arguments.seed)
    injector = Injector(cluster, draw, arguments.max_outage)
    faults, deadline = list[Fault](), time.monotonic() + arguments.minutes * 60
    with (cluster.folder / "faults.jsonl").open("w") as file:
        while len(faults) < arguments.faults and time.monotonic() < deadline:
            kind = draw.choice(arguments.kinds) if arguments.kinds else None
            started_at = read_time()
            fault = injector.inject(kind)
            faults.append(fault)
            file.write(json.dumps({"start": started_at} | fault._asdict()) + "\n")
            file.flush()
            hits = ", ".join(f"{name}: {evidence}" for name, evidence in fault.hits.items())
            print(f"{len(faults)} {fault.kind} {fault.target} {fault.seconds} s {hits}", file=sys.stderr, flush=True)
            time.sleep(draw.random() * 2 * arguments.interval)
    return faults


def check(cluster: Cluster, arguments: argparse.Namespace, setting: dict[str, Any]) -> list[str]:
    """Lets everything settle and checks it; returns one sentence for each violation."""
    cluster.recover()
    cluster.stop_clients()
    cluster.settle()
    for replica in cluster.replicas:
        code = replica.terminate()
        if code:
            cluster.history.report(f"process {replica.number} ended with the exit code {code}: {replica.log_end}")
    cluster.history.close()
    with Store(cluster.state_dir, database_url=cluster.address) as store:
        violations = check_journal(store, cluster.history) + check_restorations(store, cluster.history.path)
        replay_dir = cluster.folder / "replay"
        replay = cluster.make_replay(replay_dir)
        differences, num_texts = check_branches(store, cluster.learning_keys, replay, replay_dir)
    print_record("replayed", num_texts, "examples", setting, differences=len(differences))
    violations += differences + check_state(cluster.state_dir, cluster.address)
    if arguments.checker != "none":
        checker = None if arguments.checker == "go" else Path(arguments.checker)
        faults, results = check_linearizability(cluster.history.path, checker)
        violations += faults
        num_operations = sum(result["operations"] for result in results)
        print_record(
            "linearizable", sum(result["result"] == "Ok" for result in results), "branches", setting,
            branches=len(results), operations=num_operations, unknown=sum(result["unknown"] for result in results),
            seconds=round(sum(result["seconds"] for result in results), 1),
        )  # fmt: skip
    return cluster.history.violations + violations


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a language model; by default a tiny one is trained")
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=120, help="after which no more faults are injected")
    parser.add_argument("--interval", type=float, default=1.0, help="mean seconds between two faults")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--keys", type=int, default=50)
    parser.add_argument("--learning-keys", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.4, help="mean seconds between two operations of a client")
    parser.add_argument("--max-outage", type=float, default=60, help="seconds without the database at most")
    parser.add_argument("--kinds", nargs="+", help="kinds of faults to draw from; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder for state, logs and history, which are kept")
    parser.add_argument("--checker", default="go", help="program that checks histories; go: build it; none: no check")
    arguments = parser.parse_args()
    names = (
        "faults",
        "interval",
        "processes",
        "clients",
        "keys",
        "learning_keys",
        "pause",
        "max_outage",
        "kinds",
        "seed",
    )
    setting = {name: getattr(arguments, name) for name in names}
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ontogeny-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    started_at = time.monotonic()
    with Cluster(
        folder, num_processes=arguments.processes, num_clients=arguments.clients, num_keys=arguments.keys,
        num_learning=arguments.learning_keys, pause=arguments.pause, seed=arguments.seed, run=arguments.run,
    ) as cluster:  # fmt: skip
        cluster.start()
        faults = inject_faults(cluster, arguments)
        violations = check(cluster, arguments, setting)
        statuses = cluster.balancer.num_statuses
        num_acknowledged, num_operations = len(cluster.history.acknowledged), cluster.history.num_operations
    kinds = Counter(fault.kind for fault in faults if fault.is_tried)
    not_tried = Counter(fault.kind for fault in faults if not fault.is_tried)
    hits = {name: sum(name in fault.hits for fault in faults) for name in HITS}
    print_record("injected", sum(kinds.values()), "faults", setting, kinds=kinds, not_tried=not_tried, hits=hits)
    print_record("operations", num_operations, "operations", setting, statuses=statuses)
    print_record("acknowledged", num_acknowledged, "examples", setting)
    print_record(
        "violations", len(violations), "violations", setting, violations=[text[:1000] for text in violations[:50]],
        seconds=round(time.monotonic() - started_at, 1),
    )  # fmt: skip
    if arguments.folder is None and not violations:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
