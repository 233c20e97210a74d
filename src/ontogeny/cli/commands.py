"""The table of all commands. A command's module is imported when the command is called, not before.

A command is a function; its docstring is its help, and the last paragraph of the docstring holds examples. The overview
of a group shows the first lines of these docstrings, which are read without importing the modules.
"""

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

Entries = Mapping[str, "str | Mapping[str, str]"]
COMMANDS: Entries = {  # `module:function` of a command; of a group its commands, and its help under the empty name
    "train": "agents:train",
    "evaluate": "agents:evaluate",
    "deploy": "agents:deploy",
    "study": "study:study",
    "report": "study:report",
    "list": "list_plugins:list_plugins",
    "lm": {
        "": "Train, evaluate, run and export language models.",
        "train": "lm:train",
        "evaluate": "lm:evaluate",
        "generate": "lm:generate",
        "export": "lm:export",
    },
    "serve": "serve:serve",
    "keys": {
        "": "Create, list, limit and revoke API keys.",
        "create": "server_keys:create_key",
        "list": "server_keys:list_keys",
        "limit": "server_keys:change_limits",
        "revoke": "server_keys:revoke_key",
    },
    "usage": "server_keys:usage",
    "deployments": {
        "": "Inspect, roll back, freeze, unfreeze, check, repair and move online deployments.",
        "log": "server_state:show_log",
        "rollback": "server_state:roll_back",
        "freeze": "server_state:freeze",
        "unfreeze": "server_state:unfreeze",
        "check": "server_state:check",
        "repair": "server_state:repair",
        "move": "server_state:move",
        "use-snapshots": "server_state:use_snapshots",
        "vacuum": "server_state:vacuum",
        "status": "server_status:show_status",
    },
    "audit": {
        "": "Test whether an agent learns, plans or pursues an objective, and where its ability is stored.",
        "agent": "audit:agent",
        "attribution": "audit:attribution",
        "calibrate": "audit:calibrate",
        "behavior": "audit_behavior:behavior",
        "prequential": "audit_prequential:prequential",
    },
    "check": {
        "": "Check the contract of an agent or environment.",
        "agent": "check:agent",
        "env": "check:env",
    },
}


class LazyCommands(Mapping[str, TyperCommand | TyperGroup]):
    """Commands by name, each imported when it is looked up."""

    def __init__(self, entries: Entries) -> None:
        self.entries = {name: entry for name, entry in entries.items() if name}

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        entry = self.entries[name]
        if not isinstance(entry, str):
            return LazyGroup(entries=entry, name=name, help=entry[""], no_args_is_help=True, rich_markup_mode=None)
        module, _, function = entry.partition(":")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(getattr(importlib.import_module(f"ontogeny.cli.{module}"), function))
        command = typer.main.get_command(app)
        command.name = name
        return command  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class LazyGroup(TyperGroup):
    """A group whose commands are `LazyCommands`: its help is written without importing them."""

    def __init__(self, *, entries: Entries = COMMANDS, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands(entries)  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the table."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names of the commands and their help."""
        entries = self.commands.entries  # type: ignore[attr-defined]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _short_help(entry)) for name, entry in entries.items()])


def _short_help(entry: str | Mapping[str, str]) -> str:
    """The help of a group, or the first line of a command's docstring."""
    if not isinstance(entry, str):
        return entry[""]
    module, _, function = entry.partition(":")
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    definitions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(next(definitions)) or "").partition("\n")[0]
