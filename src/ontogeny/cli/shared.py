"""What commands share: options, what a person typed as values, a bar, numbers for people."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny import plugins
from ontogeny.errors import BadInput, ContractViolation

if TYPE_CHECKING:
    from ontogeny.stages.saved_agent import SavedAgent

BARS = "▁▂▃▄▅▆▇█"

Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Device = Annotated[str | None, typer.Option(help="cpu or gpu; by default what JAX finds.")]
Drives = Annotated[
    list[str] | None,
    typer.Option(
        "--drive", metavar="FACT=WEIGHT", help="A fact and its weight in the reward; may be given several times."
    ),
]
Environment = Annotated[
    str | None, typer.Option(help="Another environment than that of the run, NAME[:setting=value,...].")
]


def can_be_made(path: Path | None) -> None:
    """Raises `BadInput` before any work is done for a file or folder that could not be written after it."""
    if path is None:
        return
    if path.exists() or path.is_symlink():
        raise BadInput(f"'{path}' exists; not overwritten")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"there is no folder '{path.parent}' for '{path.name}'")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise BadInput(f"nothing can be written in '{path.absolute().parent}'")


def note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def run_spec(agent: str, env: str, development: str, drives: list[str] | None, seed: int) -> Any:
    from ontogeny.stages.spec import parse_run_spec

    pairs = [drive_of(text) for text in drives or []]
    weights = dict(pairs)
    if len(weights) < len(pairs):
        raise BadInput("a --drive names a fact that another one names already")
    return parse_run_spec({"agent": agent, "env": env, "development": development, "drives": weights, "seed": seed}, "train")


def drive_of(text: str) -> tuple[str, float]:
    feature, _, weight = text.partition("=")
    try:
        return feature.strip(), plugins.finite_float(float(weight), f"the weight in '{text}'")
    except BadInput:
        raise
    except ValueError:
        raise BadInput(f"'{text}' is not of the form fact=weight") from None


def subject_of(run: Path | None, agent: str | None, env: str | None, drives: list[str] | None, seed: int) -> "SavedAgent":
    """The agent to evaluate: a saved one, or one as people wrote it."""
    import jax

    from ontogeny.stages.assembly import assemble
    from ontogeny.stages.saved_agent import SavedAgent, read_saved_agent
    from ontogeny.stages.spec import parse_plugin_choice

    if run is not None:
        if drives:
            raise BadInput("the drives of a run are those that it was developed with")
        return read_saved_agent(run, env=parse_plugin_choice(env) if env else None)
    if env is None:
        raise BadInput("an --agent is evaluated in a --env: name it")
    spec = run_spec(str(agent), env, "single_lifetime", drives, seed)
    subject = assemble(spec)
    return SavedAgent(spec, subject, subject.agent.genome(jax.random.key(seed)), None)


@contextlib.contextmanager
def naming(saved: "SavedAgent") -> Iterator[None]:
    """Says whose fault it is where an agent breaks a law."""
    try:
        yield
    except ContractViolation as error:
        raise BadInput(f"agent '{saved.spec.agent.name}': {error}") from None


def room_text(room: dict[str, Any]) -> str:
    settings = ",".join(f"{name}={value}" for name, value in room["settings"].items())
    name = Path(room["name"]).name
    return f"{name}:{settings}" if settings else name


def sketch(values: list[float]) -> str:
    """A learning curve in at most 40 characters, between its first and last value."""
    shown = values[:: -(-len(values) // 40)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(BARS[round((value - low) * scale)] for value in shown)
    return f"{short(values[0])} {bars} {short(values[-1])}"


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def short(value: float | None) -> str:
    """A number for people: at most four digits, no exponent where it can be avoided."""
    if value is None:
        return "not finite"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


@contextlib.contextmanager
def progress(what: str, unit: str = "steps") -> Iterator[Callable[[int, int, str], None]]:
    """A bar on the terminal with rate and time left, and nothing elsewhere; call it with units done, in all, a text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            if not task.completed:
                return Text("compiling")
            speed = task.finished_speed or task.speed or task.completed / max(task.elapsed or 0, 1e-3)
            return Text(f"{speed:,.0f} {unit}/s" if speed >= 1 else f"{1 / speed:,.0f} s each")

    console = Console(stderr=True)
    whole = Column(no_wrap=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        Rate(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
    )
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def update(done: int, total: int, text: str) -> None:
            progress.update(bar, completed=done, total=total, description=f"{what}: {text}")

        yield update
