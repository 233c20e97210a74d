"""Runs a study: develops every agent, evaluates it on held-out tasks, writes records and the page.

The folder holds `spec.json` and `spec.toml`, `records.jsonl`, `timing.jsonl`, `agents/` (finished runs, which can be
deployed), `scores/` (one score per task, for paired differences) and `report.html`, and where measurements failed,
`failures.jsonl`. A measurement that fails does not stop the others. A study that was killed, or of which measurements
failed, resumes when it is started again with the same spec, seed and folder, and ends in the same records.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ontogeny.errors import StudyIncomplete
from ontogeny.parallel.drivers import IN_PROCESS, Driver, is_in_process, open_driver
from ontogeny.runs import formats
from ontogeny.runs.files import write_bytes
from ontogeny.runs.folder import claim, library_versions
from ontogeny.runs.records import RECORDS_FILE, repair_records
from ontogeny.stages.spec import user_files
from ontogeny.studies import comparison, page, pairwise
from ontogeny.studies import plan as study_plan
from ontogeny.studies.journal import Journal
from ontogeny.studies.kinds import study_kinds
from ontogeny.studies.measuring import attempt, attempt_measurement
from ontogeny.studies.parts import Part, parse_part, select_part
from ontogeny.studies.plan import Measurement, Sizes
from ontogeny.studies.progress import OnEvent, StudyEvent, show_progress
from ontogeny.studies.records import Failure
from ontogeny.studies.spec import StudySpec, read_spec
from ontogeny.studies.units import collect_pending, group_units, run_units


def run_study(
    path: str | Path | None = None,
    out: str | Path = "study",
    seed: int | None = None,
    on_event: OnEvent | None = None,
    *,
    part: str | None = None,
    on: str = IN_PROCESS,
) -> Path:
    """Run a study in a folder, or resume it; measurements that failed are tried again.

    Args:
        path: A TOML file; by default the study that comes with the package.
        out: The folder; it is created where it is absent.
        seed: Replaces the seed in the file.
        on_event: Receives the events; by default progress and tables are printed.
        part: `3/20` for the third of twenty parts; by default the whole study.
        on: Where the units of the study run, as `ontogeny.parallel.drivers.open_driver` takes it.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the spec cannot be used, or the folder holds anything but this very study.
        StudyIncomplete: If measurements failed; all others were carried out, and the page was written.
    """
    spec = read_spec(path, seed)
    chosen_part = None if part is None else parse_part(part)
    sizes = study_plan.check_study(spec)
    measurements = list(study_plan.list_measurements(spec))
    if chosen_part is not None:
        measurements = select_part(measurements, sizes, chosen_part)
    with (
        open_driver(on) as driver,
        show_progress(on_event) as notify,
        claim_study(Path(out), spec, measurements, part=chosen_part, versions=_versions(on)) as folder,
    ):
        run = StudyRun(spec, Journal(folder, measurements, sizes, notify), notify, is_part=chosen_part is not None)
        notify(StudyEvent("start", spec.title, len(run.journal.records), len(measurements)))
        collect_pending(run.journal)
        if not is_in_process(on):
            run.run_units(driver, sizes)
        run.finish_environments()
        if chosen_part is None or chosen_part.number == 1:
            run.run_included_studies()
        return run.end()


@contextlib.contextmanager
def claim_study(
    out: Path,
    spec: StudySpec,
    measurements: Sequence[Measurement],
    *,
    part: Part | None = None,
    versions: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """The folder of a study, claimed and locked, with copies of the files of the user that the spec names.

    Args:
        out: The folder.
        spec: Of the study, with its files.
        measurements: Those that are planned in this folder.
        part: The part of the study that they are, if they are one.
        versions: By default those of this process.

    Raises:
        BadInput: As `runs.folder.claim`.
    """

    def prepare(folder: Path) -> Mapping[str, Any]:
        write_bytes(folder / "spec.toml", spec.text.encode())
        cells = {"cells": [cell._asdict() for cell in spec.cells]} if spec.cells else {}
        return {"planned_ids": [measurement.id for measurement in measurements]} | cells

    content = {"title": spec.title, "question": spec.question, "seed": spec.seed, "digest": spec.digest}
    content |= {"text": spec.text} | ({"part": str(part)} if part else {})
    files: dict[str, Path] = {}
    for agent in spec.agents:
        for env in agent.environments:
            for _, path in user_files(study_plan.make_run_spec(spec, agent, spec.find_env(env), 0)):
                if not spec.cells or path not in files.values():
                    files[f"files/{len(files)}-{path.name}"] = path
    with claim(out, formats.STUDY, content, files=files, versions=versions, prepare=prepare) as folder:
        repair_records(folder / RECORDS_FILE)
        yield folder


class StudyRun:
    """A study that runs in a claimed folder: everything but the arrangement of its measurements."""

    def __init__(self, spec: StudySpec, journal: Journal, notify: OnEvent, *, is_part: bool = False) -> None:
        """Group the measurements by environment.

        Args:
            spec: Of the study, with its files.
            journal: Of the folder.
            notify: Receives the events.
            is_part: Whether agents are not compared, because other parts have further seeds of them.
        """
        self.spec, self.journal, self._notify, self._is_part = spec, journal, notify, is_part
        groups = groupby(journal.measurements, key=lambda measurement: measurement.env.name)
        self._groups = [list(group) for _, group in groups]
        self._numbers = {m.id: number for number, m in enumerate(journal.measurements, start=1)}

    def run_units(self, driver: Driver, sizes: Sizes) -> None:
        """Carry out all units by the workers of a driver; the table of an environment follows its last unit."""
        units = [unit for unit in group_units(self.journal.measurements) if not all(map(self.journal.is_settled, unit))]
        self.journal.num_workers = max(1, min(driver.status().num_workers, len(units)))
        run_units(driver, units, self.spec, self.journal, sizes, self._finish_measured_environments)

    def finish_environments(self, kinds: Collection[str] | None = None) -> None:
        """Carry out all measurements that are not settled, in their order, environment by environment.

        Args:
            kinds: Of the measurements that are carried out; by default all.
        """
        while self._groups:
            self._finish_environment(self._groups.pop(0), kinds)

    def run_included_studies(self) -> None:
        """Run the registered studies that the spec includes, each in a folder of its own."""
        for name, size in self.spec.includes.items():
            run = partial(study_kinds()[name].run, size, self.journal.folder / name, self.spec.seed)
            outcome = attempt(name, lambda notify, run=run: run(partial(_forward, notify)), self._notify)
            if isinstance(outcome, Failure):
                self.journal.fail(outcome)

    def end(self) -> Path:
        """Sort the records and write the page.

        Returns:
            The path of the page.

        Raises:
            StudyIncomplete: Measurements failed or are missing.
        """
        self.journal.sort_records()
        page_path = page.write(self.journal.folder)
        total = len(self.journal.measurements)
        self._notify(StudyEvent("end", str(page_path), total, total))
        if failures := self.journal.describe_failures():
            raise StudyIncomplete(failures)
        return page_path

    def _finish_measured_environments(self) -> None:
        """Finish the next environments of which all units are settled."""
        while self._groups:
            units = group_units(self._groups[0])
            if not all(self.journal.is_settled(measurement) for unit in units for measurement in unit):
                return
            self._finish_environment(self._groups.pop(0))

    def _finish_environment(self, measurements: Sequence[Measurement], kinds: Collection[str] | None = None) -> None:
        """Carry out the measurements of one environment that are not settled, and report its table."""
        journal = self.journal
        for measurement in measurements:
            if kinds is not None and measurement.kind not in kinds:
                continue
            if not journal.is_settled(measurement) and journal.require_dependencies(measurement):
                number = self._numbers[measurement.id]
                self._notify(StudyEvent("work", measurement.id, number, len(journal.measurements)))
                outcome, seconds = attempt_measurement(measurement, self.spec, journal.folder, self._notify)
                if isinstance(outcome, Failure):
                    journal.fail(outcome)
                else:
                    journal.add(outcome, seconds)
        self._notify_of_table(measurements[0].env.name)

    def _notify_of_table(self, env: str) -> None:
        """Report the scores of all agents in an environment, unless there are none."""
        records = list(self.journal.records.values())
        results = comparison.collect_results(records).get(env, [])
        env_record = next((r for r in records if r["kind"] == "environment" and r["env"] == env), None)
        if env_record is None or not results:
            return
        upper_bound = comparison.upper_bound_value(comparison.collect_upper_bounds(records), env)
        scores = tuple(comparison.published_scores(env_record).items())
        pairs = () if self._is_part else tuple(pairwise.compare_pairs(records, {env: results}).get(env, ()))
        self._notify(StudyEvent("table", env, 0, 0, tuple(results), pairs, scores, upper_bound))


def _versions(on: str) -> dict[str, Any]:
    """The versions and devices that determine results; workers compute on one device of the CPU."""
    of_workers = {} if is_in_process(on) else {"platform": "cpu", "devices": 1}
    return library_versions() | of_workers


def _forward(notify: OnEvent, event: StudyEvent) -> None:
    """Pass on the events of an included study, but not its start and end."""
    if event.kind in ("work", "progress"):
        notify(event)
