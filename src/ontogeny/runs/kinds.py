"""The kinds of run, each registered by the package that writes it.

A package registers its kinds in a module `run_kinds.py` with the tuple `KINDS`, most of them with `described_kind`; the
modules are found by their file name, and imported when a folder is identified. They import their package's heavy
modules inside their functions.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.runs.files import read_json
from ontogeny.runs.folder import RunDescription, has_kind, read_spec
from ontogeny.runs.formats import RECORDS_FILE, SPEC_FILE, refuse_old_folder
from ontogeny.runs.records import Record, read_records

_PACKAGE = Path(__file__).parents[1]
IsFinished = Callable[[Path, RunDescription, list[Record]], bool]


class Run(NamedTuple):
    """A run of any kind, finished or not.

    Attributes:
        kind: The name of its kind, such as `agent run`.
        spec: Everything that determines the run, as plain JSON values.
        records: The records written so far, in their order.
        status: `finished` or `unfinished`.
    """

    folder: Path
    kind: str
    spec: Mapping[str, Any]
    records: list[Record]
    status: str


class RunKind(NamedTuple):
    """A kind of run.

    Attributes:
        name: As in messages: `language-model run`.
        matches: Whether a folder is of this kind; reads at most JSON.
        open: The run in such a folder.
        load: The trained agent or language model in such a folder, given whether its weights go on learning; None
            where a run of this kind holds neither.
        commands: The commands that accept such a folder.
        write_page: Writes the HTML page of such a folder and returns its path; None where there is no page.
    """

    name: str
    matches: Callable[[Path], bool]
    open: Callable[[Path], Run]
    load: Callable[[Path, bool], object] | None
    commands: tuple[str, ...]
    write_page: Callable[[Path], Path] | None = None


def open_run(folder: Path | str) -> Run:
    """The spec, records and status of a run of any kind, finished or not.

    Args:
        folder: An agent run, saved deployment, language-model run, Hugging Face folder or study.

    Returns:
        Its kind, its spec as plain data, its records in their order, and its status.

    Raises:
        BadInput: The folder holds no run, or a run that is damaged or of another format.
    """
    folder = Path(folder)
    return identify(folder).open(folder)


def load(folder: Path | str, *, online: bool = False) -> object:
    """Load the trained agent or language model in a folder.

    Args:
        folder: A finished agent run, a saved deployment, a language-model run, or a folder of Hugging Face.
        online: Whether the weights of an agent keep learning in the session.

    Returns:
        An `AgentSession` of an agent, a `LanguageModel` of a language model.

    Raises:
        BadInput: The folder holds neither, or a run that is unfinished, damaged or of another format.
    """
    folder = Path(folder)
    kind = require_loadable(folder)
    assert kind.load is not None
    return kind.load(folder, online)


def require_loadable(folder: Path) -> RunKind:
    """The kind of a folder, which must hold a trained agent or language model.

    Raises:
        BadInput: As `load`; files other than the description of the run are not read yet.
    """
    kind = identify(folder, *(kind.name for kind in registered_kinds() if kind.load is not None))
    if kind.load is None:
        raise BadInput(
            f"'{folder}' is {_listed([kind.name])}, which holds no single agent or language model{_hint(kind)}"
        )
    return kind


def write_page(folder: Path | str) -> Path:
    """Write the HTML page of a run from its records, and return its path.

    Raises:
        BadInput: The folder holds no run, or a run of a kind without a page.
    """
    folder = Path(folder)
    kind = identify(folder, *(kind.name for kind in registered_kinds() if kind.write_page is not None))
    if kind.write_page is None:
        raise BadInput(f"'{folder}' is {_listed([kind.name])}, which has no page{_hint(kind)}")
    return kind.write_page(folder)


def require_kind(folder: Path, *names: str) -> RunKind:
    """The kind of a folder, which must be one of the named kinds.

    Raises:
        BadInput: The folder is of another kind; the message names the kind and the commands for it.
    """
    kind = identify(folder, *names)
    if kind.name not in names:
        raise BadInput(f"'{folder}' is {_listed([kind.name])}, not {_listed(names)}{_hint(kind)}")
    return kind


def identify(folder: Path, *names: str) -> RunKind:
    """The kind of run that a folder holds.

    Args:
        folder: Any path.
        names: The kinds that the caller accepts, for the message; by default all.

    Raises:
        BadInput: The folder holds no run, or one of another format.
    """
    if not folder.exists():
        raise BadInput(f"there is no run in '{folder}': the folder does not exist")
    if not folder.is_dir():
        raise BadInput(f"'{folder}' is a file, not the folder of a run")
    refuse_old_folder(folder)
    for kind in registered_kinds():
        if kind.matches(folder):
            return kind
    if (folder / SPEC_FILE).exists():
        read_json(folder / SPEC_FILE)  # which names the damage of a file that is no JSON object
        raise BadInput(f"'{folder / SPEC_FILE}' is of no kind of run that this version knows")
    content = "an empty folder" if not any(folder.iterdir()) else "a folder of other files"
    raise BadInput(f"'{folder}' is {content}, not {_listed(names or [kind.name for kind in registered_kinds()])}")


def described_kind(
    name: str,
    commands: tuple[str, ...],
    *,
    is_finished: IsFinished,
    load: Callable[[Path, bool], object] | None = None,
    write_page: Callable[[Path], Path] | None = None,
) -> RunKind:
    """A kind of run whose folders hold `spec.json`; the other arguments are those of `RunKind`.

    Args:
        is_finished: Decides from the folder, its description and its records.
    """

    def open_described(folder: Path) -> Run:
        description, path = read_spec(folder), folder / RECORDS_FILE
        records = read_records(path) if path.exists() else []
        status = "finished" if is_finished(folder, description, records) else "unfinished"
        return Run(folder, name, description.spec, records, status)

    return RunKind(name, partial(has_kind, kind=name), open_described, load, commands, write_page)


@cache
def registered_kinds() -> tuple[RunKind, ...]:
    """All kinds of run."""
    paths = [path.relative_to(_PACKAGE).with_suffix("") for path in sorted(_PACKAGE.rglob("run_kinds.py"))]
    modules = [importlib.import_module(".".join(("ontogeny", *path.parts))) for path in paths]
    return tuple(kind for module in modules for kind in module.KINDS)


def _hint(kind: RunKind) -> str:
    """The part of a message that names the commands for a folder of this kind."""
    return f"; use {' or '.join(f'`{command}`' for command in kind.commands)}" if kind.commands else ""


def _listed(names: Sequence[str]) -> str:
    """Names with their articles, joined by commas and `or`."""
    *first, last = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    return f"{', '.join(first)} or {last}" if first else last
