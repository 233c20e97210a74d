"""Records of a study: one JSON line per measurement. A runner writes them, a page reads them; nothing else passes.

Every record has an `id`, unique in its study, and a `kind`. The same spec and seed give the same records, byte for
byte; wall times, which vary, are kept in the timing file under the same ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.runs import records as run_records
from ontogeny.runs.records import RECORDS_FILE, Record, append_record, read_timings

FAILURES_FILE = "failures.jsonl"
Schema = Mapping[str, tuple[str, ...]]  # required keys by kind of record; `curve.mean` is a key of a table in a record

_TRAJECTORY = ("observation", "first", "action", "score", "discount")
_CURVE = ("unit", "position", "mean", "standard_error")
_EVALUATION = ("agent", "agent_spec", "approach", "env", "train_env", "seed", "mode", "num_tasks", "mean")
SCHEMA: Schema = {
    "environment": ("env", "plugin", "settings", "num_steps", "horizon", "num_actions", "num_observations"),
    "development": ("agent", "approach", "train_env", "seed", "num_parameters", "num_training_env_steps"),
    "evaluation": (*_EVALUATION, "standard_error", *(f"curve.{key}" for key in _CURVE)),
    "difference": ("env", "agent", "other_agent", "mean", "standard_error", "num_tasks"),
    "attribution": ("env", "agent", "approach", "seed", "verdict", "attribution.cells", "attribution.gain"),
    "upper_bound": ("env", "name", "value", "method"),
    "recorded_lifetime": ("env", "agent", "approach", *(f"trajectory.{key}" for key in _TRAJECTORY)),
}


class Failure(NamedTuple):
    """A measurement that left no record.

    Attributes:
        id: Of the measurement.
        sentence: Why it failed.
        missing: The id of the measurement on which it depends and which has no record; empty where it failed itself.
        traceback: Of an error that is no `BadInput`, for the author of the program or plugin.
    """

    id: str
    sentence: str
    missing: str = ""
    traceback: str = ""


def read_failures(folder: Path) -> dict[str, Failure]:
    """The failures of the last run of a study, by id.

    Args:
        folder: The folder of the study.
    """
    path = folder / FAILURES_FILE
    if not path.exists():
        return {}
    lines = run_records.read_records(path)
    failures = [Failure(**{key: str(line.get(key, "")) for key in Failure._fields}) for line in lines]
    return {failure.id: failure for failure in failures}


def append_failure(folder: Path, failure: Failure) -> None:
    """Append a failure to the file of the study in a folder."""
    append_record(folder / FAILURES_FILE, failure._asdict())


def read_records(folder: Path, schema: Schema = SCHEMA) -> list[Record]:
    """Read all records of a study; an incomplete last line is left out.

    Args:
        folder: The folder of the study.
        schema: Required keys by kind of record.

    Raises:
        BadInput: If the file or a line of it cannot be used; the message names the line.
    """
    path = folder / RECORDS_FILE
    if not path.exists():
        return []
    records: dict[str, Record] = {}
    for number, record in enumerate(run_records.read_records(path), start=1):
        location = f"'{path}', line {number},"
        kind = str(record.get("kind"))
        if "id" not in record or kind not in schema:
            raise BadInput(f"{location} is not a record of this study: it lacks an id or a kind that the study defines")
        for key in schema[kind]:
            table, _, inner = key.partition(".")
            if table not in record or (inner and inner not in record[table]):
                raise BadInput(f"{location} is damaged: the {kind} record lacks '{key}'")
        if record["id"] in records:
            raise BadInput(f"{location} is damaged: the id '{record['id']}' occurs twice")
        records[record["id"]] = record
    return list(records.values())


def read_seconds(folder: Path) -> dict[str, float]:
    """Seconds of wall time by id of the record, summed over the processes that an interrupted study took."""
    seconds: dict[str, float] = {}
    for timing in read_timings(folder):
        if isinstance(timing.get("seconds"), int | float):
            seconds[str(timing.get("id"))] = seconds.get(str(timing.get("id")), 0.0) + timing["seconds"]
    return seconds
