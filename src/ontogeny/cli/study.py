"""`ontogeny study` and `ontogeny report`: compare several agents, and write the page of a run from its records."""

from pathlib import Path
from typing import Annotated

import typer

from ontogeny.cli.jax_setup import configure_jax, configure_jax_of_workers
from ontogeny.cli.shared import Device, NumHostDevices, check_seed_option
from ontogeny.errors import BadInput

MERGE = "merge"


def study(
    spec: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file of a study, or `mesa` or `neural`; by default the study that comes with the package. With "
            "`merge`, the folders follow: first that of the whole study, then those of its parts."
        ),
    ] = None,
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders, after `merge` only.")] = None,
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
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Run part K of N in a folder of its own, such as 3/20.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="DRIVER",
            help="Where developments run: in_process, one after another; processes, in parallel on this machine "
            "(processes:num_workers=4 for four of them); or ray, on a cluster. By default processes for a study with "
            "[sweep] or --part, else in_process.",
        ),
    ] = None,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Develop, evaluate and compare several agents; writes records and one HTML page.

    Measurements that fail do not stop the others; the exit code is then 1, and the same command retries them.

    Examples: ontogeny study my_study.toml --out studies/mine; ontogeny study mesa --small; ontogeny study merge
    studies/mine parts/1 parts/2
    """
    from ontogeny import studies
    from ontogeny.parallel.drivers import is_in_process

    if small and size not in (None, "small"):
        raise BadInput("--small and --size name two sizes; use one of them")
    if str(spec) == MERGE:
        if any((out, seed is not None, size, small, part, on)):
            raise BadInput("`ontogeny study merge` takes folders and no options: ontogeny study merge OUT PART...")
        folders = folders or []
        if len(folders) < 2:
            raise BadInput("`ontogeny study merge` needs folders: ontogeny study merge OUT PART...")
        configure_jax(device, num_host_devices)
        studies.merge_parts(folders[0], folders[1:])
        return
    if folders:
        raise BadInput(f"'{folders[0]}' is one argument too many; only `ontogeny study merge` takes folders")
    on = on or studies.default_driver(spec, part, may_use_processes=device is None and num_host_devices is None)
    if is_in_process(on):
        configure_jax(device, num_host_devices)
    else:
        configure_jax_of_workers(device, num_host_devices)
    studies.run(spec, out, seed, "small" if small else size or "", part=part, on=on)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study or language-model run, or the page in it.")],
) -> None:
    """Write the HTML page of a study or language-model run again from its records.

    Example: ontogeny report studies/default
    """
    from ontogeny.runs.kinds import write_page

    typer.echo(f"wrote {write_page(folder.parent if folder.suffix == '.html' else folder)}")
