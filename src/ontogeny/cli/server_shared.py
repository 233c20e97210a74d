"""Options and output shared by the commands of the server."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ontogeny.server.store import Store

DEFAULT_STATE_DIR = Path("deployments")
StateDir = Annotated[
    Path, typer.Option("--state-dir", help="Folder with the keys, usage, journal, sessions and snapshots of a server.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def open_store(state_dir: Path) -> "Store":
    """Opens the database of a state folder; an absent one raises `BadInput`."""
    from ontogeny.server.store import Store

    return Store(state_dir, create=False)


def format_time(seconds: float) -> str:
    """Returns seconds since 1970 as date and time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_table(headings: Sequence[str], records: Sequence[Sequence[str]]) -> None:
    """Prints a table without borders."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, box=None, header_style="", pad_edge=False)
    for record in records:
        table.add_row(*record)
    Console().print(table)
