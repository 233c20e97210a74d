"""The folder of a study: one study's own, and one process's at a time. Whatever else is there keeps every byte."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ontogeny.errors import BadInput
from ontogeny.runs.files import write_bytes
from ontogeny.runs.folder import library_versions, locked
from ontogeny.stages.spec import parse_plugin_choice, user_files
from ontogeny.studies import records
from ontogeny.studies.plan import Step, as_run
from ontogeny.studies.records import Record
from ontogeny.studies.spec import Study


@contextlib.contextmanager
def claimed(out: Path, study: Study, steps: list[Step]) -> Iterator[None]:
    """Makes the folder this study's own while it runs, or says why it cannot be and leaves it as it is."""
    versions = library_versions() | {"python": ".".join(map(str, sys.version_info[:3]))}
    head: Record = {
        "id": "study",
        "kind": "study",
        "format": records.FORMAT,
        "title": study.title,
        "question": study.question,
        "seed": study.seed,
        "digest": study.digest,
        "versions": versions,
        "planned": [step.id for step in steps],
        "spec": study.text,
    }
    own = {name for row in study.agents for _, name in user_files(as_run(study, row, study.environments[0], 0))}
    own |= {Path(parse_plugin_choice(row.env).name) for row in study.environments if parse_plugin_choice(row.env).name.endswith(".py")}
    if own:
        head["files"] = {str(name): hashlib.sha256(name.read_bytes()).hexdigest() for name in sorted(own)}
    path = out / records.RECORDS_FILE
    _refuse_foreign(out, head)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder '{out}' cannot be made: {error.strerror}") from None
    with locked(out):
        _refuse_foreign(out, head)
        records.repair(path)
        if not path.exists() or not path.stat().st_size:
            records.append(path, head)
        write_bytes(out / "spec.toml", study.text.encode())
        yield


def _refuse_foreign(out: Path, head: Record) -> None:
    """Raises `BadInput` unless the folder is absent, empty, or this very study's, be it killed in its first line."""
    path = out / records.RECORDS_FILE
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"'{out}' exists and is no folder; not overwritten")
    if not path.is_file():
        if any(not other.name.startswith(".") for other in out.iterdir()):
            raise BadInput(f"'{out}' exists and holds no study; not overwritten")
        return
    try:
        with path.open("rb") as file:
            first = file.readline()
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    if not first.endswith(b"\n"):
        if not records.line(head).startswith(first):
            raise BadInput(f"'{path}' is not the records of a study; not overwritten")
        return
    try:
        there = json.loads(first)
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict) or there.get("kind") != "study":
        raise BadInput(f"'{path}' is not the records of a study; not overwritten")
    if there != json.loads(json.dumps(head)):
        differs = ", ".join(sorted(key for key in head.keys() | there.keys() if there.get(key) != head.get(key)))
        raise BadInput(f"the folder '{out}' holds another study ({differs} differ); not overwritten")
