"""The kinds of run of this package: studies, described by a TOML file or registered."""

from functools import partial
from pathlib import Path

from ontogeny.runs.formats import MESA_STUDY, RECORDS_FILE, STUDY, first_object
from ontogeny.runs.kinds import Run, RunKind
from ontogeny.runs.records import read_records

COMMANDS = ("ontogeny report", "ontogeny study")


def _has_header(folder: Path, kind: str) -> bool:
    return first_object(folder / RECORDS_FILE).get("kind") == kind


def _open(folder: Path, name: str) -> Run:
    header, *records = read_records(folder / RECORDS_FILE)
    missing = set(header["planned"]) - {record["id"] for record in records}
    return Run(folder, name, header, records, "unfinished" if missing else "finished")


def _write_page(folder: Path) -> Path:
    from ontogeny import studies

    return studies.write_page(folder)


KINDS = tuple(
    RunKind(name, partial(_has_header, kind=kind), partial(_open, name=name), None, COMMANDS, _write_page)
    for name, kind in ((STUDY, "study"), (MESA_STUDY, "mesa"))
)
