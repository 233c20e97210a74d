"""The mesa study: does content that only predicts come to contain a planner, or an optimizer of its own?"""

from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.runs.formats import MESA_STUDY
from ontogeny.studies.kinds import StudyKind

if TYPE_CHECKING:
    from ontogeny.report.page import Section
    from ontogeny.studies.progress import OnEvent


def _run(size: str, out: Path, seed: int, on_event: "OnEvent | None") -> Path:
    """Runs the study `mesa`."""
    from ontogeny.studies.mesa.runner import run_mesa_study

    return run_mesa_study(size, out, seed, on_event)


def _write_page(folder: Path) -> Path:
    """Writes the page of the study `mesa`."""
    from ontogeny.studies.mesa import page

    return page.write(folder)


def _render_section(folder: Path) -> "Section":
    """Renders the section of the study `mesa` on the page of another study."""
    from ontogeny.studies.mesa import page

    return page.render_section(folder)


STUDY_KIND = StudyKind(
    name="mesa",
    description="Does learned content come to contain a planner, or an optimizer of its own?",
    run_kind=MESA_STUDY,
    sizes=("full", "small", "brief", "planning"),
    run=_run,
    write_page=_write_page,
    render_section=_render_section,
)
