"""Eight keys use every part of an online server for half an hour, with restarts: is anything lost, leaked or wrong?

    python benchmarks/soak.py                      # trains a tiny model first
    python benchmarks/soak.py RUN --minutes 30 --keys 8

The keys complete, stream, teach, erase, roll back, fork, freeze, export and restore; they continue texts and step an
online `model_based` agent, and abandon requests. The server is restarted every few minutes, by SIGTERM and by SIGKILL
in turn. Clients pause so that the server needs about one core. Each start is followed by a request of every kind and
a warm-up; from then on memory and file descriptors must stay flat and nothing may be compiled.

At the end every branch must equal one that learns its surviving examples in a fresh process, every surviving example
must have one decision, and every key its usage. Prints JSON lines; exits with 1 if anything is wrong.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crash import DISCONNECTED, WORDS, Server
from lm_online import default_text

MODEL, AGENT = "story", "mdp"
TEXT, LIFETIME = f"/v1/models/{MODEL}", f"/v1/agents/{AGENT}"
MAX_CORES = 1.0  # that the server may use on average
NUM_BLOCKS = 10  # means of memory from which a slope is computed
MAX_SLOPE = 1.0  # MB per minute that memory may grow, beyond two standard errors
EXPECTED = {200, 400, 404, 409, 429}  # statuses besides 503 with Retry-After
REPLAYED = re.compile(r"the examples after number (\d+) are learned again")


class Sample(NamedTuple):
    """The state of a server process at one time."""

    seconds: float  # since the start of the epoch
    memory: float  # MB, without the prefix cache, which grows up to its limit
    num_descriptors: int
    num_compilations: float


class Epoch(NamedTuple):
    """What was measured between two restarts, after the warm-up.

    Attributes:
        slope: Of memory, MB per minute.
        standard_error: Of the slope.
        descriptors: Mean of the second half minus mean of the first half.
        compilations: Programs compiled.
    """

    slope: float
    standard_error: float
    descriptors: float
    compilations: float


class SoakServer(Server):
    """A server with a language model and an agent, both online."""

    def __init__(self, run: Path, agent: Path, state_dir: Path) -> None:
        super().__init__(run, state_dir, "--alias", f"{AGENT}={agent}", "--learning-fraction", "0.5")

    def send(self, method: str, path: str, body: Any, key: str) -> tuple[int, Any, Any]:
        """Sends a request; returns status, headers and content."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def abandon(self, path: str, body: Any, key: str, seconds: float) -> None:
        """Sends a request and hangs up before its answer is complete."""
        host, port = self.url.removeprefix("http://").split(":")
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head.encode() + data)
            time.sleep(seconds)

    def sample(self, started_at: float, key: str) -> Sample:
        """Measures the process."""
        folder = Path("/proc") / str(self.process.pid)
        lines = (folder / "status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
        num_descriptors = len(os.listdir(folder / "fd"))
        metrics = self.send("GET", "/metrics", None, key)[2].decode().splitlines()
        cache = sum(float(m.split()[1]) for m in metrics if m.startswith("ontogeny_prefix_cache_bytes{"))
        compilations = next(float(m.split()[1]) for m in metrics if m.startswith("ontogeny_compilations_total "))
        return Sample(time.monotonic() - started_at, memory - cache / 2**20, num_descriptors, compilations)

    def cpu_seconds(self) -> float:
        """The processor time of the process so far."""
        fields = (Path("/proc") / str(self.process.pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Soak:
    """The state that all clients share.

    Args:
        start: Starts a server.
        keys: Text and id of each key; the first one is an admin key.
    """

    def __init__(self, start: Callable[[], SoakServer], keys: list[tuple[str, str]]) -> None:
        self.start, self.keys = start, keys
        self.server = start()
        self.is_up, self.is_over = threading.Event(), threading.Event()
        self.pause = 0.2  # mean seconds between two requests of a key
        self.statuses, self.faults, self.lock = Counter[int](), list[str](), threading.Lock()
        self.num_acknowledged = Counter[str]()  # by id of the key
        self.epochs: list[Epoch] = []
        self.num_kills = 0

    @property
    def admin(self) -> str:
        """The text of the admin key."""
        return self.keys[0][0]

    def report(self, fault: str) -> None:
        """Records a fault."""
        with self.lock:
            self.faults.append(fault)

    def request(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        """Sends a request; returns parsed content, or None where it was refused or cut off by a restart."""
        server = self.server
        try:
            status, headers, content = server.send(method, path, body, key or self.admin)
        except DISCONNECTED as error:
            if server is self.server and self.is_up.is_set():
                self.report(f"{method} {path} failed without a restart: {type(error).__name__}: {error}")
            return None
        with self.lock:
            self.statuses[status] += 1
        if status not in EXPECTED and not (status == 503 and headers.get("Retry-After")):
            self.report(f"{method} {path} was answered with {status}: {content[:200]!r}")
        if status != 200:
            return None
        return json.loads(content) if headers.get_content_type() == "application/json" else content


class Client:
    """One key, whose requests of all kinds come in random order.

    Args:
        soak: The shared state.
        number: Of the key.
        draw: Draws the requests.
    """

    def __init__(self, soak: Soak, number: int, draw: random.Random) -> None:
        self.soak, self.draw = soak, draw
        self.key, self.id = soak.keys[number]
        self.is_admin = number == 0
        self.export: bytes | None = None
        self.kinds: dict[Callable[[], None], float] = {  # with their weights
            self.complete: 6, self.stream: 3, self.chat: 2, self.teach: 6, self.erase: 3, self.export_branch: 1,
            self.restore_branch: 0.5, self.use_agent: 6, self.use_text: 3, self.abandon: 3, self.read: 4,
        }  # fmt: skip
        if self.is_admin:
            self.kinds |= {self.roll_back: 2, self.fork: 2, self.freeze: 0.5}

    def run(self) -> None:
        """Sends requests until the soak is over."""
        kinds, weights = list(self.kinds), list(self.kinds.values())
        while not self.soak.is_over.is_set():
            if self.soak.is_up.wait(0.5):
                try:
                    self.draw.choices(kinds, weights)[0]()
                except Exception as error:
                    self.soak.report(f"a client failed: {type(error).__name__}: {error}")
                time.sleep(self.draw.random() * 2 * self.soak.pause)

    def call_all(self) -> None:
        """Sends one request of every kind."""
        for kind in self.kinds:
            kind()

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request with this key."""
        return self.soak.request(method, path, body, self.key)

    def words(self, num_words: int) -> str:
        """A text that no other request has."""
        return " ".join(self.draw.choices(WORDS, k=num_words)) + f" {self.draw.getrandbits(40)}"

    def completion(self, **fields: Any) -> dict[str, Any]:
        """The body of a completion."""
        num_words = self.draw.choice([2, 5, 20, 60])
        fields |= {"temperature": self.draw.choice([0, 0.7, 1]), "learn": self.draw.random() < 0.3}
        return {"model": MODEL, "prompt": self.words(num_words), "max_tokens": self.draw.randint(1, 40)} | fields

    def complete(self) -> None:
        """A completion, sometimes with several choices and log-probabilities."""
        if self.send("POST", "/v1/completions", self.completion(**self.draw.choice([{}, {"n": 3}, {"logprobs": 2}]))):
            with self.soak.lock:
                self.soak.num_acknowledged[self.id] += 1

    def stream(self) -> None:
        """A completion as a stream, read to its end."""
        self.send("POST", "/v1/completions", self.completion(stream=True))

    def chat(self) -> None:
        """A chat completion."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": self.words(8)}], "max_tokens": 20}
        self.send("POST", "/v1/chat/completions", body)

    def teach(self) -> None:
        """A training example, rarely a long one."""
        num_words = self.draw.choices([3, 20, 60, 600], [4, 4, 2, 0.2])[0]
        self.send("POST", f"{TEXT}/examples", {"text": self.words(num_words)})

    def erase(self) -> None:
        """Erases one of the key's examples, decided or not."""
        examples = self.send("GET", f"{TEXT}/examples")
        if examples and examples["data"]:
            self.send("DELETE", f"{TEXT}/examples/{self.draw.choice(examples['data'][-20:])['number']}")

    def export_branch(self) -> None:
        """Exports the branch for a later `restore_branch`."""
        self.export = self.send("GET", f"{TEXT}/branch/state") or self.export

    def restore_branch(self) -> None:
        """Restores the last export, of which an example may have been erased by now."""
        if self.export is not None:
            self.send("PUT", f"{TEXT}/branch/state", self.export)

    def roll_back(self) -> None:
        """Makes an earlier version of the own branch current."""
        versions = self.send("GET", f"{TEXT}/branch/versions")
        remaining = [] if not versions else [v["number"] for v in versions["data"] if not v["deleted"]]
        if remaining:
            self.send("POST", f"{TEXT}/rollback", {"version": self.draw.choice(remaining[-5:])})

    def fork(self) -> None:
        """Gives one key the branch of another."""
        owner, target = (id for _, id in self.draw.sample(self.soak.keys, 2))
        self.send("POST", f"{TEXT}/branch/fork", {"owner_key": owner, "target_key": target})

    def freeze(self) -> None:
        """Stops learning for a moment."""
        self.send("POST", f"{TEXT}/freeze", {})
        time.sleep(self.draw.random())
        self.send("POST", f"{TEXT}/unfreeze", {})

    def use_agent(self) -> None:
        """A short lifetime of the agent, sometimes exported, restored and forked on the way."""
        session = self.send("POST", f"{LIFETIME}/sessions", {"seed": self.draw.getrandbits(20)})
        path = None if session is None else f"{LIFETIME}/sessions/{session['id']}"
        for step in range(self.draw.randint(1, 6) if path else 0):
            feedback = {"reward": self.draw.random()} if step else {}
            if step and self.draw.random() < 0.3:
                self.send("POST", f"{path}/feedback", feedback)
                feedback = {}
            self.send("POST", f"{path}/act", {"observation": self.draw.randrange(2)} | feedback)
        self.copy_session(f"{LIFETIME}/sessions", path)

    def use_text(self) -> None:
        """A text that is continued a few times."""
        session = self.send("POST", f"{TEXT}/sessions", {})
        path = None if session is None else f"{TEXT}/sessions/{session['id']}"
        for _ in range(self.draw.randint(1, 4) if path else 0):
            prompt = self.words(self.draw.choice([1, 5, 30]))
            self.send("POST", f"{path}/completions", {"prompt": prompt, "max_tokens": self.draw.randint(1, 30)})
        self.copy_session(f"{TEXT}/sessions", path)

    def copy_session(self, sessions: str, path: str | None) -> None:
        """Exports, restores and forks a session, and deletes what it was given."""
        if path is None:
            return
        if self.draw.random() < 0.3 and (state := self.send("GET", f"{path}/state")) is not None:
            self.send("PUT", f"{path}/state", state)
            if (forked := self.send("POST", f"{path}/fork")) is not None:
                self.send("DELETE", f"{sessions}/{forked['id']}")
        self.send("DELETE", path)

    def abandon(self) -> None:
        """A request whose client hangs up, of one of four kinds."""
        kind = self.draw.randrange(4)
        path, body = "/v1/completions", self.completion(max_tokens=500, stream=kind == 0)
        if kind > 1:
            sessions = f"{LIFETIME if kind == 2 else TEXT}/sessions"
            session = self.send("POST", sessions, {})
            if session is None:
                return
            path = f"{sessions}/{session['id']}/{'act' if kind == 2 else 'completions'}"
            body = {"observation": 0} if kind == 2 else {"prompt": self.words(30), "max_tokens": 500}
        server = self.soak.server
        try:
            server.abandon(path, body, self.key, self.draw.random() * 0.3)
        except DISCONNECTED as error:
            if server is self.soak.server and self.soak.is_up.is_set():
                self.soak.report(f"a connection failed without a restart: {error}")
        if kind > 1:
            self.send("DELETE", path.rpartition("/")[0])

    def read(self) -> None:
        """A request that changes nothing."""
        self.send("GET", self.draw.choice([f"{TEXT}/branch", f"{TEXT}/branch/versions", "/v1/models", LIFETIME]))


def limit_load(soak: Soak) -> None:
    """Adapts the pauses of clients so that the server needs about `MAX_CORES`."""
    server, used, measured_at = soak.server, 0.0, time.monotonic()
    while not soak.is_over.wait(3):
        time_read = time.monotonic()
        try:
            seconds = soak.server.cpu_seconds()
        except OSError:
            continue
        if soak.server is server and soak.is_up.is_set():
            cores = (seconds - used) / (time_read - measured_at)
            soak.pause = min(max(soak.pause * (1.3 if cores > MAX_CORES else 0.85), 0.02), 5)
        server, used, measured_at = soak.server, seconds, time_read


def run_epoch(soak: Soak, clients: list[Client], seconds: float, warm_up: float) -> None:
    """Serves until the next restart, and measures the process after the warm-up."""
    soak.server.wait()
    started_at = time.monotonic()
    for client in clients[:2]:
        client.call_all()
    soak.is_up.set()
    samples = list[Sample]()
    while time.monotonic() < started_at + seconds:
        time.sleep(1)
        if soak.server.process.poll() is not None:
            soak.report(f"the server ended by itself with {soak.server.process.poll()}")
            return
        if time.monotonic() > started_at + warm_up:
            samples.append(soak.server.sample(started_at, soak.admin))
    if len(samples) >= 2 * NUM_BLOCKS:
        soak.epochs.append(describe_epoch(samples))


def describe_epoch(samples: list[Sample]) -> Epoch:
    """The slope of memory from means of blocks, since neighboring samples are alike, and what else has grown."""
    blocks = [np.mean(np.array(block), axis=0) for block in np.array_split(np.array(samples), NUM_BLOCKS)]
    minutes, memory = np.array([(block[0] / 60, block[1]) for block in blocks]).T
    centered = minutes - minutes.mean()
    slope = float(centered @ memory / (centered @ centered))
    residual = memory - memory.mean() - slope * centered
    error = math.sqrt(float(residual @ residual) / (NUM_BLOCKS - 2) / float(centered @ centered))
    half = len(samples) // 2
    descriptors = np.mean([s.num_descriptors for s in samples[half:]])
    descriptors -= np.mean([s.num_descriptors for s in samples[:half]])
    return Epoch(slope, error, float(descriptors), samples[-1].num_compilations - samples[0].num_compilations)


def restart(soak: Soak, kill: bool) -> None:
    """Stops the server, by SIGKILL or by SIGTERM, and starts it again."""
    soak.is_up.clear()
    soak.num_kills += kill
    soak.server.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
    code = soak.server.process.wait(120)
    soak.server.log.close()
    if code not in ((-signal.SIGKILL,) if kill else (0, -signal.SIGTERM)):
        soak.report(f"the server ended with {code}")
    soak.server = soak.start()


def settle(soak: Soak) -> None:
    """Waits until no example of any key is pending."""
    soak.request("POST", f"{TEXT}/unfreeze", {})
    deadline = time.monotonic() + 600
    for key, id in soak.keys:
        while (branch := soak.request("GET", f"{TEXT}/branch", key=key)) is None or branch["num_pending"]:
            if time.monotonic() > deadline:
                soak.report(f"examples of {id} stayed pending")
                return
            time.sleep(0.2)


def check_state(run: Path, state_dir: Path) -> list[str]:
    """Learns every branch again from its surviving examples; returns the differences and wrong numbers of decisions."""
    from ontogeny.cli.jax_setup import configure_jax

    configure_jax(None, one_thread=True)  # as the server does, on which the bits depend
    from ontogeny.lm import model as models
    from ontogeny.lm.online_learner import parse_config
    from ontogeny.server.learning import journal, learner
    from ontogeny.server.store import Store

    branch_learner, store = learner.build(models.load(run), parse_config("")), Store(state_dir, create=False)
    branches = journal.list_branches(store, MODEL)
    return [fault for branch in branches for fault in check_branch(store, branch_learner, branch.branch)]


def check_branch(store: Any, branch_learner: Any, name: str) -> list[str]:
    """The faults of one branch."""
    from ontogeny import trees
    from ontogeny.server.learning import journal
    from ontogeny.server.learning.acceptance import do_not_pause

    branch, versions = journal.get_branch(store, name), journal.list_versions(store, name)
    current, snapshots = versions[branch.current_version], journal.list_snapshots(store)
    inherited = list[int]()
    if versions[current.root_version].digest != trees.digest(branch_learner.init()):  # an export of version 0
        with store.read_transaction():
            _, inherited = journal.find_base(store, versions[current.root_version], snapshots)
    decisions = {example: list[str]() for example in inherited}
    for decision in journal.list_recent_decisions(store, name, 10**9)[::-1]:
        if decision.kind in ("learned", "rejected") and decision.example is not None:
            decisions.setdefault(decision.example, []).append(decision.kind)
        elif decision.kind == "erased" and (replayed := REPLAYED.search(decision.reason)) is not None:
            decisions = {number: kinds for number, kinds in decisions.items() if number <= int(replayed[1])}
    examples = journal.list_examples(store, name)
    surviving = [e.number for e in examples if e.erased_at is None and not e.deferred]
    learned = inherited + [number for number in surviving if decisions.get(number) == ["learned"]]
    weights = branch_learner.init()
    for number in learned:
        example = journal.find_example(store, number)
        weights = branch_learner.learn(weights, str(example and example.text), do_not_pause)
    digest = trees.digest(weights) if current.number else branch.trained_digest
    wrong = [number for number in surviving if len(decisions.get(number, [])) != 1]
    differs = [f"version {current.number} of '{name}' differs from its replay"] if digest != current.digest else []
    return differs + [
        f"example {number} of '{name}' has {len(decisions.get(number, []))} decisions" for number in wrong
    ]


def prepare(folder: Path, run: Path | None, num_keys: int) -> tuple[Path, Path, list[tuple[str, str]]]:
    """Trains what is missing and creates keys; returns the runs, and text and id of each key."""
    from ontogeny.lm.training import train as train_language_model
    from ontogeny.server import keys
    from ontogeny.server.store import Store
    from ontogeny.stages.train import train

    if run is None:
        text = folder / "manual.txt"
        text.write_text(default_text()[:200_000], encoding="utf-8")
        config = {"size": "pico", "tokenizer": "bytes", "num_layers": 2, "num_heads": 2, "width": 64}
        config |= {"context_length": 64, "batch_size": 16, "num_steps": 500, "learning_rate": 4e-3}
        run = train_language_model(config, [text], folder / "run")
    env = "random_mdp:num_states=2,num_actions=2,horizon=4"
    agent = train(
        {"agent": "model_based", "env": env, "development": "single_lifetime:num_lifetimes=2"}, folder / "mdp"
    )
    store = Store(folder / "state")
    created = [keys.create_key(store, f"key {number}", admin=number == 0) for number in range(num_keys)]
    store.close()
    return run, agent, [(text, key.id) for key, text in created]


def check_usage(state_dir: Path, soak: Soak) -> list[str]:
    """Keys whose acknowledged completions are not in the usage, but for those of the seconds before a SIGKILL."""
    from ontogeny.server import keys
    from ontogeny.server.store import Store

    counts = Counter[str]()
    for record in keys.list_usage(Store(state_dir, create=False)):
        counts[record.key] += record.num_requests
    tolerance = 5 * sum(1 for _ in soak.epochs)
    missing = {id: number - counts[id] for id, number in soak.num_acknowledged.items()}
    return [
        f"{number} requests of key {id} are not in the usage" for id, number in missing.items() if number > tolerance
    ]


def run_soak(soak: Soak, arguments: argparse.Namespace) -> int:
    """Runs the clients with restarts until the time is over; returns the number of restarts."""
    clients = [Client(soak, n, random.Random(f"{arguments.seed} {n}")) for n in range(len(soak.keys))]
    threads = [threading.Thread(target=client.run) for client in clients]
    threads.append(threading.Thread(target=limit_load, args=(soak,)))
    for thread in threads:
        thread.start()
    num_restarts = max(0, math.ceil(arguments.minutes / arguments.restart_interval) - 1)
    try:
        for number in range(num_restarts + 1):
            if number:
                restart(soak, kill=number % 2 == 1)
            run_epoch(soak, clients, 60 * arguments.minutes / (num_restarts + 1), arguments.warm_up)
    finally:
        soak.is_over.set()
        for thread in threads:
            thread.join()
    return num_restarts


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    record = {"name": f"serve.soak.{name}", "value": round(value, 4), "unit": unit} | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


def print_results(soak: Soak, setting: dict[str, Any]) -> None:
    """Prints the measurements, and adds those that are out of range to the faults."""
    for number, epoch in enumerate(soak.epochs):
        print_record("memory", epoch.slope, "MB per minute", setting, se=round(epoch.standard_error, 4), epoch=number)
        print_record("descriptors", epoch.descriptors, "descriptors more in the second half", setting, epoch=number)
        print_record("compilations", epoch.compilations, "programs after the warm-up", setting, epoch=number)
        if epoch.slope - 2 * epoch.standard_error > MAX_SLOPE:
            soak.report(f"memory grew by {epoch.slope:.2f} MB per minute in epoch {number}")
        if epoch.descriptors > 3:
            soak.report(f"{epoch.descriptors:.1f} descriptors more in the second half of epoch {number}")
        if epoch.compilations:
            soak.report(f"{epoch.compilations:.0f} programs were compiled after the warm-up of epoch {number}")
    statuses = {str(status): number for status, number in sorted(soak.statuses.items())}
    print_record("requests", soak.statuses.total(), "requests", setting, statuses=statuses)
    for fault in soak.faults[:50]:
        print(fault, file=sys.stderr)
    print_record("faults", len(soak.faults), "faults", setting)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--restart-interval", type=float, default=5, help="minutes between two starts")
    parser.add_argument("--warm-up", type=float, default=90, help="seconds after each start that are not measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder for state and log, which are kept")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)  # the state folder, in a fresh process
    arguments = parser.parse_args()
    if arguments.check is not None:
        print(json.dumps(check_state(arguments.run, arguments.check)))
        return
    setting = {name: getattr(arguments, name) for name in ("minutes", "keys", "restart_interval", "warm_up", "seed")}
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run, agent, keys = prepare(folder, arguments.run, arguments.keys)
        soak = Soak(lambda: SoakServer(run, agent, folder / "state"), keys)
        try:
            setting["restarts"] = run_soak(soak, arguments)
            settle(soak)
            soak.server.process.terminate()
            soak.server.process.wait(120)
        finally:
            soak.server.kill()
        log = (folder / "state.log").read_text(errors="replace")
        if "Traceback" in log:
            soak.report("the log holds a traceback: " + log[log.index("Traceback") :][:2000])
        command = [sys.executable, __file__, str(run), "--check", str(folder / "state")]
        for fault in json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout):
            soak.report(fault)
        for fault in check_usage(folder / "state", soak):
            soak.report(fault)
    print_results(soak, setting)
    sys.exit(1 if soak.faults else 0)


if __name__ == "__main__":
    main()
