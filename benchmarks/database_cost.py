"""What does the database cost a server per text? Messages, processor time and waits, with PostgreSQL and with SQLite.

    python benchmarks/database_cost.py                # trains a tiny model first
    python benchmarks/database_cost.py RUN --texts 200

One thread teaches texts of 200 characters, as a request does, and learns them, as the learner does, but with an update
and an acceptance test that compute nothing, so that the time that remains is that of the server's own work and of the
database. `messages` counts how often the thread sends something to PostgreSQL and waits for the answer, and `waits` how
often it gave the processor back because it waited, for the disk, too. The processor time of PostgreSQL is that of the
processes that serve connections. Each figure is the smallest of several rounds, because other work on the machine only
adds to it. Prints JSON lines; `peer` is SQLite.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ontogeny
from local_postgres import running_postgres
from ontogeny.lm.model import LanguageModel
from ontogeny.server import keys
from ontogeny.server.databases import postgres
from ontogeny.server.learning import learner as learners
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.default_config import choose_config
from ontogeny.server.learning.intake import ExampleIntake
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store
from server_group import make_tiny_run

TEXT_LENGTH = 200
SENDERS = ("run", "run_together", "run_as_text")  # functions of `databases.statements`
UNITS = {"messages": "messages", "waits": "waits", "server": "ms", "database": "ms", "seconds": "s"}


class Cost(NamedTuple):
    """The cost of one text."""

    messages: float
    waits: float
    server: float  # milliseconds of the thread
    database: float  # milliseconds of PostgreSQL's processes
    seconds: float


class MessageCount:
    """Counts what this thread sends to PostgreSQL."""

    def __init__(self) -> None:
        self.number, self._thread = 0, threading.get_ident()
        for name in SENDERS:
            self._count(name)

    def _count(self, name: str) -> None:
        """Wraps one function."""
        send = getattr(postgres, name)

        def send_and_count(*arguments: Any) -> Any:
            self.number += threading.get_ident() == self._thread
            return send(*arguments)

        setattr(postgres, name, send_and_count)


def without_computation(learner: BranchLearner) -> BranchLearner:
    """The learner, except that its updates and tests compute nothing."""
    return learner._replace(
        learn=lambda weights, *_: weights, score=lambda *_: 1000.0, held_out_loss=lambda *_: learner.trained_loss
    )


def database_time(store: Store) -> float:
    """Seconds of processor time of the processes of PostgreSQL that serve connections."""
    if not store.database.is_shared:
        return 0.0
    pids = store.select_values("SELECT pid FROM pg_stat_activity")
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) * 1e-9


def count_waits() -> int:
    """How often this thread has waited."""
    status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def measure(store: Store, count: MessageCount, work: Callable[[], object], num_texts: int) -> Cost:
    """Measures the cost of a call, as a mean over several."""
    database, messages, waits = database_time(store), count.number, count_waits()
    thread, started_at = time.thread_time(), time.perf_counter()
    for _ in range(num_texts):
        work()
    seconds, server = time.perf_counter() - started_at, time.thread_time() - thread
    waits, messages = count_waits() - waits, count.number - messages
    database = database_time(store) - database
    return Cost(*(amount / num_texts for amount in (messages, waits, 1e3 * server, 1e3 * database, seconds)))


def measure_database(
    store: Store, learner: BranchLearner, count: MessageCount, num_texts: int, num_rounds: int
) -> dict[str, Cost]:
    """The smallest costs of teaching and of learning a text."""
    key, _ = keys.create_key(store, "anna")
    membership = None
    if store.database.is_shared:
        membership = Membership(store, "benchmark", allow_mixed=False, find_load=lambda: Load(0, 0))
        membership.start("benchmark", "http://127.0.0.1")
    branches = BranchManager(store, "story", learner, ownership=membership)
    intake, draw = ExampleIntake(store), random.Random(0)

    def teach() -> None:
        text = "".join(draw.choices("abcdefgh ", k=TEXT_LENGTH))
        intake.add_text(branches, key.id, text, RequestIdentity(str(draw.random()), None, 0, time.time()))

    costs: dict[str, list[Cost]] = {"teach": [], "learn": []}
    for num_calls in (20, *[num_texts] * num_rounds):  # the first calls warm up
        costs["teach"].append(measure(store, count, teach, num_calls))
        costs["learn"].append(measure(store, count, branches.learn_next, num_calls))
    if membership is not None:
        membership.leave()
    return {name: Cost(*map(min, zip(*rounds[1:], strict=True))) for name, rounds in costs.items()}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a language model; by default a tiny one is trained")
    parser.add_argument("--texts", type=int, default=200, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, dict[str, Cost]] = {}
    with tempfile.TemporaryDirectory() as folder, running_postgres(fsync=True) as server:
        model = ontogeny.load(arguments.run or make_tiny_run(Path(folder) / "run"))
        assert isinstance(model, LanguageModel)
        config = choose_config("", 0).config
        learner, count = without_computation(learners.build(model, config)), MessageCount()
        for name, address in (("postgres", server.address("cost")), ("sqlite", "")):
            with Store(Path(folder) / name, database_url=address) as store:
                results[name] = measure_database(store, learner, count, arguments.texts, arguments.rounds)
    setting = {"texts": arguments.texts, "rounds": arguments.rounds}
    for work, cost in results["postgres"].items():
        for quantity, unit in UNITS.items():
            value, peer = getattr(cost, quantity), getattr(results["sqlite"][work], quantity)
            record = {"name": f"database.cost.{work}.{quantity}", "value": round(value, 5), "unit": f"{unit} per text"}
            record |= {"se": None, "peer": "SQLite", "peer_value": round(peer, 5), "ratio": None, "seconds": None}
            print(json.dumps(record | {"setting": setting}), flush=True)


if __name__ == "__main__":
    main()
