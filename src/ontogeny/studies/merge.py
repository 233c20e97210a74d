"""Merges the parts of a study into one folder, which is that of the undivided study."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.errors import BadInput, StudyIncomplete
from ontogeny.report.formatting import pluralize
from ontogeny.runs import checkpoint
from ontogeny.runs.files import new_folder, write_bytes
from ontogeny.runs.folder import RunDescription, read_spec
from ontogeny.runs.formats import SPEC_FILE, STUDY
from ontogeny.runs.records import Record
from ontogeny.stages.saved_agent import GENOME
from ontogeny.studies import plan as study_plan
from ontogeny.studies.journal import Journal
from ontogeny.studies.parts import Part, divide, parse_part
from ontogeny.studies.plan import Measurement
from ontogeny.studies.progress import OnEvent, StudyEvent, show_progress
from ontogeny.studies.records import Failure, read_failures, read_records, read_seconds
from ontogeny.studies.runner import StudyRun, claim_study
from ontogeny.studies.spec import StudySpec, parse_spec

MAX_PARTS_IN_MESSAGE = 12


class StudyPart(NamedTuple):
    """What the folder of a part holds; an undivided study of the same file is a part too."""

    folder: Path
    description: RunDescription
    part: Part
    records: dict[str, Record]
    failures: dict[str, Failure]
    seconds: dict[str, float]


def merge_study(out: str | Path, folders: Sequence[str | Path], on_event: OnEvent | None = None) -> Path:
    """Merge the parts of a study.

    What is merged already stays, so a part that ends later may be added by another call, and `ontogeny study` with the
    file of the study and this folder carries out what no part has done.

    Args:
        out: The folder of the undivided study; it is created where it is absent.
        folders: Of the parts.
        on_event: Receives the events; by default tables are printed.

    Returns:
        The path of the page.

    Raises:
        BadInput: A folder is no part of the same study with the same versions, or two parts disagree in a record.
        StudyIncomplete: Parts or measurements are missing; all others were merged, and the page was written.
    """
    parts = [_read_part(Path(folder)) for folder in folders]
    if not parts:
        raise BadInput("`ontogeny study merge` needs the folder of the study and those of its parts")
    _check_same_study(parts)
    records = _union([(part.folder, part.records) for part in parts])
    spec = parse_spec(parts[0].description.spec["text"], str(parts[0].folder), parts[0].description.spec["seed"])
    measurements = list(study_plan.list_measurements(spec))
    with (
        show_progress(on_event) as notify,
        claim_study(Path(out), spec, measurements, versions=parts[0].description.versions) as folder,
    ):
        _union([(folder, {record["id"]: record for record in read_records(folder)}), (parts[0].folder, records)])
        journal = Journal(folder, measurements, None, notify)
        notify(StudyEvent("start", spec.title, len(journal.records), len(measurements)))
        for part in parts:
            _merge_part(part, spec, measurements, journal)
        run = StudyRun(spec, journal, notify)
        _merge_failures(journal, parts)
        run.finish_environments(kinds=("difference",))
        return _end(run, parts)


def _read_part(folder: Path) -> StudyPart:
    """Read the folder of a part."""
    description = read_spec(folder)
    if description.kind != STUDY:
        raise BadInput(f"'{folder}' holds a run of the kind '{description.kind}', not a part of a study")
    part = parse_part(description.spec["part"]) if "part" in description.spec else Part(1, 1)
    records = {record["id"]: record for record in read_records(folder)}
    return StudyPart(folder, description, part, records, read_failures(folder), read_seconds(folder))


def _check_same_study(parts: Sequence[StudyPart]) -> None:
    """Raises `BadInput` unless all folders are parts of one division of one study, with the same versions."""
    first = parts[0]
    for part in parts[1:]:
        for kind, contents in (("spec", _comparable(first, part)), ("versions", _versions(first, part))):
            for key in sorted(contents[0].keys() | contents[1].keys()):
                if contents[0].get(key) != contents[1].get(key):
                    noun = "spec" if kind == "spec" else "versions of the libraries or number of devices"
                    detail = f"{key} {contents[0].get(key)} and {contents[1].get(key)}" if kind == "versions" else key
                    raise BadInput(f"'{first.folder}' and '{part.folder}' differ in their {noun}: {detail}")
        if part.part.num_parts not in (first.part.num_parts, 1) and first.part.num_parts != 1:
            raise BadInput(
                f"'{first.folder}' is one of {first.part.num_parts} parts and '{part.folder}' one of "
                f"{part.part.num_parts}; merge the parts of one division"
            )


def _comparable(*parts: StudyPart) -> list[Mapping[str, Any]]:
    """What determines the study of each part: its spec without the number of the part, and the user's files."""
    return [
        {key: value for key, value in part.description.spec.items() if key != "part"} | part.description.files
        for part in parts
    ]


def _versions(*parts: StudyPart) -> list[Mapping[str, Any]]:
    """The versions of each part."""
    return [part.description.versions for part in parts]


def _union(sources: Sequence[tuple[Path, Mapping[str, Record]]]) -> dict[str, Record]:
    """All records by their ids; raises `BadInput` where two folders have different ones of the same id."""
    records: dict[str, Record] = {}
    owners: dict[str, Path] = {}
    for folder, of_folder in sources:
        for name, record in of_folder.items():
            if json.dumps(records.setdefault(name, record)) != json.dumps(record):
                raise BadInput(f"the record '{name}' in '{folder}' differs from that in '{owners[name]}'")
            owners.setdefault(name, folder)
    return records


def _merge_part(part: StudyPart, spec: StudySpec, measurements: Sequence[Measurement], journal: Journal) -> None:
    """Copy the results of a part that are not there yet, each with its record last."""
    for measurement in measurements:
        record = part.records.get(measurement.id)
        if record is None or measurement.id in journal.records:
            continue
        source, target = (_results_path(folder, measurement) for folder in (part.folder, journal.folder))
        if source is not None and target is not None:
            _copy_results(source, target)
        journal.add(record, part.seconds.get(measurement.id))
    for name in spec.includes:
        source, target = part.folder / name, journal.folder / name
        if (source / SPEC_FILE).exists() and not target.exists():
            with new_folder(target) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)


def _results_path(folder: Path, measurement: Measurement) -> Path | None:
    """The run of a development or the scores of an evaluation in the folder of a study; other kinds leave none."""
    agent, train_env = measurement.agent, measurement.train_env
    if agent is None:
        return None
    if measurement.kind == "development" and study_plan.is_saved(agent):
        assert train_env is not None
        return study_plan.agent_folder(folder, agent, train_env.name, measurement.seed)
    if measurement.kind == "evaluation":
        return study_plan.scores_path(folder, measurement.env, agent, measurement.seed)
    return None


def _copy_results(source: Path, target: Path) -> None:
    """Copy a finished run, in the place of one that was interrupted, or a file of scores."""
    if not source.exists():
        raise BadInput(f"'{source}' is absent, although there is a record of it; the part is damaged")
    if source.is_file():
        target.parent.mkdir(exist_ok=True)
        write_bytes(target, source.read_bytes())
    elif not checkpoint.exists(target, GENOME):
        if target.exists():
            shutil.rmtree(target)
        with new_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)


def _merge_failures(journal: Journal, parts: Sequence[StudyPart]) -> None:
    """Take over the failures of the parts where no part has the record."""
    for part in parts:
        for failure in part.failures.values():
            if failure.id not in journal.records and failure.id not in journal.failures:
                journal.fail(failure)


def _end(run: StudyRun, parts: Sequence[StudyPart]) -> Path:
    """Write the page, and name the parts that are missing."""
    try:
        return run.end()
    except StudyIncomplete as error:
        journal, num_parts = run.journal, max(part.part.num_parts for part in parts)
        absent = {m.id for m in journal.measurements if m.kind != "difference"} - journal.records.keys()
        division = divide(journal.measurements, study_plan.check_study(run.spec), num_parts)
        missing = [i for i, ids in enumerate(division, start=1) if ids & absent - journal.failures.keys()]
        if not missing:
            raise
        names = ", ".join(map(str, missing[:MAX_PARTS_IN_MESSAGE])) + (
            f" and {len(missing) - MAX_PARTS_IN_MESSAGE} more" if len(missing) > MAX_PARTS_IN_MESSAGE else ""
        )
        verb = "is" if len(missing) == 1 else "are"
        parts_missing = f"{pluralize(len(missing), 'part')} of {num_parts} {verb} missing or incomplete ({names})"
        raise StudyIncomplete(f"{parts_missing}; {error}") from None
