"""Server files of old formats: a database of format 3 or later is converted; others are rejected and stay untouched."""

import contextlib
import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.runs.folder import locked
from ontogeny.runs.formats import FORMATS, SERVER_DATABASE
from ontogeny.server import keys
from ontogeny.server.databases.sqlite import DATABASE
from ontogeny.server.keys import UsageRecord
from ontogeny.server.learning import branch_changes, journal
from ontogeny.server.states import encode_state, read_metadata
from ontogeny.server.store import Store
from server_formats import FORMAT_3, copy_as_format

pytestmark = pytest.mark.sqlite
GOLDEN = Path(__file__).parent / "golden"
OLD = GOLDEN / "old_server"  # golden/make_old_server_files.txt wrote it


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_old_database_is_rejected_by_every_command(tmp_path, call_cli):
    state = tmp_path / "state"
    shutil.copytree(OLD / "state", state)
    before = digests(state)
    sentence = (
        f"ontogeny: '{state / DATABASE}' is a server database of format 2; this version reads format 8. "
        "Commit e4ec9bd is the last that reads it.\n"
    )
    for command in (
        ["keys", "list"],
        ["keys", "create", "--name", "anna"],
        ["usage"],
        ["deployments", "log", "story"],
        ["serve", str(GOLDEN / "gpt2")],
    ):
        assert call_cli(*command, "--state-dir", str(state)) == (2, "", sentence)
    assert digests(state) == before


@pytest.mark.parametrize(
    ("name", "kind", "format_kind"),
    [
        ("branch", "branch", "branch state"),
        ("text_session", "text session", "session state"),
        ("agent_session", "agent session", "session state"),
    ],
)
def test_an_old_state_file_is_rejected(name, kind, format_kind):
    state = (OLD / f"{name}.safetensors").read_bytes()
    expected = f"'uploaded state' is a {format_kind} of format 1; this version reads format 2. Commit e4ec9bd"
    with pytest.raises(BadInput, match=expected):
        read_metadata(state, kind)


def test_a_state_of_another_kind_is_rejected():
    state = encode_state("branch", {"a": 1.0}, {})
    assert read_metadata(state, "branch")["kind"] == "branch"
    with pytest.raises(BadInput, match="not the state of a text session"):
        read_metadata(state, "text session")


def test_a_database_is_created_once_and_newer_or_foreign_ones_are_rejected(tmp_path):
    for _ in range(2):
        store = Store(tmp_path / "state")
        assert store.select_value("PRAGMA user_version") == FORMATS[SERVER_DATABASE]
        store.close()
    newer = Store(tmp_path / "state")
    newer.execute("PRAGMA user_version=9")
    newer.close()
    with pytest.raises(BadInput, match="of format 9; this version reads format 8"):
        Store(tmp_path / "state")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / DATABASE).write_bytes(b"no database" * 100)
    with pytest.raises(BadInput, match="is damaged or is not a database of ontogeny"):
        Store(tmp_path / "foreign")
    with pytest.raises(BadInput, match="name the state folder of a server"):
        Store(tmp_path / "absent", create=False)


def write_old_format(folder: Path, number: int = 3) -> str:
    """Writes a state folder of an earlier format with one row of every kind; returns the text of its key."""
    new = Store(folder.with_name("new"))
    key, text = keys.create_key(new, "anna")
    keys.add_usage(new, [UsageRecord(key.id, "story", "2026-01-01", 1, 2, 3)])
    branch = journal.open_branch(new, "story", key.id, "trained", "learner", 2.0)
    example = journal.add_example(new, branch.branch, key.id, "The sea answered: é.")
    erased = journal.add_example(new, branch.branch, key.id, "to be erased")
    assert example is not None and erased is not None
    assert journal.commit_version(new, branch, example, "digest", 2.1, 0.1, "accepted") is not None
    branch_changes.erase_example(new, erased, key.id)
    with new.transaction():
        new.insert("sessions", ("session", "story", key.id, 7, b"state", 1.0, None, None, None, 0))
    new.close()
    copy_as_format(new.folder, folder, number)
    return text


def all_records(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """The rows of all tables of format 3."""
    with contextlib.closing(sqlite3.connect(":memory:")) as old:
        old.executescript(FORMAT_3)
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        columns = {
            name: ", ".join(c[1] for c in old.execute(f"PRAGMA table_info({name})")) for (name,) in old.execute(query)
        }
    return {name: [tuple(r) for r in store.execute(f"SELECT {columns[name]} FROM {name}")] for name in columns}


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7])
def test_a_database_of_an_earlier_format_is_converted_in_place_and_keeps_everything(tmp_path, number):
    text = write_old_format(tmp_path / "state", number)
    new, store = Store(tmp_path / "new"), Store(tmp_path / "state")
    assert store.select_value("PRAGMA user_version") == FORMATS[SERVER_DATABASE]
    assert all_records(store) == all_records(new)
    key = keys.authenticate(store, text)
    assert key is not None and key.name == "anna"
    for query in (
        "SELECT * FROM storage",
        "SELECT type, name FROM sqlite_master ORDER BY name",
        "SELECT name FROM pragma_table_info('keys')",
        "SELECT kind, share FROM decisions",
    ):
        assert [tuple(r) for r in store.execute(query)] == [tuple(r) for r in new.execute(query)]
    assert journal.add_example(store, f"story/{key.id}", key.id, "Another text.") is not None
    store.close()
    assert Store(tmp_path / "state").select_value("PRAGMA user_version") == FORMATS[SERVER_DATABASE]


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7])
def test_commands_that_only_read_leave_a_database_of_an_earlier_format_as_it_is(tmp_path, call_cli, number):
    write_old_format(tmp_path / "state", number)
    before = digests(tmp_path / "state")
    for command in (["keys", "list"], ["usage"], ["deployments", "log", "story"]):
        code, output, error = call_cli(*command, "--state-dir", str(tmp_path / "state"))
        assert (code, error) == (0, "") and ("anna" in output or "learned" in output)
    assert digests(tmp_path / "state") == before


def test_a_database_of_an_earlier_format_is_not_converted_while_a_server_of_an_earlier_version_works_on_it(tmp_path):
    write_old_format(tmp_path / "state")
    with locked(tmp_path / "state"):
        with pytest.raises(BadInput, match="can be converted only while no server runs"):
            Store(tmp_path / "state")
        assert Store(tmp_path / "state", read_only=True).select_value("SELECT count(*) FROM keys") == 1
    assert Store(tmp_path / "state").select_value("PRAGMA user_version") == FORMATS[SERVER_DATABASE]
