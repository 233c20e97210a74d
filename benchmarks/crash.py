"""Kills a learning server with SIGKILL at random times under load: is an example lost, or learned twice?

    python benchmarks/crash.py RUN --kills 200

Examples and completions are sent all the time, and each restart continues in the same state folder. At the end every
acknowledged example must be in the journal, each must have exactly one decision and one score, and the weights must
equal, bit for bit, those of a server that learned the same texts without a kill. Prints one JSON line; exits with 1
otherwise.
"""

import argparse
import http.client
import json
import math
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import IO, Any, NoReturn

WORDS = ["the", "agent", "learns", "a", "model", "and", "acts", "while", "nobody", "sees", "what", "it", "holds"]
DISCONNECTED = (OSError, ValueError, http.client.HTTPException)  # the server was killed before or during its answer


def start(arguments: list[str], log: IO[bytes]) -> Any:
    """Starts `ontogeny` with these arguments."""
    return subprocess.Popen([sys.executable, "-m", "ontogeny", *arguments], stdout=log, stderr=log)


class Server:
    """An online server on a free port, whose acceptance test accepts nearly everything."""

    def __init__(self, run: Path, state_dir: Path, learning: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = ["serve", "--alias", f"story={run}", "--online"]
        command += ["--learning-fraction", "1", "--max-forgetting", "5"]  # so that many versions could be lost
        command += ["--learning", learning] if learning else []
        self.log = state_dir.with_name(f"{state_dir.name}.log").open("ab")
        self.process = start([*command, "--state-dir", str(state_dir), "--port", str(port)], self.log)

    def wait(self) -> None:
        """Returns when the server answers requests."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.fail(f"the server did not start again: see {self.log.name}")
            try:
                if self.request("/ready")["status"] == "ready":
                    return
            except OSError:
                time.sleep(0.05)
        self.fail("the server was not ready in 300 s")

    def fail(self, reason: str) -> NoReturn:
        """Stops the server and ends the benchmark."""
        self.kill()
        raise SystemExit(reason)

    def request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a GET request, or a POST request with a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def add_examples(server: Server, stop: threading.Event, acknowledged: dict[int, str], draw: random.Random) -> None:
    """Adds training examples until the server is killed."""
    while not stop.is_set():
        text = " ".join(draw.choices(WORDS, k=draw.randrange(2, 40))) + f" {draw.getrandbits(40)}"
        try:
            example = server.request("/v1/models/story/examples", {"text": text})
        except DISCONNECTED:
            return
        acknowledged[example["number"]] = text
        time.sleep(draw.random() * 0.3)  # about the speed of the learner, so that the end is not all waiting


def complete(server: Server, stop: threading.Event) -> None:
    """Requests completions until the server is killed."""
    while not stop.is_set():
        try:
            server.request("/v1/completions", {"model": "story", "prompt": "The", "max_tokens": 20, "learn": False})
        except DISCONNECTED:
            return


def settle(server: Server) -> dict[str, Any]:
    """Returns the branch once no example is pending; fails if the learner decides nothing for two minutes."""
    min_pending, changed_at = math.inf, time.monotonic()
    while time.monotonic() < changed_at + 120:
        branch = server.request("/v1/models/story/branch")
        if branch["num_pending"] == 0:
            return branch
        if branch["num_pending"] < min_pending:
            min_pending, changed_at = branch["num_pending"], time.monotonic()
        time.sleep(0.1)
    server.fail(f"the learner decided nothing for 120 s, with {min_pending} examples pending")


def kill_under_load(server: Server, acknowledged: dict[int, str], draw: random.Random) -> None:
    """Kills a server while it answers and learns or, in a fifth of the cases, while it starts."""
    stop, threads = threading.Event(), []
    if draw.random() < 0.8:
        server.wait()
        jobs = [(add_examples, acknowledged, random.Random(draw.random())) for _ in range(3)] + [(complete,)]
        threads = [threading.Thread(target=job[0], args=(server, stop, *job[1:])) for job in jobs]
        for thread in threads:
            thread.start()
        while not acknowledged:  # the first kill has something to lose
            time.sleep(0.01)
        time.sleep(draw.random() * 1.5)
    else:
        time.sleep(draw.random() * 6)
    server.kill()
    stop.set()
    for thread in threads:
        thread.join()


def read_journal(state_dir: Path) -> tuple[dict[int, str], list[int], list[int]]:
    """Returns the examples by number, and the examples of all decisions and of all scores."""
    database = sqlite3.connect(state_dir / "ontogeny.sqlite")
    journal = dict(database.execute("SELECT number, text FROM examples ORDER BY number"))
    query = "SELECT example FROM decisions WHERE kind IN ('learned', 'rejected')"
    decided = [example for (example,) in database.execute(query)]
    scored = [example for (example,) in database.execute("SELECT example FROM text_scores")]
    database.close()
    return journal, decided, scored


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning", default="", help="as of `ontogeny serve`")
    arguments = parser.parse_args()
    started_at, draw = time.perf_counter(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        state_dir, acknowledged = Path(folder) / "state", dict[int, str]()
        for _ in range(arguments.kills):
            kill_under_load(Server(arguments.run, state_dir, arguments.learning), acknowledged, draw)
        server = Server(arguments.run, state_dir, arguments.learning)
        server.wait()
        branch = settle(server)
        server.kill()
        journal, decided, scored = read_journal(state_dir)
        undisturbed = Server(arguments.run, Path(folder) / "undisturbed", arguments.learning)
        undisturbed.wait()
        for text in journal.values():
            undisturbed.request("/v1/models/story/examples", {"text": text})
        replayed = settle(undisturbed)
        undisturbed.kill()
    counts = {
        "acknowledged": len(acknowledged),
        "lost": sum(journal.get(number) != text for number, text in acknowledged.items()),
        "duplicates": len(decided) - len(set(decided)),
        "undecided": len(set(journal) - set(decided)),
        "without_score": len(set(decided) - set(scored)),
        "equal_weights": all(branch[name] == replayed[name] for name in ("digest", "current_version")),
    }
    is_good = counts["equal_weights"] and not any(
        counts[name] for name in ("lost", "duplicates", "undecided", "without_score")
    )
    record = {
        "name": "serve.crash.lost",
        "value": counts["lost"],
        "unit": "acknowledged examples",
        "seconds": round(time.perf_counter() - started_at, 1),
        "setting": {"kills": arguments.kills, "seed": arguments.seed, "versions": branch["current_version"]} | counts,
    }
    print(json.dumps(record))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
