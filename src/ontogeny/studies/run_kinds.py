"""The kinds of run of this package: the study that a TOML file describes, and each registered study."""

from pathlib import Path

from ontogeny.runs.folder import has_kind, read_spec
from ontogeny.runs.formats import STUDY
from ontogeny.runs.kinds import Run, RunKind
from ontogeny.runs.records import RECORDS_FILE, read_records
from ontogeny.studies.kinds import study_kinds


def _open(folder: Path) -> Run:
    description, path = read_spec(folder), folder / RECORDS_FILE
    records = read_records(path) if path.exists() else []
    is_finished = set(description.details["planned_ids"]) <= {record.get("id") for record in records}
    return Run(folder, description.kind, description.spec, records, "finished" if is_finished else "unfinished")


def _write_page(folder: Path) -> Path:
    from ontogeny import studies

    return studies.write_page(folder)


def _run_kind(name: str) -> RunKind:
    commands = ("ontogeny report", "ontogeny study")
    return RunKind(name, lambda folder: has_kind(folder, name), _open, None, commands, _write_page)


KINDS = tuple(map(_run_kind, (STUDY, *(kind.run_kind for kind in study_kinds().values()))))
