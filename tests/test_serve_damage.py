"""Damage of a state folder: it is repaired or isolated, and a server that cannot go on ends."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from ontogeny.errors import BadInput, ServerFailed, StorageDamaged
from ontogeny.server import keys, repair
from ontogeny.server.config import ServerConfig
from ontogeny.server.databases.sqlite import DATABASE
from ontogeny.server.deployment_kinds import LanguageDeployment
from ontogeny.server.deployments import Deployments
from ontogeny.server.learning import branch_changes, journal, versions
from ontogeny.server.states import encode_state, read_metadata
from ontogeny.server.store import Store
from ontogeny.server.usage import UsageMeter
from serving import ServerProcess, shared_run, wait_until

pytestmark = pytest.mark.sqlite
NUM_EXAMPLES = 120
PAGE = 4096


def write_state(folder: Path) -> Store:
    """Writes a state folder with keys, two branches of many examples, snapshots and sessions."""
    store = Store(folder)
    for i in range(3):
        owner = keys.create_key(store, f"key {i}")[0].id
        branch = journal.open_branch(store, "story", owner if i else journal.SHARED, "trained", "learner", 2.0)
        state, version = b"", versions.get_version(store, branch.branch, 0)
        for number in range(NUM_EXAMPLES):
            text = f"#{number}: " + "the lighthouse keeper counted the lamps twice. " * 4
            example = journal.add_example(store, branch.branch, owner, text)
            assert example is not None
            if number < 4:
                state = encode_state("branch", {"w": np.full(8, example, np.float32)}, {})
                digest = read_metadata(state, "branch")["digest"]
                committed = journal.commit_version(store, branch, example, digest, 2.0, 0.1, "accepted")
                assert committed is not None
                version = committed
                branch = journal.get_branch(store, branch.branch)
        store.snapshots.write_as(f"snapshot-{i}", state)
        versions.add_snapshot(store, version, f"snapshot-{i}", 4)
        session = encode_state("text session", {"tokens": np.arange(300 + i, dtype=np.int32)}, {})
        with store.transaction():
            store.insert("sessions", (f"{i:024x}", "story", owner, 1, session, 1.0, None, None, None, 0))
    assert store.truncate_log()
    return store


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "original"
    write_state(folder).close()
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "state"))


def records(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """All records of a database, by table."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        tables = [record[0] for record in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Writes into the middle of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def find_page(folder: Path, text: bytes) -> int:
    """The offset of the first page that holds a text."""
    content = (folder / DATABASE).read_bytes()
    return content.index(text) // PAGE * PAGE


def check(folder: Path) -> list[repair.StateFault]:
    """What is wrong in a folder, which the check does not change."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    faults = repair.check_state(folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if not path.name.endswith(("-shm", "-wal"))} == before
    assert not (folder / f"{DATABASE}-wal").exists() or not (folder / f"{DATABASE}-wal").stat().st_size
    return faults


def test_a_sound_state_has_no_faults_and_is_not_changed_by_a_repair(folder, call_cli):
    before = records(folder)
    assert check(folder) == []
    assert repair.repair_state(folder, "test") == (None, [], [])
    assert records(folder) == before and not list(folder.glob("damaged-*"))
    code, output, _ = call_cli("deployments", "check", "--state-dir", str(folder), "--json")
    assert (code, json.loads(output)) == (0, {"faults": []})


@pytest.mark.parametrize("num_bytes", [16, 100, PAGE])
def test_a_database_with_a_damaged_header_is_recovered_whole(folder, num_bytes):
    before = records(folder)
    overwrite(folder / DATABASE, 0, b"\xa5" * num_bytes)
    with pytest.raises(BadInput, match=r"is damaged or is not a database of ontogeny.*deployments check"):
        Store(folder)
    assert [fault.problem for fault in check(folder)] == ["it is damaged: file is not a database"]
    damaged = (folder / DATABASE).read_bytes()
    result = repair.repair_state(folder, "test")
    assert result.copy is not None and (result.copy / DATABASE).read_bytes() == damaged
    assert result.losses == [] and records(folder) == before and check(folder) == []


def test_a_damaged_page_of_examples_loses_the_examples_on_it_alone(folder, call_cli):
    before = records(folder)
    offset = find_page(folder, b"#60: the lighthouse")
    page = (folder / DATABASE).read_bytes()[offset:][:PAGE]
    missing = {int(number) + 1 for number in re.findall(rb"#(\d+): the lighthouse", page)}
    overwrite(folder / DATABASE, offset, b"\xa5" * PAGE)
    with Store(folder) as store:
        with pytest.raises(StorageDamaged):
            store.check_integrity()
        with pytest.raises(StorageDamaged):
            keys.create_key(store, "bob")  # nothing is written to a database that is known to be damaged
    assert len(check(folder)) == 1
    code, output, _ = call_cli("deployments", "repair", "--state-dir", str(folder))
    assert code == 0 and output.startswith("copy of the database"), output
    after = records(folder)
    assert len(missing) > 10 and 61 in missing
    for number in missing:
        assert f"lost: the text of example {number} of 'story/shared'" in output
    assert output.count("lost: the text") == len(missing)
    assert {tuple(record) for record in after["examples"] if record[0] not in missing} == {
        tuple(record) for record in before["examples"] if record[0] not in missing
    }
    for table in ("keys", "branches", "versions", "decisions", "sessions", "sqlite_sequence"):
        assert after[table] == before[table]
    assert check(folder) == []
    with Store(folder) as store:  # what is lost can be erased, and its number is not used again
        branch_changes.erase_example(store, min(missing), "test")
        assert journal.add_example(store, "story/shared", "local", "text") == 3 * NUM_EXAMPLES + 1


def test_a_truncated_database_is_recovered_up_to_its_end(folder):
    before = records(folder)
    size = (folder / DATABASE).stat().st_size
    os.truncate(folder / DATABASE, size * 2 // 3 // PAGE * PAGE + 100)
    assert len(check(folder)) == 1
    result = repair.repair_state(folder, "test")
    after = records(folder)
    present = [record for record in after["examples"] if record[3] is not None]
    assert present and set(present) < set(before["examples"]) and after["keys"] == before["keys"]
    num_lost = sum("the text of example" in loss for loss in result.losses)
    unknown = next(int(loss.split()[0]) for loss in result.losses if loss.endswith("of unknown branches"))
    assert len(present) + num_lost + unknown == 3 * NUM_EXAMPLES
    assert after["sqlite_sequence"] == before["sqlite_sequence"] and check(folder) == []
    with Store(folder) as store:  # the current versions were learned from lost texts, but their snapshots hold them
        assert [branch.current_version for branch in journal.list_branches(store, "story")] == [4, 4, 4]


def test_a_database_that_lost_its_keys_does_not_admit_everybody(folder):
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'keys'").fetchone()[0]
    overwrite(folder / DATABASE, (root - 1) * PAGE, b"\xa5" * PAGE)
    result = repair.repair_state(folder, "test")
    assert "the records of the table keys on damaged pages" in result.losses
    with Store(folder) as store:
        assert keys.has_keys(store) and all(key.revoked_at is not None for key in keys.list_keys(store))
    assert check(folder) == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent"])
def test_damaged_snapshots_are_set_aside_and_their_versions_learned_again(folder, damage):
    path = folder / "snapshots" / "snapshot-1"
    data = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    [fault] = check(folder)
    assert "snapshot-1" in fault.place and "learns the examples again" in fault.repair
    result = repair.repair_state(folder, "test")
    assert result.losses == [] and check(folder) == [] and result.copy is not None
    assert (result.copy / "snapshot-1").exists() == (damage != "absent") and not path.exists()
    with Store(folder) as store:
        assert {branch.current_version for branch in journal.list_branches(store, "story")} == {4}


def test_a_branch_whose_version_is_lost_returns_to_the_newest_that_can_be_computed(folder, call_cli):
    with Store(folder) as store:
        name = journal.list_branches(store, "story")[0].branch
        with store.transaction():
            store.execute("DELETE FROM versions WHERE branch = ? AND number = 4", name)
        last = journal.get_branch(store, name).last_decided
    assert {fault.problem for fault in check(folder)} >= {"the current version cannot be computed"}
    result = repair.repair_state(folder, "test")
    assert f"{name}: version 3 is current; {NUM_EXAMPLES - 3} examples will be learned again" in result.actions
    assert check(folder) == []
    with Store(folder) as store:
        branch = journal.get_branch(store, name)
        example = journal.read_task(store, branch.branch).example
        assert (branch.current_version, example is not None and example.number) == (3, last)
    assert call_cli("deployments", "log", "story", "--state-dir", str(folder))[0] == 0


def test_a_damaged_session_is_set_aside(folder, call_cli):
    id = f"{1:024x}"
    with Store(folder) as store, store.transaction():
        state = store.select_value("SELECT state FROM sessions WHERE id = ?", id)
        damaged = state[:-1] + bytes([state[-1] ^ 1])
        store.execute("UPDATE sessions SET state = ? WHERE id = ?", damaged, id)
    code, output, _ = call_cli("deployments", "check", "--state-dir", str(folder))
    assert code == 1 and output.count("\n") == 1 and f"the session {id} of 'story'" in output
    result = repair.repair_state(folder, "test")
    assert result.losses == [f"the session {id} of 'story'"] and check(folder) == []
    assert result.copy is not None and (result.copy / f"session-{id}.safetensors").read_bytes() == damaged
    assert len(records(folder)["sessions"]) == 2


def test_an_interrupted_repair_is_finished(folder):
    before = records(folder)
    shutil.copy(folder / DATABASE, folder / f"{DATABASE}.recovered")
    overwrite(folder / DATABASE, 0, b"\xa5" * 16)
    with pytest.raises(BadInput):
        Store(folder)
    assert [fault.problem for fault in check(folder)] == ["its repair was interrupted"]
    repair.repair_state(folder, "test")
    assert records(folder) == before and check(folder) == []


def test_commands_refuse_a_folder_without_a_server(tmp_path, call_cli):
    for command in ("check", "repair"):
        code, _, message = call_cli("deployments", command, "--state-dir", str(tmp_path))
        assert code == 2 and "there is no server database" in message


def test_an_emptied_database_is_not_replaced_by_a_new_one_without_keys(folder):
    os.truncate(folder / DATABASE, 0)
    with pytest.raises(BadInput, match="is empty or absent, but there are snapshots"):
        Store(folder)
    (folder / DATABASE).unlink()
    with pytest.raises(BadInput, match="is empty or absent, but there are snapshots"):
        Store(folder)


@pytest.mark.parametrize("event", ["removed", "replaced", "emptied"])
def test_a_database_that_goes_while_it_is_in_use_takes_no_more_writes(folder, event):
    store = Store(folder)
    if event == "removed":
        shutil.rmtree(folder)
    elif event == "replaced":
        shutil.copy(folder / DATABASE, folder / "copy")
        os.replace(folder / "copy", folder / DATABASE)
    else:
        os.truncate(folder / DATABASE, 0)
    with pytest.raises(StorageDamaged, match=f"the file was {event}"):
        keys.create_key(store, "bob")


@pytest.mark.computes
def test_one_failed_deployment_is_isolated_and_the_server_ends_when_all_have_failed(tmp_path_factory, tmp_path):
    """A planted error: one number of one weight differs."""
    run = shared_run(tmp_path_factory)
    second_run = Path(shutil.copytree(run, tmp_path / "other"))
    config = ServerConfig(weight_check_interval=0.1)
    deployments = Deployments([("story", run), ("other", second_run)], Store(tmp_path / "state"), config)
    meter, failed = UsageMeter(deployments), threading.Event()
    deployments.on_failed = failed.set

    def damage(name: str) -> None:
        deployment = deployments.by_name[name]
        assert isinstance(deployment, LanguageDeployment)
        leaves, structure = jax.tree.flatten(deployment.model.weights)
        leaves[-1] = np.array(leaves[-1])
        leaves[-1].flat[0] = np.nextafter(leaves[-1].flat[0], np.inf)
        deployment.model = deployment.model._replace(weights=jax.tree.unflatten(structure, leaves))
        wait_until(lambda: deployment.failure)

    deployments.start()
    assert deployments.ready.wait(120)
    damage("other")
    metrics = meter.metrics().decode()
    assert 'ontogeny_deployment_available{deployment="story"} 1.0' in metrics
    assert 'ontogeny_deployment_available{deployment="other"} 0.0' in metrics
    assert deployments.by_name["story"].failure is None and not failed.is_set()
    damage("story")
    assert failed.wait(60) and isinstance(deployments.error, ServerFailed)
    assert str(deployments.error) == "; ".join(
        f"the weights of '{name}' changed after the start of the server" for name in ("story", "other")
    )
    deployments.stop()


@pytest.mark.computes
def test_a_damaged_snapshot_stops_no_key_and_a_damaged_database_ends_the_server(tmp_path_factory, tmp_path, call_cli):
    run, folder = shared_run(tmp_path_factory), tmp_path / "state"
    names = ("--alias", f"story={run}", "--alias", f"frozen={run}", "--freeze", "frozen", "--online")
    arguments = (*names, "--max-forgetting", "5", "--learning-fraction", "1")
    with Store(folder) as store:
        owners = dict(keys.create_key(store, name, admin=True) for name in ("anna", "bob"))
    texts = {key: text for key, text in ((key.id, text) for key, text in owners.items())}

    def answer(server: ServerProcess, key: str) -> list[object]:
        body = {"model": "story", "prompt": "The keeper", "max_tokens": 8, "seed": 1, "learn": False}
        status, response = server.post("/v1/completions", body, key)
        assert status == 200, response
        return response["choices"]

    with ServerProcess(folder, *arguments) as server:
        for key in texts.values():
            assert server.post("/v1/models/story/examples", {"text": "The keeper of the lamps slept."}, key)[0] == 200
            wait_until(lambda key=key: server.get("/v1/models/story/branch", key)[1]["num_pending"] == 0)
        answers = {key: answer(server, key) for key in texts.values()}
        assert server.stop() == 0
    with Store(folder) as store:
        branch = journal.get_branch(store, f"story/{next(iter(texts))}")
        version = versions.get_version(store, branch.branch, branch.current_version)
        damaged = Path(store.snapshots.path_of(str(version.snapshot)))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xa5")
    with ServerProcess(folder, *arguments) as server:
        assert {key: answer(server, key) for key in texts.values()} == answers
        assert f"the snapshot '{damaged.name}'" in server.log.read_text() and "was rebuilt" in server.log.read_text()
        assert call_cli("deployments", "check", "--state-dir", str(folder))[0] == 0  # the snapshot has been replaced
        (folder / "snapshots" / "leftover").write_bytes(b"")
        os.utime(folder / "snapshots" / "leftover", (0, 0))
        code, _, message = call_cli("deployments", "repair", "--state-dir", str(folder))
        assert code == 2 and "another process is working" in message
        overwrite(folder / DATABASE, 0, os.urandom((folder / DATABASE).stat().st_size))
        assert server.process.wait(30) == 2
        lines = [line for line in server.log.read_text().splitlines() if line.startswith("ontogeny: ")]
        assert len(lines) == 1 and "is damaged or is not a database" in lines[0]
        assert "Traceback" not in server.log.read_text()
    with ServerProcess(folder, *arguments, ready=False) as server:  # it is not started again either
        assert server.process.wait(60) == 2
