"""What the page on several processes tells operators to do: the first commands, and a restoration from a back-up."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from local_postgres import PostgresServer, find_program, running_postgres
from ontogeny.server import keys
from ontogeny.server.learning import journal, versions
from ontogeny.server.repair import check_state
from ontogeny.server.store import Store
from pages import DOCS, find_block
from server_group import DISCONNECTED, free_port, send_request
from serving import ServerProcess, make_run, optimized_environment, wait_until

IS_ABSENT = find_program("initdb") is None and not os.environ.get("ONTOGENY_REQUIRE_POSTGRES")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(IS_ABSENT, reason="PostgreSQL is not installed")]
PAGE = DOCS / "how-to" / "serve-many.md"
TEXTS = [f"The keeper of lighthouse {number} wrote a letter to the sea." for number in range(6)]
SCHEMA = "served"
COMPLETION = {"model": "run", "prompt": "the letter", "max_tokens": 12, "temperature": 0, "learn": False}


@pytest.fixture
def folder():
    """A folder that PostgreSQL can enter."""
    folder = Path(tempfile.mkdtemp(prefix="ontogeny-backup-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def teach(server: ServerProcess, key: str, texts: list[str]) -> list[int]:
    """Teaches texts and waits until they are learned; returns the numbers of the examples."""
    model = f"/v1/models/{server.get('/v1/models', key)[1]['data'][0]['id']}"
    added = [server.post(f"{model}/examples", {"text": text}, key) for text in texts]
    assert [status for status, _ in added] == [200] * len(texts)
    wait_until(lambda: server.get(f"{model}/branch", key)[1]["num_pending"] == 0)
    return [answer["number"] for _, answer in added]


def serve(state_dir: Path, run: Path, database: str) -> ServerProcess:
    """Starts a server that accepts every text."""
    environment = {"ONTOGENY_DATABASE_URL": database}
    return ServerProcess(state_dir, str(run), "--online", "--max-forgetting", "5", environment=environment)


def describe_versions(store: Store) -> list[tuple[str, int, str]]:
    """Branch, number and digest of all versions."""
    return [
        (branch.branch, version.number, version.digest)
        for branch in journal.list_branches(store, "run")
        for version in versions.list_versions(store, branch.branch)
    ]


def back_up(postgres: PostgresServer, target: Path) -> None:
    """Copies the files of the running server, as the page says."""
    text = find_block(PAGE, "run: back-up").replace(
        "-h localhost -U postgres", f"-h 127.0.0.1 -p {postgres.port} -U tests"
    )
    (command,) = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("pg_basebackup")]
    name, *arguments = command.replace("/backups/monday", str(target)).split()
    postgres.run_program(name, *arguments)


def restore(folder: Path, backup: Path, archive: Path, restore_time: str) -> list[str]:
    """Prepares the files of a back-up for recovery, as the page says; returns the settings of the server."""
    shutil.copytree(backup, folder / "data")
    (folder / "data" / "recovery.signal").touch()
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "postgres", str(folder)], check=True)
    (folder / "data").chmod(0o700)
    lines = find_block(PAGE, "run: recovery").replace("/archive", str(archive)).splitlines()
    settings = [line.partition("#")[0].strip() for line in lines]
    return [
        line.replace(" = ", "=", 1).replace("'", "").replace("2026-11-27 12:00:00+00", restore_time)
        for line in settings
        if line
    ]


def test_the_first_commands_of_the_page_start_two_processes(postgres, tmp_path):
    run, database = make_run(tmp_path / "runs" / "mine", num_steps=30), postgres.address_for(tmp_path)
    with Store(tmp_path / "deployments", database_url="") as store:
        _, key = keys.create_key(store, "anna")
    with ServerProcess(tmp_path / "deployments", str(run), "--online", "--max-forgetting", "5") as server:
        teach(server, key, TEXTS[:1])
        before = [version["digest"] for version in server.get("/v1/models/mine/branch/versions", key)[1]["data"]]
        assert server.stop() == 0
    text = find_block(PAGE, "run: two processes").replace("postgresql://ontogeny@localhost/ontogeny", f"'{database}'")
    move, *commands = text.splitlines()
    environment = optimized_environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    subprocess.run(move, shell=True, check=True, cwd=tmp_path, env=environment, timeout=120)
    assert len(commands) == 2
    with contextlib.ExitStack() as stack:
        urls = []
        for command in commands:
            before_port, _, port = command.removesuffix(" &").rpartition(" ")
            urls.append(f"http://127.0.0.1:{free_port()}")
            arguments = shlex.split(f"{before_port} {urls[-1].rpartition(':')[2]}")
            log = stack.enter_context((tmp_path / f"{port}.log").open("wb"))
            process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=log, stderr=log)
            stack.callback(end, process)
        for url in urls:
            wait_until(lambda url=url: answers(url))
            branch_versions = send_request(url, "GET", "/v1/models/mine/branch/versions", key=key).content["data"]
            assert [version["digest"] for version in branch_versions] == before
        status = subprocess.run(
            ["ontogeny", "deployments", "status", "--json", "--database-url", database],
            cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        processes = json.loads(status.stdout)["processes"]
        assert {process["url"] for process in processes if process["number"]} == set(urls)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process in order."""
    process.terminate()
    assert process.wait(90) == 0


def answers(url: str) -> bool:
    """Whether a server is ready."""
    try:
        return send_request(url, "GET", "/ready").status == 200
    except DISCONNECTED:
        return False


def test_a_database_is_restored_to_a_point_in_time_and_used_again(folder, tmp_path):
    run, archive, backup = make_run(tmp_path / "run", num_steps=30), folder / "archive", folder / "backup"
    archive.mkdir()
    archive.chmod(0o777)
    archiving = ["archive_mode=on", f"archive_command=cp %p {archive}/%f"]
    (folder / "first").mkdir()
    with running_postgres(folder=folder / "first", options=archiving) as postgres:
        database, port = postgres.address(SCHEMA), f":{postgres.port}/"
        with Store(tmp_path / "state", database_url=database) as store:
            _, key = keys.create_key(store, "anna", admin=True)
            with serve(tmp_path / "state", run, database) as server:
                teach(server, key, TEXTS[:2])
                back_up(postgres, backup)
                retained = teach(server, key, TEXTS[2:4])
                expected = describe_versions(store)
                answer = server.post("/v1/completions", COMPLETION, key)[1]
                restore_time = store.select_value("SELECT clock_timestamp()::text")
                lost = teach(server, key, TEXTS[4:])
                assert server.delete(f"/v1/models/run/examples/{retained[0]}", key)[0] == 200
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(60) == 0
            store.execute("SELECT pg_switch_wal()")
        postgres.stop()
    (folder / "second").mkdir()
    options = restore(folder / "second", backup, archive, restore_time)
    with running_postgres(folder=folder / "second", options=options, restores=True) as postgres:
        database = database.replace(port, f":{postgres.port}/")
        with psycopg.connect(database, autocommit=True) as connection:
            wait_until(lambda: not connection.execute("SELECT pg_is_in_recovery()").fetchone()[0])
            connection.execute(find_block(PAGE, "run: numbers"))
        check_restored(tmp_path, run, database, key, expected, answer, retained, lost)


def check_restored(tmp_path, run, database, key, expected, answer, retained, lost):
    """Checks that a restored database has the versions of the point in time and goes on from there.

    The server finds the snapshots of the time after the point, and those of an erasure are gone; another server has no
    snapshots at all and learns everything again.
    """
    for name in ("state", "empty"):
        if name == "empty":
            subprocess.run(
                [sys.executable, "-m", "ontogeny", "deployments", "use-snapshots", "--state-dir", str(tmp_path / name)],
                env=os.environ | {"ONTOGENY_DATABASE_URL": database}, check=True, timeout=120,
            )  # fmt: skip
        with serve(tmp_path / name, run, database) as server:
            wait_until(lambda server=server: server.get("/v1/models/run/branch", key)[1]["num_pending"] == 0)
            restored = server.post("/v1/completions", COMPLETION, key)[1]
            if name == "state":
                assert (restored["choices"], restored["system_fingerprint"]) == (
                    answer["choices"], answer["system_fingerprint"],
                )  # fmt: skip
                listed = server.get("/v1/models/run/examples", key)[1]["data"]
                assert [example["text"] for example in listed] == TEXTS[:4]  # with the one that was erased later
                assert server.delete(f"/v1/models/run/examples/{lost[0]}", key)[0] == 404
                (number,) = teach(server, key, ["A text after the restoration."])
                assert number > max(lost)  # no client knows it as another text
                assert server.delete(f"/v1/models/run/examples/{retained[0]}", key)[0] == 200
                wait_until(lambda server=server: server.get("/v1/models/run/branch", key)[1]["num_pending"] == 0)
            assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
        with Store(tmp_path / name, database_url=database) as store:
            if name == "state":
                assert set(expected) < set(describe_versions(store))
            assert [fault for fault in check_state(tmp_path / name, database) if "snapshot" not in fault.place] == []
