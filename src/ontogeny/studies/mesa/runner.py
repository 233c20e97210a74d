"""Runs the mesa study: could learned content come to contain an optimizer of its own, and from what capacity on?

The folder holds `spec.json`, `records.jsonl`, `timing.jsonl`, `runs/` (trained weights), `students/` (distilled
networks) and `report.html`. A killed study resumes when it is started again; a measurement without a record is repeated
and gives the same values. On a processor a measurement of the planning experiment is one run, so a kill repeats at most
one; on a GPU it is as many runs of one architecture as `planning.schedule` trains at once.
"""

from pathlib import Path

from ontogeny.audit.suite import to_jsonable
from ontogeny.errors import require_one_of
from ontogeny.runs.folder import claim
from ontogeny.runs.formats import MESA_STUDY
from ontogeny.runs.records import RECORDS_FILE, repair_records
from ontogeny.seeds import check_seed
from ontogeny.studies.mesa import page
from ontogeny.studies.mesa.budgets import MesaBudget, budgets, estimate_minutes
from ontogeny.studies.mesa.comparison import SCHEMA
from ontogeny.studies.mesa.measurements import MesaContext, MesaMeasurement, list_measurements, min_effects
from ontogeny.studies.progress import OnEvent, StudyEvent, show_progress
from ontogeny.studies.records import read_records
from ontogeny.studies.stored_measurements import store_measurement

TITLE = "Could learned content come to contain an optimizer of its own?"


def run_mesa_study(size: str | MesaBudget, out: str | Path, seed: int = 0, on_event: OnEvent | None = None) -> Path:
    """Run the study in a folder, or resume it.

    Args:
        size: Name of a budget, or a budget.
        out: The folder; it is created where it is absent.
        seed: From 0 to 4294967295.
        on_event: Receives the events; by default progress is printed.

    Returns:
        The path of the page.

    Raises:
        BadInput: If there is no budget of this name, the seed is none, or the folder holds anything but this very
            study.
    """
    if isinstance(size, str):
        require_one_of(budgets(), size=size)
    budget, seed = budgets()[size] if isinstance(size, str) else size, check_seed(seed)
    context = MesaContext(budget, Path(out), seed)
    measurements = list(list_measurements(context))
    planned_ids = [name for measurement in measurements for name in measurement.ids]
    spec = {"title": TITLE, "seed": seed, "budget": to_jsonable(budget), "min_effects": min_effects()}
    folder = claim(Path(out), MESA_STUDY, spec, prepare=lambda _: {"planned_ids": planned_ids})
    with show_progress(on_event) as notify, folder:
        repair_records(Path(out) / RECORDS_FILE)
        return _run(context, measurements, notify)


def _run(context: MesaContext, measurements: list[MesaMeasurement], notify: OnEvent) -> Path:
    """Carry out the measurements that have no record yet, then write the page."""
    folder, budget = context.folder, context.budget
    recorded = {record["id"] for record in read_records(folder, SCHEMA)}
    minutes = estimate_minutes(budget)
    length = f"{minutes / 60:.0f} hours" if minutes >= 120 else f"{minutes:.0f} minutes"
    duration = f" About {length} on two idle cores." if minutes else ""
    num_planned = sum(len(measurement.ids) for measurement in measurements)
    notify(StudyEvent("start", TITLE + duration, len(recorded), num_planned))
    for number, measurement in enumerate(measurements, start=1):
        if recorded.issuperset(measurement.ids):
            continue
        name = measurement.ids[0]
        notify(StudyEvent("work", name, number, len(measurements)))
        store_measurement(folder, name, measurement.measure, recorded, notify)
    page_path = page.write(folder)
    notify(StudyEvent("end", str(page_path), len(measurements), len(measurements)))
    return page_path
