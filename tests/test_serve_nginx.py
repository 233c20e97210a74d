"""nginx in front of two server processes, with the configuration under deploy/: routing, repetition and replacement."""

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from local_nginx import NEEDS_NGINX, RunningNginx
from ontogeny.server import keys
from ontogeny.server.learning import journal
from ontogeny.server.repair import check_state
from ontogeny.server.store import Store
from serving import ClientThreads, ServerProcess, shared_run, wait_until

openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.slow, NEEDS_NGINX]
NUM_KEYS = 6
PROMPT = {"prompt": "the little", "temperature": 0, "extra_body": {"learn": False}}
PROCESS = "x-ontogeny-process"


class Cluster:
    """Two processes that share a database, nginx before them, and keys.

    Attributes:
        servers: The processes.
        key_texts: The keys, by id.
    """

    def __init__(self, folder: Any, run: Any, database: str, store: Store) -> None:
        self._folder, self._run, self._database = folder, run, database
        self.store = store
        created = [keys.create_key(store, f"key {number}") for number in range(NUM_KEYS)]
        self.key_texts = {key.id: text for key, text in created}
        self.servers = [self.start(number, ready=False) for number in range(2)]
        for number in range(2):
            self.wait(number)
        self.nginx = RunningNginx(folder / "nginx", [server.port for server in self.servers])

    def start(self, number: int, *, ready: bool = True, port: int | None = None) -> ServerProcess:
        """Starts a process."""
        models = ("--alias", f"fixed={self._run}", "--alias", f"story={self._run}", "--online", "--freeze", "fixed")
        arguments = (*models, "--process-name", f"process {number}", "--log-level", "info", "--max-forgetting", "5")
        environment = {"ONTOGENY_DATABASE_URL": self._database, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        return ServerProcess(self._folder / "state", *arguments, environment=environment, port=port, ready=ready)

    def wait(self, number: int) -> None:
        """Returns when a process answers requests."""

        def is_ready() -> bool:
            try:
                return self.servers[number].get("/ready")[0] == 200
            except OSError:
                assert self.servers[number].process.poll() is None, self.servers[number].log.read_text()
                return False

        wait_until(is_ready)

    def replace(self, number: int) -> None:
        """Replaces a process by a new one with the same port, and waits until it is ready."""
        old = self.servers[number]
        assert old.stop() == 0
        self.servers[number] = self.start(number, ready=False, port=old.port)
        self.wait(number)

    def client(self, key: str) -> Any:
        """An openai client that repeats nothing by itself."""
        text = self.key_texts[key]
        return openai.OpenAI(base_url=f"{self.nginx.url}/v1", api_key=text, max_retries=0, timeout=60)


@pytest.fixture
def cluster(tmp_path_factory, tmp_path, postgres):
    run, database = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    with Store(tmp_path / "state", database_url=database) as store:
        cluster = Cluster(tmp_path, run, database, store)
        try:
            with cluster.nginx:
                yield cluster
        finally:
            for server in cluster.servers:
                server.__exit__()


def teach(client: Any, text: str) -> int:
    """Teaches a text; returns the number of its example."""
    return client.post("/models/story/examples", body={"text": text}, cast_to=dict[str, Any])["number"]


def list_texts(cluster: Cluster, key: str) -> list[str | None]:
    """The texts that a key has taught, in order."""
    return [example.text for example in journal.list_examples(cluster.store, f"story/{key}")]


class Clients(ClientThreads):
    """Threads that use the server, one per key, until they are told to stop; each request must succeed.

    Attributes:
        errors: What was not as it should be.
        acknowledged: The texts of each key the server has confirmed.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.errors: list[str] = []
        self.acknowledged: dict[str, list[str]] = {key: [] for key in cluster.key_texts}
        self.num_answers = 0
        super().__init__(*(partial(self._use, key, number % 2 == 0) for number, key in enumerate(cluster.key_texts)))

    def _use(self, key: str, learns: bool) -> None:
        """Sends requests one after another: to the frozen model, streamed or not, and to the branch of the key."""
        client, number = self._cluster.client(key), 0
        model = "story" if learns else "fixed"

        def stream() -> None:
            parts = list(client.completions.create(model=model, stream=True, max_tokens=12, **PROMPT))
            assert parts[-1].choices[0].finish_reason is not None

        def complete() -> None:
            assert client.completions.create(model=model, max_tokens=8, **PROMPT).choices[0].text

        def teach_next() -> None:
            text = f"{key} wrote the letter {number} to the sea"
            teach(client, text)
            self.acknowledged[key].append(text)

        calls: list[Callable[[], None]] = [complete, stream] + [teach_next] * learns
        while not self._stopping.wait(0.15):
            try:
                calls[number % len(calls)]()
                self.num_answers += 1
            except Exception as error:
                self.errors.append(f"{calls[number % len(calls)].__name__}: {error!r}")
            number += 1


def find_process(cluster: Cluster, key: str) -> str:
    """The process that nginx chooses for a key."""
    headers = {"Authorization": f"Bearer {cluster.key_texts[key]}"}
    with urllib.request.urlopen(urllib.request.Request(f"{cluster.nginx.url}/v1/models", headers=headers)) as response:
        return response.headers[PROCESS]


def test_processes_are_replaced_one_by_one_under_load_without_an_error(cluster):
    chosen = {key: {find_process(cluster, key) for _ in range(5)} for key in cluster.key_texts}
    assert all(len(processes) == 1 for processes in chosen.values())  # one key, one process
    assert len(set.union(*chosen.values())) == 2
    with Clients(cluster) as clients:
        wait_until(lambda: clients.num_answers > 30)
        for number in (0, 1):
            before = clients.num_answers
            cluster.replace(number)
            wait_until(lambda before=before: clients.num_answers > before + 30)
    assert not clients.errors, clients.errors[:5]
    for key in cluster.key_texts:
        assert list_texts(cluster, key) == clients.acknowledged[key]
        if clients.acknowledged[key]:
            wait_until(
                lambda key=key: journal.num_pending(
                    cluster.store, journal.get_branch(cluster.store, f"story/{key}")
                ) == 0
            )  # fmt: skip
    for server in cluster.servers:
        assert server.stop() == 0
    assert "Traceback" not in cluster.servers[0].log.read_text()
    assert check_state(cluster.store.folder, cluster._database) == []


def test_a_request_to_a_killed_process_is_repeated_and_teaches_once(cluster):
    """nginx marks the repetition, which so finds the example of the first attempt."""
    key = next(iter(cluster.key_texts))
    client = cluster.client(key)
    first = teach(client, "the first letter")
    chosen = next(s for s in cluster.servers if find_process(cluster, key).startswith(_name(cluster, s)))
    results: list[Any] = []

    def complete() -> None:
        results.append(
            client.completions.create(model="story", prompt="a lamp that is taught once", max_tokens=400, n=8)
        )

    thread = threading.Thread(target=complete)
    thread.start()
    wait_until(lambda: len(list_texts(cluster, key)) == 2)
    os.kill(chosen.process.pid, signal.SIGKILL)  # after the text is on disk, and before the answer
    assert not results
    started_at = time.monotonic()
    thread.join(60)
    assert results and results[0].ontogeny["example"] == first + 1
    print("seconds until the answer of the other process:", time.monotonic() - started_at)
    assert list_texts(cluster, key) == ["the first letter", "a lamp that is taught once"]
    assert teach(client, "a third letter") > first + 1


def _name(cluster: Cluster, server: ServerProcess) -> str:
    """The name of a process in the header of its answers."""
    return f"process {cluster.servers.index(server)}"
