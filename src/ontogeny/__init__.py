"""A laboratory for where a learned agent's ability comes from, and where it goes on changing in use."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ontogeny.stages.session import AgentSession

__version__ = "0.1.0"


def load(folder: "Path | str", *, online: bool = False) -> "AgentSession":
    """The agent of a finished run or a saved deployment, for your own loop; see docs/state.md.

    Frozen, or learning by weights where `online`. An absent, unfinished or damaged folder raises `BadInput`.
    """
    from ontogeny.stages.session import load_session  # here, so that `import ontogeny` is light

    return load_session(folder, online=online)
