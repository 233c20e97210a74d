"""Imports of packages that only some features need, and which an extra of `ontogeny` installs."""

import importlib
from types import ModuleType

from ontogeny.errors import BadInput


def import_optional(module: str, extra: str, feature: str, requirement: str = "") -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Name of the module.
        extra: The extra of `ontogeny` that installs it.
        feature: What needs it, as the message says it, such as "environments of gymnax".
        requirement: What the message says is needed, where this is not just the package.

    Raises:
        BadInput: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        needed = requirement or module.partition(".")[0]
        message = f"{feature} need the package {needed}: pip install 'ontogeny[{extra}]' ({error})"
        raise BadInput(message) from None
