"""The kinds of run of this package: agent runs and saved deployments."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.runs.folder import has_kind
from ontogeny.runs.formats import AGENT_RUN, SAVED_DEPLOYMENT
from ontogeny.runs.kinds import Run, RunKind, open_described_run

if TYPE_CHECKING:
    from ontogeny.stages.session import AgentSession

COMMANDS = ("ontogeny evaluate", "ontogeny deploy", "ontogeny audit agent", "ontogeny serve")


def _open(folder: Path) -> Run:
    return open_described_run(folder, "genome.json", "state.json")


def _load(folder: Path, online: bool) -> "AgentSession":
    from ontogeny.stages.session import load_session

    return load_session(folder, online=online)


KINDS = tuple(
    RunKind(name, partial(has_kind, kind=name), _open, _load, COMMANDS) for name in (AGENT_RUN, SAVED_DEPLOYMENT)
)
