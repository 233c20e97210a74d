"""Kinds of study: each sub-package of `ontogeny.studies` registers one in its `__init__` as `STUDY_KIND`.

A registered study can be run by its name (`ontogeny study mesa`), can be included in a study that is described by a TOML
file (`includes = { mesa = "brief" }`), and contributes one section to the page of a study that includes it. This module
and the registrations import neither JAX nor matplotlib, so that listing the kinds is quick.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ontogeny.report.page import Section
    from ontogeny.studies.progress import StudyEvent

RECORDS_FILE = "records.jsonl"
PAGE_FILE = "report.html"


class StudyKind(NamedTuple):
    """One kind of study, as its sub-package registers it."""

    name: str  # on the command line, in `includes`, and of the folder inside a study that includes it
    description: str
    first_record_kind: str  # `kind` of the first record in the study's folder
    sizes: tuple[str, ...]  # budgets, the full one first
    run: Callable[[str, Path, int, "Callable[[StudyEvent], None] | None"], Path]  # size, folder, seed, callback -> page
    write_page: Callable[[Path], Path]  # folder -> page
    render_section: Callable[[Path], "Section"]  # folder -> section for the page of a study that includes it


@cache
def study_kinds() -> dict[str, StudyKind]:
    """Import the registrations of all sub-packages of `ontogeny.studies`, by name."""
    folder = str(Path(__file__).parent)
    packages = [module.name for module in pkgutil.iter_modules([folder]) if module.ispkg]
    kinds = [importlib.import_module(f"ontogeny.studies.{name}").STUDY_KIND for name in packages]
    return {kind.name: kind for kind in kinds}
