"""`ontogeny train`: develop an agent."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import Device, Drives, Seed, build_run_spec, format_number, progress
from ontogeny.report.formatting import pluralize


def train(
    agent: Annotated[str, typer.Option(help="Agent, NAME[:setting=value,...]; see `ontogeny list agents`.")],
    env: Annotated[str, typer.Option(help="Environment, NAME[:setting=value,...]; see `ontogeny list environments`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")],
    development: Annotated[
        str, typer.Option(help="Outer loop, NAME[:setting=value,...]; see `ontogeny list development`.")
    ] = "single_lifetime",
    drive: Drives = None,
    checkpoint_interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Seconds between checkpoints; 0 saves one as often as possible.")
    ] = 5.0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Develop an agent in an environment; rerun the same command to resume.

    Example: ontogeny train --agent recurrent_cells --env bandit:num_pulls=10 --development evolution --out runs/cells
    """
    configure_jax(device)
    from ontogeny.runs import checkpoint
    from ontogeny.stages.train import train

    spec = build_run_spec(agent, env, development, drive, seed)
    with progress("training") as update:

        def on_progress(num_done: int, total: int, record: dict[str, Any]) -> None:
            steps = record["env_steps"]
            text = f"generation {num_done} of {total}, fitness {format_number(record['fitness'])}"
            update(steps, steps * total // num_done, text)

        train(spec, out, on_progress=on_progress, checkpoint_interval=checkpoint_interval)
    genome = checkpoint.read_metadata(out, "genome")
    typer.echo(
        f"{out}: a genome of {pluralize(genome['num_parameters'], 'parameter')} after "
        f"{pluralize(genome['generation'], 'generation')} and {genome['env_steps']:,} steps, "
        f"genome digest {genome['digest'][:16]}"
    )
