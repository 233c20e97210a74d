"""A server on a full disk: what needs the disk is refused, all else goes on, and nothing acknowledged is lost."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from ontogeny.errors import StorageUnavailable
from ontogeny.server import keys, quotas
from ontogeny.server.config import ServerConfig
from ontogeny.server.databases.base import MAX_CONNECTIONS
from ontogeny.server.databases.sqlite import DATABASE
from ontogeny.server.learning import branch_changes, journal
from ontogeny.server.store import Store
from serving import LimitedFileSize, ServerProcess, run_command, shared_run, wait_until

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


class FullFileSystem:
    """A file system without a free block."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

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


def check_full_disk(server: ServerProcess, disk: contextlib.AbstractContextManager[None]) -> None:
    """Fills the disk of a server that serves `story` online and `frozen` frozen, tries every kind of request, frees it.

    The journal, a snapshot, a session and a row of the usage are each a write that fails.
    """
    model, store = "/v1/models/story", Store(server.state_dir, create=False)
    (id, key), new_key = create_admin(store), create_admin(store)[1]

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
    assert store.truncate_log()  # so that the next write needs a new block
    with disk:
        for _ in range(2):
            assert is_refused(ask("POST", f"{model}/examples", {"text": REFUSED}))
            assert is_refused(ask("POST", "/v1/completions", {**PROMPT, "prompt": REFUSED, "learn": True}))
            assert is_refused(ask("PUT", f"{model}/branch/state", exported))
            assert is_refused(ask("POST", f"{model}/sessions"))
            assert is_refused(ask("POST", f"{model}/sessions/{session}/completions", {"prompt": "a", "max_tokens": 1}))
            num_answers += 1  # computed, though not stored
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
        assert server.post("/v1/completions", PROMPT, new_key)[0] == 200  # a key that has no branch yet
        assert "anna" in run_command("keys", "list", "--state-dir", str(server.state_dir)).stdout
        # The learner fails at once, and the usage meter once it has tried to write.
        wait_until(lambda: server.get("/ready")[1].get("error", {}).get("code") == "storage_unavailable")
        assert is_refused(server.get("/ready"))
    wait_until(lambda: server.get("/ready")[0] == 200)
    wait_until(lambda: branch()["num_pending"] == 0)
    refused = ask("POST", f"{model}/examples", {"text": REFUSED})[1]["number"]
    wait_until(lambda: branch()["num_pending"] == 0)
    decisions = [d for d in journal.list_decisions(store, "story") if d.branch == f"story/{id}" and d.example]
    assert [decision.example for decision in decisions] == [number, pending, refused]
    assert [e["text"] for e in ask("GET", f"{model}/examples")[1]["data"]] == TEXTS
    wait_until(lambda: num_requests(store, id, "story") == num_answers and num_requests(store, id, "frozen") == 2)
    assert ask("DELETE", f"{model}/sessions/{session}")[0] == 200
    assert ask("DELETE", f"{model}/examples/{number}")[0] == 200


def create_admin(store: Store) -> tuple[str, str]:
    """Creates an admin key; returns its id and its text."""
    key, text = keys.create_key(store, "anna", admin=True)
    return key.id, text


def num_requests(store: Store, key: str, deployment: str) -> int:
    """The recorded requests of a key."""
    return sum(u.num_requests for u in keys.list_usage(store) if (u.key, u.deployment) == (key, deployment))


@contextlib.contextmanager
def running_server(run: Path, state_dir: Path) -> Iterator[ServerProcess]:
    """A server with the deployments `story`, online, and `frozen`, whose log must hold no traceback."""
    names = ("--alias", f"story={run}", "--alias", f"frozen={run}", "--freeze", "frozen", "--online")
    arguments = ("--max-forgetting", "5", "--learning-fraction", "1", "--max-body-bytes", "20000000")
    with ServerProcess(state_dir, *names, *arguments, "--log-level", "info") as server:
        yield server
        assert server.stop() in (0, -15)
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    with running_server(run, tmp_path_factory.mktemp("storage") / "state") as server:
        yield server


@pytest.mark.sqlite
def test_a_full_disk_is_answered_with_503_and_nothing_acknowledged_is_lost(server):
    check_full_disk(server, LimitedFileSize(server.process.pid))


@pytest.mark.slow
def test_a_full_file_system_is_answered_with_503_and_nothing_acknowledged_is_lost(run, tmp_path):
    with small_file_system(tmp_path / "disk") as folder, running_server(run, folder / "state") as server:
        check_full_disk(server, FullFileSystem(folder))


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


@pytest.mark.sqlite
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

    before = len(os.listdir("/proc/self/fd"))
    counts = [burst() for _ in range(4)]
    assert max(counts) <= before + 2 * MAX_CONNECTIONS, counts  # the database and its log
    assert len(keys.list_keys(store)) == 1 + 4 * 32


def test_bursts_of_requests_leave_the_number_of_file_descriptors_flat(server):
    with Store(server.state_dir, create=False) as store:
        key = create_admin(store)[1]
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    routes = ["/v1/models", "/v1/models/story/branch", "/v1/models/story/examples", "/metrics", "/v1/models/absent"]

    def burst() -> list[str]:
        with ThreadPoolExecutor(64) as clients:
            list(clients.map(lambda i: server.get(routes[i % len(routes)], key), range(200)))
        wait_until(lambda: sum("socket" in name for name in names()) <= 20)  # closed connections
        return names()

    def names() -> list[str]:
        targets = []
        for path in descriptors.iterdir():
            with contextlib.suppress(OSError):  # closed in the meantime
                targets.append(os.readlink(path))
        return targets

    bursts = [burst() for _ in range(3)]
    database = [sum(DATABASE in name for name in targets) for targets in bursts]
    assert max(database) <= 2 * MAX_CONNECTIONS + 2, database  # the database, its log and its index
    assert max(len(targets) for targets in bursts) <= 100, [len(targets) for targets in bursts]


def test_a_quota_is_refused_with_insufficient_quota_which_the_openai_client_does_not_retry(server, call_cli):
    store, model = Store(server.state_dir, create=False), "/v1/models/story"
    id, key = create_admin(store)

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return server.request(method, model + path, body, key)

    def limit(**limits: int) -> None:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
        assert call_cli("keys", "limit", id, *options, "--state-dir", str(server.state_dir))[0] == 0

    def is_refused(response: tuple[int, Any], advice: str) -> bool:
        status, body = response
        return (status, body["error"]["code"]) == (429, "insufficient_quota") and advice in body["error"]["message"]

    limit(max_sessions=2)
    sessions = [ask("POST", "/sessions")[1]["id"] for _ in range(2)]
    assert is_refused(ask("POST", "/sessions"), "at most 2 sessions; delete some")
    assert is_refused(ask("POST", f"/sessions/{sessions[0]}/fork"), "at most 2 sessions")
    assert ask("DELETE", f"/sessions/{sessions[0]}")[0] == ask("POST", "/sessions")[0] == 200
    number = ask("POST", "/examples", {"text": TEXTS[0]})[1]["number"]
    num_bytes = quotas.get_storage(store, id).num_stored_bytes
    limit(max_stored_bytes=num_bytes + 10)
    assert is_refused(
        ask("POST", "/examples", {"text": TEXTS[1]}), f"at most {num_bytes + 10:,} bytes; delete sessions or erase"
    )
    continuation = {"prompt": "The sea", "max_tokens": 1}
    assert is_refused(ask("POST", f"/sessions/{sessions[1]}/completions", continuation), "bytes")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=3, timeout=60) as client:
        num_sent = server.log.read_text().count("POST /v1/completions")
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="story", prompt=TEXTS[1], max_tokens=1)
        assert caught.value.code == "insufficient_quota"
        wait_until(lambda: server.log.read_text().count("POST /v1/completions") > num_sent)
        assert server.log.read_text().count("POST /v1/completions") == num_sent + 1
        assert client.completions.create(model="story", prompt="x", max_tokens=1, extra_body={"learn": False}).choices
    usage = call_cli("usage", "--json", "--state-dir", str(server.state_dir))[1]
    storage_list = json.loads(usage)["storage"]
    storage = next(record for record in storage_list if record["key"] == id)
    assert (storage["num_sessions"], storage["max_sessions"], storage["max_pending_examples"]) == (2, 2, 10_000)
    assert (storage["num_stored_bytes"], storage["max_stored_bytes"]) == (num_bytes, num_bytes + 10)
    assert f"{num_bytes:,} of {num_bytes + 10:,}" in call_cli("usage", "--state-dir", str(server.state_dir))[1]
    assert ask("DELETE", f"/examples/{number}")[0] == 200
    assert quotas.get_storage(store, id).num_stored_bytes == num_bytes - len(TEXTS[0]) - 1000
    assert ask("POST", "/examples", {"text": TEXTS[1]})[0] == 200


def test_waiting_examples_of_a_shared_branch_count_for_the_key_that_sent_them(tmp_path):
    store = Store(tmp_path / "state")
    a, b = (keys.create_key(store, name, max_pending_examples=limit)[0].id for name, limit in (("a", 2), ("b", None)))
    quotas.set_default_limits(store, ServerConfig(max_pending_examples=1))
    branch = journal.open_branch(store, "story", journal.SHARED, "trained", "learner", 2.0)
    numbers = [journal.add_example(store, branch.branch, key, "text") for key in (a, a, b, "local")]
    for key in (a, b, "local"):
        with pytest.raises(quotas.QuotaExceeded, match="wait to be learned; erase some, or wait"):
            journal.add_example(store, branch.branch, key, "text")
    assert [example.number for example in journal.list_examples(store, branch.branch)] == numbers
    assert numbers[1] is not None and numbers[0] is not None
    branch_changes.erase_example(store, numbers[1], a)
    assert journal.add_example(store, branch.branch, a, "text") is not None
    journal.reject_example(store, journal.get_branch(store, branch.branch), numbers[0], None, "reason")
    assert journal.add_example(store, branch.branch, a, "text") is not None
    assert [storage.num_pending_examples for storage in quotas.list_storage(store) if storage.key == a] == [2]
