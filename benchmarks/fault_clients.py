"""Clients of a group of server processes that write down what they did, for a check of what the answers promised.

A history has one line of JSON for each operation: its key, kind, arguments and answer, and when it started and ended
by a clock that neither a pause nor a change of the system time affects. A client sends a request that was not answered
again at another process, as a load balancer does, if that cannot apply it twice: it reads, or it has an idempotency
key. Otherwise the outcome is unknown, and the operation may take effect at any later time.
"""

import json
import random
import threading
import time
import traceback
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from server_group import Answer, LoadBalancer

MODEL, FROZEN = "/v1/models/story", "frozen"
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
    "lamp",
]
MAX_TIME = 150.0  # seconds for which a request is sent again
MAX_PENDING = 20  # examples of a branch, beyond which clients teach it no more
LIST_LENGTH = 20  # examples in a list
CLIENT_TIMEOUT = 10.0  # seconds without an answer after which a client turns to another process


class Key(NamedTuple):
    """An API key and what clients do with it.

    Attributes:
        id: The public part.
        text: The key.
        role: `learner` teaches; `restorer` also rolls back and restores; `eraser` also erases; `frozen` only asks.
    """

    id: str
    text: str
    role: str


class History:
    """The operations of all clients.

    Args:
        path: Takes one line per operation.

    Attributes:
        acknowledged: The texts of acknowledged examples by number, with their keys.
        erased: The numbers of examples that somebody tried to erase.
        digests: Digests of versions by branch and number, as answers stated them.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file, self._lock = path, path.open("w"), threading.Lock()
        self.acknowledged: dict[int, tuple[str, str]] = {}
        self.erased: set[int] = set()
        self.digests: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.violations: list[str] = []
        self.num_operations = 0

    def add(self, **operation: Any) -> None:
        """Writes an operation."""
        line = json.dumps(operation)
        with self._lock:
            self._file.write(f"{line}\n")
            self.num_operations += 1

    def acknowledge(self, number: int, key: str, text: str) -> None:
        """Records an acknowledged example; one number for two texts is a violation."""
        with self._lock:
            if self.acknowledged.setdefault(number, (key, text)) != (key, text):
                self.violations.append(f"example {number} was acknowledged for two texts")

    def add_digest(self, key: str, version: int, digest: str) -> None:
        """Records the digest of a version; two digests for one version are a violation."""
        with self._lock:
            digests = self.digests[key, version]
            digests.add(digest)
            if len(digests) == 2:
                self.violations.append(f"version {version} of key {key} had two digests")

    def report(self, violation: str) -> None:
        """Records a sentence about something that no server may do."""
        with self._lock:
            self.violations.append(violation)

    def choose_example(self, key: str, draw: random.Random) -> int | None:
        """Draws an acknowledged example of a key that nobody has tried to erase, and marks it as erased."""
        with self._lock:
            numbers = [n for n, (owner, _) in self.acknowledged.items() if owner == key and n not in self.erased]
            number = draw.choice(numbers[-30:]) if numbers else None
            if number is not None:
                self.erased.add(number)
            return number

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._file.close()


def read_clock() -> int:
    """Nanoseconds of a clock that goes on while the machine sleeps and that nobody sets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Caller:
    """Sends the operations of one client and writes them down.

    Args:
        number: The number of the client.
        balancer: The processes.
        history: Takes the operations.
        admin: An admin key.
        draw: The random numbers of the client.
    """

    def __init__(self, number: int, balancer: LoadBalancer, history: History, admin: str, draw: random.Random) -> None:
        self.number, self._balancer, self._history, self._admin, self._draw = number, balancer, history, admin, draw

    def call(
        self,
        key: Key,
        operation: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        arguments: dict[str, Any] | None = None,
        summarize: Callable[[Any], dict[str, Any]] = dict,
        is_repeatable: bool = True,
        is_admin: bool = False,
        first: int | None = None,
        headers: dict[str, str] | None = None,
        before_body_ends: Callable[[], None] | None = None,
    ) -> Answer | None:
        """Sends a request until it has a definite answer, and writes the operation down.

        Args:
            key: Whose branch the operation belongs to.
            operation: Its kind in the history.
            method: The HTTP method.
            path: The route.
            body: Bytes, or what is sent as JSON.
            arguments: For the history.
            summarize: Converts the content of an answer to what the history keeps of it.
            is_repeatable: Whether the request may be sent again if its outcome is unknown.
            is_admin: Whether it is sent with the admin key.
            first: The process that gets it first; by default the one that the key always prefers.
            headers: Further headers.
            before_body_ends: See `send_request`.

        Returns:
            The answer, or None if the outcome is unknown.
        """
        preferred, options = self._preferred(key) if first is None else first, {}
        if before_body_ends is not None:
            options["before_body_ends"] = before_body_ends
        started_at, processes = read_clock(), list[str]()
        deadline, answer = time.monotonic() + MAX_TIME, None
        while time.monotonic() < deadline:
            answer, process = self._balancer.send(
                preferred, method, path, body, self._admin if is_admin else key.text, headers=headers,
                timeout=CLIENT_TIMEOUT, **options,
            )  # fmt: skip
            processes.append(f"{process}:{answer.status if answer else 0}:{answer.process if answer else ''}")
            is_definite = answer is not None and answer.status not in (503, 429)
            if is_definite or (not is_repeatable and (answer is None or answer.status == 503)):
                break
            preferred += answer is None or answer.status == 503
            time.sleep(0.05 + self._draw.random() * 0.3)
        is_known = answer is not None and answer.status < 500 and answer.status != 429
        expected = (200, 404) if operation == "erase" else (200,)
        if is_known and answer is not None and answer.status not in expected:
            self._history.report(f"{operation} was answered with {answer.status}: {str(answer.content)[:300]}")
        self._history.add(
            client=self.number, key=key.id, role=key.role, operation=operation, arguments=arguments or {},
            answer=summarize(answer.content) if is_known and answer is not None and answer.status == 200 else None,
            status=answer.status if is_known and answer is not None else None,
            start=started_at, end=read_clock() if is_known else None, processes=processes,
        )  # fmt: skip
        return answer if is_known else None

    def _preferred(self, key: Key) -> int:
        """The process that a load balancer with consistent hashing would choose."""
        return int(key.id, 16)


class Client(Caller):
    """A client that uses keys at random until it is told to stop.

    Args:
        keys: The keys from which it draws.
        pause: Mean seconds between two operations.
        stopping: Set at the end.
        states: The last exports of branches by key, which all clients share.
        pending: The numbers of pending examples by key, as last read by any client.
    """

    def __init__(
        self, *caller: Any, keys: list[Key], pause: float, stopping: threading.Event, states: dict[str, bytes],
        pending: dict[str, int],
    ) -> None:  # fmt: skip
        super().__init__(*caller)
        self._keys, self._pause, self._stopping, self._states = keys, pause, stopping, states
        self._pending = pending
        self._expected: dict[str, Any] = {}  # answers of frozen weights
        self._actions: dict[str, list[Callable[[Key], object]]] = {
            "learner": [*[self.teach] * 4, *[self.read] * 4, self.list_newest, *[self.ask] * 3, self.prompt],
            "frozen": [self.ask_frozen],
        }
        self._actions["eraser"] = [*self._actions["learner"], self.erase, self.list_newest]
        self._actions["restorer"] = [*self._actions["learner"], self.export, self.restore, self.roll_back]

    def run(self) -> None:
        """Draws operations until the end."""
        while not self._stopping.is_set():
            key = self._draw.choice(self._keys)
            try:
                self._draw.choice(self._actions[key.role])(key)
            except Exception:  # of this program
                self._history.report(f"client {self.number} failed: {traceback.format_exc(limit=-3)}")
            self._stopping.wait(self._draw.random() * 2 * self._pause)

    def draw_text(self) -> str:
        """A text that no other example has."""
        words = " ".join(self._draw.choices(WORDS, k=self._draw.randrange(8, 30)))
        return f"{words} {self._draw.getrandbits(100)}"

    def teach(self, key: Key) -> None:
        """Adds an example."""
        if self._pending.get(key.id, 0) > MAX_PENDING:
            self.read(key)
            return
        self._teach(key, "POST", f"{MODEL}/examples", lambda text: {"text": text}, lambda content: content["number"])

    def prompt(self, key: Key) -> None:
        """Requests a completion whose prompt is learned."""
        if self._pending.get(key.id, 0) > MAX_PENDING:
            self.read(key)
            return
        self._teach(
            key, "POST", "/v1/completions", lambda text: {"model": "story", "prompt": text, "max_tokens": 4},
            lambda content: content["ontogeny"]["example"],
        )  # fmt: skip

    def _teach(
        self, key: Key, method: str, path: str, body: Callable[[str], Any], read_number: Callable[[Any], int]
    ) -> None:
        text = self.draw_text()
        answer = self.call(
            key, "teach", method, path, body(text), arguments={"text": text}, headers=self._draw_idempotency_key(),
            summarize=lambda content: {"number": read_number(content)},
        )  # fmt: skip
        if answer is not None and answer.status == 200:
            self._history.acknowledge(read_number(answer.content), key.id, text)

    def _draw_idempotency_key(self) -> dict[str, str]:
        """The header of a request that takes effect once, however often it is sent."""
        return {"Idempotency-Key": str(uuid.UUID(int=self._draw.getrandbits(128)))}

    def read(self, key: Key) -> int | None:
        """Reads the current version of a branch; returns the number of pending examples."""
        answer = self._read(key)
        return None if answer is None else answer.content["num_pending"]

    def _read(self, key: Key) -> Answer | None:
        answer = self.call(
            key, "read", "GET", f"{MODEL}/branch",
            summarize=lambda content: {"version": content["current_version"], "pending": content["num_pending"]},
        )  # fmt: skip
        if answer is None or answer.status != 200:
            return None
        self._pending[key.id] = answer.content["num_pending"]
        self._history.add_digest(key.id, answer.content["current_version"], answer.content["digest"])
        return answer

    def list_newest(self, key: Key) -> None:
        """Lists the newest examples of a branch."""
        self.call(
            key, "list", "GET", f"{MODEL}/examples?order=desc&limit={LIST_LENGTH}", arguments={"limit": LIST_LENGTH},
            summarize=lambda content: {"texts": [example["text"] for example in content["data"]]},
        )  # fmt: skip

    def ask(self, key: Key) -> None:
        """Requests a completion that teaches nothing."""
        body = {"model": "story", "prompt": "The agent", "max_tokens": 4, "learn": False, "temperature": 0}
        self.call(
            key, "ask", "POST", "/v1/completions", body,
            summarize=lambda content: {"version": content["ontogeny"]["version"]},
        )  # fmt: skip

    def ask_frozen(self, key: Key) -> None:
        """Requests a completion from frozen weights, whose answer is always the same to the bit."""
        prompt = " ".join(WORDS[: self._draw.randrange(1, 4)])
        body = {"model": FROZEN, "prompt": prompt, "max_tokens": 6, "temperature": 1, "seed": 1, "logprobs": 1}
        answer = self.call(key, "ask_frozen", "POST", "/v1/completions", body, summarize=lambda content: {})
        if answer is not None and answer.status == 200:
            choice = answer.content["choices"][0]
            if self._expected.setdefault(prompt, choice) != choice:
                self._history.report(f"frozen weights answered '{prompt}' differently")

    def export(self, key: Key) -> None:
        """Exports the current version of a branch."""
        answer = self.call(
            key, "export", "GET", f"{MODEL}/branch/state", summarize=lambda content: {"size": len(content)}
        )
        if answer is not None and answer.status == 200:
            self._states[key.id] = answer.content

    def restore(self, key: Key, **options: Any) -> Answer | None:
        """Restores the last export of a branch; for `options`, see `call`."""
        state = self._states.get(key.id)
        if state is None:
            return None
        answer = self.call(
            key, "restore", "PUT", f"{MODEL}/branch/state", state, headers=self._draw_idempotency_key(),
            summarize=lambda content: {"version": content["number"]}, **options,
        )  # fmt: skip
        if answer is not None and answer.status == 200:
            self._history.add_digest(key.id, answer.content["number"], answer.content["digest"])
        return answer

    def roll_back(self, key: Key) -> None:
        """Makes one of the last versions current."""
        answer = self._read(key)
        if answer is None:
            return
        version = max(0, answer.content["current_version"] - self._draw.randrange(6))
        self.call(
            key, "rollback", "POST", f"{MODEL}/rollback", {"version": version, "owner_key": key.id},
            arguments={"version": version}, summarize=lambda content: {"version": content["number"]},
            is_admin=True, headers=self._draw_idempotency_key(),
        )  # fmt: skip

    def erase(self, key: Key) -> None:
        """Erases an example."""
        number = self._history.choose_example(key.id, self._draw)
        if number is not None:
            text = self._history.acknowledged[number][1]
            self.call(
                key, "erase", "DELETE", f"{MODEL}/examples/{number}", arguments={"number": number, "text": text},
                summarize=lambda content: {"number": content["number"]},
            )  # fmt: skip

    def list_all(self, key: Key) -> None:
        """Lists all examples of a branch and all restored versions, while nobody changes them."""
        texts = [example["text"] for example in self._list_pages(key, f"{MODEL}/examples")]
        versions = self._list_pages(key, f"{MODEL}/branch/versions")
        restored = [version["number"] for version in versions if version["number"] and version["parent"] is None]
        for operation, answer in (("list", {"texts": texts[::-1]}), ("versions", {"restored": restored})):
            clock = read_clock()
            self._history.add(
                client=self.number, key=key.id, role=key.role, operation=operation, status=200, answer=answer,
                arguments={"limit": len(texts) + 1}, start=clock, end=clock, processes=[],
            )  # fmt: skip

    def _list_pages(self, key: Key, path: str) -> list[dict[str, Any]]:
        """All entries of a list, page by page."""
        entries: list[dict[str, Any]] = []
        after, has_more = "", True
        while has_more:
            answer = self.call(key, "page", "GET", path + after, summarize=lambda content: {})
            if answer is None or answer.status != 200:
                self._history.report(f"{path} of key {key.id} could not be read at the end")
                break
            entries += answer.content["data"]
            after, has_more = f"?after={entries[-1]['number']}" if entries else "", answer.content["has_more"]
        return entries
