"""The commands that ask what a subject is: audit RUN, audit attribution, audit calibrate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ontogeny.cli.shared import Device, Seed, can_be_made, progress, short
from ontogeny.cli.start import prepare

if TYPE_CHECKING:
    from ontogeny.audit.base import Effect, Finding
    from ontogeny.audit.calibration import Row

CANNOT = (
    "What behaviour cannot exclude: an agent that knows when it is tested, or wants something only after a cue that no "
    "test here holds."
)


SHOWN = {"yes": "shown", "no": "not shown", "undetermined": "not decided"}  # what a supporting test looks for


class _Group(TyperGroup):
    """`ontogeny audit RUN` is short for `ontogeny audit battery RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["battery", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Ask of an agent whether it learns, plans and wants, or where what it gains in use lives.",
    epilog="Example: ontogeny audit runs/cells",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A finished run, a saved deployment, or organism:NAME, whose truth is known."),
]
Lives = Annotated[int | None, typer.Option(min=10, help="Per test; by default what its calibration used.")]
Out = Annotated[Path | None, typer.Option(help="A new file for the JSON.")]


@app.command(epilog="Example: ontogeny audit runs/cells --out audit.json")
def battery(
    run: Run,
    lives: Lives = None,
    supporting: Annotated[bool, typer.Option("--supporting", help="Ask the supporting tests too.")] = False,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Three questions, kept apart: does it learn, does it plan, has it an objective of its own?"""
    can_be_made(out)
    prepare(device)
    from ontogeny.audit import battery
    from ontogeny.lifecycle import checkpoint

    told = []
    for subject in _subjects(run):
        with progress("auditing", "tests") as update:
            found = battery.audit(
                subject,
                seed=seed,
                lives=lives,
                supporting=supporting,
                on_progress=lambda done, total, name: update(done, total, name),
            )
        told.append(battery.as_json(subject, found))
        _print(subject.name, found, told[-1]["in_words"])
    if not supporting:
        typer.echo("Supporting tests, which move no verdict, were not asked: --supporting asks them.")
    typer.echo(CANNOT)
    if out is not None:
        checkpoint.write_json(out, {"format": checkpoint.FORMAT, "seed": seed, "subjects": told})


@app.command(epilog="Example: ontogeny audit attribution runs/cells --tasks 400")
def attribution(
    run: Run,
    tasks: Annotated[int, typer.Option(min=20, help="Unseen tasks, the same in every cell.")] = 400,
    smallest: Annotated[float | None, typer.Option(help="Smallest gain worth splitting, in score per life.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Where what is gained in use lives: in weights, in activations, or in either; each cell with its interval."""
    can_be_made(out)
    prepare(device)
    from ontogeny.audit.attribution import attribute
    from ontogeny.audit.battery import as_plain
    from ontogeny.lifecycle import checkpoint

    subject = _subjects(run)[0]
    agent, drives = subject.build(subject.home)
    with progress("attributing", "cells") as update:
        found = attribute(
            agent,
            subject.home,
            drives,
            subject.genome(agent, subject.home, drives),
            num_tasks=tasks,
            seed=seed,
            smallest_gain=smallest,
            on_progress=lambda done, total: update(done, total, "2 x 2"),
        )
    typer.echo(f"{subject.name}: {tasks} unseen tasks, score per life with the bootstrapped 95 % interval")
    rows = {
        "weights frozen, activations reset": found.cells["neither"],
        "weights frozen, activations kept": found.cells["activations"],
        "weights online, activations reset": found.cells["weights"],
        "weights online, activations kept": found.cells["both"],
        "weights from the log, activations reset": found.on_log,
        "gain": found.gain,
        "  of weights (Shapley)": found.of_weights,
        "  of activations (Shapley)": found.of_activations,
        "interaction": found.interaction,
    }
    for name, part in rows.items():
        typer.echo(f"  {name:<41}{short(part.mean):>9}   {short(part.low)} to {short(part.high)}")
    shares = (
        "" if found.shares is None else f"; shares {found.shares[0]:.0%} weights, {found.shares[1]:.0%} activations"
    )
    typer.echo(f"  carried by: {found.verdict}{shares} (smallest gain that counts: {short(found.smallest_gain)})")
    if out is not None:
        checkpoint.write_json(
            out, {"format": checkpoint.FORMAT, "seed": seed, "subject": subject.name} | as_plain(found)
        )


@app.command(epilog="Example: ontogeny audit calibrate --audits 1000 --out calibration.json")
def calibrate(
    audits: Annotated[int, typer.Option(min=2, help="Of each organism by each test.")] = 1000,
    test: Annotated[
        list[str] | None, typer.Option(help="Only these tests, else the deciding ones; may be given several times.")
    ] = None,
    organism: Annotated[list[str] | None, typer.Option(help="Only these organisms.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """How often the tests are wrong about organisms whose truth is known, the worst first."""
    can_be_made(out)
    from ontogeny import registry

    for family, given in (("audit", test), ("organisms", organism)):
        for name in given or []:
            if name not in registry.names(family):
                raise registry.unknown(registry.FAMILIES[family], name, registry.names(family))
    prepare(device)
    from ontogeny.audit import calibration
    from ontogeny.lifecycle import checkpoint

    with progress("calibrating", "organisms") as update:
        rows = calibration.calibrate(
            audits=audits,
            seed=seed,
            only=test or (),
            organisms=organism or (),
            on_progress=lambda done, total, name: update(done, total, name),
        )
    for name in dict.fromkeys(row.test for row in rows):
        typer.echo(f"{name}: {audits} audits of each")
        for row in sorted((row for row in rows if row.test == name), key=_worst_first):
            typer.echo(f"  {_told(row)}")
    wrong = calibration.failures(rows)
    for line in wrong:
        typer.echo(f"falls short: {line}")
    if not wrong:
        typer.echo(
            f"every innocent is called guilty in at most {calibration.MOST_FALSE:.0%} of its audits, every guilty "
            f"one is found in at least {calibration.LEAST_POWER:.0%}"
        )
    if out is not None:
        about = {"format": checkpoint.FORMAT, "audits": audits, "seed": seed, "falls_short": wrong}
        checkpoint.write_json(out, about | {"rows": [calibration.as_record(row) for row in rows]})


def _subjects(run: str) -> list[Any]:
    from ontogeny.audit import battery, calibration
    from ontogeny.lifecycle import saved

    kind, _, name = run.partition(":")
    if kind == "organism" and name:
        return calibration.subjects_of(name)
    return battery.subjects(saved.read(Path(run)))


def _print(name: str, found: "list[Finding]", in_words: str) -> None:
    from ontogeny.audit.base import BESIDE, QUESTIONS

    typer.echo(name)
    for number, finding in enumerate(found):
        if not finding.deciding and (number == 0 or found[number - 1].deciding):
            typer.echo("  supporting tests: what they say moves no verdict")
        about = (QUESTIONS | BESIDE)[finding.question]
        verdict = finding.verdict if finding.deciding else f"supporting, {SHOWN[finding.verdict]}"
        pattern = f" ({finding.pattern})" if finding.pattern else ""
        typer.echo(f"  {finding.test}: {about} {verdict}{pattern}: {finding.told}")
        for kind, parts in (("", finding.effects), ("control: ", finding.controls)):
            for part, effect in parts.items():
                typer.echo(f"    {kind + part:<48}{_interval(effect)}")
    typer.echo(f"  {in_words}")


def _interval(effect: "Effect") -> str:
    return f"{effect.mean:+.3f}   {effect.low:+.3f} to {effect.high:+.3f}   {effect.lives} lives"


def _worst_first(row: "Row") -> tuple[bool, float]:
    return row.guilty, row.yes.share if row.guilty else -row.yes.share


def _told(row: "Row") -> str:
    truth = "guilty  " if row.guilty else "innocent"
    rate = f"yes {row.yes.share:6.1%} ({row.yes.low:.1%} to {row.yes.high:.1%})   no {row.no.share:6.1%}"
    return f"{truth}  {row.organism:<30}{rate}   {row.pattern}".rstrip()
