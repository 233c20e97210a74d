"""`ontogeny serve`: saved models behind an HTTP server."""

from pathlib import Path
from typing import Annotated

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.server_shared import DEFAULT_STATE_DIR, StateDir
from ontogeny.cli.shared import Device
from ontogeny.errors import BadInput
from ontogeny.server.config import ServerConfig
from ontogeny.validation import validate

DEFAULTS = ServerConfig()
Runs = Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of language models and agents.")]
Alias = Annotated[
    list[str] | None, typer.Option(metavar="NAME=RUN", help="Run to serve under another name; repeatable.")
]
Online = Annotated[
    bool, typer.Option("--online/--frozen", help="Let the weights learn from requests, or keep them fixed.")
]
Freeze = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Deployment that stays frozen with --online; repeatable.")
]
SharedBranch = Annotated[
    bool, typer.Option("--shared-branch", help="Let all keys share one branch of weights instead of one each.")
]
MaxForgetting = Annotated[
    float, typer.Option(help="Limit of the acceptance test: nats per token lost on held-out text.")
]
Learning = Annotated[
    str, typer.Option(help="Settings of online learning, such as 'chunk_size=32,adapter_rank=8'.", show_default=False)
]
Host = Annotated[str, typer.Option(help="Address to listen on; an address other than loopback needs a key.")]
Port = Annotated[int, typer.Option(help="TCP port to listen on.")]
MaxNumSeqs = Annotated[int, typer.Option(help="Sequences generated at a time per model.")]
MaxQueue = Annotated[int, typer.Option(help="Requests that may wait per model.")]
TimeLimit = Annotated[float, typer.Option(help="Time limit of a request in seconds.")]
MaxBodyBytes = Annotated[int, typer.Option(help="Size limit of a request body in bytes.")]
LearningFraction = Annotated[float, typer.Option(help="Part of the time for learning while requests wait.")]
WeightCheckInterval = Annotated[
    float, typer.Option(help="Seconds between checks of frozen weights against their digest.")
]
LogLevel = Annotated[str, typer.Option(help="Messages to log: error, warning, or info (one line per request).")]


def serve(
    runs: Runs = None,
    alias: Alias = None,
    online: Online = DEFAULTS.online,
    freeze: Freeze = None,
    shared_branch: SharedBranch = DEFAULTS.shared_branch,
    max_forgetting: MaxForgetting = DEFAULTS.max_forgetting,
    learning: Learning = DEFAULTS.learning,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    host: Host = DEFAULTS.host,
    port: Port = DEFAULTS.port,
    max_num_seqs: MaxNumSeqs = DEFAULTS.max_num_seqs,
    max_queue: MaxQueue = DEFAULTS.max_queue,
    time_limit: TimeLimit = DEFAULTS.time_limit,
    max_body_bytes: MaxBodyBytes = DEFAULTS.max_body_bytes,
    learning_fraction: LearningFraction = DEFAULTS.learning_fraction,
    weight_check_interval: WeightCheckInterval = DEFAULTS.weight_check_interval,
    log_level: LogLevel = DEFAULTS.log_level,
    device: Device = None,
) -> None:
    """Serve saved models over HTTP: the OpenAI API, agents and a web page; frozen, or learning online.

    Examples: ontogeny serve runs/mine; ontogeny serve --alias story=runs/mine --online
    """
    settings = {
        "online": online,
        "frozen": tuple(freeze or ()),
        "shared_branch": shared_branch,
        "max_forgetting": max_forgetting,
        "learning": learning,
        "learning_fraction": learning_fraction,
        "max_num_seqs": max_num_seqs,
        "max_queue": max_queue,
        "weight_check_interval": weight_check_interval,
        "host": host,
        "port": port,
        "time_limit": time_limit,
        "max_body_bytes": max_body_bytes,
        "log_level": log_level,
    }
    config = validate(ServerConfig, settings, "serve")
    named_runs = _name_runs(runs or [], alias or [])
    configure_jax(device)
    from ontogeny.runs.folder import locked
    from ontogeny.server import app
    from ontogeny.server.deployments import Deployments
    from ontogeny.server.store import Store

    store = Store(state_dir)
    with locked(store.folder):
        deployments = Deployments(named_runs, store, config)
        modes = ", ".join(f"{d.name} ({'online' if d.online else 'frozen'})" for d in deployments.by_name.values())
        app.serve(deployments, on_listening=lambda: typer.echo(f"serving {modes} on http://{host}:{port}"))


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
