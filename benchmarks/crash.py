"""Kill -9, again and again, at random moments under load while the server learns: is anything lost, or learned twice?

    python benchmarks/crash.py RUN --kills 200

Contributions and completions are sent all the while; each restart goes on in the same folder. In the end every
acknowledged contribution must be in the journal, each must have been decided on once, and the weights must have the
bits of a server that was given the same texts and was never disturbed. Prints one JSON line; exits with 1 otherwise.
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
from typing import NoReturn


class Server:
    def __init__(self, run: Path, state: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "ontogeny", "serve", "--alias", f"story={run}", "--online", "--share", "1"]
        command += ["--bound", "5"]  # a wide gate, so that there are many versions to lose
        self.log = state.with_name(f"{state.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, "--state", str(state), "--port", str(port)], stdout=self.log, stderr=self.log
        )

    def wait(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if self.process.poll() is not None:
                self.give_up(f"the server did not start again: see {self.log.name}")
            try:
                if self.ask("/ready")["status"] == "ready":
                    return
            except OSError:
                time.sleep(0.05)
        self.give_up("the server was not ready in 300 s")

    def give_up(self, why: str) -> NoReturn:
        self.kill()
        raise SystemExit(why)

    def ask(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def load(server: Server, stop: threading.Event, acknowledged: dict[int, str], draw: random.Random) -> None:
    """Contributes until the server is gone."""
    words = [
        "the",
        "agent",
        "learns",
        "a",
        "env",
        "and",
        "acts",
        "in",
        "it",
        "while",
        "nobody",
        "sees",
        "what",
        "it",
        "holds",
    ]
    while not stop.is_set():
        text = " ".join(draw.choices(words, k=draw.randrange(2, 40))) + f" {draw.getrandbits(40)}"
        try:
            answer = server.ask("/v1/models/story/contributions", {"text": text})
        except (OSError, ValueError, http.client.HTTPException):  # killed before, or in the middle of its answer
            return
        acknowledged[answer["number"]] = text
        time.sleep(draw.random() * 0.3)  # about what the learner keeps up with, so that the end is not all waiting


def complete(server: Server, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            server.ask("/v1/completions", {"model": "story", "prompt": "The", "max_tokens": 20, "learn": False})
        except (OSError, ValueError, http.client.HTTPException):  # killed before, or in the middle of its answer
            return


def settle(server: Server) -> dict:
    """The line when nothing is left to be learned; gives up on a learner that has decided nothing for two minutes."""
    least, since = math.inf, time.monotonic()
    while time.monotonic() < since + 120:
        line = server.ask("/v1/models/story/line")
        if line["pending"] == 0:
            return line
        if line["pending"] < least:
            least, since = line["pending"], time.monotonic()
        time.sleep(0.1)
    server.give_up(f"the learner decided on nothing for 120 s, with {least} contributions to come")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started, draw = time.perf_counter(), random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        state, acknowledged = Path(folder) / "state", {}
        for _ in range(asked.kills):
            server, stop = Server(asked.run, state), threading.Event()
            if draw.random() < 0.8:
                server.wait()
                jobs = [(load, acknowledged, random.Random(draw.random())) for _ in range(3)] + [(complete,)]
                threads = [threading.Thread(target=job[0], args=(server, stop, *job[1:])) for job in jobs]
                for thread in threads:
                    thread.start()
                time.sleep(draw.random() * 1.5)
            else:  # while it starts
                threads = []
                time.sleep(draw.random() * 6)
            server.kill()
            stop.set()
            for thread in threads:
                thread.join()
        server = Server(asked.run, state)
        server.wait()
        line = settle(server)
        server.kill()
        base = sqlite3.connect(state / "ontogeny.sqlite")
        journal = dict(base.execute("SELECT number, text FROM contributions ORDER BY number"))
        decided = [
            n for (n,) in base.execute("SELECT contribution FROM decisions WHERE kind IN ('learned', 'refused')")
        ]
        base.close()
        calm = Server(asked.run, Path(folder) / "calm")
        calm.wait()
        for text in journal.values():
            calm.ask("/v1/models/story/contributions", {"text": text})
        replay = settle(calm)
        calm.kill()
    found = {
        "acknowledged": len(acknowledged),
        "lost": sum(journal.get(number) != text for number, text in acknowledged.items()),
        "twice": len(decided) - len(set(decided)),
        "undecided": len(set(journal) - set(decided)),
        "same_weights": line["digest"] == replay["digest"] and line["version"] == replay["version"],
    }
    good = not found["lost"] and not found["twice"] and not found["undecided"] and found["same_weights"]
    record = {
        "name": "serve.crash.lost",
        "value": found["lost"],
        "unit": "acknowledged contributions",
        "seconds": round(time.perf_counter() - started, 1),
        "setting": {"kills": asked.kills, "seed": asked.seed, "versions": line["version"]} | found,
    }
    print(json.dumps(record))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
