"""Several `ontogeny serve` processes that share one database, and clients that use them like a load balancer does."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

from ontogeny.lm.training import train
from ontogeny.runs import checkpoint

DISCONNECTED = (OSError, ValueError, http.client.HTTPException)  # the process ended before or during its answer
PROCESS_HEADER = "x-ontogeny-process"
START_TIME = 600.0  # seconds in which a process must be ready, also on a busy machine
MODEL_CONFIG = {
    "size": "pico", "tokenizer": "bytes", "num_layers": 1, "num_heads": 2, "width": 32, "context_length": 64,
    "batch_size": 8, "num_steps": 150, "learning_rate": 4e-3,
}  # fmt: skip


def make_tiny_run(folder: Path) -> Path:
    """Trains a tiny model on the beginning of Python's manual, unless the folder has it."""
    if not checkpoint.exists(folder, "weights"):
        text = folder.with_name(f"{folder.name}.txt")
        text.write_text("\n".join(topics[name] for name in sorted(topics))[:60_000])
        train(MODEL_CONFIG, [text], folder)
    return folder


def wait_until(condition: Callable[[], Any], seconds: float, subject: str) -> Any:
    """Returns the first true result of `condition`; raises `TimeoutError` with `subject` after a time limit."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {subject}")
        time.sleep(0.02)
    return result


def free_port() -> int:
    """A port of the loopback interface that nobody uses at present."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Answer(NamedTuple):
    """An answer of a server.

    Attributes:
        status: The HTTP status.
        content: The body, parsed where it is JSON.
        retry_after: The header `Retry-After`.
        process: The process that answered, as its header names it.
    """

    status: int
    content: Any
    retry_after: str | None
    process: str | None


def send_request(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    key: str | None = None,
    *,
    headers: dict[str, str] | None = None,
    timeout: float = 60.0,
    before_body_ends: Callable[[], None] | None = None,
) -> Answer:
    """Sends a request on a connection of its own.

    Args:
        url: The address of a process.
        method: The HTTP method.
        path: The route.
        body: Bytes, or what is sent as JSON.
        key: An API key.
        headers: Further headers.
        timeout: Seconds without any progress after which the connection is given up.
        before_body_ends: Called after the first half of the body was sent.

    Raises:
        OSError: The process did not answer, like the other exceptions of `DISCONNECTED`.
    """
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Connection": "close"} | (headers or {})
    fields |= {"Authorization": f"Bearer {key}"} if key else {}
    parts: Any = data
    if before_body_ends is not None and data is not None:
        fields["Content-Length"] = str(len(data))

        def send_in_halves() -> Any:
            yield data[: len(data) // 2]
            before_body_ends()
            yield data[len(data) // 2 :]

        parts = send_in_halves()
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method, path, parts, fields)
        response = connection.getresponse()
        content, kind = response.read(), response.headers.get_content_type()
    parsed = json.loads(content) if kind == "application/json" else content
    return Answer(response.status, parsed, response.headers.get("Retry-After"), response.headers.get(PROCESS_HEADER))


class Replica:
    """One process of a group, which can be ended, paused and started again.

    Args:
        number: Its place in the group.
        arguments: Of `ontogeny serve`, without the address of the process.
        database_url: The address of the database for this process; empty for SQLite in the state folder.
        log: A file for its output.
    Attributes:
        environment: Further variables of the environment of its next start.
        is_paused: Whether it got SIGSTOP.
        was_ready: Whether it has been ready since its last start.
    """

    def __init__(self, number: int, arguments: Sequence[str], database_url: str, log: Path) -> None:
        self.number, self.port, self.log = number, free_port(), log
        self.arguments, self.environment = list(arguments), dict[str, str]()
        self._database_url = database_url
        self.process: subprocess.Popen[bytes] | None = None
        self.is_paused = self.was_ready = False

    @property
    def url(self) -> str:
        """The address of the process."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return self.process is not None and self.process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether the process answers requests at present."""
        if not self.is_running or self.is_paused:
            return False
        try:
            is_ready = send_request(self.url, "GET", "/ready", timeout=2).status == 200
        except DISCONNECTED:
            return False
        self.was_ready |= is_ready
        return is_ready

    def start(self) -> None:
        """Starts the process; see `wait`."""
        assert not self.is_running
        self.is_paused = self.was_ready = False
        command = [sys.executable, "-m", "ontogeny", "serve", *self.arguments, "--port", str(self.port)]
        environment = os.environ | {"ONTOGENY_DATABASE_URL": self._database_url} | self.environment
        with self.log.open("ab") as log:
            log.write(f"--- start of process {self.number} at {time.time():.3f}\n".encode())
            log.flush()
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(self, seconds: float = START_TIME) -> None:
        """Returns when the process answers requests."""

        def is_ready() -> bool:
            if not self.is_running:
                raise RuntimeError(f"process {self.number} ended by itself: {self.log_end}")
            return self.is_ready

        wait_until(is_ready, seconds, f"process {self.number} is ready; see {self.log}")

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        assert self.process is not None
        self.process.send_signal(number)
        self.is_paused = number == signal.SIGSTOP or (self.is_paused and number != signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process by SIGKILL, if it exists."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.is_paused = False

    def terminate(self, seconds: float = 60.0) -> int:
        """Ends the process by SIGTERM; returns its exit code."""
        assert self.process is not None
        self.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process, or None while it runs."""
        return None if self.process is None else self.process.poll()

    @property
    def log_end(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-600:]

    def memory(self) -> int:
        """The resident memory in bytes (Linux only)."""
        fields = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        return int(fields[1]) * 1024 if fields else 0


class LoadBalancer:
    """Sends requests of one key to the same process as long as it answers, and otherwise to the others in turn.

    Args:
        replicas: The processes.
        violations: Takes a sentence for each answer that no server may give.
    """

    def __init__(self, replicas: Sequence[Replica], violations: list[str]) -> None:
        self._replicas, self._violations, self._lock = list(replicas), violations, threading.Lock()
        self.num_statuses: dict[str, int] = {}

    def send(
        self, preferred: int, method: str, path: str, body: Any = None, key: str | None = None, **options: Any
    ) -> tuple[Answer | None, int]:
        """Sends a request to one process; returns the answer, or None if there was none, and the process."""
        replica = self._replicas[preferred % len(self._replicas)]
        try:
            answer = send_request(replica.url, method, path, body, key, **options)
        except DISCONNECTED:
            self._count("disconnected")
            return None, replica.number
        self._count(str(answer.status))
        if answer.status >= 500 and (answer.status != 503 or answer.retry_after is None):
            with self._lock:
                self._violations.append(
                    f"{method} {path} was answered with {answer.status} by process {replica.number} "
                    f"({answer.process}): {str(answer.content)[:300]}"
                )
        return answer, replica.number

    def _count(self, status: str) -> None:
        with self._lock:
            self.num_statuses[status] = self.num_statuses.get(status, 0) + 1
