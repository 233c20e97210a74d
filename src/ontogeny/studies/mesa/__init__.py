"""The mesa study: could learned content come to hold an inner optimizer, and from what capacity on?"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.studies.kinds import StudyKind

if TYPE_CHECKING:
    from ontogeny.report.page import Section
    from ontogeny.studies.progress import StudyEvent


def _run(size: str, out: Path, seed: int, on_event: "Callable[[StudyEvent], None] | None") -> Path:
    from ontogeny.studies.mesa.runner import BUDGETS, run_mesa_study

    return run_mesa_study(BUDGETS[size], out, seed, on_event)


def _write_page(folder: Path) -> Path:
    from ontogeny.studies.mesa import page

    return page.write(folder)


def _render_section(folder: Path) -> "Section":
    from ontogeny.studies.mesa import page

    return page.section(folder)


STUDY_KIND = StudyKind(
    name="mesa",
    description="Does learned content come to contain an optimizer of its own?",
    first_record_kind="mesa",
    sizes=("full", "small", "brief"),
    run=_run,
    write_page=_write_page,
    render_section=_render_section,
)
