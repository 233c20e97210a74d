"""Plugins by name: a new environment, agent, outer loop or audit test is one file and needs no list.

A plugin is a module with a function `build(...)`. Its name is its file name, its help the first line of its docstring,
its settings the keyword-only parameters of `build`. Plugins come from three places: the folders of this package, the
installed packages that register a module under an entry point group such as `ontogeny.environments`, and the user's
own files, named by a path that ends in `.py`.

An environment plugin whose module has `TAKES_ID = True` is a provider: it makes environments of another library, each
named by an ID, `PROVIDER:ID[,setting=value...]`. The ID is the setting `id` of its `build`.
"""

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ontogeny.errors import BadInput
from ontogeny.renamed import renamed_hint
from ontogeny.source_files import spec_from_source

PLUGIN_KINDS = {  # kind -> the noun of messages
    "environments": "environment",
    "agents": "agent",
    "content": "content",
    "development": "development",
    "audit": "audit test",
    "organisms": "organism",
}
FOLDERS = {"organisms": "audit/organisms"}  # others: the kind's name
BUILD_TYPES = {  # kind -> names of the types that `build` may return
    "environments": ("Environment", "HostEnvironment"),
    "agents": ("Agent",),
    "content": ("WorldModel", "ValueFunction", "Predictor"),
    "development": ("Development",),
    "audit": ("AuditTest",),
    "organisms": ("Agent",),
}
MAX_INT = 2**31 - 1  # the largest integer of an int32 array
MAX_FLOAT = 3.4e38  # the largest number of a float32 array
_PACKAGE = Path(__file__).parent


def list_names(kind: str) -> list[str]:
    """The names of all plugins of a kind, built-in and installed, without importing any.

    Args:
        kind: A key of `PLUGIN_KINDS`.

    Returns:
        The names in alphabetical order.

    Raises:
        BadInput: Two installed packages, or an installed package and this one, use the same name.
    """
    return sorted([*_built_in_names(kind), *_installed(kind)])


def list_buildable(kind: str) -> list[str]:
    """The names of all plugins of a kind that can be built by name alone: all but providers, which need an ID.

    Args:
        kind: A key of `PLUGIN_KINDS`.
    """
    return [name for name in list_names(kind) if kind != "environments" or not takes_id(name)]


def takes_id(name: str) -> bool:
    """Whether an environment plugin is a provider, whose environments are named by an ID; does not import it."""
    with contextlib.suppress(BadInput, OSError, SyntaxError, ValueError):
        path = _find_path("environments", name)
        status = path.stat()
        return _declares_id(path, status.st_mtime_ns, status.st_size)
    return False


def help_line(kind: str, name: str) -> str:
    """The first line of a plugin's docstring, without importing the plugin."""
    return read_docstring(kind, name).partition("\n")[0]


def read_docstring(kind: str, name: str) -> str:
    """The docstring of a plugin, without importing the plugin."""
    path = _find_path(kind, name)
    with explain_plugin_errors([name], f"the file '{name}' cannot be read as Python"):
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8-sig"))) or ""


def default_settings(kind: str, name: str) -> dict[str, Any]:
    """The settings of a plugin with their defaults.

    Raises:
        BadInput: There is no such plugin, or one of its settings has no default.
    """
    parameters = inspect.signature(_load_module(kind, name).build).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for setting, default in defaults.items():
        if default is inspect.Parameter.empty:
            raise BadInput(f"the setting '{setting}' of {PLUGIN_KINDS[kind]} '{name}' needs a default")
    return defaults


def outside_files(**names: str) -> list[str]:
    """The files of those plugins that do not belong to this package: files of the user and of installed packages.

    Args:
        names: Names of plugins by their kinds, which are keys of `PLUGIN_KINDS`.
    """
    paths = {kind: _find_path(kind, name) for kind, name in names.items()}
    return [str(path) for path in paths.values() if not path.is_relative_to(_PACKAGE)]


def describe_settings(kind: str, name: str) -> dict[str, str]:
    """The meaning of the settings of a plugin: the texts in the `Args` of its `build`; undocumented ones are absent."""
    documented = read_entries(inspect.getdoc(_load_module(kind, name).build) or "", "Args")
    return {setting: documented[setting] for setting in default_settings(kind, name) if setting in documented}


def read_entries(docstring: str, heading: str) -> dict[str, str]:
    """The entries of one section of a docstring in Google style, such as `Args`, by name and without line breaks."""
    section = re.split(r"\n(?=\w+:\n)", docstring.partition(f"{heading}:\n")[2])[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def get_attribute(kind: str, name: str, attribute: str, default: Any = None) -> Any:
    """An attribute of a plugin's module, such as the `GROUND_TRUTH` of an organism."""
    return getattr(_load_module(kind, name), attribute, default)


def build(kind: str, name: str, *args: Any, **settings: Any) -> Any:
    """Builds a plugin.

    Args:
        kind: A key of `PLUGIN_KINDS`.
        name: The plugin's name, or the path of a file that ends in `.py`.
        args: The positional arguments of `build`, which depend on the kind: none for environments; spec and steering
            for agents and organisms; agent, environment and steering for developments.
        settings: Settings of the plugin; all others keep their defaults.

    Returns:
        The object that the plugin's `build` returns.

    Raises:
        BadInput: There is no such plugin or setting, a value has the wrong type, or `build` of a file fails.
    """
    defaults = default_settings(kind, name)
    subject = f"{PLUGIN_KINDS[kind]} '{name}'"
    for setting, value in settings.items():
        if setting not in defaults:
            raise BadInput(f"{subject} has no setting '{setting}'{_hint(setting, list(defaults))}")
        settings[setting] = convert_setting(value, defaults[setting], f"setting '{setting}' of {subject}")
    function = _load_module(kind, name).build
    if not name.endswith(".py"):
        return function(*args, **settings)
    with explain_plugin_errors([name], f"`build` of the file '{name}' failed"):
        plugin = function(*args, **settings)
    if type(plugin).__name__ not in BUILD_TYPES[kind]:
        expected = " or ".join(BUILD_TYPES[kind])
        raise BadInput(f"`build` of the file '{name}' must return {expected}, not {type(plugin).__name__}")
    return plugin


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`'bandit:num_arms=5,num_pulls=100'` -> `('bandit', {'num_arms': 5, 'num_pulls': 100})`.

    `'gymnax:Catch-bsuite,episodes=3'` -> `('gymnax', {'id': 'Catch-bsuite', 'episodes': 3})`: the ID of an environment
    of a provider ends before the first comma that a setting follows, and may contain `/` and `:`. A setting whose
    default is a tuple takes `a+b`, which stays a text until `build`.

    Raises:
        BadInput: The text is not of the form NAME[:setting=value,...], or it names a setting twice.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    if rest and takes_id(name.strip()):
        id, *remainder = re.split(r",(?=\s*\w+\s*=)", rest, maxsplit=1)
        settings["id"], rest = id.strip().removeprefix("id="), "".join(remainder)
    for assignment in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadInput(f"'{assignment}' in '{text}' is not of the form setting=value{_provider_hint(name.strip())}")
        if key in settings:
            raise BadInput(f"'{text}' names the setting '{key}' twice")
        settings[key] = _read_value(value)
    return name.strip(), settings


def _provider_hint(name: str) -> str:
    """The end of a message about an ID after a name that is no plugin: which providers take one."""
    if name.endswith(".py") or any(name in list_names(kind) for kind in PLUGIN_KINDS):
        return ""
    providers = [provider for provider in list_names("environments") if takes_id(provider)]
    return f"; only these environments take an ID: {', '.join(providers)}"


def parse_table(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """As `parse`, from a table of TOML or JSON: `{name = "gymnax", id = "Catch-bsuite"}`.

    The settings stand beside the name or in a table `settings`.

    Raises:
        BadInput: The table has no name.
    """
    if not isinstance(table.get("name"), str):
        raise BadInput("a table that chooses a plugin needs its 'name'")
    remainder = {key: value for key, value in table.items() if key != "name"}
    if remainder.keys() == {"settings"} and isinstance(remainder["settings"], Mapping):
        remainder = dict(cast(Mapping[str, Any], remainder["settings"]))
    return table["name"], remainder


def format_choice(name: str, settings: Mapping[str, Any]) -> str:
    """The inverse of `parse`: a name with its settings as one text."""
    remainder = dict(settings)
    id = [str(remainder.pop("id"))] if takes_id(name) and "id" in remainder else []
    parts = [*id, *(f"{key}={_format_value(value)}" for key, value in remainder.items())]
    return f"{name}:{','.join(parts)}" if parts else name


def unknown_name_error(noun: str, name: str, known_names: Sequence[str]) -> BadInput:
    """The error for a name that does not exist, with the most similar names.

    Args:
        noun: The noun of the message, e.g. "agent".
        name: The unknown name.
        known_names: The names that exist.
    """
    return BadInput(f"there is no {noun} '{name}'{_hint(name, known_names)}")


def finite_float(value: float, subject: str) -> float:
    """A number as a float.

    Args:
        value: The number.
        subject: The subject of the message, e.g. "the drive 'food'".

    Raises:
        BadInput: The number is not finite or exceeds float32.
    """
    with contextlib.suppress(OverflowError):
        if math.isfinite(value):
            if abs(value) > MAX_FLOAT:
                raise BadInput(f"{subject} must not be beyond {MAX_FLOAT:.3g}, not {float(value):.3g}")
            return float(value)
    raise BadInput(f"{subject} must be finite, not {'a whole number that long' if isinstance(value, int) else value}")


@contextlib.contextmanager
def explain_plugin_errors(files: Sequence[str], message: str, *, only_their_lines: bool = False) -> Generator[None]:
    """A context that turns any error of the user's files into one sentence with the last of their lines in it.

    Args:
        files: Paths of the user's files; without any, errors pass unchanged.
        message: The beginning of the sentence.
        only_their_lines: Whether an error passes unchanged unless a line of the files took part in it.

    Raises:
        BadInput: In place of any other error.
    """
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        names = {str(Path(file).resolve()): file for file in files}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
        if not files or (only_their_lines and not frames):
            raise
        place = f" in line {frames[-1].lineno}" if frames else ""
        place += f" of '{names[frames[-1].filename]}'" if frames and len(names) > 1 else ""
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise BadInput(f"{message}{place}: {type(error).__name__}{': ' if reason else ''}{reason}") from error


def _hint(name: str, known_names: Sequence[str]) -> str:
    """The new name of a renamed plugin or setting, else the most similar names, else all names."""
    for table in ("setting", "plugin"):
        renamed = renamed_hint(table, name)
        if renamed is not None and any(f"`{new_name}`" in renamed for new_name in known_names):
            return f": {renamed.removesuffix('.')}"
    return suggest_names(name, known_names)


def suggest_names(name: str, known_names: Sequence[str]) -> str:
    """The end of a message about an unknown name: the most similar names, else all names."""
    similar = difflib.get_close_matches(name, known_names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(similar)}?" if similar else f"; there are: {', '.join(known_names) or 'none'}"


def convert_setting(chosen: Any, default: Any, subject: str) -> Any:
    """The value of a setting, checked against the type of its default; integers pass for floats.

    Args:
        chosen: As `parse` reads it.
        default: The value of the setting where it is not chosen.
        subject: The subject of the message, e.g. "setting 'num_arms' of environment 'bandit'".

    Raises:
        BadInput: The value has another type than the default, or is out of the range of its type.
    """
    is_number = isinstance(chosen, (int, float)) and not isinstance(chosen, bool)
    if isinstance(default, (bool, str)):
        fits = type(chosen) is type(default)
    elif isinstance(default, float):
        fits = is_number
        chosen = finite_float(chosen, subject) if fits else chosen
    elif isinstance(default, int):
        fits = is_number and isinstance(chosen, int)
        if fits and abs(chosen) > MAX_INT:
            raise BadInput(f"{subject} must not be beyond {MAX_INT}")
    elif isinstance(default, tuple):
        if isinstance(chosen, str):
            chosen = [_read_value(part) for part in re.split(r"(?<!\d[eE])\+", chosen) if part.strip()]
        elif is_number:
            chosen = [chosen]
        fits = isinstance(chosen, (tuple, list))
        chosen = tuple(cast(Sequence[Any], chosen)) if fits else chosen
    else:
        fits = True
    if not fits:
        raise BadInput(f"{subject} must be of type {type(cast(object, default)).__name__}, not {chosen!r}")
    return chosen


def _read_value(text: str) -> Any:
    """A value of a setting: a number, a truth value, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _format_value(chosen: Any) -> str:
    """The inverse of `_read_value`; the parts of a list are joined by `+`."""
    if not isinstance(chosen, (list, tuple)):
        return str(chosen)
    return "+".join(map(_format_value, cast(Sequence[Any], chosen)))


def _built_in_names(kind: str) -> list[str]:
    """The names of the plugins in this package's folder of a kind."""
    folder = _PACKAGE / FOLDERS.get(kind, kind)
    return [path.stem for path in folder.glob("*.py") if _is_plugin(path)]


def _installed(kind: str) -> dict[str, EntryPoint]:
    """The plugins that installed packages register in the group `ontogeny.KIND`, by name."""
    return _read_entry_points(kind, tuple(sys.path))


@cache
def _read_entry_points(kind: str, search_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The entry points of installed packages by plugin name, cached for each `sys.path`."""
    del search_path  # it serves as the key of the cache
    plugins: dict[str, EntryPoint] = {}
    for entry_point in entry_points(group=f"ontogeny.{kind}"):
        name, package = entry_point.name, _package_of(entry_point)
        plugin = f"the {PLUGIN_KINDS[kind]} '{name}'"
        if not name.isidentifier():
            raise BadInput(f"the package '{package}' registers {plugin}: not an identifier")
        if name in _built_in_names(kind):
            raise BadInput(f"the package '{package}' registers {plugin}, a name that is built in")
        if name in plugins and plugins[name].value != entry_point.value:
            raise BadInput(f"the packages '{_package_of(plugins[name])}' and '{package}' both register {plugin}")
        plugins[name] = entry_point
    return plugins


def _package_of(entry_point: EntryPoint) -> str:
    """The name of the package that registers an entry point."""
    return entry_point.dist.name if entry_point.dist is not None else entry_point.module


def _find_path(kind: str, name: str) -> Path:
    """The file of a plugin."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BadInput(f"there is no file '{name}'")
        return path
    path = _PACKAGE / FOLDERS.get(kind, kind) / f"{name}.py"
    if name.isidentifier() and _is_plugin(path):
        return path
    entry_point = _installed(kind).get(name)
    if entry_point is None:
        raise unknown_name_error(PLUGIN_KINDS[kind], name, list_names(kind))
    try:
        spec = importlib.util.find_spec(entry_point.module)
    except Exception as error:
        raise _cannot_load(kind, entry_point, error) from error
    if spec is None or spec.origin is None:
        raise _cannot_load(kind, entry_point, ModuleNotFoundError(f"No module named '{entry_point.module}'"))
    return Path(spec.origin)


def _load_module(kind: str, name: str) -> ModuleType:
    """The imported module of a plugin."""
    path = _find_path(kind, name)
    if name.endswith(".py"):
        return _load_file(kind, name, path)
    if path.is_relative_to(_PACKAGE):
        return importlib.import_module(f"ontogeny.{FOLDERS.get(kind, kind).replace('/', '.')}.{name}")
    entry_point = _installed(kind)[name]
    try:
        module = entry_point.load()
    except Exception as error:
        raise _cannot_load(kind, entry_point, error) from error
    if not callable(getattr(module, "build", None)):
        raise _cannot_load(kind, entry_point, AttributeError(f"'{entry_point.value}' does not define `build`"))
    return module


def _cannot_load(kind: str, entry_point: EntryPoint, error: Exception) -> BadInput:
    """The error for an installed plugin that fails at import."""
    plugin = f"the {PLUGIN_KINDS[kind]} '{entry_point.name}' of the package '{_package_of(entry_point)}'"
    return BadInput(f"{plugin} cannot be loaded: {type(error).__name__}: {error}")


def _load_file(kind: str, name: str, path: Path) -> ModuleType:
    """The module of a user's file, loaded again when the file has changed."""
    # Named by path and content: an edited file is another plugin, also within one process.
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + path.read_bytes()).hexdigest()
    module_name = f"ontogeny_outside.{kind}.{path.stem}_{digest[:16]}"
    if module_name not in sys.modules:
        spec = spec_from_source(module_name, path.resolve())
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with explain_plugin_errors([name], f"the file '{name}' cannot be loaded"):
                spec.loader.exec_module(module)
            if not callable(getattr(module, "build", None)):
                raise BadInput(f"the file '{name}' does not define `build`")
        except BadInput:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def _is_plugin(path: Path) -> bool:
    """Whether a file of this package defines a plugin."""
    if path.stem in ("__init__", "base") or not path.is_file():
        return False
    status = path.stat()
    return _defines_build(path, status.st_mtime_ns, status.st_size)


@cache
def _declares_id(path: Path, modified: int, size: int) -> bool:
    """Whether a module has the line `TAKES_ID = True`; read once for each state of the file."""
    del modified, size
    statements = ast.parse(path.read_text(encoding="utf-8-sig")).body
    return any(
        isinstance(statement, ast.Assign) and ast.unparse(statement) == "TAKES_ID = True" for statement in statements
    )


@cache
def _defines_build(path: Path, modified: int, size: int) -> bool:
    """Read once for each state of the file."""
    del modified, size
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(statement, ast.FunctionDef) and statement.name == "build" for statement in statements)
