"""The commands that make agents and pages: study, train, report, list."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ontogeny import plugins
from ontogeny.cli.shared import Device, Drives, Seed, count, progress, run_spec, short
from ontogeny.cli.start import prepare


def study(
    spec: Annotated[
        Path | None,
        typer.Argument(
            help="A study as TOML; by default the one that comes along. `mesa`: does learned content optimize?"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and report; by default studies/default or studies/mesa.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the seed in the spec.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Of mesa, a version of about a minute.")] = False,
    device: Device = None,
) -> None:
    """Develop, evaluate and compare several agents; leaves records and one HTML page."""
    prepare(device)
    from ontogeny import studies

    studies.run(spec, out, seed, "small" if small else "")


def train(
    agent: Annotated[str, typer.Option(help="NAME[:setting=value,...], see `ontogeny list agents`.")],
    env: Annotated[str, typer.Option(help="NAME[:setting=value,...], see `ontogeny list environments`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that is unfinished is resumed.")],
    development: Annotated[
        str, typer.Option(help="NAME[:setting=value,...], see `ontogeny list development`.")
    ] = "single_lifetime",
    drive: Drives = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between checkpoints; 0: as often as can be.")] = 5.0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Develop a genome; a run that was killed goes on when the same command is given again."""
    prepare(device)
    from ontogeny.runs import checkpoint
    from ontogeny.stages.train import train

    spec = run_spec(agent, env, development, drive, seed)
    with progress("training") as update:

        def on_progress(done: int, total: int, record: dict[str, Any]) -> None:
            steps = record["env_steps"]
            update(steps, steps * total // done, f"generation {done} of {total}, fitness {short(record['fitness'])}")

        train(spec, out, on_progress=on_progress, checkpoint_interval=every)
    made = checkpoint.read_metadata(out, "genome")
    typer.echo(
        f"{out}: a genome of {count(made['num_parameters'], 'number')} after {count(made['generation'], 'generation')} "
        f"and {made['env_steps']:,} steps, genome digest {made['digest'][:16]}"
    )


def report(folder: Annotated[Path, typer.Argument(help="The folder of a study.")]) -> None:
    """Write the page of a study again, from its records."""
    from ontogeny import studies

    typer.echo(f"wrote {studies.write_page(folder)}")


def list_rooms(
    family: Annotated[str | None, typer.Argument(help=", ".join(plugins.PLUGIN_KINDS))] = None,
    name: Annotated[str | None, typer.Argument(help="A room, to see its settings.")] = None,
) -> None:
    """What there is: environments, agents, developments; of one of them, its settings."""
    if family is not None and family not in plugins.PLUGIN_KINDS:
        raise plugins.unknown_name_error("family", family, list(plugins.PLUGIN_KINDS))
    if family is not None and name is not None:
        typer.echo(plugins.read_docstring(family, name))
        known = plugins.default_settings(family, name)
        for setting, default in known.items():
            typer.echo(f"  {setting}={default}")
        if not known:
            typer.echo("  no settings")
        return
    for each in [family] if family else plugins.PLUGIN_KINDS:
        names = plugins.list_names(each)
        if names:
            width = max(map(len, names))
            typer.echo(each)
            for room in names:
                typer.echo(f"  {room:<{width}}  {plugins.help_line(each, room)}")
