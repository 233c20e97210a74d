"""Sphinx extension that replaces comments such as `<!-- routes -->` by text written from the program.

The text is written anew at every build, so that it cannot differ from the program.
"""

import re
from collections.abc import Iterator
from typing import Any

import http_reference
from sphinx.application import Sphinx

COLUMNS = re.compile(r"CREATE TABLE (\w+) \((.*?)\n?\)(?: WITHOUT ROWID)?;", re.DOTALL)


def render_routes() -> str:
    """The routes of the server."""
    return http_reference.render_routes(http_reference.openapi_document())


def render_formats() -> str:
    """A table of all format numbers."""
    from ontogeny.runs.formats import FORMATS

    return table(("kind", "format"), FORMATS.items())


def render_study_records() -> str:
    """A table of the kinds of records of a study."""
    from ontogeny.studies.records import SCHEMA

    rows = ((f"`{kind}`", ", ".join(f"`{key}`" for key in keys)) for kind, keys in SCHEMA.items())
    return table(("kind", "required keys"), rows)


def render_tables() -> str:
    """A table of the tables in the database of a server."""
    from ontogeny.server.schema import TABLE_STATEMENTS

    tables = database_tables(TABLE_STATEMENTS)
    return table(("table", "columns"), ((f"`{name}`", ", ".join(columns)) for name, columns in tables))


def database_tables(schema: str) -> Iterator[tuple[str, list[str]]]:
    """Names and columns of the tables that SQL statements create."""
    for name, body in COLUMNS.findall(schema):
        body = re.sub(r"PRIMARY KEY \([^)]*\)", "", body)
        yield name, [f"`{part.split()[0]}`" for part in body.split(",") if part.strip()]


def table(heads: tuple[str, str], rows: Any) -> str:
    """A Markdown table of two columns."""
    lines = [f"| {first} | {second} |" for first, second in rows]
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *lines])


MARKERS = {
    "<!-- routes -->": render_routes,
    "<!-- formats -->": render_formats,
    "<!-- study-records -->": render_study_records,
    "<!-- tables -->": render_tables,
}


def insert_text(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers in the source of a page."""
    for marker, render in MARKERS.items():
        if marker in source[0]:
            source[0] = source[0].replace(marker, render())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", insert_text)
    return {"version": "1", "parallel_read_safe": True}
