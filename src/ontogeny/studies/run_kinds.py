"""The kinds of run of this package: the study that a TOML file describes, and each registered study."""

from pathlib import Path

from ontogeny.errors import BadInput
from ontogeny.runs.folder import RunDescription
from ontogeny.runs.formats import SPEC_FILE, STUDY
from ontogeny.runs.kinds import described_kind
from ontogeny.runs.records import Record
from ontogeny.studies.kinds import study_kinds

COMMANDS = ("ontogeny report", "ontogeny study")


def _is_finished(folder: Path, description: RunDescription, records: list[Record]) -> bool:
    """Whether every planned record exists."""
    planned_ids = description.details.get("planned_ids")
    if not isinstance(planned_ids, list):
        raise BadInput(f"'{folder / SPEC_FILE}' is damaged: it lacks the list 'planned_ids'")
    recorded_ids = [record.get("id") for record in records]
    return all(name in recorded_ids for name in planned_ids)


def _write_page(folder: Path) -> Path:
    """Write the page of a study of any kind."""
    from ontogeny import studies

    return studies.write_page(folder)


KINDS = tuple(
    described_kind(name, COMMANDS, is_finished=_is_finished, write_page=_write_page)
    for name in (STUDY, *(kind.run_kind for kind in study_kinds().values()))
)
