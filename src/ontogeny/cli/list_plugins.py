"""`ontogeny list`: the plugins of each kind and their settings."""

from typing import Annotated

import typer

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.renamed import renamed_hint

KIND_HELP = (
    "Kind of plugin: environments, agents, content (models that hand-written agents learn), development (outer loops), "
    "audit (tests), organisms (agents whose ground truth is known)."
)


def list_plugins(
    kind: Annotated[str | None, typer.Argument(help=KIND_HELP)] = None,
    name: Annotated[str | None, typer.Argument(help="Plugin whose settings to show.")] = None,
) -> None:
    """List environments, agents and other plugins, or the settings of one of them.

    Examples: ontogeny list; ontogeny list agents; ontogeny list environments bandit
    """
    if kind is not None and kind not in plugins.PLUGIN_KINDS:
        hint = renamed_hint("plugin kind", kind)
        if hint:
            raise BadInput(hint)
        commands = [
            f"'ontogeny list {folder} {kind}'" for folder in plugins.PLUGIN_KINDS if kind in plugins.list_names(folder)
        ]
        if commands:
            raise BadInput(f"'{kind}' is no kind of plugin but a plugin; {' or '.join(commands)} lists its settings")
        raise plugins.unknown_name_error("kind of plugin", kind, list(plugins.PLUGIN_KINDS))
    if kind is not None and name is not None:
        _print_settings(kind, name)
        return
    for listed_kind in [kind] if kind else plugins.PLUGIN_KINDS:
        names = plugins.list_names(listed_kind)
        if names:
            width = max(map(len, names))
            typer.echo(listed_kind)
            for plugin in names:
                typer.echo(f"  {plugin:<{width}}  {plugins.help_line(listed_kind, plugin)}")


def _print_settings(kind: str, name: str) -> None:
    """Print a plugin's docstring and its settings with their defaults."""
    typer.echo(plugins.read_docstring(kind, name))
    settings, meanings = plugins.default_settings(kind, name), plugins.describe_settings(kind, name)
    assignments = {setting: f"{setting}={default}" for setting, default in settings.items()}
    width = max(map(len, assignments.values()), default=0)
    for setting, assignment in assignments.items():
        typer.echo(f"  {assignment:<{width}}  {meanings.get(setting, '')}".rstrip())
    if not settings:
        typer.echo("  no settings")
