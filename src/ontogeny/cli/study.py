"""`ontogeny study` and `ontogeny report`: compare several agents, and write the page of a run from its records."""

from pathlib import Path
from typing import Annotated

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import Device, NumHostDevices, check_seed_option
from ontogeny.errors import BadInput


def study(
    spec: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file of a study, or `mesa` or `neural`; by default the study that comes with the package."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and page; by default studies/default or studies/NAME.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed to use instead of the one in the TOML file.", callback=check_seed_option)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size of `mesa`: full (default), small, brief, or planning, its main part alone; of `neural`: small "
            "(default) or full."
        ),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="The same as --size small, which takes minutes.")] = False,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Develop, evaluate and compare several agents; writes records and one HTML page.

    Examples: ontogeny study my_study.toml --out studies/mine; ontogeny study mesa --small
    """
    configure_jax(device, num_host_devices)
    from ontogeny import studies

    if small and size not in (None, "small"):
        raise BadInput("--small and --size name two sizes; use one of them")
    studies.run(spec, out, seed, "small" if small else size or "")


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study or language-model run, or the page in it.")],
) -> None:
    """Write the HTML page of a study or language-model run again from its records.

    Example: ontogeny report studies/default
    """
    from ontogeny.runs.kinds import write_page

    typer.echo(f"wrote {write_page(folder.parent if folder.suffix == '.html' else folder)}")
