"""Records: one JSON line per measurement. Runs write them, reports read them, and nothing else passes between the two.

Every record has `id` (unique in its study) and `kind`. Kinds: `study` (first line), `environment`, `development`,
`evaluation`, `difference`, `bound`, `replay`. For the same spec and seed the records are the same, line by line; what
depends on the machine's mood (wall time) stands in a file of its own, by the same ids.
"""

import json
import os
from pathlib import Path
from typing import Any

from ontogeny.errors import BadInput
from ontogeny.runs.formats import FORMATS, STUDY
from ontogeny.studies.kinds import RECORDS_FILE as RECORDS_FILE

TIMES_FILE = "times.jsonl"
FORMAT = FORMATS[STUDY]

Record = dict[str, Any]

REQUIRED: dict[str, tuple[str, ...]] = {
    "study": ("title", "question", "seed", "spec", "versions", "planned", "format"),
    "env": ("env", "room", "settings", "num_steps", "horizon", "num_actions", "num_observations"),
    "development": ("agent", "model", "developed_on", "seed", "genome_size", "development_steps"),
    "evaluation": (
        "agent",
        "text",
        "model",
        "env",
        "developed_on",
        "seed",
        "case",
        "num_tasks",
        "mean",
        "se",
        "curve",
    ),
    "difference": ("env", "agent", "other", "mean", "se", "num_tasks"),
    "bound": ("env", "name", "value", "how"),
    "replay": ("env", "agent", "model", "trajectory"),
    # Of the mesa study, in a file of its own.
    "mesa": ("title", "seed", "budget", "thresholds", "versions", "planned", "format"),
    "mesa_trained": ("content", "numbers", "runs", "steps"),
    "mesa_run": ("content", "model", "condition", "run", "numbers", "predicts", "objective", "learns"),
    "mesa_plans": ("content", "model", "condition", "run", "best", "plans"),
    "mesa_fingerprint": ("who", "sort", "verdict", "pattern", "effects"),
    "mesa_dose": ("who", "sort", "verdict", "doses", "belief", "random"),
    "mesa_two_step": ("who", "told", "num_lifetimes", "interaction", "stay"),
    "mesa_evolved": ("agent", "env", "verdicts", "findings", "in_words"),
}
WITHIN: dict[tuple[str, str], tuple[str, ...]] = {  # keys of a table in a record
    ("evaluation", "curve"): ("unit", "position", "mean", "se"),
    ("replay", "trajectory"): ("observation", "first", "action", "score", "discount"),
}


def line(record: Record) -> bytes:
    """A record as it stands in the file."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def append(path: Path, record: Record) -> None:
    """Adds one line and makes sure that it is on the disk before anything goes on."""
    with path.open("ab") as file:
        file.write(line(record))
        file.flush()
        os.fsync(file.fileno())


def as_read(record: Record) -> Record:
    """A record as it will be read again."""
    return json.loads(line(record))


def note_time(folder: Path, name: str, seconds: float) -> None:
    """Adds the seconds that went into a record to the file of times."""
    with (folder / TIMES_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": name, "seconds": round(seconds, 3)}) + "\n")


def repair(path: Path) -> None:
    """Cuts off a last line that a killed run left without its end."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)


def read(path: Path) -> list[Record]:
    """All records of a file, checked; a last line without its end is left out. Raises `BadInput`, which says where."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"there is no '{path.name}' in '{path.parent}': run the study first") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"'{path}' is damaged: it is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    found: dict[str, Record] = {}
    for number, text_line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record = json.loads(text_line)
        except (ValueError, RecursionError):
            raise BadInput(f"{path.name}, line {number} is damaged: it is not JSON") from None
        if not isinstance(record, dict) or "id" not in record or record.get("kind") not in REQUIRED:
            raise BadInput(f"{path.name}, line {number} is no record of a study: it lacks an id or a known kind")
        for key in REQUIRED[record["kind"]]:
            if key not in record:
                raise BadInput(f"{path.name}, line {number}: the {record['kind']} record lacks '{key}'")
        for (kind, table), keys in WITHIN.items():
            lacking = [key for key in keys if kind == record["kind"] and key not in record[table]]
            if lacking:
                raise BadInput(f"{path.name}, line {number}: the {kind} record lacks '{table}.{lacking[0]}'")
        if record["id"] in found:
            raise BadInput(f"{path.name}, line {number}: the record '{record['id']}' is there twice")
        found[record["id"]] = record
    return list(found.values())


def read_times(path: Path) -> dict[str, float]:
    """Seconds of wall time by the id of the record that they went into; the sum where a run was interrupted."""
    seconds: dict[str, float] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                seconds[row["id"]] = seconds.get(row["id"], 0.0) + float(row["seconds"])
            except (ValueError, KeyError, TypeError):
                continue  # times illustrate a report; a torn line costs one figure, not the page
    return seconds
