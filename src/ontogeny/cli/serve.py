"""`ontogeny serve`: saved models behind an HTTP server."""

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import (
    DEFAULT_STATE_DIR,
    DatabaseUrl,
    Device,
    NumHostDevices,
    SnapshotUrl,
    StateDir,
    options_from,
)
from ontogeny.errors import BadInput
from ontogeny.server.config import ServerConfig
from ontogeny.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ontogeny.server.deployment_kinds import Deployment


OnCluster = Annotated[
    str | None,
    typer.Option(
        metavar="ray[:SETTING=VALUE,...]",
        help="Serve from several processes of a Ray cluster instead of this process, with the settings "
        "num_replicas (2), num_cpus of each (1) and address (RAY_ADDRESS, or a new cluster on this machine); needs "
        "PostgreSQL.",
        show_default=False,
    ),
]


@options_from(ServerConfig)
def serve(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of language models and agents.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RUN", help="Run to serve under another name; repeatable.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online/--frozen", help="Let the weights learn from requests, or keep them fixed.")
    ] = False,
    frozen: Annotated[
        list[str] | None,
        typer.Option("--freeze", metavar="NAME", help="Deployment that stays frozen with --online; repeatable."),
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(
            "--best", metavar="NAME", help="Deployment that has the weights of its lowest held-out loss; repeatable."
        ),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
    snapshot_url: SnapshotUrl = None,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
    on: OnCluster = None,
    **settings: Any,
) -> None:
    """Serve saved models over HTTP: the OpenAI API, agents and a web page; frozen, or learning online.

    Examples: ontogeny serve runs/mine; ontogeny serve --alias story=runs/mine --online
    """
    names = {"frozen": tuple(frozen or ()), "best": tuple(best or ())}
    config = validate(ServerConfig, settings | {"online": online} | names, "serve")
    named_runs = _name_runs(runs or [], alias or [])
    if on is not None:
        prepare = functools.partial(configure_jax, device, num_host_devices)
        return _serve_on_ray(
            on, named_runs, config, (state_dir, database_url, snapshot_url), prepare=prepare, needs_gpu=device == "gpu"
        )
    from ontogeny.server import process_memory

    process_memory.limit_memory_arenas()
    with process_memory.collection_paused():
        configure_jax(device, num_host_devices)
        from ontogeny.server import app
        from ontogeny.server.deployments import opened_deployments
        from ontogeny.server.store import Store

        process_memory.exclude_from_collection()
    _check_runs(named_runs)
    store = Store(state_dir, database_url=database_url, snapshot_url=snapshot_url)
    with opened_deployments(named_runs, store, config) as deployments:
        deployments.on_started = process_memory.exclude_from_collection
        modes = ", ".join(f"{d.name} ({'online' if d.online else 'frozen'})" for d in deployments.by_name.values())

        def announce(url: str) -> None:
            deployments.on_ready = functools.partial(_print, f"serving {modes} on {url}")
            print_details(list(deployments.by_name.values()))
            _print(f"starting {modes}")

        app.serve(deployments, on_listening=announce)


def _serve_on_ray(
    on: str,
    runs: list[tuple[str, Path]],
    config: ServerConfig,
    storage: tuple[Path, str | None, str | None],
    *,
    prepare: "Callable[[], None]",
    needs_gpu: bool,
) -> None:
    """Serve from several processes on a Ray cluster."""
    from ontogeny.server.clusters.ray_serve import serve_on_ray

    _check_runs(runs)
    serve_on_ray(on, runs, config, storage, prepare, needs_gpu=needs_gpu, announce=_print)


def _check_runs(runs: list[tuple[str, Path]]) -> None:
    """Check what is to be served before the state folder is created."""
    from ontogeny.runs.kinds import require_loadable
    from ontogeny.server.deployments import check_names

    check_names(runs)
    for _, run in runs:
        require_loadable(run)


def print_details(deployments: "Sequence[Deployment]") -> None:
    """Prints which weights of each model are served, unless they are the final ones, and which of them learn."""
    for deployment in deployments:
        if deployment.checkpoint_name != "final":
            _print(f"{deployment.name}: the weights {deployment.checkpoint_name}")
        if deployment.learning is not None:
            _print(f"{deployment.name}: {deployment.learning}")


def _print(line: str) -> None:
    """Prints a line unless nobody reads the output of the server any more."""
    with contextlib.suppress(OSError):
        typer.echo(line)


def _name_runs(runs: list[Path], aliases: list[str]) -> list[tuple[str, Path]]:
    """Name and folder of each deployment."""
    named_runs = [(run.resolve().name, run) for run in runs]
    for alias in aliases:
        name, equals, run = alias.partition("=")
        if not equals or not name or not run:
            raise BadInput(f"'{alias}' does not have the form NAME=RUN")
        named_runs.append((name, Path(run)))
    if not named_runs:
        raise BadInput("name at least one run to serve")
    return named_runs
