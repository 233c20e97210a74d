"""A server on a full disk: what needs the disk is refused, all else goes on, and nothing acknowledged is lost."""

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ontogeny.errors import StorageUnavailable
from ontogeny.server import keys
from ontogeny.server.learning import journal
from ontogeny.server.store import Store
from serving import ServerProcess, run_command, shared_run, wait_until

pytestmark = [
    pytest.mark.computes,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process exist on Linux only"),
]

TEXTS = [
    "The lighthouse keeper wrote a letter to the sea, and the sea answered.",
    "On the third day the ship of glass came in, and nobody was aboard.",
    "She counted the lamps twice; there was one too many.",
]
LIMITED_COMMAND = """
import resource, sys
from ontogeny.cli import program
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
program()
"""
LEARNED, PENDING, REFUSED = TEXTS
PROMPT = {"model": "story", "prompt": "The keeper", "max_tokens": 8, "seed": 1, "learn": False}


class LimitedFileSize:
    """A disk that is full for one process: no file of it may grow or be written."""

    def __init__(self, pid: int, num_bytes: int = 0) -> None:
        self._pid, self._num_bytes = pid, num_bytes
        self._hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]

    def __enter__(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._num_bytes, self._hard))

    def __exit__(self, *_: object) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._hard, self._hard))


class FullFileSystem:
    """A file system without a free block."""

    def __init__(self, folder: Path) -> None:
        self._state, self._filler = folder / "state", folder / "filler"

    def __enter__(self) -> None:
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def __exit__(self, *_: object) -> None:
        self._filler.unlink()


@contextlib.contextmanager
def small_file_system(folder: Path) -> Iterator[Path]:
    """A file system of 16 MB, or a skipped test where none can be mounted."""
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory)


def is_refused(response: tuple[int, Any]) -> bool:
    """Whether a response is the error of a disk that cannot be used."""
    status, body = response
    assert status == 503 and isinstance(body, dict), response
    assert body["error"]["message"].count(".") == 0  # one sentence
    return body["error"]["code"] == "storage_unavailable"


def check_full_disk(server: ServerProcess, key: str, disk: contextlib.AbstractContextManager[None]) -> None:
    """Fills the disk of a server that serves `story` online and `frozen` frozen, tries every kind of request, frees it.

    The journal, a snapshot, a session and a row of the usage are each a write that fails.
    """
    model = "/v1/models/story"

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return server.request(method, path, body, key)

    def branch() -> dict[str, Any]:
        return ask("GET", f"{model}/branch")[1]

    session = ask("POST", f"{model}/sessions")[1]["id"]
    number = ask("POST", f"{model}/examples", {"text": LEARNED})[1]["number"]
    wait_until(lambda: branch()["num_pending"] == 0)
    version, answer = branch()["current_version"], ask("POST", "/v1/completions", PROMPT)[1]["choices"]
    exported, num_answers = ask("GET", f"{model}/branch/state")[1], 1
    pending = ask("POST", f"{model}/examples", {"text": PENDING})[1]["number"]
    Store(server.state_dir, create=False).truncate_log()  # so that the next write needs a new block
    with disk:
        for _ in range(2):
            assert is_refused(ask("POST", f"{model}/examples", {"text": REFUSED}))
            assert is_refused(ask("POST", "/v1/completions", {**PROMPT, "prompt": REFUSED, "learn": True}))
            assert is_refused(ask("PUT", f"{model}/branch/state", exported))
            assert is_refused(ask("POST", f"{model}/sessions"))
            assert is_refused(ask("POST", f"{model}/sessions/{session}/completions", {"prompt": "a", "max_tokens": 1}))
            assert is_refused(ask("POST", f"{model}/sessions/{session}/fork"))
            assert is_refused(ask("DELETE", f"{model}/sessions/{session}"))
            assert is_refused(ask("DELETE", f"{model}/examples/{number}"))
            assert is_refused(ask("POST", f"{model}/rollback", {"version": 0}))
            assert is_refused(ask("POST", f"{model}/freeze"))
            for path in (
                f"{model}/branch",
                f"{model}/examples",
                f"{model}/sessions/{session}",
                "/v1/models",
                "/health",
            ):
                assert ask("GET", path)[0] == 200
            if branch()["current_version"] == version:  # else the pending example was learned before the disk was full
                assert ask("POST", "/v1/completions", PROMPT)[1]["choices"] == answer
                num_answers += 1
            assert ask("POST", "/v1/completions", {**PROMPT, "model": "frozen", "learn": True})[0] == 200
            assert ask("GET", f"{model}/branch/state")[0] == 200
        assert server.get(f"{model}/branch", "og-0-wrong")[0] == 401
        assert "anna" in run_command("keys", "list", "--state-dir", str(server.state_dir)).stdout
        assert is_refused(wait_until(lambda: (answer := server.get("/ready"))[0] == 503 and answer))
    wait_until(lambda: server.get("/ready")[0] == 200)
    wait_until(lambda: branch()["num_pending"] == 0)
    refused = ask("POST", f"{model}/examples", {"text": REFUSED})[1]["number"]
    wait_until(lambda: branch()["num_pending"] == 0)
    store = Store(server.state_dir, create=False)
    decided = [decision.example for decision in journal.list_decisions(store, "story")]
    assert decided == [number, pending, refused]
    assert [e["text"] for e in ask("GET", f"{model}/examples")[1]["data"]] == TEXTS
    wait_until(lambda: sum(u.num_requests for u in keys.list_usage(store) if u.deployment == "story") == num_answers)
    assert [u.num_requests for u in keys.list_usage(store) if u.deployment == "frozen"] == [2]
    assert ask("DELETE", f"{model}/sessions/{session}")[0] == 200
    assert ask("DELETE", f"{model}/examples/{number}")[0] == 200
    assert "Traceback" not in server.log.read_text()


def start_server(run: Path, state_dir: Path) -> tuple[ServerProcess, str]:
    """Starts a server with an admin key; returns both."""
    with Store(state_dir) as store:
        key = keys.create_key(store, "anna", admin=True)[1]
    names = ("--alias", f"story={run}", "--alias", f"frozen={run}", "--freeze", "frozen")
    arguments = ("--online", "--max-forgetting", "5", "--learning-fraction", "1", "--max-body-bytes", "20000000")
    return ServerProcess(state_dir, *names, *arguments), key


def test_a_full_disk_is_answered_with_503_and_nothing_acknowledged_is_lost(run, tmp_path):
    server, key = start_server(run, tmp_path / "state")
    with server:
        check_full_disk(server, key, LimitedFileSize(server.process.pid))
        assert server.stop() in (0, -15)


@pytest.mark.slow
def test_a_full_file_system_is_answered_with_503_and_nothing_acknowledged_is_lost(run, tmp_path):
    with small_file_system(tmp_path / "disk") as folder:
        server, key = start_server(run, folder / "state")
        with server:
            check_full_disk(server, key, FullFileSystem(folder))
            assert server.stop() in (0, -15)


def test_commands_on_a_full_disk_end_with_one_sentence(tmp_path):
    with Store(tmp_path / "state") as store:
        key = keys.create_key(store, "anna")[0]
        journal.open_branch(store, "story", key.id, "trained", "learner", 2.0)
        for command in (
            ["keys", "create", "--name", "bob"],
            ["keys", "revoke", key.id],
            ["deployments", "freeze", "story"],
            ["deployments", "rollback", "story", "--key", key.id],
        ):
            arguments = [sys.executable, "-c", LIMITED_COMMAND, *command, "--state-dir", str(tmp_path / "state")]
            done = subprocess.run(arguments, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done.stderr
            assert done.stderr.startswith(f"ontogeny: the database '{tmp_path / 'state' / 'ontogeny.sqlite'}' cannot")
        assert [key.name for key in keys.list_keys(store)] == ["anna"]


def test_a_failed_commit_leaves_the_store_usable(tmp_path):
    store = Store(tmp_path / "state")
    for _ in range(3):
        with LimitedFileSize(os.getpid()), pytest.raises(StorageUnavailable):
            keys.create_key(store, "anna")
        assert keys.list_keys(store) == []
    with pytest.raises(KeyError), store.transaction():
        store.insert("usage", ("key", "story", "day", 1, 1, 1))
        raise KeyError
    assert keys.list_usage(store) == []
    assert keys.create_key(store, "anna")[0] in keys.list_keys(store)


def test_bursts_of_threads_leave_the_number_of_file_descriptors_flat(tmp_path):
    store = Store(tmp_path / "state")
    keys.create_key(store, "anna")

    def burst() -> int:
        barrier = threading.Barrier(32)

        def read_and_write() -> None:
            barrier.wait()
            for _ in range(5):
                assert len(keys.list_keys(store)) >= 1
            keys.create_key(store, "bob")

        threads = [threading.Thread(target=read_and_write) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(os.listdir("/proc/self/fd"))

    counts = [burst() for _ in range(4)]
    assert max(counts[1:]) <= counts[0] + 2, counts
    assert len(keys.list_keys(store)) == 1 + 4 * 32
