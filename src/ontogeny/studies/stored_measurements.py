"""Measurements of registered studies, whose records are stored one by one, so that a killed study resumes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ontogeny.runs.records import RECORDS_FILE, Record, append_record, append_timing
from ontogeny.studies.progress import OnEvent, progress_callback


def store_measurement(
    folder: Path,
    name: str,
    measure: Callable[[Callable[..., None]], Iterator[Record]],
    recorded_ids: set[str],
    notify: OnEvent,
) -> None:
    """Carries out a measurement and appends its new records, and its wall time, to the files of a study.

    Args:
        folder: Of the study.
        name: Id of the first record, which names the measurement.
        measure: Yields the records; its argument receives the progress.
        recorded_ids: Ids of all records of the study so far; those of the new records are added.
        notify: Receives the progress.
    """
    start_time = time.perf_counter()
    for record in measure(progress_callback(notify, name)):
        if record["id"] not in recorded_ids:
            append_record(folder / RECORDS_FILE, record)
            recorded_ids.add(record["id"])
    append_timing(folder, {"id": name, "seconds": round(time.perf_counter() - start_time, 3)})
