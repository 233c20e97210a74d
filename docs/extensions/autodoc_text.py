"""Sphinx extension for the Python reference.

It documents fields of a NamedTuple by the comments behind them in the source, and shortens types in signatures.
"""

import importlib
import inspect
import io
import re
import tokenize
from functools import cache
from typing import Any

from sphinx.application import Sphinx

GENERIC = "Alias for field number"
STEERING = re.compile(
    r"~?(?:collections\.abc\.)?Callable\[\[~?(?:jaxtyping\.)?Float\[~?(?:jaxlib\._jax\.)?Array, 'F'\]\], "
    r"~?(?:jaxtyping\.)?Float\[~?(?:jaxlib\._jax\.)?Array, ''\]\]"
)


@cache
def comments_of(module: str, class_name: str) -> dict[str, str]:
    """The comment behind each field of a class, continued by the lines of comment below it."""
    source = inspect.getsource(getattr(importlib.import_module(module), class_name))
    comments: dict[str, str] = {}
    field, line_has_code = "", False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not line_has_code:
            field, line_has_code = token.string, True
        elif token.type == tokenize.COMMENT and field:
            comments[field] = f"{comments.get(field, '')} {token.string.lstrip('# ')}".strip()
        elif token.type in (tokenize.NEWLINE, tokenize.NL):
            line_has_code = False
    return comments


def describe_field(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the description that Python generates for a field by the comment in the source."""
    if lines and lines[0].startswith(GENERIC):
        class_path, _, field = name.rpartition(".")
        module, _, class_name = class_path.rpartition(".")
        comment = comments_of(module, class_name).get(field, "")
        lines[:] = [comment[:1].upper() + comment[1:] + "." * (not comment.endswith("."))] if comment else []


def shorten_types(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace long types in a signature by the names that the source uses."""
    return signature and shorten(signature), returns and shorten(returns)


def shorten(text: str) -> str:
    """A signature with the type of steering by its name, and without the module of the array type."""
    return STEERING.sub("Steering", text).replace("jaxlib._jax.Array", "Array")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("autodoc-process-docstring", describe_field)
    app.connect("autodoc-process-signature", shorten_types)
    return {"version": "1", "parallel_read_safe": True}
