"""The kinds of run of this package: the study that a TOML file describes, and each registered study."""

from pathlib import Path

from ontogeny.runs.folder import RunDescription
from ontogeny.runs.formats import STUDY
from ontogeny.runs.kinds import described_kind
from ontogeny.runs.records import Record
from ontogeny.studies.kinds import study_kinds

COMMANDS = ("ontogeny report", "ontogeny study")


def _is_finished(folder: Path, description: RunDescription, records: list[Record]) -> bool:
    """Whether every planned record exists."""
    return set(description.details["planned_ids"]) <= {record.get("id") for record in records}


def _write_page(folder: Path) -> Path:
    """Write the page of a study of any kind."""
    from ontogeny import studies

    return studies.write_page(folder)


KINDS = tuple(
    described_kind(name, COMMANDS, is_finished=_is_finished, write_page=_write_page)
    for name in (STUDY, *(kind.run_kind for kind in study_kinds().values()))
)
