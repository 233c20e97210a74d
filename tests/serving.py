"""What the tests of the server share: a tiny model trained on `texts.TRAINING`, and a server as its own process."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

import texts
from ontogeny.lm import model as models
from ontogeny.lm.train import TrainConfig, train

ROOT = Path(__file__).parent.parent
PLAN = TrainConfig(
    size="pico", tokenizer="bytes", layers=2, heads=2, width=64, context=64, batch=16, steps=500, learning_rate=4e-3
)


def make_run(folder: Path, steps: int = 500) -> Path:
    return train(PLAN._replace(steps=steps), texts.TRAINING, folder)


def shared_run(factory) -> Path:
    """One run for all test files and workers of a session."""
    root = factory.getbasetemp() if "PYTEST_XDIST_WORKER" not in os.environ else factory.getbasetemp().parent
    folder = root / "serving"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "weights.json").exists():
            make_run(folder / "run")
    return folder / "run"


@lru_cache
def load(folder: Path) -> models.LanguageModel:
    return models.load(folder)


def as_users_do() -> dict[str, str]:
    """The environment, but that the compiler is to try: a server is mostly waited for when it answers."""
    return {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}


class Live:
    """`ontogeny serve` on a free port of this machine; `kill` is kill -9."""

    def __init__(self, state: Path, *arguments: str, ready: bool = True, environment: dict[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.state = f"http://127.0.0.1:{self.port}", state
        self.log = state.with_name(f"{state.name}.log")
        command = [sys.executable, "-m", "ontogeny", "serve", *arguments, "--state", str(state)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=log, stderr=log, env=as_users_do() | (environment or {})
            )
        if ready:
            self.wait()

    def wait(self, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.get("/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready in {seconds} s: {self.log.read_text()}")

    def ask(self, method: str, path: str, body=None, key: str | None = None, timeout: float = 60):
        """Status and content: JSON where it is, else bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, content, kind = answer.status, answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                status, content, kind = error.code, error.read(), error.headers.get_content_type()
        return status, json.loads(content) if kind == "application/json" else content

    def get(self, path: str, key: str | None = None):
        return self.ask("GET", path, key=key)

    def post(self, path: str, body, key: str | None = None, timeout: float = 60):
        return self.ask("POST", path, body, key, timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
