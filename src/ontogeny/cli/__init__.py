"""The command line: parses, calls, prints. JAX and the rooms are imported by the commands that need them."""

import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from ontogeny import __version__
from ontogeny.cli import audit, deployments, development, keys, lm, outside, serve, use
from ontogeny.errors import BadInput

STOPPED = 130  # the exit code of a program that was interrupted

app = typer.Typer(
    name="ontogeny",
    help="A laboratory for where a learned agent's ability comes from, and where it goes on changing in use.",
    epilog="Example: ontogeny train --agent recurrent_cells --env bandit:num_pulls=10 "
    "--development evolution --out runs/cells",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point. Exit code 2 and one sentence for what a person can mend; tracebacks are for our own faults."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter still shows the others
    try:
        command = typer.main.get_command(app)
        code = command.main(prog_name="ontogeny", standalone_mode=False) or 0
        if code == STOPPED:  # typer takes the interrupt for itself and says nothing
            raise KeyboardInterrupt
        sys.exit(code)
    except BadInput as error:
        _give_up(str(error))
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        _give_up(f"{message.rstrip('.')}; see 'ontogeny --help'")
    except BrokenPipeError:
        # Whoever read our output has had enough of it; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        _give_up(f"{error.strerror}: '{error.filename}'" if error.filename else str(error.strerror))
    except Exception as error:
        # JAX says so in errors of its own kind, which cannot be named without importing it.
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        _give_up("there is not enough memory for lives that long or environments that large")
    except (KeyboardInterrupt, typer.Abort):
        _stop()
        sys.exit(STOPPED)


def program() -> None:
    """`main` as a process of its own, which an interrupt ends without taking the interpreter apart: work that is still
    under way in JAX's threads would meet one that is gone."""
    sys.unraisablehook = _interrupted_anywhere
    try:
        main()
    except SystemExit as done:
        if done.code != STOPPED:
            raise
        _leave()


def _stop() -> None:
    goes_on = len(sys.argv) > 1 and sys.argv[1] in ("train", "study")
    print(f"ontogeny: stopped{'; the same command goes on from here' if goes_on else ''}", file=sys.stderr)


def _leave() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


def _interrupted_anywhere(fault: "sys.UnraisableHookArgs") -> None:
    """An interrupt may fall into a callback of the garbage collector, which would swallow it."""
    if not issubclass(fault.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(fault)
    _stop()
    _leave()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _give_up(message: str) -> None:
    print(f"ontogeny: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


app.command(epilog="Examples: ontogeny study my_study.toml --out studies/mine; ontogeny study mesa --small")(
    development.study
)
app.add_typer(lm.training, name="train")
app.command(
    epilog="Examples: ontogeny evaluate runs/cells --tasks 40000; "
    "ontogeny evaluate --agent thompson --env bandit:num_arms=10; ontogeny evaluate runs/mine --text other.txt"
)(use.evaluate)
app.command(epilog="Example: ontogeny deploy runs/cells --frozen --steps 20 --save runs/cells-used")(use.deploy)
app.command(epilog="Example: ontogeny generate runs/mine --prompt 'Once upon' --tokens 200 --temperature 0.8 --seed 1")(
    lm.generate
)
app.command(epilog="Example: ontogeny export runs/mine --out folder-for-transformers")(lm.export)
app.command(epilog="Example: ontogeny report studies/default")(development.report)
app.command("list", epilog="Examples: ontogeny list; ontogeny list agents; ontogeny list environments bandit")(
    development.list_rooms
)
audit.app.command(
    epilog="Examples: ontogeny audit behaviour choices.csv --out behaviour; "
    "ontogeny audit behaviour choices.csv --columns subject=subjID,choice=level1_choice"
)(outside.behaviour)
audit.app.command(
    epilog="Examples: ontogeny audit prequential mine.py:predict; ontogeny audit prequential --calibrate 100"
)(outside.prequential)
app.add_typer(audit.app, name="audit")
app.command(epilog="Examples: ontogeny serve runs/mine; ontogeny serve --alias story=runs/mine --online")(serve.serve)
app.add_typer(keys.app, name="keys")
app.command(epilog="Example: ontogeny usage")(keys.usage)
app.add_typer(deployments.app, name="deployments")
