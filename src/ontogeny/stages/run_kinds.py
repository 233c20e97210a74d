"""The kinds of run of this package: agent runs and saved deployments."""

from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.runs import checkpoint
from ontogeny.runs.folder import has_kind, read_spec
from ontogeny.runs.formats import AGENT_RUN, RECORDS_FILE, SAVED_DEPLOYMENT
from ontogeny.runs.kinds import Run, RunKind
from ontogeny.runs.records import read_records

if TYPE_CHECKING:
    from ontogeny.stages.session import AgentSession

COMMANDS = ("ontogeny evaluate", "ontogeny deploy", "ontogeny audit agent", "ontogeny serve")


def _open(folder: Path) -> Run:
    description, path = read_spec(folder), folder / RECORDS_FILE
    is_finished = checkpoint.exists(folder, "genome") or checkpoint.exists(folder, "state")
    records = read_records(path) if path.exists() else []
    return Run(folder, description.kind, description.spec, records, "finished" if is_finished else "unfinished")


def _load(folder: Path, online: bool) -> "AgentSession":
    from ontogeny.stages.session import load_session

    return load_session(folder, online=online)


KINDS = (
    RunKind(AGENT_RUN, lambda folder: has_kind(folder, AGENT_RUN), _open, _load, COMMANDS),
    RunKind(SAVED_DEPLOYMENT, lambda folder: has_kind(folder, SAVED_DEPLOYMENT), _open, _load, COMMANDS),
)
