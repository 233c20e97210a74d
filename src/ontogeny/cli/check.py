"""`ontogeny check`: the contracts of an agent or environment, such as one of the user's own."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import Device, NumHostDevices, Seed, build_run_spec
from ontogeny.errors import BadInput


def agent(
    name: Annotated[str, typer.Argument(metavar="AGENT", help="Agent or file, NAME[:setting=value,...].")],
    env: Annotated[str, typer.Option(help="Environment for the check, NAME[:setting=value,...].")] = "bandit",
    seed: Seed = 0,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Check that an agent keeps its contract: what `act`, `learn` and `reset` may read and change.

    Example: ontogeny check agent ./mine.py --env bandit
    """
    configure_jax(device, num_host_devices)
    from ontogeny import contracts, plugins
    from ontogeny.stages.assembly import assemble

    assembly = assemble(build_run_spec(name, env, "single_lifetime", None, seed))
    files = plugins.outside_files(agents=plugins.parse(name)[0], environments=plugins.parse(env)[0])
    checks = {
        "signatures and first steps: shapes and types stay the same, equal keys give equal results": (
            lambda agent, env, steering, seed: contracts.check_agent_first_steps(agent, env, steering, files, seed=seed)
        ),
        "single steps: `act` changes activations only, `learn` weights only, `act` reads no scratch": (
            contracts.check_agent_steps
        ),
        "whole lifetimes: frozen weights stay the same, `reset` restores activations only, no score is read": (
            contracts.check_agent_lifetimes
        ),
    }
    env_for_checks = contracts.make_traceable(assembly.env)
    _run_checks("agent", name, files, checks, assembly.agent, env_for_checks, assembly.steering, seed)


def env(
    name: Annotated[str, typer.Argument(metavar="ENV", help="Environment or file, NAME[:setting=value,...].")],
    seed: Seed = 0,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Check that an environment keeps its contract: pure functions, and steps as its spec says.

    Example: ontogeny check env ./coins.py:flips=20
    """
    configure_jax(device, num_host_devices)
    from ontogeny import contracts, plugins
    from ontogeny.stages.assembly import make_env
    from ontogeny.types import HostEnvironment

    plugin, settings = plugins.parse(name)
    environment = make_env(plugin, **settings)
    files = plugins.outside_files(environments=plugin)
    checks = {
        "spec and first steps: sizes, names, drives, and what is emitted in eight lifetimes": (
            lambda environment, seed: contracts.check_env_first_steps(environment, files, seed=seed)
        ),
        "`reset` and `step` are functions of their keys and keep to the spec": contracts.check_env,
    }
    if isinstance(environment, HostEnvironment):
        checks = {
            "observations lie in their spaces, lifetimes are functions of their seeds and share nothing": (
                contracts.check_host_env
            )
        }
    _run_checks("environment", name, files, checks, environment, seed)


def _run_checks(
    kind: str, name: str, files: list[str], checks: Mapping[str, Callable[..., object]], *arguments: Any
) -> None:
    """Run checks and print one line for each; the first violation, or error of a user's file, ends the command."""
    from ontogeny import plugins

    for rule, check in checks.items():
        with plugins.explain_plugin_errors(files, f"{kind} '{name}' fails"):
            try:
                check(*arguments)
            except BadInput as error:
                raise BadInput(f"{kind} '{name}' violates its contract: {error}") from None
        typer.echo(f"passed: {rule}")
