"""Stores of snapshots: a folder and an S3-compatible server over HTTP keep the same promises, also after faults."""

import os
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from local_s3 import CuttingProxy
from ontogeny import trees
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server import keys, quotas
from ontogeny.server.learning import branch_changes, journal, snapshots, versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.repair import check_branches
from ontogeny.server.learning.snapshots import MAX_RECORDING_TIME, MIN_AGE, delete_files, delete_unused
from ontogeny.server.moving import copy_snapshots
from ontogeny.server.repair import check_state
from ontogeny.server.snapshot_stores.base import SnapshotFile, SnapshotStore, UnusableSnapshot, content_key
from ontogeny.server.snapshot_stores.folder import FolderSnapshots
from ontogeny.server.snapshot_stores.objects import ObjectSnapshots
from ontogeny.server.states import encode_state
from ontogeny.server.store import Store
from serving import ServerProcess, shared_run, wait_until
from stepping import fake_learner

TEXTS = ["the first text", "the second text", "the third text", "the fourth text"]


@pytest.fixture
def proxy(s3):
    proxy = CuttingProxy(s3.port)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_address(s3, proxy, monkeypatch, tmp_path):
    """A new prefix of a bucket, which is reached through a proxy."""
    for name, text in (s3.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}).items():
        monkeypatch.setenv(name, text)
    return f"s3://snapshots/{tmp_path.name}"


@pytest.fixture(params=["folder", "s3"])
def files(request, tmp_path) -> SnapshotStore:
    if request.param == "s3":
        return ObjectSnapshots(request.getfixturevalue("s3_address"))
    folder = FolderSnapshots(tmp_path / "snapshots")
    folder.create()
    return folder


@pytest.fixture
def overwrite(files, request, tmp_path):
    """Writes other bytes in the place of a file, without the program."""

    def write(name: str, content: bytes) -> None:
        if isinstance(files, FolderSnapshots):
            (files.folder / name).write_bytes(content)
        else:
            request.getfixturevalue("s3").write(f"{tmp_path.name}/{name}", content)

    return write


@pytest.fixture
def store(s3_address, tmp_path):
    with Store(tmp_path / "state", database_url="", snapshot_url=s3_address) as store:
        yield store


@pytest.fixture
def branches(store):
    return BranchManager(store, "story", fake_learner(), config=BranchConfig(snapshot_interval=1, max_snapshots=2))


def learn(branches: BranchManager, owner: str, *texts: str) -> list[int]:
    numbers = [branches.add_example(owner, owner, text) or 0 for text in texts]
    while branches.learn_next():
        pass
    return numbers


def reopen(branches: BranchManager) -> BranchManager:
    """The branches as another process of the same server reads them."""
    return BranchManager(branches.store, "story", branches.learner, config=branches.config)


def names_of(files: SnapshotStore) -> set[str]:
    return {file.name for file in files.list_files()}


def foreign_state(branches: BranchManager, folder: Path) -> bytes:
    """An export of a server of the same model, whose versions this server does not know."""
    with Store(folder, database_url="", snapshot_url="") as store:
        elsewhere = BranchManager(store, "story", branches.learner)
        learn(elsewhere, "carl", "a text that no other server received")
        return elsewhere.export("carl")


def test_files_are_written_read_listed_and_deleted(files):
    start = time.time()
    contents = [b"", b"one", os.urandom(3_000_000)]
    written = {files.write(content): content for content in contents}
    assert files.write(b"one") not in written  # a name is used once
    for name, content in written.items():
        assert files.read(name) == content and files.holds(name) and name.startswith(content_key(content))
        assert files.num_bytes(name) == files.stored_bytes(name) == len(content)
        assert name in files.path_of(name)
    listed = {file.name: file for file in files.list_files()}
    assert listed.keys() > written.keys() and len(listed) == 4
    for file in listed.values():
        assert file.num_bytes == files.stored_bytes(file.name) and start - 2 <= file.written_at <= time.time() + 2
    files.check()
    files.delete(list(written))
    files.delete(list(written))
    assert names_of(files) == listed.keys() - written.keys()
    for name in written:
        assert not files.holds(name) and files.stored_bytes(name) is None
        with pytest.raises(UnusableSnapshot) as error:
            files.read(name)
        assert error.value.is_lost


def test_files_in_several_parts_are_equal(files, monkeypatch):
    monkeypatch.setattr("ontogeny.server.snapshot_stores.objects.PART_SIZE", 5 * 2**20)  # the least that S3 permits
    content = os.urandom(12_000_000)
    assert files.read(files.write(content)) == content


def test_files_of_earlier_versions_stay_readable(files):
    files.write_as("story-anna-0123456789abcdef.safetensors", b"weights")
    assert files.read("story-anna-0123456789abcdef.safetensors") == b"weights"
    assert files.num_bytes("story-anna-0123456789abcdef.safetensors") == 7
    assert files.num_bytes("absent") == 0 and not files.holds("absent")


def test_damaged_files_are_detected_by_their_names(files, overwrite):
    content = os.urandom(1000) + b"\x5a"
    name = files.write(content)
    for damaged in (content[:-1], content[:-1] + b"\xa5", b""):
        overwrite(name, damaged)
        with pytest.raises(UnusableSnapshot, match="digest in its name") as error:
            files.read(name)
        assert error.value.is_lost


def test_a_truncated_file_of_several_parts_is_damaged(files, overwrite, monkeypatch):
    monkeypatch.setattr("ontogeny.server.snapshot_stores.objects.PART_SIZE", 5 * 2**20)
    name = files.write(os.urandom(12_000_000))
    overwrite(name, os.urandom(6_000_000))
    with pytest.raises(UnusableSnapshot, match="digest in its name"):
        files.read(name)


def test_equal_states_are_equal_bytes():
    weights = {"w": np.ones(3, np.float32)}
    metadata = {"deployment": "story", "origin": "Zoë", "trained_digest": "x"}
    assert len({encode_state("branch", weights, metadata) for _ in range(20)}) == 1


@pytest.mark.parametrize("max_bytes", [0, 500_000])
def test_a_store_that_cannot_be_reached_in_the_middle_of_a_write_leaves_no_file(s3_address, proxy, max_bytes):
    files, content = ObjectSnapshots(s3_address), os.urandom(3_000_000)
    files.check()
    proxy.max_bytes = max_bytes
    with pytest.raises(StorageUnavailable, match="cannot be written") as error:
        files.write(content)
    assert "\n" not in str(error.value)
    proxy.max_bytes = None
    assert names_of(files) == set()
    assert files.read(files.write(content)) == content


def test_an_unreachable_store_loses_no_file(s3_address, proxy):
    files = ObjectSnapshots(s3_address)
    name = files.write(b"weights")
    proxy.max_bytes = 0
    reads = (files.read, files.stored_bytes, lambda name: files.delete([name]), lambda _: list(files.list_files()))
    for read in reads:
        with pytest.raises(StorageUnavailable):
            read(name)
    with pytest.raises(BadInput, match="cannot be listed"):
        files.check()
    proxy.max_bytes = None
    assert files.read(name) == b"weights"


def test_foreign_objects_are_left_alone(store, s3, tmp_path):
    """Those of another database with a longer prefix, and those that are no snapshots."""
    for name in ("staging/a.safetensors", "notes.txt", "mine.safetensors"):
        s3.write(f"{tmp_path.name}/{name}", b"content")
    assert names_of(store.snapshots) == {"mine.safetensors"}
    assert delete_unused(store, min_age=0.0) == 1
    nested = ObjectSnapshots(f"{store.snapshots.path_of('staging')}")
    assert names_of(nested) == {"a.safetensors"}


def test_an_absent_bucket_is_no_lost_file(s3_address):
    files = ObjectSnapshots("s3://absent-bucket/x")
    with pytest.raises(BadInput, match="there is no bucket 'absent-bucket'"):
        files.check()
    for call in (files.read, files.stored_bytes, files.num_bytes):
        with pytest.raises(StorageUnavailable, match="there is no bucket"):
            call("absent")


@pytest.mark.parametrize("address", ["s3:/x/y", "https://bucket/x", "s3://", "s3://Bucket_1/x", "bucket"])
def test_unusable_addresses_are_one_sentence(address, tmp_path):
    with pytest.raises(BadInput, match="must have the form s3://BUCKET/PREFIX"):
        Store(tmp_path / "state", database_url="", snapshot_url=address)
    assert not (tmp_path / "state").exists()


def test_profiles_of_aws_are_used(s3, s3_address, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    path.write_text("[mine]\naws_access_key_id = tests\naws_secret_access_key = tests\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    files = ObjectSnapshots(s3_address)
    assert files.read(files.write(b"weights")) == b"weights"
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(BadInput, match="absent"):
        ObjectSnapshots(s3_address).check()


def test_branches_learn_and_are_read_again(branches, store):
    learn(branches, "anna", *TEXTS)
    weights = branches.current("anna").weights
    assert names_of(store.snapshots) > set(versions.list_snapshots(store))  # surplus files wait for an hour
    assert delete_unused(store) == 0
    assert delete_unused(store, min_age=0.0) == 2
    assert names_of(store.snapshots) == set(versions.list_snapshots(store))
    assert not (store.folder / "snapshots").exists()
    assert trees.bitwise_equal(reopen(branches).current("anna").weights, weights)
    assert all(not check.damaged for check in check_branches(store, "story"))


def test_a_damaged_object_is_computed_again(branches, store, s3, tmp_path):
    learn(branches, "anna", *TEXTS)
    weights = branches.current("anna").weights
    version = versions.get_version(store, "story/anna", 4)
    s3.write(f"{tmp_path.name}/{version.snapshot}", b"damaged")
    [check] = [check for check in check_branches(store, "story") if check.damaged]
    assert check.is_available and "digest in its name" in check.damaged[0][1]
    assert trees.bitwise_equal(reopen(branches).current("anna").weights, weights)
    assert versions.get_version(store, "story/anna", 4).snapshot not in (None, version.snapshot)
    assert not any(check.damaged for check in check_branches(store, "story"))


def test_a_damaged_object_is_not_shared(branches, store, s3, tmp_path):
    learn(branches, "anna", TEXTS[0])
    restored = branches.restore("anna", branches.export("anna"), "test")
    branch_changes.rollback(store, "story/anna", 1, "test")
    assert versions.get_version(store, "story/anna", 1).snapshot == restored.snapshot
    s3.write(f"{tmp_path.name}/{restored.snapshot}", b"damaged")
    weights = branches.current("anna").weights
    assert trees.bitwise_equal(reopen(branches).current("anna").weights, weights)
    assert store.snapshots.read(str(versions.get_version(store, "story/anna", 1).snapshot))


def test_learning_goes_on_while_the_store_is_unreachable(branches, store, proxy, tmp_path):
    learn(branches, "anna", TEXTS[0])
    state = foreign_state(branches, tmp_path / "elsewhere")
    proxy.max_bytes = 0
    learn(branches, "anna", *TEXTS[1:])
    weights = branches.current("anna").weights
    assert versions.get_version(store, "story/anna", 4).snapshot is None
    with pytest.raises(StorageUnavailable):
        branches.restore("bob", state, "test")
    assert journal.get_branch(store, "story/bob").current_version == 0
    with pytest.raises(StorageUnavailable):  # 503, not a long computation
        reopen(branches).current("anna")
    proxy.max_bytes = None
    assert trees.bitwise_equal(reopen(branches).current("anna").weights, weights)
    assert branches.restore("bob", state, "test").number == 1
    assert store.snapshots.holds(str(versions.get_version(store, "story/bob", 1).snapshot))


def test_versions_of_equal_content_share_a_file_until_the_last_is_erased(branches, store):
    [number] = learn(branches, "anna", TEXTS[0])
    learn(branches, "bob", TEXTS[1])
    fork = branches.fork("bob", "carl", "test")
    [shared] = {v.snapshot for v in versions.list_versions(store, "story/bob") if v.snapshot}
    assert fork.snapshot == shared and len(names_of(store.snapshots)) == 2
    branches.erase_example(number, "test")  # of another branch
    assert names_of(store.snapshots) == {shared}  # at once, although the file is young
    assert not versions.get_version(store, "story/anna", 1).snapshot
    branch_changes.rollback(store, "story/bob", 0, "test")
    with store.transaction():
        versions.forget_snapshot(store, versions.get_version(store, "story/bob", 1))
    assert delete_unused(store, min_age=0.0) == 0
    assert trees.bitwise_equal(reopen(branches).current("carl").weights, branches.current("carl").weights)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_unused_files_are_deleted_in_pages(files, database, request, monkeypatch, tmp_path):
    """No step has more than a page of names in memory, and no file in use is deleted."""
    address = request.getfixturevalue("postgres").address_for(tmp_path) if database == "postgres" else ""
    monkeypatch.setattr(snapshots, "PAGE_SIZE", 3)
    monkeypatch.setattr(versions, "PAGE_SIZE", 2)
    with Store(tmp_path / "state", database_url=address, snapshot_url="") as store:
        monkeypatch.setattr(store, "snapshots", files)
        config = BranchConfig(snapshot_interval=1, max_snapshots=9)
        learn(BranchManager(store, "story", fake_learner(), config=config), "anna", *TEXTS, "the fifth text")
        used, unused = names_of(files), {files.write(str(i).encode()) for i in range(7)}
        assert list(versions.list_snapshots(store)) == sorted(used) and len(used) == 5
        listing, deletion, num_listed = type(files).list_files, type(files).delete, [0]
        deleted = list[set[str]]()

        def list_files(self: SnapshotStore):
            for file in listing(self):
                num_listed[0] += 1
                yield file

        def delete(self: SnapshotStore, names: set[str]) -> None:
            deleted.append(set(names))
            assert num_listed[0] <= 3 * len(deleted)
            deletion(self, names)

        monkeypatch.setattr(type(files), "list_files", list_files)
        monkeypatch.setattr(type(files), "delete", delete)
        assert delete_unused(store, min_age=0.0) == 7
        assert set().union(*deleted) == unused and len(deleted) == 4 == -(-num_listed[0] // 3)
        assert names_of(files) == used


def test_an_erasure_that_the_store_prevents_is_finished_later(branches, store, proxy):
    [number, _] = learn(branches, "anna", *TEXTS[:2])
    proxy.max_bytes = 0
    branches.erase_example(number, "test")
    assert branch_changes.list_unfinished_erasures(store, "story")
    proxy.max_bytes = None
    erased = {str(version.snapshot) for version in branch_changes.list_erased_snapshots(store)}
    assert erased and erased <= names_of(store.snapshots)
    reopen(branches).finish_erasures()
    assert not branch_changes.list_unfinished_erasures(store, "story")
    assert not erased & names_of(store.snapshots) and not branch_changes.list_erased_snapshots(store)


def test_a_file_whose_version_was_erased_meanwhile_is_deleted_at_once(branches, store, monkeypatch):
    """An erasure between the write and the record of a snapshot."""
    branches.config = branches.config
    [number] = learn(branches, "anna", TEXTS[0])
    loaded = branches.current("anna")
    with store.transaction():
        versions.forget_snapshot(store, versions.get_version(store, "story/anna", 1))
    delete_unused(store, min_age=0.0)
    write = store.write_snapshot

    def write_and_erase(content: bytes) -> str:
        file = write(content)
        monkeypatch.setattr(store, "write_snapshot", write)
        branches.erase_example(number, "test")
        return file

    monkeypatch.setattr(store, "write_snapshot", write_and_erase)
    branches.snapshots.save(loaded)
    assert names_of(store.snapshots) == set()


def age(files: SnapshotStore, monkeypatch, seconds: float) -> None:
    """Makes all files appear older."""
    listing = type(files).list_files

    def list_files(self: SnapshotStore):
        for file in listing(self):
            yield SnapshotFile(file.name, file.num_bytes, file.written_at - seconds)

    monkeypatch.setattr(type(files), "list_files", list_files)


def test_unused_files_are_deleted_after_an_hour_and_used_ones_never(branches, store, monkeypatch):
    learn(branches, "anna", *TEXTS)
    leftover = store.write_snapshot(b"what a crash has left")
    used = set(versions.list_snapshots(store))
    assert delete_unused(store) == 0 and check_state(store.folder, "", store.snapshots.path_of("")[:-1]) == []
    age(store.snapshots, monkeypatch, MIN_AGE - 60)
    assert delete_unused(store) == 0
    age(store.snapshots, monkeypatch, MIN_AGE + 120)  # `check` names what a server has not deleted for another hour
    faults = check_state(store.folder, "", store.snapshots.path_of("")[:-1])
    assert [fault.place for fault in faults if leftover in fault.place]
    assert delete_unused(store) >= 1
    assert names_of(store.snapshots) == used


def test_an_upload_of_content_that_a_collector_deletes_is_safe(branches, store, monkeypatch, tmp_path):
    """The collector has decided to delete a file when the same content is uploaded, and is suspended until it has been
    recorded; it has also decided before a file of the same content is shared."""
    state = foreign_state(branches, tmp_path / "elsewhere")
    first = branches.restore("anna", state, "test")
    branch_changes.rollback(store, "story/anna", 0, "test")
    with store.transaction():
        versions.forget_snapshot(store, first)
    delete, uploaded = store.snapshots.delete, []

    def upload_and_delete(names):
        monkeypatch.setattr(store.snapshots, "delete", delete)
        uploaded.append(branches.restore("anna", state, "test"))
        delete(names)

    monkeypatch.setattr(store.snapshots, "delete", upload_and_delete)
    assert delete_unused(store, min_age=0.0) == 1
    assert uploaded[0].snapshot != first.snapshot and names_of(store.snapshots) == {uploaded[0].snapshot}
    assert reopen(branches).current("anna").version == uploaded[0]


def test_a_version_does_not_share_a_file_that_is_forgotten_meanwhile(branches, store, monkeypatch, tmp_path):
    state = foreign_state(branches, tmp_path / "elsewhere")
    first = branches.restore("anna", state, "test")
    is_intact = branches.snapshots._is_intact

    def forget_after_the_comparison(file: str) -> bool:
        assert is_intact(file)
        monkeypatch.setattr(branches.snapshots, "_is_intact", is_intact)
        with store.transaction():
            versions.forget_snapshot(store, first)
        assert delete_files(store, [str(first.snapshot)]) == 1
        return True

    monkeypatch.setattr(branches.snapshots, "_is_intact", forget_after_the_comparison)
    second = branches.restore("anna", state, "test")
    assert names_of(store.snapshots) == {second.snapshot} and second.snapshot != first.snapshot
    assert reopen(branches).current("anna").version == second


def test_a_process_that_was_suspended_after_its_write_records_nothing(branches, store, monkeypatch, tmp_path):
    state, write = foreign_state(branches, tmp_path / "elsewhere"), store.write_snapshot
    clock, skipped = time.clock_gettime, [0.0]

    def write_and_sleep(content: bytes) -> str:
        if not skipped[0]:
            skipped[0] = MAX_RECORDING_TIME + 1
        return write(content)

    monkeypatch.setattr(store, "write_snapshot", write_and_sleep)
    monkeypatch.setattr(snapshots.time, "clock_gettime", lambda kind: clock(kind) + skipped[0])
    version = branches.restore("anna", state, "test")
    assert version.number == 1 and len(names_of(store.snapshots)) == 2
    assert delete_unused(store, min_age=0.0) == 1  # the first file, which nothing refers to
    assert reopen(branches).current("anna").version == version


def test_a_rejected_state_leaves_no_file(branches, store, monkeypatch, tmp_path):
    state = foreign_state(branches, tmp_path / "elsewhere")
    monkeypatch.setattr(quotas, "check", partial(_reject, "the key may store no more"))
    with pytest.raises(BadInput, match="may store no more"):
        branches.restore("anna", state, "test")
    assert names_of(store.snapshots) == set() == set(versions.list_snapshots(store))


def _reject(reason: str, *_: object) -> None:
    raise BadInput(reason)


def test_the_size_of_an_upload_counts_without_a_request(branches, store, proxy, tmp_path):
    version = branches.restore("anna", foreign_state(branches, tmp_path / "elsewhere"), "test")
    size = store.snapshots.stored_bytes(str(version.snapshot))
    proxy.max_bytes = 0
    assert quotas.get_storage(store, "anna").num_stored_bytes == size


def test_a_server_refuses_the_files_of_another_database(branches, store, s3_address, tmp_path):
    learn(branches, "anna", TEXTS[0])
    store.check_snapshots()
    with (
        Store(tmp_path / "other", database_url="", snapshot_url=s3_address) as second,
        pytest.raises(BadInput, match="every database needs a store of its own"),
    ):
        second.check_snapshots()


def test_snapshots_are_copied_and_an_interrupted_copy_goes_on(branches, store, s3, proxy, tmp_path):
    learn(branches, "anna", *TEXTS)
    learn(branches, "bob", *TEXTS[:2])
    folder = FolderSnapshots(tmp_path / "copy")
    folder.create()
    names = sorted(versions.list_snapshots(store))
    assert copy_snapshots(store, store.snapshots, folder) == len(names) == 4
    assert names_of(folder) == set(names)
    (folder.folder / names[0]).write_bytes(b"truncated")
    (folder.folder / names[1]).unlink()
    s3.delete(f"{tmp_path.name}/{names[2]}")  # it is copied already
    copy_snapshots(store, store.snapshots, folder)
    assert all(folder.read(name) for name in names)
    copy_snapshots(store, folder, store.snapshots)
    assert all(store.snapshots.read(name) == folder.read(name) for name in names)
    (folder.folder / names[0]).unlink()
    s3.delete(f"{tmp_path.name}/{names[0]}")
    with pytest.raises(BadInput, match="cannot be copied: it is absent"):
        copy_snapshots(store, store.snapshots, folder)


def test_commands_name_the_store(s3_address, call_cli, tmp_path, monkeypatch):
    state, options = tmp_path / "state", ("--state-dir", str(tmp_path / "state"))
    with Store(state, database_url="", snapshot_url="") as store:
        keys.create_key(store, "anna")
        branches = BranchManager(store, "story", fake_learner(), config=BranchConfig(snapshot_interval=1))
        learn(branches, "anna", *TEXTS[:2])
    code, output, error = call_cli("deployments", "move", str(state), s3_address)
    assert (code, output) == (0, f"2 snapshots copied to '{s3_address}'\n"), error
    for path in (state / "snapshots").iterdir():
        path.unlink()
    for command in ("check", "repair"):  # as if the address had been forgotten
        code, _, error = call_cli("deployments", command, *options)
        assert code == 2 and "whose address is absent" in error
    assert call_cli("deployments", "check", *options, "--snapshot-url", s3_address)[0] == 0
    monkeypatch.setenv("ONTOGENY_SNAPSHOT_URL", s3_address)
    assert call_cli("deployments", "check", *options)[0] == 0
    assert call_cli("deployments", "repair", *options)[:2] == (0, "no damage found\n")
    assert call_cli("deployments", "move", s3_address, str(state))[0] == 0
    monkeypatch.delenv("ONTOGENY_SNAPSHOT_URL")
    assert call_cli("deployments", "check", *options)[0] == 0
    for path in (state / "snapshots").iterdir():
        path.unlink()
    assert call_cli("deployments", "check", *options)[0] == 1
    code, _, error = call_cli("deployments", "repair", *options)
    assert code == 2 and "has none of the 2 snapshots that versions refer to" in error
    code, output, _ = call_cli("deployments", "repair", *options, "--lost-snapshots")
    assert code == 0 and "set aside" in output and "nothing is lost" in output
    for arguments, message in (
        (("check", *options, "--snapshot-url", "s3://absent-bucket/x"), "there is no bucket 'absent-bucket'"),
        (("check", *options, "--snapshot-url", "s3://key:secret@bucket/x"), "command lines are visible to others"),
        (("move", str(state), "s3://absent-bucket/x"), "there is no bucket 'absent-bucket'"),
        (("move", s3_address, s3_address), "name one state folder"),
    ):
        code, _, error = call_cli("deployments", *arguments)
        assert code == 2 and message in error and error.count("\n") == 1 and "secret" not in error


def test_a_state_is_moved_into_a_database_and_a_store(s3_address, postgres, proxy, call_cli, tmp_path, monkeypatch):
    """The first attempt is cut off after some of the snapshots."""
    address, write = postgres.address_for(tmp_path), ObjectSnapshots.write_as
    with Store(tmp_path / "state", database_url="", snapshot_url="") as store:
        branches = BranchManager(store, "story", fake_learner(), config=BranchConfig(snapshot_interval=1))
        learn(branches, "anna", *TEXTS)
        digests = [version.digest for version in versions.list_versions(store, "story/anna")]

    def write_until_the_store_is_gone(self: ObjectSnapshots, name: str, content: bytes) -> None:
        proxy.max_bytes = 0 if len(names_of(self)) == 2 else None
        write(self, name, content)

    monkeypatch.setattr(ObjectSnapshots, "write_as", write_until_the_store_is_gone)
    arguments = (str(tmp_path / "state"), address, "--state-dir", str(tmp_path / "own"), "--snapshot-url", s3_address)
    code, _, error = call_cli("deployments", "move", *arguments)
    assert code == 2 and "cannot be written" in error
    proxy.max_bytes = None
    monkeypatch.setattr(ObjectSnapshots, "write_as", write)
    assert len(names_of(ObjectSnapshots(s3_address))) == 2
    code, output, error = call_cli("deployments", "move", *arguments)
    assert code == 0 and "4 snapshots copied" in output, error
    with Store(tmp_path / "own", create=False, database_url=address, snapshot_url=s3_address) as copied:
        assert [version.digest for version in versions.list_versions(copied, "story/anna")] == digests
        assert names_of(copied.snapshots) == set(versions.list_snapshots(copied))
        assert all(not check.damaged for check in check_branches(copied, "story"))
    back = (address, str(tmp_path / "back"), "--state-dir", str(tmp_path / "own"), "--snapshot-url", s3_address)
    assert call_cli("deployments", "move", *back)[0] == 0
    with Store(tmp_path / "back", create=False, database_url="", snapshot_url="") as store:
        assert all(not check.damaged for check in check_branches(store, "story"))


def test_a_version_keeps_the_file_that_another_one_is_about_to_share(s3_address, postgres, tmp_path):
    """In PostgreSQL, transactions of two branches run at the same time."""
    address = postgres.address_for(tmp_path)
    with Store(tmp_path / "state", database_url=address, snapshot_url=s3_address) as store:
        branches = BranchManager(store, "story", fake_learner(), config=BranchConfig(snapshot_interval=1))
        learn(branches, "anna", TEXTS[0])
        version = versions.get_version(store, "story/anna", 1)
        is_forgotten = threading.Event()

        def forget() -> None:
            with store.transaction("story/anna"):
                versions.forget_snapshot(store, version)
            is_forgotten.set()

        with store.transaction("story/bob"):
            assert versions.uses_snapshot(store, version)
            thread = threading.Thread(target=forget)
            thread.start()
            assert not is_forgotten.wait(0.3)
        thread.join()
        assert not versions.uses_snapshot(store, version)


@pytest.mark.slow
@pytest.mark.computes
def test_processes_share_the_snapshots_in_a_store(s3, s3_address, proxy, postgres, tmp_path_factory, tmp_path):
    """A state that was uploaded to a process which is then killed answers requests to another one."""
    run, database = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    environment = {name: os.environ[name] for name in s3.environment}  # through the proxy
    environment |= {"ONTOGENY_DATABASE_URL": database, "ONTOGENY_SNAPSHOT_URL": s3_address}
    with Store(tmp_path / "own", database_url=database, snapshot_url=s3_address) as store:
        key = keys.create_key(store, "anna", admin=True)[1]
    body = {"model": "run", "prompt": "The keeper", "max_tokens": 8, "seed": 1, "learn": False}
    text = "The keeper of the lamps slept, and the sea answered. " * 8
    with ServerProcess(tmp_path / "elsewhere", str(run), "--online") as server:
        assert server.post("/v1/models/run/examples", {"text": text})[0] == 200
        wait_until(lambda: server.get("/v1/models/run/branch")[1]["num_pending"] == 0)
        state, expected = server.get("/v1/models/run/branch/state")[1], server.post("/v1/completions", body)[1]
    arguments = (str(run), "--online", "--process-name")
    with (
        ServerProcess(tmp_path / "first", *arguments, "first", environment=environment) as first,
        ServerProcess(tmp_path / "second", *arguments, "second", environment=environment) as second,
    ):
        proxy.max_bytes = 0
        status, answer = first.put("/v1/models/run/branch/state", state, key)
        assert (status, answer["error"]["code"]) == (503, "storage_unavailable")
        assert first.post("/v1/completions", body, key)[0] == 200
        proxy.max_bytes = None
        status, version = first.put("/v1/models/run/branch/state", state, key)
        assert status == 200, version
        first.process.kill()
        status, answer = second.post("/v1/completions", body, key)
        assert status == 200 and answer["choices"] == expected["choices"], answer
        assert version["snapshot"] in names_of(ObjectSnapshots(s3_address))
        assert second.stop() == 0
        assert "rebuilt" not in second.log.read_text()
    assert not (tmp_path / "second" / "snapshots").exists()
    absent = environment | {"ONTOGENY_SNAPSHOT_URL": "s3://absent-bucket/x"}
    with ServerProcess(tmp_path / "third", str(run), ready=False, environment=absent) as third:
        assert third.process.wait(60) == 2
        assert third.log.read_text().count("\n") == 1 and "there is no bucket 'absent-bucket'" in third.log.read_text()
