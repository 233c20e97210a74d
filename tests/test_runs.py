"""The one run-directory layer: folders are claimed, locked and refused, records survive kills, old formats are refused,
and no other package writes, renames, locks or compares formats of run folders."""

import ast
import hashlib
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

import ontogeny
from ontogeny import cli
from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint, formats
from ontogeny.runs.files import new_folder, open_new_file, write_bytes
from ontogeny.runs.folder import LOCK_FILE, claim, locked, read_spec
from ontogeny.runs.formats import check_format
from ontogeny.runs.recorder import RunRecorder
from ontogeny.runs.records import append_record, append_timing, read_records, read_timings, repair_records

SOURCE = Path(ontogeny.__file__).parent
OLD = Path(__file__).parent / "golden" / "format_1"
GPT2 = Path(__file__).parent / "golden" / "gpt2"
KIND = formats.AGENT_RUN
STUDY = """title = "Small"
question = "Which agent scores higher?"
seed = 0
[[environments]]
name = "arms"
env = "bandit:num_arms=2,num_pulls=3"
num_tasks = 4
[[agents]]
agent = "random"
environments = ["arms"]
"""


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Files and folders


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), open_new_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "folder" / "file").read_text() == "whole"
    with pytest.raises(BadInput, match="exists; not overwritten"), new_folder(tmp_path / "folder"):
        pass


# Records


def test_an_incomplete_last_record_is_cut_off(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, {"id": 1, "text": "ü"})
    with path.open("ab") as file:
        file.write(b'{"id": 2')
    assert read_records(path) == [{"id": 1, "text": "ü"}]
    repair_records(path)
    append_record(path, {"id": 2})
    assert [record["id"] for record in read_records(path)] == [1, 2]
    repair_records(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1}\n{"id"\n', "line 2, is damaged: it is not JSON"),
        (b"[1]\n", "line 1, is damaged: it is no JSON object"),
        (b"\xff\n", "is not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_damaged_records_are_named(tmp_path, content, message):
    path = tmp_path / "records.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_records(path)


def test_timings_skip_incomplete_lines(tmp_path):
    assert list(read_timings(tmp_path)) == []
    append_timing(tmp_path, {"id": "a", "seconds": 1.5})
    with (tmp_path / "timing.jsonl").open("ab") as file:
        file.write(b'{"id"\n\xff\n[1]\n')
    append_timing(tmp_path, {"id": "b", "seconds": 2.0})
    assert [timing["id"] for timing in read_timings(tmp_path)] == ["a", "b"]


# Claimed folders


def test_a_folder_is_set_up_once_and_then_resumed(tmp_path):
    prepared = []

    def prepare(folder: Path) -> dict[str, int]:
        prepared.append(folder)
        (folder / "tokens").write_text("1 2 3")
        return {"num_tokens": 3}

    for _ in range(2):
        with claim(tmp_path / "run", KIND, {"seed": 1}, prepare=prepare, final="genome.json") as folder:
            assert (folder / "tokens").exists()
            with pytest.raises(BadInput, match="another process is working in"), locked(folder):
                pass
    assert prepared == [tmp_path / "run"]
    description = read_spec(tmp_path / "run")
    assert (description.kind, description.spec, description.details) == (KIND, {"seed": 1}, {"num_tokens": 3})
    (tmp_path / "run" / "genome.json").write_text("{}")
    with pytest.raises(BadInput, match="holds a finished run"), claim(folder, KIND, {"seed": 1}, final="genome.json"):
        pass


def test_a_set_up_that_fails_leaves_no_folder(tmp_path):
    def prepare(folder: Path) -> dict[str, int]:
        (folder / "tokens").write_text("1 2")
        raise BadInput("the text is too short")

    with pytest.raises(BadInput, match="too short"), claim(tmp_path / "run", KIND, {}, prepare=prepare):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_anything_else_is_refused_untouched(tmp_path):
    with claim(tmp_path / "run", KIND, {"seed": 1, "env": "bandit"}, files={"files/a.py": Path(__file__)}):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("text")
    before = digests(tmp_path)
    spec, files = {"seed": 1, "env": "bandit"}, {"files/a.py": Path(__file__)}
    for arguments, options, message in (
        (("other", KIND, spec), {}, "exists and holds no run"),
        (("other/notes.txt", KIND, spec), {}, "exists and is not a folder"),
        (("run", KIND, spec | {"seed": 2}), {"files": files}, r"another spec \(seed differs\)"),
        (("run", KIND, {"drives": 1}), {"files": files}, r"another spec \(drives, env, seed differ\)"),
        (
            ("run", KIND, spec),
            {"files": {"files/a.py": OLD / "study" / "spec.toml"}},
            r"another spec \(files/a.py differs\)",
        ),
        (("run", formats.STUDY, spec), {"files": files}, r"another kind of run \(agent run\)"),
        (("run", KIND, spec), {"files": files, "versions": {"jax": "0"}}, "began with jax .*; with jax 0 its"),
    ):
        name, *rest = arguments
        with pytest.raises(BadInput, match=message), claim(tmp_path / name, *rest, **options):
            pass
    assert digests(tmp_path) == before
    (tmp_path / "run" / "files" / "a.py").write_text("edited")
    with pytest.raises(BadInput, match="not the file with which the run began"):
        read_spec(tmp_path / "run")


def test_an_empty_folder_and_one_of_hidden_files_are_claimed(tmp_path):
    (tmp_path / ".hidden").write_text("")
    with claim(tmp_path, KIND, {}) as folder:
        assert {path.name for path in folder.iterdir()} == {".hidden", LOCK_FILE, "spec.json"}


def test_the_recorder_cuts_records_to_the_checkpoint(tmp_path):
    for num_lost in (2, 0):
        with claim(tmp_path / "run", KIND, {}) as folder, RunRecorder(folder, 0.0) as recorder:
            resumed = recorder.resume({"total": jnp.float32(0)})
            state, first = ({"total": jnp.float32(0)}, 1) if resumed is None else (resumed[0], resumed[1]["step"] + 1)
            for step in range(first, 6):
                state = {"total": state["total"] + step}
                recorder.append([{"step": step}])
                recorder.append_timing({"step": step})
                if step <= 5 - num_lost:
                    recorder.save(state, {"step": step}, is_last=step == 5)
    recorder_file = tmp_path / "run" / "records.jsonl"
    assert [record["step"] for record in read_records(recorder_file)] == [1, 2, 3, 4, 5]
    assert [timing["step"] for timing in read_timings(tmp_path / "run")] == [1, 2, 3, 4, 5]
    metadata = checkpoint.read_metadata(tmp_path / "run", "checkpoint")
    assert metadata["progress"] == {"step": 5}
    assert metadata["records_sha256"] == hashlib.sha256(recorder_file.read_bytes()).hexdigest()


# Old formats


def test_a_format_is_refused_in_one_sentence():
    check_format("x", KIND, formats.FORMATS[KIND])
    check_format("x", formats.SESSION_STATE, str(formats.FORMATS[formats.SESSION_STATE]))
    for number, message in (
        (1, "'x' is an agent run of format 1; this version reads format 2. Commit e4ec9bd is the last that reads it."),
        (3, "'x' is an agent run of format '3'; this version reads format 2"),
        (None, "'x' has no format number; this version reads format 2"),
    ):
        with pytest.raises(BadInput) as error:
            check_format("x", KIND, number)
        assert str(error.value).replace("'3'", "3") == message.replace("'3'", "3")


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("agent_run", "an agent run"),
        ("unfinished_agent_run", "an agent run"),
        ("deployment", "a saved deployment"),
        ("language_model_run", "a language-model run"),
        ("study", "a study"),
        ("mesa_study", "a mesa study"),
    ],
)
def test_a_folder_of_format_1_is_refused_untouched(tmp_path, monkeypatch, capsys, folder, kind):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))
    old = shutil.copytree(OLD / folder, tmp_path / "old")
    (tmp_path / "text.txt").write_text("Some text of several words.\n" * 200)
    (tmp_path / "study.toml").write_text(STUDY)
    before = digests(tmp_path)
    message = f"'{old}' is {kind} of format 1; this version reads format 2. Commit e4ec9bd is the last that reads it."
    for function in (ontogeny.load, ontogeny.open_run):
        with pytest.raises(BadInput) as error:
            function(old)
        assert str(error.value) == message
    train = ["train", "--agent", "random", "--env", "bandit", "--out", str(old)]
    for command in (
        ["evaluate", str(old)],
        ["deploy", str(old)],
        ["report", str(old)],
        ["lm", "evaluate", str(old)],
        ["lm", "generate", str(old)],
        ["lm", "export", str(old), "--out", str(tmp_path / "exported")],
        ["serve", str(old), "--state-dir", str(tmp_path / "server")],
        ["keys", "create", "--name", "mine", "--state-dir", str(old)],
        ["serve", str(GPT2), "--state-dir", str(old)],
        ["audit", "calibrate", "--num-audits", "2", "--distilled", str(old)],
        ["audit", "agent", str(old)],
        ["audit", "attribution", str(old)],
        ["audit", "behavior", str(old)],
        ["study", str(tmp_path / "study.toml"), "--out", str(old)],
        ["study", "mesa", "--out", str(old)],
        train,
        ["lm", "train", str(tmp_path / "text.txt"), "--size", "pico", "--tokenizer", "bytes", "--out", str(old)],
    ):
        monkeypatch.setattr("sys.argv", ["ontogeny", *command])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2, command
        assert capsys.readouterr().err == f"ontogeny: {message}\n", command
    assert digests(tmp_path) == before


def test_no_other_files_are_written_into_the_folder_of_a_run(tmp_path):
    with claim(tmp_path / "run", KIND, {"seed": 0}, versions={}):
        pass
    for folder in (tmp_path, tmp_path / "absent"):
        formats.refuse_run_folder(folder, "notes")
    with pytest.raises(BadInput, match="is the folder of a run; name another folder for notes"):
        formats.refuse_run_folder(tmp_path / "run", "notes")


def test_a_checkpoint_of_format_1_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"genome.json' is a checkpoint of format 1; .* e4ec9bd is the last"):
        checkpoint.load(OLD / "agent_run", "genome", ())


# The one place

WRITING_CALLS = {"write_text", "write_bytes", "touch", "rename", "truncate"}
WRITING_FUNCTIONS = {("os", name) for name in ("rename", "replace", "truncate", "link", "fdopen")} | {
    ("shutil", name) for name in ("move", "copy", "copyfile", "copytree")
}
LOCKS = {"fcntl", "filelock", "msvcrt"}
ELSEWHERE = {  # writes to places that are no run folder
    "compilation_cache.py": "repairs JAX's folder of compiled programs under JAX's own lock",
    "studies/merge.py": "copies finished developments of a part into a new folder that the run layer made",
    "studies/units.py": "locks the records of one task against a worker whose parent was killed",
    "server/databases/sqlite.py": "creates the SQLite database of a server's state folder",
    "server/recovery.py": "copies a damaged database and reads around its damaged pages",
    "audit/prequential/passes.py": "keeps what a predictor prints in temporary files",
    "server/repair.py": "keeps a copy of what was damaged in a state folder and replaces the database",
}


def violations(source: str) -> list[str]:
    """Descriptions of calls that write, rename or lock files, and of comparisons of formats."""
    descriptions = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            descriptions += _writes(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            descriptions += [f"line {node.lineno}: imports {name}" for name in modules if name.split(".")[0] in LOCKS]
        elif isinstance(node, ast.Compare) and _compares_values(node) and any(map(_is_format, ast.walk(node))):
            descriptions.append(f"line {node.lineno}: compares formats")
    return descriptions


def _writes(call: ast.Call) -> list[str]:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
    if (owner, name) in WRITING_FUNCTIONS or (isinstance(function, ast.Attribute) and name in WRITING_CALLS):
        return [f"line {call.lineno}: calls {name}"]
    if name == "open":
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = [part.value for part in arguments if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes):
            return [f"line {call.lineno}: opens a file for writing"]
    return []


def _compares_values(node: ast.Compare) -> bool:
    return not any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops)


def _is_format(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and node.value == "format") or (
        isinstance(node, ast.Name | ast.Attribute)
        and (getattr(node, "id", "") or getattr(node, "attr", "")) in ("FORMAT", "FORMATS")
    )


def modules() -> list[str]:
    paths = [path.relative_to(SOURCE) for path in sorted(SOURCE.rglob("*.py"))]
    return [path.as_posix() for path in paths if path.parts[0] != "runs"]


def test_only_the_run_layer_writes_renames_and_locks():
    violations_by_module = {
        module: descriptions
        for module in modules()
        if module not in ELSEWHERE and (descriptions := violations((SOURCE / module).read_text(encoding="utf-8")))
    }
    assert not violations_by_module


@pytest.mark.parametrize(
    "source",
    [
        "path.write_text('x')",
        "(folder / 'a').open('ab')",
        "open(path, mode='w')",
        "import os\nos.replace(a, b)",
        "import filelock",
        "from fcntl import flock",
        "if content['format'] != 2: pass",
        "if content.get('format') == FORMAT: pass",
    ],
)
def test_planted_violations_are_detected(source):
    assert violations(source)
    assert not violations("path.open('rb')\ntext.replace('w', 'a')\nopen(path)\nwrite_bytes(path, b'')")


def test_every_format_number_is_in_one_place():
    # Kinds that are as old as the renaming of all settings have had a second format since.
    assert {kind for kind, number in formats.FORMATS.items() if number == 1} == {formats.NEURAL_STUDY}
    for module in modules():
        tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                assert not any(getattr(target, "id", "") == "FORMAT" for target in node.targets), module
            if isinstance(node, ast.Dict):
                keys = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
                assert not any(
                    key == "format" and isinstance(value, ast.Constant) and isinstance(value.value, int)
                    for key, value in keys
                ), module
