"""Sphinx extension for the Python reference.

It documents each field of a NamedTuple by the docstring of the class or by the comment behind the field, and shortens
types in signatures.
"""

import importlib
import inspect
import io
import re
import tokenize
from functools import cache
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GENERIC = "Alias for field number"
ENTRY = re.compile(r"    (\w+): (.*)")  # of the section `Attributes` of a docstring
RANGE = re.compile(r"~?(?:typing\.)?Annotated\[([\w| ]+)(?:, ~?[\w.]+\([^()]*\))+\]")  # a type with its range
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


def attributes_of(class_: type) -> dict[str, str]:
    """The entries of the section `Attributes` in the docstring of a class."""
    entries: dict[str, str] = {}
    field = ""
    for line in (inspect.getdoc(class_) or "").partition("\nAttributes:\n")[2].splitlines():
        match = ENTRY.fullmatch(line)
        field = match[1] if match else field
        entries[field] = f"{entries.get(field, '')} {match[2] if match else line.strip()}".strip()
    return entries


def describe_fields(app: Sphinx, object_type: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Move the descriptions of fields from the docstring of a NamedTuple, or from comments, to the fields."""
    if object_type == "class" and hasattr(obj, "_fields"):
        text = "\n".join(lines)
        lines[:] = re.sub(r"^:(?:ivar|vartype) .*(?:\n +.*)*\n?", "", text, flags=re.MULTILINE).splitlines()
    elif lines and lines[0].startswith(GENERIC):
        class_path, _, field = name.rpartition(".")
        module, _, class_name = class_path.rpartition(".")
        class_ = getattr(importlib.import_module(module), class_name)
        text = attributes_of(class_).get(field) or comments_of(class_.__module__, class_name).get(field, "")
        lines[:] = [text[:1].upper() + text[1:] + "." * (not text.endswith("."))] if text else []


def shorten_types(
    app: Sphinx, object_type: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace long types in a signature by the names that the source uses."""
    return signature and shorten(signature), returns and shorten(returns)


def shorten(text: str) -> str:
    """A signature with the type of steering by its name, and without ranges."""
    return RANGE.sub(r"\1", STEERING.sub("Steering", text))


def shorten_arrays(app: Sphinx, doctree: nodes.document) -> None:
    """Name arrays by the public name of their type in all signatures."""
    for signature in doctree.findall(addnodes.desc_signature):
        for text in list(signature.findall(nodes.Text)):
            if "jaxlib._jax." in text:
                text.parent.replace(text, nodes.Text(text.replace("jaxlib._jax.", "")))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("autodoc-process-docstring", describe_fields, priority=600)  # after napoleon
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("doctree-read", shorten_arrays)
    return {"version": "1", "parallel_read_safe": True}
