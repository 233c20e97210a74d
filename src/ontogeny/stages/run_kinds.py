"""The kinds of run of this package: agent runs and saved deployments."""

from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.runs import checkpoint
from ontogeny.runs.formats import AGENT_RUN, SAVED_DEPLOYMENT
from ontogeny.runs.kinds import described_kind

if TYPE_CHECKING:
    from ontogeny.stages.session import AgentSession

COMMANDS = ("ontogeny evaluate", "ontogeny deploy", "ontogeny audit agent", "ontogeny serve")


def _load(folder: Path, online: bool) -> "AgentSession":
    """The session of a finished run or saved deployment."""
    from ontogeny.stages.saved_agent import read_saved_agent
    from ontogeny.stages.session import AgentSession

    return AgentSession(read_saved_agent(folder), online=online)


def _is_finished(folder: Path, *_: object) -> bool:
    """Whether the folder holds a developed genome or the state of a deployment."""
    return checkpoint.exists(folder, "genome") or checkpoint.exists(folder, "state")


KINDS = tuple(
    described_kind(name, COMMANDS, is_finished=_is_finished, load=_load) for name in (AGENT_RUN, SAVED_DEPLOYMENT)
)
