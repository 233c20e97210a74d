"""The history of an audited agent: every audit of it with its seed, settings and verdicts, in an append-only file.

Trying several seeds, settings or versions of a file until a verdict appears leaves a trace: an audit is appended before
it begins, its verdicts when it has finished, and each report holds all earlier audits. The history of a file `agent.py`
is `agent.audits.jsonl` beside it; that of a run or saved deployment is `audits.jsonl` in its folder.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.runs.formats import AUDIT_HISTORY, FORMATS, SPEC_FILE, check_format
from ontogeny.runs.records import Record, append_record, read_records, repair_records

DIGESTED_FILES = (
    SPEC_FILE,
    "genome.json",
    "state.json",
    "weights.json",
)  # of a folder; the JSON files hold digests of the arrays
REQUIRED_KEYS = {"begin": ("id", "command", "time", "digest", "settings"), "end": ("id", "verdicts")}


class AuditHistory(NamedTuple):
    """The history of one agent.

    Attributes:
        path: The file; None for an agent or organism of this package, of which nothing is recorded.
        digest: SHA-256 of the agent's file, or of the files that determine a run.
        earlier_audits: In their order, each with its `id`, `command`, `time`, `digest`, `settings` and, where it has
            finished, `verdicts`.
        id: Of the audit that has begun.
        failure: Why the audit could not be recorded; empty where it was.
    """

    path: Path | None
    digest: str = ""
    earlier_audits: tuple[Record, ...] = ()
    id: str = ""
    failure: str = ""

    def end(self, verdicts: Mapping[str, Any]) -> None:
        """Append the verdicts of the audit that has begun."""
        if self.path is not None and not self.failure:
            append_record(self.path, {"event": "end", "id": self.id, "verdicts": dict(verdicts)})

    def to_record(self) -> Record:
        """The history as values that JSON can hold."""
        path = None if self.path is None else str(self.path)
        is_recorded = path is not None and not self.failure
        names = {"file": path, "is_recorded": is_recorded, "digest": self.digest}
        return names | {"earlier_audits": list(self.earlier_audits)}

    def describe(self) -> str:
        """The number of audits and the seeds that were tried, as a sentence; empty where nothing is recorded."""
        if self.path is None:
            return ""
        same = [audit for audit in self.earlier_audits if audit["digest"] == self.digest]
        seeds = sorted({str(audit["settings"].get("seed")) for audit in same}, key=lambda seed: (len(seed), seed))
        tried = f", after seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" if same else ""
        num_others = len(self.earlier_audits) - len(same)
        other_versions = f", and {num_others} of other versions of it" if num_others else ""
        unfinished = sum("verdicts" not in audit for audit in self.earlier_audits)
        stopped = f"; {unfinished} of them did not finish" if unfinished else ""
        place = f"it is not recorded: {self.failure}" if self.failure else f"its history is in '{self.path}'"
        return f"Audit {len(same) + 1} of this agent{tried}{other_versions}{stopped}; {place}."


def begin_audit(source: Path | None, command: str, settings: Mapping[str, Any]) -> AuditHistory:
    """Append an audit to the history of an agent before it begins.

    Args:
        source: The file of an agent or organism, or the folder of a run; None records nothing.
        command: The command, such as `audit agent`.
        settings: Everything that determines the audit, the seed included, as values that JSON can hold.

    Raises:
        BadInput: The history is damaged or of another format.
    """
    if source is None:
        return AuditHistory(None)
    path, digest = history_path(source), _digest(source)
    earlier_audits = read_history(path)
    id = secrets.token_hex(8)
    entry = {"format": FORMATS[AUDIT_HISTORY], "event": "begin", "id": id, "command": command}
    entry |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "digest": digest, "settings": dict(settings)}
    try:
        repair_records(path)
        append_record(path, entry)
    except OSError as error:
        failure = f"'{path}' cannot be written ({error.strerror})"
        return AuditHistory(path, digest, tuple(earlier_audits), id, failure)
    return AuditHistory(path, digest, tuple(earlier_audits), id)


def history_path(source: Path) -> Path:
    """The file with the history of an agent's file or of a run's folder."""
    return source / "audits.jsonl" if source.is_dir() else source.with_suffix(".audits.jsonl")


def read_history(path: Path) -> Sequence[Record]:
    """All audits in a file, in their order; none where there is no file.

    Raises:
        BadInput: The file is damaged or of another format.
    """
    audits: dict[str, Record] = {}
    for number, entry in enumerate(read_records(path) if path.exists() else [], start=1):
        event = entry.get("event")
        keys = REQUIRED_KEYS.get(str(event), ("event",))
        if event not in REQUIRED_KEYS or any(key not in entry for key in keys):
            raise BadInput(f"'{path}', line {number}, is no entry of an audit history")
        if event == "begin":
            check_format(path, AUDIT_HISTORY, entry.get("format"))
            audits[entry["id"]] = {key: entry[key] for key in keys}
        elif entry["id"] in audits:
            audits[entry["id"]]["verdicts"] = entry["verdicts"]
    return list(audits.values())


def _digest(source: Path) -> str:
    """SHA-256 of a file, or of the files in a folder that determine a run."""
    paths = [source / name for name in DIGESTED_FILES] if source.is_dir() else [source]
    sha256 = hashlib.sha256()
    for path in paths:
        if path.exists():
            sha256.update(hashlib.sha256(path.read_bytes()).digest())
    return sha256.hexdigest()
