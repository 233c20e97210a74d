"""Helpers of the server's tests: a tiny model trained on `texts.TRAINING`, and a server in its own process."""

import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import jax
import pytest
from playwright.sync_api import Browser, sync_playwright

import forking
import texts
from ontogeny.lm import model as models
from ontogeny.lm.config import TrainConfig
from ontogeny.lm.training import train
from ontogeny.server import schema
from ontogeny.server import store as stores
from ontogeny.server.moving import copy_state
from ontogeny.server.store import DATABASE_URL, Store

ROOT = Path(__file__).parent.parent
CONFIG = TrainConfig(
    size="pico",
    tokenizer="bytes",
    num_layers=2,
    num_heads=2,
    width=64,
    context_length=64,
    batch_size=16,
    num_steps=500,
    learning_rate=4e-3,
)

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
CACHE_FOLDER = os.environ.get(CACHE_VARIABLE)  # of the session

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IS_REQUIRED = bool(os.environ.get("ONTOGENY_REQUIRE_CHROMIUM"))  # set by `.ci/run`: an absent browser is a failure
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None and not IS_REQUIRED, reason="Chromium is not installed")


def make_run(folder: Path, num_steps: int = 500) -> Path:
    """Trains the tiny model; all optimizations of the compiler halve the time of many steps."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before and num_steps < 100)
    try:
        return train(CONFIG.model_copy(update={"num_steps": num_steps}), texts.TRAINING, folder)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def shared_run(factory: pytest.TempPathFactory) -> Path:
    """Trains the tiny model once for all test files and workers."""
    root = factory.getbasetemp() if "PYTEST_XDIST_WORKER" not in os.environ else factory.getbasetemp().parent
    folder = root / "serving"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "weights.json").exists():
            make_run(folder / "run")
    return folder / "run"


def family_run(factory: pytest.TempPathFactory, family: str) -> Path:
    """Fine-tunes the small stored model of a family on `texts.TRAINING` once for all test files and workers."""
    root = factory.getbasetemp() if "PYTEST_XDIST_WORKER" not in os.environ else factory.getbasetemp().parent
    folder = root / f"serving {family}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "weights.json").exists():
            initial = models.load(ROOT / "tests" / "golden" / family)
            train(
                {"num_steps": 150, "batch_size": 4, "learning_rate": 1e-2},
                texts.TRAINING,
                folder / "run",
                initial=initial,
            )
    return folder / "run"


@lru_cache
def load(folder: Path) -> models.LanguageModel:
    """Loads a model once per process."""
    return models.load(folder)


def optimized_environment() -> dict[str, str]:
    """Returns environment variables under which a process compiles with all optimizations, as by default.

    The process reads the programs that other processes of the session have compiled, also where a test lets the command
    line in its own process use another folder.
    """
    variables = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    return variables if CACHE_FOLDER is None else variables | {CACHE_VARIABLE: CACHE_FOLDER}


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `ontogeny` with these arguments and waits for it to finish."""
    state_dir = next((folder for option, folder in pairwise(arguments) if option == "--state-dir"), None)
    variables = {} if state_dir is None else database_variables(Path(state_dir))
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        code = forking.start([*arguments], optimized_environment() | variables, output, errors).wait(120)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, code, output.read(), errors.read())


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Returns the first true result of `condition`; fails after a time limit in seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.05)
    return result


@contextlib.contextmanager
def open_chromium(*arguments: str) -> Iterator[Browser]:
    """Runs headless Chromium with these further arguments."""
    assert CHROMIUM is not None, "ONTOGENY_REQUIRE_CHROMIUM is set, but Chromium is not installed"
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", *arguments]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def database_variables(state_dir: Path) -> dict[str, str]:
    """The environment variable that names the database of a state folder, where the tests use PostgreSQL."""
    address = stores.default_address(state_dir)
    return {} if address is None else {DATABASE_URL: address}


def read_stored(state_dir: Path) -> bytes:
    """Everything that the files of a state folder hold, and the records that queries of PostgreSQL return."""
    contents = [path.read_bytes() for path in state_dir.rglob("*") if path.is_file()]
    if database_variables(state_dir):
        with Store(state_dir) as store:
            records = [record for table in schema.TABLES for record in store.execute(f"SELECT * FROM {table}")]
        contents += [part if isinstance(part, bytes) else str(part).encode() for record in records for part in record]
    return b"".join(contents)


def copy_state_folder(source: Path, target: Path) -> None:
    """Copies the state of a server, with its database."""
    if not database_variables(source):
        shutil.copytree(source, target)
        return
    with Store(source) as original, Store(target) as copy:
        copy_state(original, copy)


def share_snapshots(folder: Path, *state_dirs: Path) -> None:
    """Lets processes with state folders of their own use the snapshots in one folder, by different paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for state_dir in state_dirs:
        state_dir.mkdir(parents=True, exist_ok=True)
        (state_dir / "snapshots").symlink_to(folder)


class LimitedFileSize:
    """A disk that is full for one process: it may write no file beyond a size in bytes (Linux only)."""

    def __init__(self, pid: int, num_bytes: int = 0) -> None:
        self._pid, self._num_bytes = pid, num_bytes
        self._hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]

    def __enter__(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._num_bytes, self._hard))

    def __exit__(self, *_: object) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._hard, self._hard))


class ServerProcess:
    """`ontogeny serve` on a free port of this machine, or on the one that the server names if `port` is 0."""

    def __init__(
        self,
        state_dir: Path,
        *arguments: str,
        ready: bool = True,
        environment: dict[str, str] | None = None,
        port: int | None = None,
        program: tuple[str, str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1] if port is None else port
        self.state_dir = state_dir
        self.log = state_dir.with_name(f"{state_dir.name}.log")
        command = ["serve", *arguments, "--state-dir", str(state_dir), "--port", str(self.port)]
        variables = optimized_environment() | database_variables(state_dir) | (environment or {})
        with self.log.open("ab") as log:
            if program is None:
                self.process = forking.start(command, variables, log, log)
            else:
                self.process = subprocess.Popen(
                    [sys.executable, *program, *command], stdout=log, stderr=log, env=variables
                )
        if ready:
            wait_until(self.is_ready)

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        """Whether the server answers requests; fails if it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        line = re.search(r"^serving .* on \S*:(\d+)$", self.log.read_text(), re.MULTILINE)
        if line is None:
            return False
        self.port = self.port or int(line[1])
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False

    def request(
        self, method: str, path: str, body: Any = None, key: str | None = None, timeout: float = 60
    ) -> tuple[int, Any]:
        """Sends a request; returns status and content, parsed where it is JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, content, kind = response.status, response.read(), response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                status, content, kind = error.code, error.read(), error.headers.get_content_type()
        return status, json.loads(content) if kind == "application/json" else content

    def get(self, path: str, key: str | None = None) -> tuple[int, Any]:
        """Sends a GET request."""
        return self.request("GET", path, key=key)

    def post(self, path: str, body: Any, key: str | None = None, timeout: float = 60) -> tuple[int, Any]:
        """Sends a POST request."""
        return self.request("POST", path, body, key, timeout)

    def put(self, path: str, body: Any, key: str | None = None) -> tuple[int, Any]:
        """Sends a PUT request."""
        return self.request("PUT", path, body, key)

    def delete(self, path: str, key: str | None = None) -> tuple[int, Any]:
        """Sends a DELETE request."""
        return self.request("DELETE", path, key=key)

    def stop(self) -> int:
        """Sends SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class ClientThreads:
    """Clients that use a server at the same time, from when the context is entered until it is left.

    Args:
        *clients: Called on a thread each; they end when `self._stopping` is set.
    """

    def __init__(self, *clients: Callable[[], None]) -> None:
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
