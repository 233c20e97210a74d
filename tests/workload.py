"""Several keys that use an online server in every way at once, while it is killed again and again.

`Workload` is used by a slow test and by longer soaks:

    with Workload(run, folder, num_keys=8) as workload:
        workload.run_for(1800, kill_interval=60)
        workload.check()

`workload.server` is the running server, `workload.actions` the list from which the threads draw, to which a soak adds
its own, and `workload.statuses` counts the answers.
"""

import contextlib
import http.client
import json
import random
import re
import signal
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from journal_checks import check_decisions, list_replayed_texts
from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.learning import branch_changes, journal, versions
from ontogeny.server.store import Store
from serving import ServerProcess, read_stored, wait_until
from stepping import list_snapshot_paths

WORDS = [
    "the",
    "agent",
    "learns",
    "a",
    "model",
    "and",
    "acts",
    "while",
    "nobody",
    "sees",
    "what",
    "it",
    "holds",
    "in",
    "its",
    "lamp",
    "of",
    "glass",
]
DISCONNECTED = (OSError, ValueError, http.client.HTTPException)  # the server was killed before or during its answer
MODEL = "/v1/models/story"
EXPECTED_STATUSES = {200, 400, 404, 409, 429}


class Client(NamedTuple):
    """A thread's view of the server: a key, and random numbers of its own."""

    id: str
    text: str
    draw: random.Random


class AcknowledgedExample(NamedTuple):
    """An example that the server has acknowledged."""

    number: int
    key: str
    text: str | None  # None where the server has chosen a part of a prompt
    is_erased: bool = False  # its erasure was requested, with success or without


class AcknowledgedExamples:
    """The acknowledged examples of all keys; threads may add some while others read.

    Without the lock, `list(d.items())` may fail: it creates a tuple per entry, so the garbage collector may run, and
    its callbacks (JAX has one) let other threads continue.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_number: dict[int, AcknowledgedExample] = {}

    def add(self, number: int, key: str, text: str | None = None) -> None:
        """Adds an example."""
        with self._lock:
            self._by_number[number] = AcknowledgedExample(number, key, text)

    def erase_one(self, key: str, draw: random.Random) -> int | None:
        """Chooses an example of a key and marks it as erased; None if the key has none."""
        with self._lock:
            numbers = [n for n, example in self._by_number.items() if example.key == key and not example.is_erased]
            if not numbers:
                return None
            number = draw.choice(numbers)
            self._by_number[number] = self._by_number[number]._replace(is_erased=True)
            return number

    def list_all(self) -> list[AcknowledgedExample]:
        """Returns all examples."""
        with self._lock:
            return list(self._by_number.values())


class Workload:
    """An online server, its keys, and what they have sent.

    Args:
        run: The language model.
        folder: Takes the state and the log of the server.
        num_keys: Keys that use the server at a time; one more is an admin key.
        seed: Of all random choices.
        arguments: Further arguments of `ontogeny serve`.
    """

    def __init__(self, run: Path, folder: Path, *, num_keys: int = 4, seed: int = 0, arguments: tuple[str, ...] = ()):
        self.state_dir, self._folder = folder / "state", folder
        names = ("--alias", f"story={run}", "--online", "--learning-fraction", "1", "--max-forgetting", "2")
        self._arguments = (*names, *arguments)
        with Store(self.state_dir) as store:
            self.admin = keys.create_key(store, "admin", admin=True)[1]
            created = [keys.create_key(store, f"key {number}") for number in range(num_keys)]
        self.clients = [Client(key.id, text, random.Random(seed + i)) for i, (key, text) in enumerate(created)]
        self.acknowledged = AcknowledgedExamples()
        self.states: dict[str, bytes | None] = dict.fromkeys(client.id for client in self.clients)  # the last exports
        self.sessions: dict[str, str] = {}
        self.statuses: Counter[str] = Counter()
        self.violations: list[str] = []
        self.pause = 0.05  # mean seconds between two requests of a key
        self._lock = threading.Lock()  # of `statuses` and `_num_active`
        self._num_active = 0  # keys whose action has not ended
        self.actions: list[Callable[[Client], None]] = [
            *[self.teach] * 8, *[self.ask] * 5, *[self.erase] * 3, *[self.continue_text] * 3, self.teach_by_prompt,
            self.export, self.restore, self.fork, self.roll_back, self.roll_back_beside, self.freeze, self.look,
        ]  # fmt: skip
        self._stopping, self._is_killed, self._is_paused = (threading.Event() for _ in range(3))
        self.server = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.server.__exit__()

    def _start(self, ready: bool = True) -> ServerProcess:
        return ServerProcess(self.state_dir, *self._arguments, ready=ready)

    def request(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """Sends a request; returns status and content, or status 0 if the server was killed meanwhile."""
        server = self.server
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(server.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, content, kind = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            with error:
                status, content, kind = error.code, error.read(), error.headers
        except DISCONNECTED as error:
            if server is self.server and not self._is_killed.is_set():
                self.violations.append(f"{method} {path}: {error!r}")
            return 0, None
        route = re.sub(r"[0-9a-f]{24}|\d+(?=$)", "ID", path)
        with self._lock:
            self.statuses[f"{status} {method} {route}"] += 1
        is_starting = status == 503 and kind.get("Retry-After") is not None
        if status not in EXPECTED_STATUSES and not is_starting:
            self.violations.append(f"{method} {path}: {status} {content[:200]!r}")
        if is_starting:
            time.sleep(0.2)  # less than the server asks for, so that its start is under load
        return status, json.loads(content) if kind.get_content_type() == "application/json" else content

    def run_for(self, seconds: float, kill_interval: float = 30.0) -> None:
        """Lets all keys draw actions, and kills and restarts the server at intervals."""
        self.start_clients()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, kill_interval))
            if left > kill_interval:
                self.kill_and_restart()
        self.stop_clients()

    def start_clients(self) -> None:
        """Lets all keys draw actions from now on."""
        self._threads = [threading.Thread(target=self._use, args=(client,), daemon=True) for client in self.clients]
        for thread in self._threads:
            thread.start()

    def stop_clients(self) -> None:
        """Lets all keys finish their actions."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request does not end"

    @contextlib.contextmanager
    def paused_clients(self) -> Iterator[None]:
        """Lets no key use the server until the context is left."""
        self._is_paused.set()
        try:
            wait_until(lambda: not self._num_active)
            yield
        finally:
            self._is_paused.clear()

    def kill_and_restart(self, signal_number: int = signal.SIGKILL) -> None:
        """Sends SIGKILL, or another signal that ends the server, and starts a server in the same folder."""
        self._is_killed.set()
        self.server.process.send_signal(signal_number)
        self.server.process.wait()
        self.server = self._start(ready=False)
        wait_until(self._accepts_connections)
        self._is_killed.clear()

    def _accepts_connections(self) -> bool:
        assert self.server.process.poll() is None, self.server.log.read_text()
        try:
            return self.server.get("/health")[0] == 200
        except OSError:
            return False

    def _use(self, client: Client) -> None:
        """Draws actions until the end, with pauses."""
        while not self._stopping.is_set():
            with self._lock:
                self._num_active += 1
            # `paused_clients` sets the event before it reads the number, so no action begins after that.
            if not self._is_killed.is_set() and not self._is_paused.is_set():
                try:
                    client.draw.choice(self.actions)(client)
                except Exception:  # of the workload itself
                    self.violations.append(f"{client.id}: {traceback.format_exc(limit=-2)}")
            with self._lock:
                self._num_active -= 1
            time.sleep(client.draw.random() * 2 * self.pause)

    def _draw_text(self, client: Client) -> str:
        return " ".join(client.draw.choices(WORDS, k=client.draw.randrange(1, 60))) + f" {client.draw.getrandbits(40)}"

    def teach(self, client: Client) -> None:
        """Adds an example."""
        text = self._draw_text(client)
        status, content = self.request("POST", f"{MODEL}/examples", {"text": text}, client.text)
        if status == 200:
            self.acknowledged.add(content["number"], client.id, text)

    def teach_by_prompt(self, client: Client) -> None:
        """Requests a completion that is learned from."""
        body = {"model": "story", "prompt": self._draw_text(client), "max_tokens": 5}
        status, content = self.request("POST", "/v1/completions", body, client.text)
        if status == 200 and (number := content["ontogeny"].get("example")) is not None:
            self.acknowledged.add(number, client.id)

    def ask(self, client: Client) -> None:
        """Requests a completion that is not learned from."""
        body = {"model": "story", "prompt": "The", "max_tokens": 10, "learn": False}
        self.request("POST", "/v1/completions", body, client.text)

    def erase(self, client: Client) -> None:
        """Erases an example of this key."""
        number = self.acknowledged.erase_one(client.id, client.draw)
        if number is not None:
            self.request("DELETE", f"{MODEL}/examples/{number}", key=client.text)

    def continue_text(self, client: Client) -> None:
        """Continues a text session of this key."""
        if client.id not in self.sessions:
            status, content = self.request("POST", f"{MODEL}/sessions", {}, client.text)
            if status == 200:
                self.sessions[client.id] = content["id"]
            return
        path, body = f"{MODEL}/sessions/{self.sessions[client.id]}/completions", {"prompt": "a lamp ", "max_tokens": 5}
        self.request("POST", path, body, client.text)

    def export(self, client: Client) -> None:
        """Exports the branch."""
        status, state = self.request("GET", f"{MODEL}/branch/state", key=client.text)
        if status == 200:
            self.states[client.id] = state

    def restore(self, client: Client) -> None:
        """Restores an export of some key."""
        state = self.states[client.draw.choice(self.clients).id]
        if state is not None:
            self.request("PUT", f"{MODEL}/branch/state", state, client.text)

    def fork(self, client: Client) -> None:
        """Copies the branch to another key."""
        body = {"owner_key": client.id, "target_key": client.draw.choice(self.clients).id}
        self.request("POST", f"{MODEL}/branch/fork", body, self.admin)

    def roll_back(self, client: Client) -> None:
        """Returns to an earlier version."""
        status, content = self.request("GET", f"{MODEL}/branch/versions", key=client.text)
        if status == 200:
            version = client.draw.choice(content["data"][-20:])["number"]
            self.request("POST", f"{MODEL}/rollback", {"version": version, "owner_key": client.id}, self.admin)

    def roll_back_beside(self, client: Client) -> None:
        """Returns to an earlier version from another process than that of the server, like the command line."""
        with Store(self.state_dir) as store:
            branch_versions = [v for v in versions.list_versions(store, f"story/{client.id}") if not v.deleted]
            if branch_versions:
                number = client.draw.choice(branch_versions[-20:]).number
                with contextlib.suppress(BadInput):  # an erasure of another process may have deleted it meanwhile
                    branch_changes.rollback(store, f"story/{client.id}", number, "workload")

    def freeze(self, client: Client) -> None:
        """Stops learning for a moment."""
        self.request("POST", f"{MODEL}/freeze", {}, self.admin)
        time.sleep(client.draw.random() * 0.3)
        self.request("POST", f"{MODEL}/unfreeze", {}, self.admin)

    def look(self, client: Client) -> None:
        """Reads what can be read."""
        for path in (f"{MODEL}/branch", f"{MODEL}/examples", "/v1/models"):
            self.request("GET", path, key=client.text)

    def settle(self) -> dict[str, Any]:
        """Waits until nothing is pending; returns the branch of each key."""
        wait_until(lambda: self.request("POST", f"{MODEL}/unfreeze", {}, self.admin)[0] == 200)

        def settled_branch(client: Client) -> Any:
            branch = self.request("GET", f"{MODEL}/branch", key=client.text)[1]
            return branch if branch is not None and branch.get("num_pending") == 0 else None

        return {c.id: wait_until(lambda c=c: settled_branch(c), 600) for c in self.clients}

    def check(self) -> None:
        """Asserts that no answer was a failure, that nothing acknowledged is lost, and that all branches are right."""
        branches = self.settle()
        assert self.server.stop() == 0
        log = self.server.log.read_text()
        assert "Traceback" not in log and " ERROR " not in log, log[-4000:]
        assert not self.violations, self.violations[:20]
        stored = read_stored(self.state_dir)
        replays = {}
        with Store(self.state_dir) as store:
            for number, key, text, is_erased in self.acknowledged.list_all():
                example = journal.find_example(store, number)
                assert example is not None and example.key == key, number
                if is_erased and example.erased_at is not None:
                    assert text is None or text.encode() not in stored, number
                else:
                    assert example.text is not None and text in (None, example.text), example
            assert {path.name for path in list_snapshot_paths(store)} == set(versions.list_snapshots(store))
            assert not branch_changes.list_unfinished_erasures(store, "story")
            for client in self.clients:
                check_decisions(store, f"story/{client.id}")
                replays[client.id] = list_replayed_texts(store, f"story/{client.id}")
        self._check_replays(branches, replays)

    def _check_replays(self, branches: dict[str, Any], replays: dict[str, list[str]]) -> None:
        """Lets new branches of a new server learn the same texts, and compares the digests."""
        replay_dir = self._folder / "replay"
        with Store(replay_dir) as store:
            texts = {client.id: keys.create_key(store, client.id)[1] for client in self.clients}
        with ServerProcess(replay_dir, *self._arguments) as server:
            for id, examples in replays.items():
                for text in examples:
                    assert server.post(f"{MODEL}/examples", {"text": text}, texts[id])[0] == 200
            for id, branch in branches.items():
                replayed = wait_until(
                    lambda id=id: (
                        (b := server.get(f"{MODEL}/branch", texts[id])[1]) and (b if not b["num_pending"] else None)
                    ),
                    600,
                )
                # A restored version 0 has the weights of version 0, and the digest of weights and scratch.
                assert replayed["digest"] == branch["digest"] or not replayed["weight_distance"], (id, branch)
                assert replayed["weight_distance"] == branch["weight_distance"]
