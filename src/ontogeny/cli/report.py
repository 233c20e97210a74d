"""`ontogeny report`: write the page of a run from its records."""

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="Folder of a study or language-model run.")]) -> None:
    """Write the HTML page of a study or language-model run again from its records.

    Example: ontogeny report studies/default
    """
    from ontogeny.runs.kinds import write_page

    typer.echo(f"wrote {write_page(folder)}")
