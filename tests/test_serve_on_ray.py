"""`ontogeny serve --on ray` with real clusters on this machine and a real PostgreSQL database."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ontogeny.server import keys
from ontogeny.server.learning import journal
from ontogeny.server.processes.membership import list_processes
from ontogeny.server.repair import check_state
from ontogeny.server.store import Store
from serving import ClientThreads, ServerProcess, shared_run, wait_until

openai = pytest.importorskip("openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_package("ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:os.fork:RuntimeWarning"),
]
NUM_KEYS, PASSWORD = 4, "a-password-of-the-tests"
PROMPT = {"model": "run", "prompt": "the little", "temperature": 0, "extra_body": {"learn": False}}
PROCESS = "x-ontogeny-process"


class Cluster:
    """A server on Ray, keys, and the database.

    Attributes:
        key_texts: The keys, by id.
    """

    def __init__(self, folder: Path, run: Path, database: str, store: Store, options: str = "", **environment: str):
        self.folder, self.store, self._run, self.temporary = folder, store, run, ""
        self.database = database.replace("tests@", f"tests:{PASSWORD}@")
        created = [keys.create_key(store, f"key {number}") for number in range(NUM_KEYS)]
        self.key_texts = {key.id: text for key, text in created}
        self._options, self._environment = options, environment
        self.server = self.start("first")
        try:
            wait_until(self.server.is_ready)
        except BaseException:
            self.server.__exit__()
            raise

    def start(self, name: str) -> ServerProcess:
        """Starts the command, whose address and state folder are the same each time."""
        if name != "first":
            (self.folder / name).symlink_to(self.folder / "first")
        arguments = (str(self._run), "--online", "--log-level", "info", "--process-name", name, "--on")
        environment = {"ONTOGENY_DATABASE_URL": self.database, "RAY_DEDUP_LOGS": "0"} | self._environment
        return ServerProcess(
            self.folder / name, *arguments, f"ray{self._options}", environment=environment, ready=False,
            port=None if name == "first" else self.server.port,
        )  # fmt: skip

    def client(self, key: str) -> Any:
        """An openai client, which repeats nothing by itself."""
        text, url = self.key_texts[key], f"{self.server.url}/v1"
        return openai.OpenAI(base_url=url, api_key=text, max_retries=0, timeout=60)

    def teach(self, key: str, text: str) -> int:
        """Teaches a text; returns the number of its example."""
        return self.client(key).post("/models/run/examples", body={"text": text}, cast_to=dict[str, Any])["number"]

    def owner(self, key: str) -> Any:
        """The process that owns the branch of a key."""
        branch = journal.get_branch(self.store, f"run/{key}")
        return next((process for process in list_processes(self.store) if process.number == branch.owner), None)

    def list_texts(self, key: str) -> list[str | None]:
        """The texts that a key has taught, in order."""
        return [example.text for example in journal.list_examples(self.store, f"run/{key}")]

    def wait_until_learned(self, key: str) -> None:
        """Returns when every text of a key was learned."""
        wait_until(lambda: journal.num_pending(self.store, journal.get_branch(self.store, f"run/{key}")) == 0)


@contextlib.contextmanager
def started(factory: pytest.TempPathFactory, postgres: Any, options: str = "", **environment: str):
    """Starts a server on Ray, whose temporary files are in a folder of their own."""
    folder, temporary = factory.mktemp("on-ray"), Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    run, database = shared_run(factory), postgres.address_for(folder)
    with Store(folder / "first", database_url=database) as store:
        cluster = Cluster(folder, run, database, store, options, RAY_TMPDIR=str(temporary), **environment)
        cluster.temporary = str(temporary)
        try:
            yield cluster
        finally:
            cluster.server.stop()
            secrets = [PASSWORD, *cluster.key_texts.values()]
            written = [
                path for path in temporary.rglob("*") if path.is_file() and path.suffix in (".log", ".err", ".out")
            ]
            texts = [path.read_text(errors="replace") for path in [*written, cluster.server.log]]
            shutil.rmtree(temporary, ignore_errors=True)
            assert options or written
            assert not [secret for secret in secrets for text in texts if secret in text]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, postgres):
    with started(tmp_path_factory, postgres, ":num_replicas=2") as cluster:
        for key in cluster.key_texts:
            cluster.client(key).completions.create(max_tokens=2, **PROMPT)
        yield cluster


def find_pid(url: str) -> int:
    """The process that listens at an address."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(entry[9] for entry in entries if entry[1].endswith(port) and entry[3] == "0A")
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path) == f"socket:[{inode}]":
                return int(path.parts[2])
    raise AssertionError(f"no process listens at {url}")


def test_the_openai_client_gets_answers_and_streams_in_pieces(cluster) -> None:
    key = next(iter(cluster.key_texts))
    client = cluster.client(key)
    complete = client.completions.create(max_tokens=12, **PROMPT)
    parts = list(client.completions.create(max_tokens=12, stream=True, **PROMPT))
    assert "".join(part.choices[0].text for part in parts) == complete.choices[0].text
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{cluster.server.url}/v1", api_key="og-wrong-key", max_retries=0).models.list()
    connection = http.client.HTTPConnection("127.0.0.1", cluster.server.port, timeout=60)
    body = {"model": "run", "prompt": "the", "max_tokens": 50, "n": 16, "stream": True, "learn": False}
    headers = {"Authorization": f"Bearer {cluster.key_texts[key]}", "Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.headers.get_all("date") and len(response.headers.get_all("date")) == 1
        pieces = [response.read1(), *iter(response.read1, b"")]
    assert len(pieces) > 5 and b"[DONE]" not in b"".join(pieces[:5]) and pieces[-1].endswith(b"data: [DONE]\n\n")


def test_the_end_of_a_client_ends_its_request(cluster) -> None:
    """A process logs status 499 for a request that was given up before its answer."""
    body = {"model": "run", "prompt": ["the"] * 8, "max_tokens": 60, "n": 16, "learn": False}
    headers = {"Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {next(iter(cluster.key_texts.values()))}"
    for number in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", cluster.server.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        time.sleep(0.01 * (number % 8))  # some of these times end after the request has arrived, and before its answer
        connection.close()
    wait_until(lambda: " /v1/completions 499 " in cluster.server.log.read_text())


def test_requests_of_one_key_go_to_one_process(cluster) -> None:
    """Each process logs the requests that it receives, from the ingress or from another process."""

    def num_received() -> int:
        return len(re.findall(r"ontogeny\.requests: POST /v1/completions ", cluster.server.log.read_text()))

    owners = {key: cluster.owner(key).name for key in cluster.key_texts}
    assert len(set(owners.values())) == 2  # Ray gives a new key to the replica that has fewer
    time.sleep(2)  # the lines arrive some time after the answers
    before = num_received()
    for _ in range(10):
        for key in cluster.key_texts:
            answer = cluster.client(key).completions.with_raw_response.create(max_tokens=2, **PROMPT)
            assert answer.headers[PROCESS].startswith(owners[key])
    wait_until(lambda: num_received() >= before + 10 * NUM_KEYS)
    time.sleep(2)
    num_forwarded = num_received() - before - 10 * NUM_KEYS
    print("requests that reached another process first:", num_forwarded, "of", 10 * NUM_KEYS)
    assert num_forwarded <= NUM_KEYS


def test_a_process_that_does_not_own_the_branch_answers_with_the_owner(cluster) -> None:
    key, text = next(iter(cluster.key_texts.items()))
    number = cluster.teach(key, "The lighthouse keeper wrote a letter to the sea.")
    cluster.wait_until_learned(key)
    owner, answers = cluster.owner(key), []
    for process in list_processes(cluster.store):
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key=text, max_retries=0)
        answers.append(client.completions.with_raw_response.create(max_tokens=8, **PROMPT))
    assert len(answers) == 2
    assert {answer.headers[PROCESS] for answer in answers} == {f"{owner.name} {owner.number}"}
    assert len({answer.parse().choices[0].text for answer in answers}) == 1
    assert [example.number for example in journal.list_examples(cluster.store, f"run/{key}")] == [number]


class Clients(ClientThreads):
    """Threads that teach and complete, one per key, until they are told to stop; each request must succeed.

    Attributes:
        errors: What was not as it should be.
        acknowledged: The texts of each key that the server has confirmed.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.errors: list[str] = []
        self.acknowledged = {key: cluster.list_texts(key) for key in cluster.key_texts}
        self.num_answers, self.longest = 0, 0.0
        super().__init__(*(partial(self._use, key) for key in cluster.key_texts))

    def _use(self, key: str) -> None:
        client, number = self._cluster.client(key), len(self.acknowledged[key])
        while not self._stopping.wait(0.1):
            started_at = time.monotonic()
            try:
                text = f"{key} wrote the letter {number} to the sea"
                self._cluster.teach(key, text)
                self.acknowledged[key].append(text)
                assert client.completions.create(max_tokens=4, **PROMPT).choices[0].text
            except Exception as error:
                self.errors.append(repr(error))
            self.longest = max(self.longest, time.monotonic() - started_at)
            self.num_answers, number = self.num_answers + 2, number + 1


def check_learned_once(cluster: Cluster, clients: Clients) -> None:
    """Every confirmed text was learned exactly once, in its order."""
    assert not clients.errors, clients.errors[:5]
    for key in cluster.key_texts:
        assert cluster.list_texts(key) == clients.acknowledged[key]
        cluster.wait_until_learned(key)


def test_the_branches_of_a_killed_process_are_answered_without_an_error(cluster) -> None:
    key = next(iter(cluster.key_texts))
    with Clients(cluster) as clients:
        wait_until(lambda: clients.num_answers > 20)
        before = cluster.owner(key)
        os.kill(find_pid(before.url), signal.SIGKILL)
        wait_until(lambda: cluster.owner(key) not in (None, before))
        wait_until(lambda: len(list_processes(cluster.store)) == 2)  # Ray has started another one
        num_answers = clients.num_answers
        wait_until(lambda: clients.num_answers > num_answers + 20)
    print("longest call of a client:", clients.longest)
    check_learned_once(cluster, clients)


def test_a_suspended_process_is_replaced(cluster) -> None:
    key = next(iter(cluster.key_texts))
    pid, before = find_pid(cluster.owner(key).url), cluster.owner(key)
    with Clients(cluster) as clients:
        wait_until(lambda: clients.num_answers > 20)
        os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        try:
            wait_until(lambda: cluster.owner(key) not in (None, before))
            wait_until(lambda: len(list_processes(cluster.store)) == 2)
            print("seconds until Ray has replaced the process:", time.monotonic() - stopped_at)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        num_answers = clients.num_answers
        wait_until(lambda: clients.num_answers > num_answers + 20)
    print("longest call of a client:", clients.longest)
    check_learned_once(cluster, clients)


def test_clients_do_not_notice_the_end_of_an_ingress(cluster) -> None:
    """Ray's HTTP server would answer requests at this ingress with status 500."""
    temporary = cluster.temporary.encode()

    def find_ingresses() -> list[int]:
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_own = temporary in (path / "environ").read_bytes()
                if is_own and (path / "cmdline").read_bytes().startswith(b"ray::ServeReplica:ontogeny:ingress"):
                    pids.append(int(path.name))
        return pids

    for _ in range(2):
        with Clients(cluster) as clients:
            wait_until(lambda clients=clients: clients.num_answers > 20)
            pid = find_ingresses()[0]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: len(set(find_ingresses()) - {pid}) == 2)
            num_answers = clients.num_answers
            wait_until(lambda clients=clients, number=num_answers: clients.num_answers > number + 20)
        print("longest call of a client:", clients.longest, clients.errors)
        check_learned_once(cluster, clients)


def test_a_revoked_key_is_refused_and_a_stopped_server_leaves_no_lease(cluster) -> None:
    """The last test of the cluster."""
    key = next(iter(cluster.key_texts))
    assert cluster.owner(key) is not None
    keys.revoke_key(cluster.store, key)
    time.sleep(1)
    with pytest.raises(openai.AuthenticationError):
        cluster.client(key).models.list()
    assert cluster.server.stop() == 0
    assert not list_processes(cluster.store)
    assert journal.get_branch(cluster.store, f"run/{key}").owner is None  # it was given up
    log = cluster.server.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    assert check_state(cluster.server.state_dir, cluster.database) == []


def test_a_wrong_setting_is_one_sentence_without_messages_of_ray(tmp_path, tmp_path_factory, postgres):
    run, database = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    with Store(tmp_path / "state", database_url=database) as store:
        keys.create_key(store, "anna")
    options = ("--on", "ray", "--state-dir", str(tmp_path / "state"), "--database-url", database)
    for arguments, message in (
        (("--online", "--learning", "chunk_size=0"), "chunk_size"),
        (("--online", "--freeze", "other"), "there is no deployment 'other'"),
        (("--weights", "int3"), "'weights'"),
    ):
        command = (sys.executable, "-m", "ontogeny", "serve", str(run), *arguments, *options)
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 2 and not result.stdout
        assert result.stderr.count("\n") == 1 and message in result.stderr, result.stderr


def test_a_second_command_replaces_the_processes_of_a_cluster_without_an_error(tmp_path_factory, postgres, monkeypatch):
    """Two nodes; the first command ends by itself, because the application is no longer its own."""
    from ray.cluster_utils import Cluster as RayCluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    nodes = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        with (
            started(tmp_path_factory, postgres, f":address={nodes.address}") as cluster,
            contextlib.ExitStack() as stack,
        ):
            with Clients(cluster) as clients:
                wait_until(lambda: clients.num_answers > 20)
                second = stack.enter_context(cluster.start("second"))
                wait_until(lambda: cluster.server.process.poll() is not None or second.process.poll() is not None)
                num_answers = clients.num_answers
                wait_until(lambda: clients.num_answers > num_answers + 20)
            assert cluster.server.process.wait(30) == 0, cluster.server.log.read_text()
            assert second.process.poll() is None, second.log.read_text()
            cluster.server = second
            wait_until(second.is_ready)
            assert {process.name[:6] for process in list_processes(cluster.store)} == {"second"}
            print("longest call of a client:", clients.longest)
            check_learned_once(cluster, clients)
            assert second.stop() == 0 and not list_processes(cluster.store)
    finally:
        nodes.shutdown()
