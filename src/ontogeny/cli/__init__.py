"""The command line: one module per command or group of commands; each parses options, calls the library and prints.

`main` turns errors that a user can correct into one sentence and exit code 2.
"""

import io
import os
import signal
import sys
import threading
import time
from typing import Annotated, NoReturn

import typer

from ontogeny import __version__
from ontogeny.cli.commands import LazyGroup
from ontogeny.errors import NOT_ENOUGH_MEMORY, BadInput, ServerFailed, StorageUnavailable, StudyIncomplete
from ontogeny.printable import to_printable
from ontogeny.renamed import renamed_hint

INTERRUPTED = 130  # the exit code of an interrupted program
MAX_INTERRUPT_DELAY = 2.0  # seconds until an interrupt ends a process that is in a long computation of JAX
RESUMABLE = ("train", "study", "lm")

app = typer.Typer(
    name="ontogeny",
    cls=LazyGroup,
    help="Compare ways of building adaptive agents, measure where their ability is stored, and train, evaluate, serve "
    "and audit language models.",
    epilog="Example: ontogeny train --agent recurrent_cells --env bandit:num_pulls=10 "
    "--development evolution --out runs/cells",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command in `sys.argv` and exit.

    Errors that a user can correct give exit code 2 and one sentence; tracebacks are for faults of the program.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a character still shows the others
    try:
        _refuse_old_command(sys.argv[1:])
        code = typer.main.get_command(app).main(prog_name="ontogeny", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer catches the interrupt itself and prints nothing
            raise KeyboardInterrupt
        sys.exit(code)
    except (BadInput, StorageUnavailable) as error:
        _exit_with(str(error))
    except (ServerFailed, StudyIncomplete) as error:
        _exit_with(str(error), 1)
    except typer.TyperException as error:
        _exit_with(_usage_message(error))
    except BrokenPipeError:
        # The reader of the output has closed it; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        _exit_with(f"{error.strerror}: '{error.filename}'" if error.filename else str(error.strerror))
    except Exception as error:
        # JAX raises errors of its own class, which cannot be named without importing it.
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        _exit_with(NOT_ENOUGH_MEMORY)
    except (KeyboardInterrupt, typer.Abort):
        _print_interrupted()
        sys.exit(INTERRUPTED)


def program() -> None:
    """Run `main` as the only work of this process.

    An interrupt ends the process without finalizing the interpreter, since threads of JAX may still be working.
    """
    if os.name == "posix":
        _end_soon_after_interrupt()
    sys.unraisablehook = _handle_unraisable
    try:
        main()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        _exit_at_once()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """The command without a subcommand: prints the version or the help."""
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _refuse_old_command(arguments: list[str]) -> None:
    """Raise `BadInput` with the new name for a command that was renamed."""
    for num_words in (2, 1):
        hint = renamed_hint("command", " ".join(arguments[:num_words]))
        if hint is not None:
            raise BadInput(f"{hint} See 'ontogeny --help'")


def _usage_message(error: typer.TyperException) -> str:
    """The sentence for a mistake in the arguments; a renamed option is answered with its new name."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    place = "ontogeny" if context is None else context.command_path
    if option and context is not None:
        full_hint, hint = renamed_hint("option", f"{place.partition(' ')[2]} {option}"), renamed_hint("option", option)
        if full_hint or (hint and any(name in hint for p in context.command.params for name in p.opts)):
            return full_hint or str(hint)
    message = getattr(error, "format_message", error.__str__)().rstrip(".")
    commands = list(getattr(context.command, "commands", {})) if context is not None else []
    if commands and message.startswith("Usage:"):  # a group without a command
        message = f"'{place}' needs a command: {', '.join(commands)}"
    elif place == "ontogeny audit" and "Did you mean" not in message:
        run = "RUN" if option else message.partition("'")[2].rpartition("'")[0]
        return f"'{place}' needs the name of an audit; to audit an agent use `ontogeny audit agent {run}`"
    return f"{message}; see '{place} --help'"


def _print_interrupted() -> None:
    """Prints that the command was stopped, and how to resume it where that is possible."""
    is_resumable = len(sys.argv) > 1 and sys.argv[1] in RESUMABLE
    print(f"ontogeny: stopped{'; rerun the same command to resume' if is_resumable else ''}", file=sys.stderr)


def _end_soon_after_interrupt() -> None:
    """Starts a thread that ends the process if the main thread has not handled an interrupt in time.

    Python handles signals between two instructions of the main thread, and a compilation or a compiled program is one
    such instruction, which can take minutes. Commands that handle interrupts themselves are left alone.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        while signals := os.read(read_end, 64):
            if signal.SIGINT in signals and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                time.sleep(MAX_INTERRUPT_DELAY)
                _print_interrupted()
                _exit_at_once()

    threading.Thread(target=watch, daemon=True).start()


def _exit_at_once() -> NoReturn:
    """Ends the process without waiting for its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _handle_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Handle an interrupt in a callback of the garbage collector, which would otherwise be ignored."""
    if not issubclass(error.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(error)
    _print_interrupted()
    _exit_at_once()


def _exit_with(message: str, code: int = 2) -> NoReturn:
    """Prints an error as one line and ends the process; exit code 2 is for what the user can correct."""
    print(f"ontogeny: {to_printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
