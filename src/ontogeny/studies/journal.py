"""What a running study has done and what is left: its records, the failures of this run, and the remaining time."""

import time
from collections.abc import Sequence
from pathlib import Path

from ontogeny.report.formatting import pluralize
from ontogeny.runs.files import write_bytes
from ontogeny.runs.records import RECORDS_FILE, Record, append_record, append_timing, encode_record
from ontogeny.studies.costs import RemainingTime
from ontogeny.studies.plan import Measurement, Sizes, dependencies
from ontogeny.studies.progress import OnEvent, StudyEvent
from ontogeny.studies.records import FAILURES_FILE, Failure, append_failure, read_records, read_seconds


class Journal:
    """Appends to the files of a study, and reports what is left."""

    def __init__(self, folder: Path, measurements: Sequence[Measurement], sizes: Sizes | None, notify: OnEvent) -> None:
        """Read what earlier runs have recorded. Their failures are forgotten, since this run retries them.

        Args:
            folder: Of the study, claimed by this process.
            measurements: All of the study or of its part, in their order.
            sizes: Of its agents; None where the remaining time is of no interest.
            notify: Receives the events.
        """
        self.folder, self.measurements = folder, measurements
        self.records = {record["id"]: record for record in read_records(folder)}
        self.failures: dict[str, Failure] = {}
        self.num_workers = 1
        self._notify, self._notified_at = notify, -1.0
        self._remaining = RemainingTime(measurements, sizes, read_seconds(folder)) if sizes else None
        (folder / FAILURES_FILE).unlink(missing_ok=True)

    def is_settled(self, measurement: Measurement) -> bool:
        """Whether a measurement has a record or has failed in this run."""
        return measurement.id in self.records or measurement.id in self.failures

    def require_dependencies(self, measurement: Measurement) -> bool:
        """Whether all results that a measurement reads are there; otherwise it is recorded as missing."""
        absent = [name for name in dependencies(measurement) if name not in self.records]
        if absent:
            self.fail(Failure(measurement.id, f"it needs '{absent[0]}', which has no record", missing=absent[0]))
        return not absent

    def add(self, record: Record, seconds: float | None) -> None:
        """Append the record of a measurement.

        Args:
            record: With its id and kind.
            seconds: Wall time of the measurement; None where it took none.
        """
        append_record(self.folder / RECORDS_FILE, record)
        self.records[record["id"]] = record
        self.failures.pop(record["id"], None)
        if seconds is not None:
            append_timing(self.folder, {"id": record["id"], "seconds": seconds})
            if self._remaining is not None:
                self._remaining.add(record["id"], seconds)
        self._notify_of_rest()

    def fail(self, failure: Failure) -> None:
        """Append a failure."""
        append_failure(self.folder, failure)
        self.failures[failure.id] = failure
        if not failure.missing:
            self._notify(StudyEvent("failure", f"{failure.id}: {failure.sentence}"))
        self._notify_of_rest()

    def sort_records(self) -> None:
        """Write the records in the order of the plan, in which one process would have written them."""
        order = {measurement.id: number for number, measurement in enumerate(self.measurements)}
        ordered = sorted(self.records.values(), key=lambda record: order.get(record["id"], len(order)))
        if [record["id"] for record in ordered] != list(self.records):
            write_bytes(self.folder / RECORDS_FILE, b"".join(map(encode_record, ordered)))
            self.records = {record["id"]: record for record in ordered}

    def describe_failures(self) -> str:
        """The sentence about the measurements that have no record, and why; empty where there are none."""
        absent = [m.id for m in self.measurements if m.id not in self.records]
        failed = [failure for failure in self.failures.values() if not failure.missing]
        if not absent and not failed:
            return ""
        planned = {m.id for m in self.measurements}
        num_missing = len(absent) - sum(failure.id in planned for failure in failed)
        text = f"of {pluralize(len(self.measurements), 'measurement')}, {len(failed):,} failed"
        text += f" and {num_missing:,} more {'is' if num_missing == 1 else 'are'} missing" if num_missing else ""
        if failed:
            text += f"; '{failed[0].id}' failed: {failed[0].sentence.rstrip('.')}"
            text += f" (the page lists {len(failed) - 1:,} more)" if len(failed) > 1 else ""
        return text

    def _notify_of_rest(self) -> None:
        """Reports how many measurements are done and how long the others will take, at most once in a second."""
        if time.monotonic() - self._notified_at < 1.0:
            return
        self._notified_at = time.monotonic()
        rest = [m.id for m in self.measurements if not self.is_settled(m)]
        seconds = self._remaining.estimate(rest) if self._remaining is not None else None
        num_failed = sum(m.id in self.failures for m in self.measurements)
        self._notify(
            StudyEvent(
                "done", "", len(self.measurements) - len(rest) - num_failed, len(self.measurements),
                num_failed=num_failed, seconds_left=None if seconds is None else seconds / self.num_workers,
            )
        )  # fmt: skip
