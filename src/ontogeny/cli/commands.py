"""The table of all commands. A command's module is imported when the command is called, not before.

The help of a command is the first line of its function's docstring, read without importing the module.
"""

import ast
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

_FOLDER = Path(__file__).parent


class CommandEntry(NamedTuple):
    """One command or group of commands.

    Attributes:
        target: `module:function` in this package, or `module:app` with a `typer.Typer` of several commands.
        example: One or more command lines, separated by semicolons.
        help: Of a group; a command has the first line of its docstring.
        commands: Of a group without a module of its own.
    """

    target: str = ""
    example: str = ""
    help: str = ""
    commands: "Mapping[str, CommandEntry] | None" = None


COMMANDS: dict[str, CommandEntry] = {
    "train": CommandEntry(
        "train:train",
        "ontogeny train --agent recurrent_cells --env bandit:num_pulls=10 --development evolution --out runs/cells",
    ),
    "evaluate": CommandEntry(
        "evaluate:evaluate",
        "ontogeny evaluate runs/cells --num-tasks 40000; ontogeny evaluate --agent thompson --env bandit:num_arms=10",
    ),
    "deploy": CommandEntry(
        "deploy:deploy", "ontogeny deploy runs/cells --frozen --num-steps 20 --save runs/cells-deployed"
    ),
    "study": CommandEntry(
        "study:study", "ontogeny study my_study.toml --out studies/mine; ontogeny study mesa --small"
    ),
    "report": CommandEntry("report:report", "ontogeny report studies/default"),
    "list": CommandEntry(
        "list_plugins:list_plugins",
        "ontogeny list; ontogeny list agents; ontogeny list environments bandit",
    ),
    "lm": CommandEntry(
        help="Train, evaluate, run and export language models.",
        commands={
            "train": CommandEntry("lm:train", "ontogeny lm train mine.txt --size nano --out runs/mine"),
            "evaluate": CommandEntry(
                "lm:evaluate",
                "ontogeny lm evaluate runs/mine; ontogeny lm evaluate runs/mine --text other.txt --online",
            ),
            "generate": CommandEntry(
                "lm:generate", "ontogeny lm generate runs/mine --prompt 'Once upon' --max-tokens 200 --temperature 0.8"
            ),
            "export": CommandEntry("lm:export", "ontogeny lm export runs/mine --out folder-for-transformers"),
        },
    ),
    "serve": CommandEntry("serve:serve", "ontogeny serve runs/mine; ontogeny serve --alias story=runs/mine --online"),
    "keys": CommandEntry("keys:app", help="Create, list and revoke API keys."),
    "usage": CommandEntry("keys:usage", "ontogeny usage"),
    "deployments": CommandEntry("deployments:app", help="Inspect, roll back, freeze and unfreeze online deployments."),
    "audit": CommandEntry(
        help="Test whether an agent learns, plans or pursues an objective, and where its ability is stored.",
        commands={
            "agent": CommandEntry("audit:agent", "ontogeny audit agent runs/cells --out audit.json"),
            "attribution": CommandEntry(
                "audit:attribution",
                "ontogeny audit attribution runs/cells --num-tasks 400; ontogeny audit attribution --controls",
            ),
            "calibrate": CommandEntry(
                "audit:calibrate", "ontogeny audit calibrate --num-audits 1000 --out calibration.json"
            ),
            "behavior": CommandEntry(
                "audit_behavior:behavior",
                "ontogeny audit behavior choices.csv --out behavior; "
                "ontogeny audit behavior choices.csv --columns subject=subjID,choice=level1_choice",
            ),
            "prequential": CommandEntry(
                "audit_prequential:prequential",
                "ontogeny audit prequential mine.py:predict; ontogeny audit prequential --calibrate 100",
            ),
        },
    ),
    "check": CommandEntry(
        help="Check the contract of an agent or environment.",
        commands={
            "agent": CommandEntry("check:agent", "ontogeny check agent ./mine.py --env bandit"),
            "env": CommandEntry("check:env", "ontogeny check env ./coins.py:flips=20"),
        },
    ),
}


class LazyCommands(Mapping[str, Any]):
    """Commands by name, each imported when it is looked up."""

    def __init__(self, entries: Mapping[str, CommandEntry]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        return _load(name, self.entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class LazyGroup(TyperGroup):
    """A group whose commands are `LazyCommands`: its help is written without importing them."""

    def __init__(self, *, entries: Mapping[str, CommandEntry] = COMMANDS, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands(entries)  # type: ignore[assignment]
        self.entries = entries

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the table."""
        return list(self.entries)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names of the commands and their help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _short_help(entry)) for name, entry in self.entries.items()])


def _short_help(entry: CommandEntry) -> str:
    """The first line of a command's docstring, read from the source of its module."""
    if entry.help:
        return entry.help
    module, _, function = entry.target.partition(":")
    tree = ast.parse((_FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    definitions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(next(definitions)) or "").partition("\n")[0]


@cache
def _load_target(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(f"ontogeny.cli.{module}"), attribute)


def _load(name: str, entry: CommandEntry) -> TyperCommand | TyperGroup:
    """Build the command of an entry."""
    if entry.commands is not None:
        return LazyGroup(
            entries=entry.commands, name=name, help=entry.help, no_args_is_help=True, rich_markup_mode=None
        )
    target = _load_target(entry.target)
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        label = "Examples" if ";" in entry.example else "Example"
        app.command(name, epilog=f"{label}: {entry.example}")(target)
    command = typer.main.get_command(app)
    command.name = name
    return command  # type: ignore[return-value]
