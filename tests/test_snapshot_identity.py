"""Which store of snapshots belongs to a database: all processes use the same one, however they reach it."""

import shutil
import threading
from pathlib import Path

import pytest

from local_s3 import CuttingProxy
from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.learning import versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.snapshot_stores.base import STORE_ID
from ontogeny.server.snapshot_stores.folder import FolderSnapshots
from ontogeny.server.snapshot_stores.identity import check_identity, find_identity, register_store
from ontogeny.server.store import Store
from stepping import fake_learner

RUN = Path(__file__).parent / "golden" / "llama3"


@pytest.fixture
def address(postgres, tmp_path):
    return postgres.address_for(tmp_path)


@pytest.fixture
def state(address, tmp_path):
    """A state folder whose snapshots the database has recorded, with one branch that has learned."""
    with Store(tmp_path / "state", database_url=address, snapshot_url="") as store:
        store.check_snapshots()
        fill(store)
    return tmp_path / "state"


def fill(store: Store) -> None:
    """Learns two texts, each with a snapshot."""
    branches = BranchManager(store, "story", fake_learner(), config=BranchConfig(snapshot_interval=1))
    for text in ("the first text", "the second text"):
        branches.add_example("anna", "anna", text)
    while branches.learn_next():
        pass


def check(folder: Path, address: str, snapshot_url: str = "") -> str | None:
    """What a process in this state folder would record or compare at its start."""
    with Store(folder, database_url=address, snapshot_url=snapshot_url) as store:
        store.check_snapshots()
        return find_identity(store.database) if store.database.is_shared else None


def test_a_shared_folder_may_be_reached_by_another_path(state, address, tmp_path):
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "snapshots").symlink_to(state / "snapshots")
    recorded = check(state, address)
    assert recorded is not None and check(tmp_path / "mounted", address) == recorded
    with Store(tmp_path / "mounted", database_url=address, snapshot_url="") as store:
        assert {file.name for file in store.snapshots.list_files()} == set(versions.list_snapshots(store))


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_process_with_another_folder_is_refused_with_one_sentence(state, address, call_cli, tmp_path, is_empty):
    second = FolderSnapshots(tmp_path / "other" / "snapshots")
    second.folder.mkdir(parents=True)
    if not is_empty:
        second.require_id()
    options = ("--state-dir", str(tmp_path / "other"), "--database-url", address)
    for arguments in (("serve", str(RUN)), ("deployments", "check"), ("deployments", "repair")):
        code, output, error = call_cli(*arguments, *options)
        assert code == 2 and not output and error.count("\n") == 1 and "ontogeny deployments use-snapshots" in error
    assert (second.read_id() is None) == is_empty and check(state, address)


def test_the_addresses_of_an_object_store_may_differ(s3, address, monkeypatch, tmp_path):
    proxy = CuttingProxy(s3.port)
    for name, text in s3.environment.items():
        monkeypatch.setenv(name, text)
    prefix = f"s3://snapshots/{tmp_path.name}"
    recorded = check(tmp_path / "first", address, prefix)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    assert recorded is not None and check(tmp_path / "second", address, f"{prefix}/") == recorded
    for folder, snapshot_url in (("first", f"{prefix}/longer"), ("first", "")):
        with pytest.raises(BadInput, match=f"in the store of the identity '{recorded}', but .* has none"):
            check(tmp_path / folder, address, snapshot_url)
    proxy.close()


def test_of_two_first_starts_with_different_folders_one_is_refused(address, tmp_path):
    refused, barrier = list[str](), threading.Barrier(4)

    def start(folder: Path) -> None:
        with Store(folder, database_url=address, snapshot_url="") as store:
            barrier.wait()
            try:
                register_store(store.database, store.snapshots)
            except BadInput:
                refused.append(folder.name)

    threads = [threading.Thread(target=start, args=[tmp_path / name]) for name in ("a", "b") * 2]
    check_tables = Store(tmp_path / "a", database_url=address, snapshot_url="")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refused) in (["a", "a"], ["b", "b"])
    assert len(check_tables.execute("SELECT * FROM snapshot_store")) == 1
    check_tables.close()


def test_a_database_without_a_record_gets_it_at_the_next_start(state, address):
    with Store(state, database_url=address, snapshot_url="") as store:
        with store.transaction():
            store.execute("DELETE FROM snapshot_store")
        check_identity(store.database, store.snapshots)
        assert find_identity(store.database) is None
    recorded = check(state, address)
    assert recorded == (state / "snapshots" / STORE_ID).read_text()


def test_a_restored_folder_takes_the_place_of_the_former_one(state, address, call_cli, tmp_path):
    options = ("--state-dir", str(tmp_path / "restored"), "--database-url", address)
    restored = tmp_path / "restored" / "snapshots"
    shutil.copytree(state / "snapshots", restored, ignore=shutil.ignore_patterns(STORE_ID))
    assert call_cli("deployments", "check", *options)[0] == 2
    code, output, error = call_cli("deployments", "use-snapshots", *options)
    assert code == 0 and "uses the snapshots in the folder" in output, error
    assert call_cli("deployments", "check", *options)[0] == 0
    with pytest.raises(BadInput, match="use-snapshots"):
        check(state, address)
    for path in restored.iterdir():  # all snapshots are lost
        path.unlink()
    with pytest.raises(BadInput, match="has none"):
        check(tmp_path / "restored", address)
    assert call_cli("deployments", "use-snapshots", *options)[0] == 0
    assert check(tmp_path / "restored", address) is not None


def test_the_store_of_another_database_is_not_adopted(state, address, postgres, call_cli, tmp_path):
    database = postgres.address_for(tmp_path / "another")
    with Store(tmp_path / "another", database_url=database, snapshot_url="") as store:
        store.check_snapshots()
        fill(store)
    arguments = ("use-snapshots", "--state-dir", str(tmp_path / "another"), "--database-url", address)
    code, _, error = call_cli("deployments", *arguments)
    assert code == 2 and "seems to belong to another database" in error and error.count("\n") == 1


def test_moved_states_name_their_new_store(state, address, s3, postgres, call_cli, monkeypatch, tmp_path):
    for name, text in s3.environment.items():
        monkeypatch.setenv(name, text)
    prefix, options = f"s3://snapshots/{tmp_path.name}-moved", ("--database-url", address)
    assert call_cli("deployments", "move", str(state), prefix, *options)[0] == 0
    assert check(state, address, prefix) is not None
    with pytest.raises(BadInput, match="use-snapshots"):
        check(state, address)
    assert call_cli("deployments", "move", prefix, str(state), *options)[0] == 0
    assert check(state, address) is not None
    copy, database = tmp_path / "copy", postgres.address_for(tmp_path / "moved")
    code, _, error = call_cli("deployments", "move", address, str(copy), "--state-dir", str(state))
    assert code == 0, error
    assert check(copy, "") is None and not (copy / "snapshots" / STORE_ID).exists()
    check(tmp_path / "elsewhere", database)  # a start without keys
    code, _, error = call_cli("deployments", "move", str(copy), database, "--state-dir", str(copy))
    assert code == 0, error
    assert check(copy, database) == (copy / "snapshots" / STORE_ID).read_text()
    assert check(copy, "") is None  # the source stays usable


def test_copies_of_a_folder_with_sqlite_stay_usable(call_cli, tmp_path):
    with Store(tmp_path / "state", database_url="", snapshot_url="") as store:
        store.check_snapshots()
        keys.create_key(store, "anna")
        fill(store)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    for name in ("state", "copy"):
        check(tmp_path / name, "")
        assert not (tmp_path / name / "snapshots" / STORE_ID).exists()
    assert call_cli("deployments", "use-snapshots", "--state-dir", str(tmp_path / "copy"))[0] == 0
    check(tmp_path / "copy", "")
    (tmp_path / "new" / "snapshots").mkdir(parents=True)
    (tmp_path / "new" / "snapshots" / STORE_ID).write_text("0" * 32)  # of a database in PostgreSQL
    check(tmp_path / "new", "")


def test_sqlite_with_snapshots_in_s3_is_not_started_without_their_address(s3, call_cli, monkeypatch, tmp_path):
    for name, text in s3.environment.items():
        monkeypatch.setenv(name, text)
    prefix, state = f"s3://snapshots/{tmp_path.name}-sqlite", tmp_path / "state"
    with Store(state, database_url="", snapshot_url="") as store:
        store.check_snapshots()
        keys.create_key(store, "anna")
        fill(store)
        files = set(versions.list_snapshots(store))
    assert call_cli("deployments", "move", str(state), prefix)[0] == 0
    for arguments in (("serve", str(RUN)), ("deployments", "check"), ("deployments", "repair")):
        code, output, error = call_cli(*arguments, "--state-dir", str(state))
        assert (code, output) == (2, "") and error.count("\n") == 1 and "name it with --snapshot-url or" in error
    with pytest.raises(BadInput, match=f"store of the identity '.*', but .*{prefix}-other.* has none"):
        check(state, "", f"{prefix}-other")
    with Store(state, database_url="", snapshot_url=prefix) as store:
        store.check_snapshots()
        assert set(versions.list_snapshots(store)) == {file.name for file in store.snapshots.list_files()} == files
        with store.transaction():  # as a version of the program without the record has left it
            store.execute("DELETE FROM snapshot_store")
        store.check_snapshots()
    with pytest.raises(BadInput, match="whose address is absent"):
        check(state, "")
    assert call_cli("deployments", "move", prefix, str(state))[0] == 0
    check(state, "")
    assert call_cli("deployments", "move", str(state), prefix)[0] == 0
    assert call_cli("deployments", "use-snapshots", "--state-dir", str(state))[0] == 0  # they are given up
    check(state, "")
