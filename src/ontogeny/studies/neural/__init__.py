"""The neural study: learning within one lifetime by a neural world model, beside evolution, PPO and DQN."""

from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.runs.formats import NEURAL_STUDY
from ontogeny.studies.kinds import StudyKind

if TYPE_CHECKING:
    from ontogeny.report.page import Section
    from ontogeny.studies.progress import OnEvent


def _run(size: str, out: Path, seed: int, on_event: "OnEvent | None") -> Path:
    """Runs the study `neural`."""
    from ontogeny.studies.neural.runner import run_neural_study

    return run_neural_study(size, out, seed, on_event)


def _write_page(folder: Path) -> Path:
    """Writes the page of the study `neural`."""
    from ontogeny.studies.neural import page

    return page.write(folder)


def _render_section(folder: Path) -> "Section":
    """Renders the section of the study `neural` on the page of another study."""
    from ontogeny.studies.neural import page

    return page.render_section(folder)


STUDY_KIND = StudyKind(
    name="neural",
    description="How many environment steps does learning take, within one lifetime and by evolution?",
    run_kind=NEURAL_STUDY,
    sizes=("small", "full"),
    run=_run,
    write_page=_write_page,
    render_section=_render_section,
)
