"""Predictors by name: a reference predictor, or a function of a module or file of the user's own."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ontogeny import plugins
from ontogeny.audit.prequential.base import BuildPredictor
from ontogeny.audit.prequential.reference_predictors import find_reference_predictor
from ontogeny.errors import BadInput
from ontogeny.source_files import spec_from_source

REFERENCE_PREFIX = "predictor:"


def find_predictor(name: str) -> BuildPredictor:
    """Finds the function that builds a predictor.

    Args:
        name: `predictor:NAME[:setting=value,...]`, `module:function` or `file.py:function`. A function or class that
            can be called without arguments is a factory and is called for each new predictor; any other function is
            the predictor itself.

    Raises:
        BadInput: The name has none of these forms, or names nothing that exists.
    """
    if name.startswith(REFERENCE_PREFIX):
        return find_reference_predictor(name.removeprefix(REFERENCE_PREFIX))
    source, colon, attribute = name.rpartition(":")
    if not colon or not source:
        raise BadInput(f"'{name}' is not a predictor: give module:function, file.py:function or predictor:NAME")
    module = _load_file(source) if source.endswith(".py") else _import_module(source)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise BadInput(f"'{source}' has no function '{attribute}'")
    return cast(BuildPredictor, function if _is_factory(function) else lambda: function)


def source_files(name: str) -> list[str]:
    """Returns the user's file in which a predictor is defined; none for a reference predictor.

    Args:
        name: As in `find_predictor`.
    """
    source = name.rpartition(":")[0]
    if not source or name.startswith(REFERENCE_PREFIX):
        return []
    if source.endswith(".py"):
        return [source]
    _search_working_directory()
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        return []  # `find_predictor` explains it
    return [spec.origin] if spec is not None and spec.origin is not None else []


def _load_file(path: str) -> ModuleType:
    """Runs a Python file as a module."""
    if not Path(path).is_file():
        raise BadInput(f"there is no file '{path}'")
    spec = spec_from_source("ontogeny_outside_predictor", Path(path).resolve())
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with plugins.explain_plugin_errors([path], f"the file '{path}' cannot be loaded"):
        spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    """Imports a module, which may lie in the working directory."""
    _search_working_directory()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadInput(f"the module '{name}' cannot be imported: {type(error).__name__}: {error}") from error


def _search_working_directory() -> None:
    """Lets modules of the working directory be imported."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _is_factory(function: Any) -> bool:
    """Whether a function can be called without arguments and takes no variable number of them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return not any(
        p.kind is p.VAR_POSITIONAL or (p.kind in positional and p.default is inspect.Parameter.empty)
        for p in parameters
    )
