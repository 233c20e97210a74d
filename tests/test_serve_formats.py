"""Server files of the old formats, as the last commit that reads them wrote them, are rejected and stay untouched."""

import hashlib
import shutil
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.runs.formats import FORMATS, SERVER_DATABASE
from ontogeny.server.states import encode_state, read_metadata
from ontogeny.server.store import DATABASE, Store
from serving import run_command

GOLDEN = Path(__file__).parent / "golden"
OLD = GOLDEN / "old_server"  # golden/make_old_server_files.txt wrote it


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_old_database_is_rejected_by_every_command(tmp_path):
    state = tmp_path / "state"
    shutil.copytree(OLD / "state", state)
    before = digests(state)
    sentence = (
        f"ontogeny: '{state / DATABASE}' is a server database of format 2; this version reads format 3. "
        "Commit e4ec9bd is the last that reads it.\n"
    )
    for command in (
        ["keys", "list"],
        ["keys", "create", "--name", "anna"],
        ["usage"],
        ["deployments", "log", "story"],
        ["serve", str(GOLDEN / "gpt2")],
    ):
        done = run_command(*command, "--state-dir", str(state))
        assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
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
    newer.connection.execute("PRAGMA user_version=4")
    newer.close()
    with pytest.raises(BadInput, match="of format 4; this version reads format 3"):
        Store(tmp_path / "state")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / DATABASE).write_bytes(b"no database" * 100)
    with pytest.raises(BadInput, match="is damaged or is not a database of ontogeny"):
        Store(tmp_path / "foreign")
    with pytest.raises(BadInput, match="--state-dir"):
        Store(tmp_path / "absent", create=False)
