"""Kinds of study: each sub-package of `ontogeny.studies` registers one in its `__init__` as `STUDY_KIND`.

A registered study can be run by its name (`ontogeny study mesa`), can be included in a study that is described by a
TOML file (`includes = { mesa = "brief" }`), and contributes one section to the page of a study that includes it. This
module and the registrations import neither JAX nor matplotlib, so that listing the kinds is quick.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ontogeny.report.page import Section
    from ontogeny.studies.progress import OnEvent

PAGE_FILE = "report.html"


class StudyKind(NamedTuple):
    """One kind of study, as its sub-package registers it.

    Attributes:
        name: On the command line, in `includes`, and of the folder inside a study that includes it.
        description: One line for the command line.
        run_kind: Key of `runs.formats.FORMATS`.
        sizes: Budgets; the first one is the default.
        run: Runs the study, given size, folder, seed and a callback for events; returns the path of the page.
        write_page: Writes the page into the folder and returns its path.
        render_section: Renders the section for the page of a study that includes it, given its folder.
    """

    name: str
    description: str
    run_kind: str
    sizes: tuple[str, ...]
    run: Callable[[str, Path, int, "OnEvent | None"], Path]
    write_page: Callable[[Path], Path]
    render_section: Callable[[Path], "Section"]


@cache
def study_kinds() -> dict[str, StudyKind]:
    """Import the registrations of all sub-packages of `ontogeny.studies`, by name."""
    folder = str(Path(__file__).parent)
    packages = [module.name for module in pkgutil.iter_modules([folder]) if module.ispkg]
    kinds = [importlib.import_module(f"ontogeny.studies.{name}").STUDY_KIND for name in packages]
    return {kind.name: kind for kind in kinds}
