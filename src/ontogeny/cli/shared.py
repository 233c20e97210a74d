"""Options and output shared by several commands."""

import contextlib
import inspect
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from ontogeny import plugins
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.printable import to_printable
from ontogeny.seeds import check_seed

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ontogeny.audit.history import AuditHistory
    from ontogeny.server.store import Store
    from ontogeny.stages.saved_agent import SavedAgent
    from ontogeny.stages.spec import RunSpec

LINE_INTERVAL = 10.0  # least seconds between lines of progress where standard error is no terminal
MAX_LINE_LENGTH = 10_000  # of a table that is written to a pipe or a file
BARS = "▁▂▃▄▅▆▇█"


def check_seed_option(seed: int | None) -> int | None:
    """Check the seed of an option; an option that is not given passes."""
    return None if seed is None else check_seed(seed, "--seed")


Seed = Annotated[int, typer.Option(help="Seed of all random numbers.", callback=check_seed_option)]
Device = Annotated[
    str | None, typer.Option(help="Device to compute on, cpu or gpu; by default a gpu where JAX has one.")
]
NumHostDevices = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,  # programs for many more devices take minutes to compile
        help="Devices into which the processors are divided, each with one thread: results are then bitwise equal on "
        "any number of processors (default: one per processor, at most 8).",
    ),
]
OnDriver = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="DRIVER",
        help="Where tasks are computed: in_process, one after another; processes, in parallel on this machine "
        "(processes:num_workers=4 for four of them); or ray, on the cluster that RAY_ADDRESS names.",
    ),
]
Drives = Annotated[
    list[str] | None,
    typer.Option(
        "--drive", metavar="FEATURE=WEIGHT", help="Weight of an outcome feature in the reward; repeat for several."
    ),
]
EnvironmentOption = Annotated[
    str | None,
    typer.Option("--env", help="Environment to use instead of the run's, NAME[:setting=value,...]."),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JsonFile = Annotated[Path | None, typer.Option("--out", help="New file for the JSON.")]
DEFAULT_STATE_DIR = Path("deployments")
StateDir = Annotated[
    Path, typer.Option("--state-dir", help="Folder with the keys, usage, journal, sessions and snapshots of a server.")
]
UpdateProgress = Callable[..., None]
Command = TypeVar("Command", bound=Callable[..., None])


def check_new_path(path: Path | None) -> None:
    """Raise `BadInput` before any work is done for a file or folder that could not be written after it."""
    if path is None:
        return
    if path.exists() or path.is_symlink():
        raise BadInput(f"'{path}' exists; not overwritten")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"there is no folder '{path.parent}' for '{path.name}'")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise BadInput(f"nothing can be written in '{path.absolute().parent}'")


def options_from(model: "type[BaseModel]") -> Callable[[Command], Command]:
    """Give a command one option for each setting of a model, except for the settings that are its own parameters.

    Type and default of an option are those of the setting, and its help is the text in the `Attributes` of the class.
    The command receives these options as `**settings`.
    """
    help_texts = plugins.read_entries(inspect.getdoc(model) or "", "Attributes")

    def to_option(name: str) -> inspect.Parameter:
        field = model.model_fields[name]
        annotation, default, metavar = field.annotation, field.default, None
        if get_origin(annotation) is Literal:  # the model checks choices, as it checks ranges
            annotation = type(get_args(annotation)[0])
        elif get_origin(annotation) is tuple:  # the option is repeated for each element
            element = get_args(annotation)[0]
            annotation, default, metavar = list[element], list(default), f"<{element.__name__}>"
        option = typer.Option(
            f"--{name.replace('_', '-')}", help=help_texts[name], show_default=field.default != "", metavar=metavar
        )
        annotated = Annotated[annotation, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)

    def add_options(command: Command) -> Command:
        signature = inspect.signature(command)
        *explicit, _ = signature.parameters.values()
        derived = [to_option(name) for name in help_texts if name not in signature.parameters]
        command.__signature__ = signature.replace(parameters=[*explicit, *derived])  # type: ignore[attr-defined]
        return command

    return add_options


def refuse_password(address: str | None) -> str | None:
    """Refuse an address with a password: every user of a machine can read the command lines of its processes."""
    if address is not None and re.search(r"^[^/]*//[^/@]*:[^/@]*@|[?&](ssl)?password=", address):
        raise BadInput(
            "command lines are visible to others: give an address with a password in ONTOGENY_DATABASE_URL, or the "
            "password in PGPASSWORD or ~/.pgpass"
        )
    return address


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="PostgreSQL database, postgresql://USER@HOST/NAME, instead of SQLite in the state folder; the environment "
        "variable ONTOGENY_DATABASE_URL says the same.",
        show_default=False,
        callback=refuse_password,
    ),
]


def refuse_credentials(address: str | None) -> str | None:
    """Refuse an address of snapshots with credentials, which every user of a machine could read."""
    if address is not None and "@" in address:
        raise BadInput(
            "command lines are visible to others: give credentials of the snapshot store in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or as a profile"
        )
    return address


SnapshotUrl = Annotated[
    str | None,
    typer.Option(
        help="S3-compatible store of the snapshots of weights, s3://BUCKET/PREFIX, instead of a folder in the state "
        "folder; the environment variable ONTOGENY_SNAPSHOT_URL says the same.",
        show_default=False,
        callback=refuse_credentials,
    ),
]


def open_store(state_dir: Path, database_url: str | None, *, read_only: bool = False) -> "Store":
    """Open the database of a state folder; an absent one raises `BadInput`."""
    from ontogeny.server.store import Store

    return Store(state_dir, create=False, read_only=read_only, database_url=database_url)


INTERVAL_ENDS = ("low", "high", "interval")  # null where there is too little data for an interval


def strict_json(content: Any, path: str = "") -> Any:
    """Convert a record to values of strict JSON.

    Args:
        content: Dictionaries, sequences and scalars.
        path: Where in the record they stand.

    Returns:
        The same values; the end of an interval that is not finite becomes null.

    Raises:
        BadInput: Another number is not finite.
    """
    if isinstance(content, Mapping):
        return {name: strict_json(part, f"{path}.{name}" if path else str(name)) for name, part in content.items()}
    if isinstance(content, list | tuple):
        return [strict_json(part, path) for part in content]
    if isinstance(content, float) and not math.isfinite(content):
        if path.rpartition(".")[2] in INTERVAL_ENDS:
            return None
        raise BadInput(f"the result '{path}' is not a finite number ({content}), so no report is written")
    return content


def write_report(out: Path | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """Add the format number to a record, and write it to a new file where one was requested."""
    from ontogeny.runs.files import write_json
    from ontogeny.runs.formats import FORMATS, JSON_REPORT

    report = {"format": FORMATS[JSON_REPORT]} | strict_json(record)
    if out is not None:
        write_json(out, report)
    return report


def output_report(record: Mapping[str, Any], rows: Mapping[str, str], out: Path | None, *, as_json: bool) -> None:
    """Write a record as `write_report` does, and print it as JSON, or its most important values as two columns."""
    report = write_report(out, record)
    if as_json:
        typer.echo(json.dumps(report, allow_nan=False))
    else:
        print_table(rows.items())


def print_table(rows: Iterable[Sequence[str]], headings: Sequence[str] = ()) -> None:
    """Print a table without borders; what is not printable in a cell appears as an escape sequence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    has_headings = bool(headings)
    table = Table(*headings, box=None, show_header=has_headings, header_style="", pad_edge=not has_headings)
    for row in rows:
        table.add_row(*(Text(to_printable(cell)) for cell in row))
    for column in table.columns:
        column.overflow = "fold"  # a long setting is broken over lines, not cut off
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=MAX_LINE_LENGTH)  # who reads from a pipe finds each row on one line
    with console.capture() as capture:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_history(history: "AuditHistory") -> None:
    """Print which audit of an agent this one is."""
    if text := history.describe():
        typer.echo(to_printable(text))


def print_note(message: str) -> None:
    """Print a note to the user on standard error."""
    print(f"note: {to_printable(message)}", file=sys.stderr)


def build_run_spec(agent: str, env: str, development: str, drives: list[str] | None, seed: int) -> "RunSpec":
    """The spec of a run from the options of a command."""
    from ontogeny.stages.spec import parse_run_spec

    pairs = [parse_drive(text) for text in drives or []]
    weights = dict(pairs)
    if len(weights) < len(pairs):
        raise BadInput("two --drive options name the same outcome feature")
    data = {"agent": agent, "env": env, "development": development, "drives": weights, "seed": seed}
    return parse_run_spec(data, "options")


def parse_drive(text: str) -> tuple[str, float]:
    """`'food=2'` as an outcome feature and its weight."""
    feature, _, weight = text.partition("=")
    try:
        number = float(weight)
    except ValueError:
        raise BadInput(f"'{text}' is not of the form feature=weight") from None
    return feature.strip(), plugins.finite_float(number, f"the weight in '{text}'")


@contextlib.contextmanager
def name_agent_in_violations(saved_agent: "SavedAgent") -> Iterator[None]:
    """Name the agent in the message where it violates its contract."""
    try:
        yield
    except ContractViolation as error:
        raise BadInput(f"agent '{saved_agent.spec.agent.name}': {error}") from None


def format_plugin_choice(choice: dict[str, Any]) -> str:
    """A plugin and its settings as on the command line."""
    return plugins.format_choice(Path(choice["name"]).name, choice["settings"])


def sparkline(values: list[float]) -> str:
    """A learning curve in at most 40 characters, between its first and last value."""
    sampled = values[:: -(-len(values) // 40)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(BARS[round((value - low) * scale)] for value in sampled)
    return f"{format_number(values[0])} {bars} {format_number(values[-1])}"


def format_time(seconds: float) -> str:
    """Seconds since 1970 as date and time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def format_number(value: float | None) -> str:
    """A number with at most four digits, without an exponent where it can be avoided."""
    if value is None:
        return "not finite"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


@contextlib.contextmanager
def progress(description: str, unit: str = "steps") -> Iterator[UpdateProgress]:
    """A progress bar on a terminal, else a line after `LINE_INTERVAL` or more seconds; both with the remaining time.

    Yields:
        A function that takes the units done, all units, and a text (default: both numbers).
    """
    if not sys.stderr.isatty():
        yield _progress_lines(description, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units per second, or seconds per unit where it takes longer."""

        def render(self, task: Task) -> Text:
            if not task.completed:
                return Text("compiling")
            speed = task.finished_speed or task.speed or task.completed / max(task.elapsed or 0, 1e-3)
            return Text(f"{speed:,.0f} {unit}/s" if speed >= 1 else f"{1 / speed:,.0f} s each")

    console = Console(stderr=True)
    unwrapped = Column(no_wrap=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        RateColumn(table_column=unwrapped),
        TimeRemainingColumn(compact=True, table_column=unwrapped),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as bars:
        bar = bars.add_task(description, total=None)

        def update(num_done: int, total: int, text: str = "") -> None:
            text = text or f"{num_done:,} of {total:,} {unit}"
            bars.update(bar, completed=num_done, total=total, description=f"{description}: {text}")

        yield update


def _progress_lines(description: str, unit: str) -> UpdateProgress:
    """A function that takes the units done and all units, and prints them where the last line is long ago.

    The remaining time follows from the time since the first call, before which programs are compiled.
    """
    last = time.monotonic()
    first: tuple[float, int] | None = None  # time and units of the first call

    def update(num_done: int, total: int, text: str = "") -> None:
        nonlocal first, last
        time_of_call = time.monotonic()
        first = first or (time_of_call, num_done)
        if time_of_call - last < LINE_INTERVAL or not 0 < num_done < total:
            return
        last = time_of_call
        line = f"{description}: {num_done:,} of {total:,} {unit}" + (f", {text}" if text else "")
        if num_done > first[1]:
            seconds = (time_of_call - first[0]) * (total - num_done) / (num_done - first[1])
            line += f", about {seconds:,.0f} s left"
        print(to_printable(line), file=sys.stderr, flush=True)

    return update
