"""Finds the rooms by their file names: a new environment, agent or outer loop is one file and needs no list.

A room is a module with `build(...)`; its name is its file name, its help the first line of its docstring,
its settings the keyword-only parameters of `build`. A path that ends in `.py` names a room outside the package.
"""

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ontogeny.errors import BadInput

PLUGIN_KINDS = {
    "environments": "environment",
    "agents": "agent",
    "content": "content",
    "development": "development",
    "audit": "audit test",
    "organisms": "organism",
    "predictors": "predictor",
}
PLUGIN_FOLDERS = {
    "organisms": "audit/organisms",
    "predictors": "audit/prequential/predictors",
}  # where a family lives, if not in the folder of its name
BUILD_TYPES = {
    "environments": ("Environment",),
    "agents": ("Agent",),
    "content": ("WorldModel", "ValueFunction", "Predictor"),
    "development": ("Development",),
    "audit": ("AuditTest",),
    "organisms": ("Agent",),
    "predictors": ("function",),
}
MAX_INT = 2**31 - 1  # of a whole number, as arrays hold them
MAX_FLOAT = 3.4e38  # of a real one
_PACKAGE = Path(__file__).parent


def list_names(family: str) -> list[str]:
    """All rooms of a family that have a `build`, without importing any."""
    return [path.stem for path in sorted(_folder(family).glob("*.py")) if _is_room(path)]


def help_line(family: str, name: str) -> str:
    """The first line of a room's docstring, without importing it."""
    return read_docstring(family, name).partition("\n")[0]


def read_docstring(family: str, name: str) -> str:
    """A room's whole docstring, without importing it."""
    path = _path(family, name)
    with explain_plugin_errors([name], f"the file '{name}' cannot be read as Python"):
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def default_settings(family: str, name: str) -> dict[str, Any]:
    """A room's settings and their defaults."""
    parameters = inspect.signature(_module(family, name).build).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for key, default in found.items():
        if default is inspect.Parameter.empty:
            raise BadInput(f"the setting '{key}' of {PLUGIN_KINDS[family]} '{name}' needs a default")
    return found


def get_attribute(family: str, name: str, key: str, default: Any = None) -> Any:
    """What a room's file says beside its `build`, such as an organism's `TRUTH`."""
    return getattr(_module(family, name), key, default)


def build(family: str, name: str, *args, **given) -> Any:
    """Builds a room by name; an unknown name or setting, or a value of the wrong type, raises `BadInput`."""
    known = default_settings(family, name)
    where = f"{PLUGIN_KINDS[family]} '{name}'"
    for key, value in given.items():
        if key not in known:
            raise BadInput(f"{where} has no setting '{key}'{_near(key, list(known))}")
        given[key] = _converted(value, known[key], f"setting '{key}' of {where}")
    make = _module(family, name).build
    if not name.endswith(".py"):
        return make(*args, **given)
    with explain_plugin_errors([name], f"`build` of the file '{name}' failed"):
        made = make(*args, **given)
    if type(made).__name__ not in BUILD_TYPES[family]:
        wanted = " or ".join(BUILD_TYPES[family])
        raise BadInput(f"`build` of the file '{name}' must return {wanted}, not {type(made).__name__}")
    return made


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`'bandit:num_arms=5,num_pulls=100'` -> `('bandit', {'num_arms': 5, 'num_pulls': 100})`."""
    name, _, rest = text.partition(":")
    given: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise BadInput(f"'{item}' in '{text}' is not of the form setting=value")
        if key.strip() in given:
            raise BadInput(f"'{text}' names the setting '{key.strip()}' twice")
        try:
            given[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            given[key.strip()] = {"true": True, "false": False}.get(value.lower(), value)
    return name.strip(), given


def unknown_name_error(what: str, name: str, known: list[str]) -> BadInput:
    """The error for a name that is not there, with the near ones."""
    return BadInput(f"there is no {what} '{name}'{_near(name, known)}")


def finite_float(value: float, what: str) -> float:
    """A number as a finite float; `BadInput` where there is none."""
    with contextlib.suppress(OverflowError):
        if math.isfinite(value):
            if abs(value) > MAX_FLOAT:
                raise BadInput(f"{what} must not be beyond {MAX_FLOAT:.3g}, not {float(value):.3g}")
            return float(value)
    raise BadInput(f"{what} must be finite, not {'a whole number that long' if isinstance(value, int) else value}")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are: {', '.join(known) or 'none'}"


def _converted(value: Any, default: Any, what: str) -> Any:
    """Checks a setting against the type of its default; whole numbers pass for real ones."""
    if isinstance(default, bool) or default is None or isinstance(default, str):
        fits = default is None or type(value) is type(default)
    elif isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = finite_float(value, what) if fits else value
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
        if fits and abs(value) > MAX_INT:
            raise BadInput(f"{what} must not be beyond {MAX_INT}")
    elif isinstance(default, tuple):
        fits = isinstance(value, (tuple, list))
        value = tuple(value) if fits else value
    else:
        fits = True
    if not fits:
        raise BadInput(f"{what} must be of type {type(default).__name__}, not {value!r}")
    return value


def _path(family: str, name: str) -> Path:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BadInput(f"there is no file '{name}'")
        return path
    path = _folder(family) / f"{name}.py"
    if not name.isidentifier() or not _is_room(path):
        raise unknown_name_error(PLUGIN_KINDS[family], name, list_names(family))
    return path


def _folder(family: str) -> Path:
    return _PACKAGE / PLUGIN_FOLDERS.get(family, family)


def _module(family: str, name: str) -> ModuleType:
    path = _path(family, name)
    if not name.endswith(".py"):
        return importlib.import_module(f"ontogeny.{PLUGIN_FOLDERS.get(family, family).replace('/', '.')}.{name}")
    # By content as well as by path: a file that was edited since is another room, also within one process.
    found = hashlib.sha256(str(path.resolve()).encode() + b"\0" + path.read_bytes()).hexdigest()
    qualified = f"ontogeny_outside.{family}.{path.stem}_{found[:16]}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, path.resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        try:
            with explain_plugin_errors([name], f"the file '{name}' cannot be loaded"):
                spec.loader.exec_module(module)
        except BadInput:
            del sys.modules[qualified]
            raise
        if not callable(getattr(module, "build", None)):
            del sys.modules[qualified]
            raise BadInput(f"the file '{name}' does not define `build`")
    return sys.modules[qualified]


@contextlib.contextmanager
def explain_plugin_errors(files: list[str], what: str, *, only_theirs: bool = False) -> Iterator[None]:
    """Makes one sentence of whatever goes wrong with files of somebody's own, with the last of their lines in it.

    `only_theirs` leaves an error alone in which none of their lines took part; without files, all are left alone.
    """
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        theirs = {str(Path(file).resolve()): file for file in files}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in theirs]
        if not files or (only_theirs and not frames):
            raise
        at = f" in line {frames[-1].lineno}" if frames else ""
        at += f" of '{theirs[frames[-1].filename]}'" if frames and len(theirs) > 1 else ""
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise BadInput(f"{what}{at}: {type(error).__name__}{': ' if told else ''}{told}") from error


def _is_room(path: Path) -> bool:
    if path.stem in ("__init__", "base"):
        return False
    try:
        found = path.stat()
    except OSError:
        return False
    return _defines_build(path, found.st_mtime_ns, found.st_size)


@cache
def _defines_build(path: Path, changed: int, size: int) -> bool:
    """Read once for each state of the file."""
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "build"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )
