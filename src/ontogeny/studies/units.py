"""Units of a study, which run independently of one another: a development, and all that is measured of it.

A worker process carries out a unit and appends its records to a file of the unit in the folder `pending` of the study.
The process that runs the study moves them to the records of the study, also those that an earlier process left behind.
"""

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from ontogeny.parallel.drivers import Driver
from ontogeny.parallel.tasks import Setup, Task, TaskFailure
from ontogeny.runs.records import append_record, read_records, repair_records
from ontogeny.studies.costs import expected_seconds
from ontogeny.studies.journal import Journal
from ontogeny.studies.measuring import attempt_measurement
from ontogeny.studies.plan import Measurement, Sizes, dependencies, development_id, list_measurements
from ontogeny.studies.records import Failure
from ontogeny.studies.spec import StudySpec, parse_spec

PENDING_FOLDER = "pending"
KINDS = ("development", "evaluation", "recorded_lifetime", "attribution")
Unit = list[Measurement]


def group_units(measurements: Iterable[Measurement]) -> list[Unit]:
    """The units of a study in the order of their first measurement.

    Environments, upper bounds and differences belong to no unit: they take little time, and differences depend on
    several units.
    """
    units: dict[str, Unit] = {}
    for measurement in measurements:
        if measurement.agent is not None and measurement.kind in KINDS:
            name = development_id(measurement.agent, measurement.env.name, measurement.seed)
            if measurement.kind == "development":
                name = measurement.id
            units.setdefault(name, []).append(measurement)
    return list(units.values())


def expected_seconds_of_unit(unit: Unit, sizes: Sizes) -> float:
    """The time that all measurements of a unit are expected to take."""
    return sum(expected_seconds(measurement, sizes) for measurement in unit)


def run_units(
    driver: Driver, units: Sequence[Unit], spec: StudySpec, journal: Journal, sizes: Sizes, on_unit: Callable[[], None]
) -> None:
    """Carry out units by the workers of a driver, those that are expected to take long first.

    Args:
        driver: Its workers read and write the folder of the study.
        units: Of which some measurements are not settled.
        spec: Of the study, which the workers read too.
        journal: Receives the records and failures.
        sizes: Of the agents of the study.
        on_unit: Called after each unit.
    """
    ordered = sorted(units, key=lambda unit: -expected_seconds_of_unit(unit, sizes))
    (journal.folder / PENDING_FOLDER).mkdir(exist_ok=True)
    setup = driver.put({"text": spec.text, "seed": spec.seed, "folder": str(journal.folder.resolve())})
    tasks = [Task(f"{__name__}:measure_unit", {"ids": _open_ids(unit, journal)}, repeatable=False) for unit in ordered]

    def collect(index: int, answer: Any) -> None:
        unit = ordered[index]
        _collect_file(_pending_path(journal.folder, tasks[index].request["ids"]), journal)
        for measurement in unit:
            if not journal.is_settled(measurement) and journal.require_dependencies(measurement):
                sentence = answer.message if isinstance(answer, TaskFailure) else "its process left no record"
                journal.fail(Failure(measurement.id, sentence, traceback=getattr(answer, "details", "")))
        on_unit()

    driver.run(tasks, setup, on_answer=collect, keep_failures=True)
    shutil.rmtree(journal.folder / PENDING_FOLDER, ignore_errors=True)


def collect_pending(journal: Journal) -> None:
    """Take over the records that the workers of an earlier process left behind."""
    for path in sorted((journal.folder / PENDING_FOLDER).glob("*.jsonl")):
        _collect_file(path, journal, with_failures=False)


def measure_unit(setup: Setup, request: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out the measurements of a unit in a worker; the function of the tasks of `run_units`.

    Args:
        setup: Text, seed and folder of the study.
        request: The `ids` of measurements that have no record, in their order.
    """
    spec, by_id = _read_plan(setup["text"], setup["seed"])
    folder, ids = Path(setup["folder"]), request["ids"]
    path = _pending_path(folder, ids)
    with filelock.FileLock(path.with_suffix(".lock")):  # a worker whose parent was killed may be about to end
        recorded = {line["record"]["id"] for line in _read_pending(path) if "record" in line}
        failed: set[str] = set()
        for name in ids:
            if name in recorded or failed.intersection(dependencies(by_id[name])):
                continue
            outcome, seconds = attempt_measurement(by_id[name], spec, folder, lambda event: None)
            if isinstance(outcome, Failure):
                failed.add(name)
                append_record(path, {"failure": outcome._asdict()})
            else:
                append_record(path, {"record": outcome, "seconds": seconds})
    return {}


@functools.lru_cache(maxsize=1)
def _read_plan(text: str, seed: int) -> tuple[StudySpec, dict[str, Measurement]]:
    """A study and its measurements by their ids."""
    spec = parse_spec(text, seed=seed)
    return spec, {measurement.id: measurement for measurement in list_measurements(spec)}


def _open_ids(unit: Unit, journal: Journal) -> list[str]:
    """The ids of the measurements of a unit that are not settled."""
    return [measurement.id for measurement in unit if not journal.is_settled(measurement)]


def _pending_path(folder: Path, ids: Sequence[str]) -> Path:
    """The file of a unit."""
    return folder / PENDING_FOLDER / f"{hashlib.sha256(ids[0].encode()).hexdigest()[:20]}.jsonl"


def _read_pending(path: Path) -> list[dict[str, Any]]:
    """The lines of the file of a unit, without a line that a killed process left incomplete."""
    repair_records(path)
    return read_records(path) if path.exists() else []


def _collect_file(path: Path, journal: Journal, *, with_failures: bool = True) -> None:
    """Move the lines of the file of a unit to the files of the study."""
    for line in _read_pending(path):
        if "record" in line and line["record"]["id"] not in journal.records:
            journal.add(line["record"], line["seconds"])
        elif "failure" in line and with_failures:
            journal.fail(Failure(**line["failure"]))
    path.unlink(missing_ok=True)
