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
    """Check that an environment keeps its contract: functions of their seeds, and steps as its spec says.

    Prints one line for each rule, and the speed. The name of a provider alone, such as gymnax, checks all of its
    environments and prints a table.

    Examples: ontogeny check env ./coins.py:flips=20; ontogeny check env gymnax:Catch-bsuite; ontogeny check env gymnax
    """
    configure_jax(device, num_host_devices)
    from ontogeny import contracts, plugins
    from ontogeny.contracts.environments import RULES

    plugin, settings = plugins.parse(name)
    if plugins.takes_id(plugin) and not settings:
        _print_table(plugin, seed)
        return
    files = plugins.outside_files(environments=plugin)
    with plugins.explain_plugin_errors(files, f"environment '{name}' fails"):
        # Not by `make_env`, which refuses an environment at its first violation.
        report = contracts.run_env_checks(plugins.build("environments", plugin, **settings), seed, files)
    for entry in report.results:
        status = "passed" if not entry.violation else "note" if entry.is_note else "violated"
        typer.echo(f"{status}: {RULES[entry.check]}" + (f" ({entry.violation})" if status == "note" else ""))
    if report.violations:
        place = f"with {' and '.join(map(repr, files))}, " if files else ""
        raise BadInput(f"environment '{name}' violates its contract: {place}{report.violations[0].violation}")
    typer.echo(f"speed: {report.steps_per_second:,.0f} steps/s with random actions")


def _print_table(provider: str, seed: int) -> None:
    """Print the checks of all environments of a provider, each row as soon as it is complete."""
    from ontogeny.contracts.provider_checks import COLUMNS, check_provider, format_row

    typer.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in check_provider(provider, seed):
        typer.echo(format_row(row))


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
