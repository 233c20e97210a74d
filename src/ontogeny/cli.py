"""The command line: parses, calls, prints. JAX and the rooms are imported by the commands that need them."""

import contextlib
import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny import __version__, registry
from ontogeny.errors import BadInput, LawBroken

if TYPE_CHECKING:
    from ontogeny.lifecycle.evaluate import Evaluation
    from ontogeny.lifecycle.saved import Saved

MOST_HOST_DEVICES = 8
STOPPED = 130  # the exit code of a program that was interrupted
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}
BARS = "▁▂▃▄▅▆▇█"

app = typer.Typer(
    name="ontogeny",
    help="A laboratory for where a learned agent's ability comes from, and where it goes on changing in use.",
    epilog="Example: ontogeny train --agent recurrent_cells --world bandit:pulls=10 "
    "--development evolution --out runs/cells",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Device = Annotated[str | None, typer.Option(help="cpu or gpu; by default what JAX finds.")]
Drives = Annotated[
    list[str] | None,
    typer.Option(
        "--drive", metavar="FACT=WEIGHT", help="A fact and its weight in the reward; may be given several times."
    ),
]
World = Annotated[str | None, typer.Option(help="Another world than that of the run, NAME[:setting=value,...].")]


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
        _give_up("there is not enough memory for lives that long or worlds that large")
    except (KeyboardInterrupt, typer.Abort):
        goes_on = len(sys.argv) > 1 and sys.argv[1] in ("train", "study")
        print(f"ontogeny: stopped{'; the same command goes on from here' if goes_on else ''}", file=sys.stderr)
        sys.exit(STOPPED)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: ontogeny study my_study.toml --out studies/mine")
def study(
    spec: Annotated[Path | None, typer.Argument(help="A study as TOML; by default the one that comes along.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for records and report.")] = Path("studies/default"),
    seed: Annotated[int | None, typer.Option(help="In place of the seed in the spec.")] = None,
    device: Device = None,
) -> None:
    """Develop, evaluate and compare several agents; leaves records and one HTML page."""
    _prepare(device)
    from ontogeny.study import run

    run.run(spec, out, seed)


@app.command(
    epilog="Example: ontogeny train --agent recurrent_cells --world bandit:pulls=10 "
    "--development evolution:generations=100 --seed 0 --out runs/cells"
)
def train(
    agent: Annotated[str, typer.Option(help="NAME[:setting=value,...], see `ontogeny list agents`.")],
    world: Annotated[str, typer.Option(help="NAME[:setting=value,...], see `ontogeny list worlds`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that is unfinished is resumed.")],
    development: Annotated[
        str, typer.Option(help="NAME[:setting=value,...], see `ontogeny list development`.")
    ] = "single_lifetime",
    drive: Drives = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between checkpoints; 0: as often as can be.")] = 5.0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Develop a genome; a run that was killed goes on when the same command is given again."""
    _prepare(device)
    from ontogeny.lifecycle import checkpoint
    from ontogeny.lifecycle.train import train

    spec = _spec(agent, world, development, drive, seed)
    with _progress("training") as update:

        def on_progress(done: int, total: int, record: dict[str, Any]) -> None:
            steps = record["env_steps"]
            update(steps, steps * total // done, f"generation {done} of {total}, fitness {_short(record['fitness'])}")

        train(spec, out, on_progress=on_progress, every=every)
    made = checkpoint.about(out, "genome")
    typer.echo(
        f"{out}: a genome of {_count(made['numbers'], 'number')} after {_count(made['generation'], 'generation')} "
        f"and {made['env_steps']:,} steps, genome digest {made['digest'][:16]}"
    )


@app.command(
    epilog="Examples: ontogeny evaluate runs/cells --tasks 40000; "
    "ontogeny evaluate --agent thompson --world bandit:arms=10"
)
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A finished run or a saved deployment.")] = None,
    agent: Annotated[str | None, typer.Option(help="In place of a run: NAME[:setting=value,...].")] = None,
    world: World = None,
    drive: Drives = None,
    tasks: Annotated[int, typer.Option(help="Unseen tasks, one life in each.")] = 4000,
    online: Annotated[bool, typer.Option("--online", help="Let weights learn in each life; else frozen.")] = False,
    reset_each_episode: Annotated[
        bool, typer.Option("--reset-each-episode", help="Restore activations where an episode begins.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Draws the tasks, the same for every agent, and the genome of an --agent.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="A new file for the JSON.")] = None,
    device: Device = None,
) -> None:
    """Score an agent on tasks that no training can have drawn, with a 95 % interval."""
    if (run is None) == (agent is None):
        raise BadInput("name either a run or an --agent with its --world")
    _can_be_made(out)
    _prepare(device)
    from ontogeny.lifecycle import checkpoint
    from ontogeny.lifecycle.evaluate import evaluate
    from ontogeny.lifecycle.subject import checked_seed

    saved = _evaluated(run, agent, world, drive, checked_seed(seed, "evaluate"))
    if saved.subject.agent.learns and not online:
        _note("this agent learns by weights, which are frozen here; --online lets them learn")
    with _progress("evaluating") as update, _naming(saved):
        length = saved.subject.world.spec.num_steps
        found = evaluate(
            *saved.subject,
            saved.genome if saved.state is None else saved.state,
            num_tasks=tasks,
            seed=seed,
            case="online" if online else "offline",
            reset_each_episode=reset_each_episode,
            on_progress=lambda done, total: update(done * length, total * length, f"{done:,} of {total:,} tasks"),
        )
    record = _as_record(saved, found, seed)
    if out is not None:
        checkpoint.write_json(out, record)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        _print_evaluation(record)


@app.command(epilog="Example: ontogeny deploy runs/cells --frozen --steps 20 --save runs/cells-used")
def deploy(
    run: Annotated[Path, typer.Argument(help="A finished run or a saved deployment.")],
    online: Annotated[bool, typer.Option("--online/--frozen", help="Whether weights go on learning.")] = False,
    steps: Annotated[int | None, typer.Option(help="By default as many as a life in this world has.")] = None,
    world: World = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="A new folder for weights and activations at the end.")] = None,
    device: Device = None,
) -> None:
    """Let a saved agent live one life in use, step by step; a frozen one shows that its weights stayed the same."""
    _can_be_made(save)
    _prepare(device)
    from ontogeny import trees
    from ontogeny.lifecycle import saved as folders
    from ontogeny.lifecycle.deploy import deploy
    from ontogeny.lifecycle.subject import checked_seed, room

    agent = folders.read(run, world=room(world) if world else None)
    before = trees.digest(folders.birth(agent, checked_seed(seed, "deploy"))[1].weights)
    step = None
    with _naming(agent):
        for step in deploy(agent, online=online, seed=seed, num_steps=steps):
            facts = "  ".join(f"{fact} {_short(value)}" for fact, value in step.outcome.items())
            seen = step.observation if isinstance(step.observation, int) else step.observation.tolist()
            typer.echo(
                f"step {step.number}  episode {step.episode}  observation {seen}  action {step.action}  {facts}  "
                f"reward {_short(step.reward)}  score {_short(step.score)}"
            )
    assert step is not None
    after = trees.digest(step.state.weights)
    same = "the weights are the same" if after == before else "the weights have changed"
    typer.echo(f"{same}: weights digest {before[:16]} at the start, {after[:16]} at the end")
    if save is not None:
        about = {"case": "online" if online else "offline", "steps": step.number}
        typer.echo(f"saved in {folders.write(save, agent.spec, step.state, about)}")


@app.command(epilog="Example: ontogeny report studies/default")
def report(folder: Annotated[Path, typer.Argument(help="The folder of a study.")]) -> None:
    """Write the page of a study again, from its records."""
    from ontogeny.study import report

    typer.echo(f"wrote {report.write(folder)}")


@app.command("list", epilog="Examples: ontogeny list; ontogeny list agents; ontogeny list worlds bandit")
def list_rooms(
    family: Annotated[str | None, typer.Argument(help=", ".join(registry.FAMILIES))] = None,
    name: Annotated[str | None, typer.Argument(help="A room, to see its settings.")] = None,
) -> None:
    """What there is: worlds, agents, developments; of one of them, its settings."""
    if family is not None and family not in registry.FAMILIES:
        raise registry.unknown("family", family, list(registry.FAMILIES))
    if family is not None and name is not None:
        typer.echo(registry.docstring(family, name))
        known = registry.settings(family, name)
        for setting, default in known.items():
            typer.echo(f"  {setting}={default}")
        if not known:
            typer.echo("  no settings")
        return
    for each in [family] if family else registry.FAMILIES:
        names = registry.names(each)
        if names:
            width = max(map(len, names))
            typer.echo(each)
            for room in names:
                typer.echo(f"  {room:<{width}}  {registry.help_line(each, room)}")


def _can_be_made(path: Path | None) -> None:
    """Raises `BadInput` before any work is done for a file or folder that could not be written after it."""
    if path is None:
        return
    if path.exists() or path.is_symlink():
        raise BadInput(f"'{path}' exists; not overwritten")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"there is no folder '{path.parent}' for '{path.name}'")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise BadInput(f"nothing can be written in '{path.absolute().parent}'")


def _give_up(message: str) -> None:
    print(f"ontogeny: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def _prepare(device: str | None) -> None:
    """Settings that JAX reads when it is imported: the device, several host devices, a cache of what was compiled."""
    if device is not None and device not in PLATFORMS:
        raise registry.unknown("device", device, list(PLATFORMS))
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_HOST_DEVICES)
        flags = f"{flags} --xla_force_host_platform_device_count={count}"
    if "xla_cpu_prefer_vector_width" not in flags:
        flags += " --xla_cpu_prefer_vector_width=512"  # wide registers where there are any: a tenth faster
    if "xla_cpu_collective_call" not in flags:
        # Members of a population are gathered from several host devices; on a busy machine one may be minutes behind,
        # and XLA's own patience of 40 seconds ends the whole process.
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=86400"
        flags += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=3600"
    os.environ["XLA_FLAGS"] = flags.strip()
    if device is not None:
        os.environ["JAX_PLATFORMS"] = PLATFORMS[device]
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX asserts where the only platform that was asked for is absent
        raise BadInput(f"there is no {device or os.environ.get('JAX_PLATFORMS')} here that JAX can use") from None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := _cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _cache_folder() -> Path | None:
    """Where compiled programs are kept for the next start; None where nothing can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs are compiled for one kind of processor, and a home may be shared by several.
        kind = hashlib.sha256(f"{platform.machine()}{_processor()}".encode()).hexdigest()[:12]
        folder = home / "ontogeny" / f"compiled-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def _spec(agent: str, world: str, development: str, drives: list[str] | None, seed: int) -> Any:
    from ontogeny.lifecycle.subject import parse

    pairs = [_drive(text) for text in drives or []]
    weights = dict(pairs)
    if len(weights) < len(pairs):
        raise BadInput("a --drive names a fact that another one names already")
    return parse({"agent": agent, "world": world, "development": development, "drives": weights, "seed": seed}, "train")


def _drive(text: str) -> tuple[str, float]:
    fact, _, weight = text.partition("=")
    try:
        return fact.strip(), registry.real(float(weight), f"the weight in '{text}'")
    except BadInput:
        raise
    except ValueError:
        raise BadInput(f"'{text}' is not of the form fact=weight") from None


def _evaluated(run: Path | None, agent: str | None, world: str | None, drives: list[str] | None, seed: int) -> "Saved":
    """The agent to evaluate: a saved one, or one as people wrote it."""
    import jax

    from ontogeny.lifecycle import saved as folders
    from ontogeny.lifecycle.subject import assemble, room

    if run is not None:
        if drives:
            raise BadInput("the drives of a run are those that it was developed with")
        return folders.read(run, world=room(world) if world else None)
    if world is None:
        raise BadInput("an --agent is evaluated in a --world: name it")
    spec = _spec(str(agent), world, "single_lifetime", drives, seed)
    subject = assemble(spec)
    return folders.Saved(spec, subject, subject.agent.genome(jax.random.key(seed)), None)


@contextlib.contextmanager
def _naming(saved: "Saved") -> Iterator[None]:
    """Says whose fault it is where an agent breaks a law."""
    try:
        yield
    except LawBroken as error:
        raise BadInput(f"agent '{saved.spec.agent.name}': {error}") from None


def _as_record(saved: "Saved", found: "Evaluation", seed: int) -> dict[str, Any]:
    from ontogeny.lifecycle.subject import complete, to_json

    spec = to_json(complete(saved.spec))
    return {
        "agent": spec["agent"],
        "world": spec["world"],
        "drives": spec["drives"],
        "case": found.case,
        "seed": seed,
        "tasks": found.num_tasks,
        "mean": found.mean,
        "se": found.standard_error,
        "interval": list(found.interval),
        "curve": {
            "unit": found.curve.unit,
            "position": found.curve.position.tolist(),
            "mean": found.curve.mean.tolist(),
            "se": found.curve.standard_error.tolist(),
        },
        "env_steps": found.env_steps,
        "seconds": round(found.seconds, 3),
        "format": 1,
    }


def _print_evaluation(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    curve = record["curve"]
    table = Table(show_header=False, box=None)
    low, high = record["interval"]
    for name, value in (
        ("agent", _room_text(record["agent"])),
        ("world", _room_text(record["world"])),
        ("case", record["case"]),
        ("score", f"{_short(record['mean'])} ± {_short(record['se'])} (standard error)"),
        ("95 % interval", f"{_short(low)} to {_short(high)}"),
        ("tasks", f"{record['tasks']:,} unseen, seed {record['seed']}"),
        (f"by {curve['unit']}", _sketch(curve["mean"])),
        ("time", f"{record['seconds']:.1f} s for {record['env_steps']:,} steps"),
    ):
        table.add_row(name, value)
    Console().print(table)


def _room_text(room: dict[str, Any]) -> str:
    settings = ",".join(f"{name}={value}" for name, value in room["settings"].items())
    name = Path(room["name"]).name
    return f"{name}:{settings}" if settings else name


def _sketch(values: list[float]) -> str:
    """A learning curve in at most 40 characters, between its first and last value."""
    shown = values[:: -(-len(values) // 40)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(BARS[round((value - low) * scale)] for value in shown)
    return f"{_short(values[0])} {bars} {_short(values[-1])}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _short(value: float | None) -> str:
    """A number for people: at most four digits, no exponent where it can be avoided."""
    if value is None:
        return "not finite"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on the terminal with rate and time left, and nothing elsewhere; call it with steps done, in all, a text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            if not task.completed:
                return Text("compiling")
            speed = task.finished_speed or task.speed or task.completed / max(task.elapsed or 0, 1e-3)
            return Text(f"{speed:,.0f} steps/s")

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def update(done: int, total: int, text: str) -> None:
            progress.update(bar, completed=done, total=total, description=f"{what}: {text}")

        yield update
