"""The commands that ask what a subject is: audit RUN, audit attribution, audit calibrate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ontogeny.cli.shared import Device, Seed, can_be_made, progress, short
from ontogeny.cli.start import prepare
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from ontogeny.audit.attribution import Attribution
    from ontogeny.audit.base import Effect, Finding
    from ontogeny.audit.calibration import Half, Row

KNOWN_IN = "bandit"
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
    num_lifetimes: Lives = None,
    supporting: Annotated[bool, typer.Option("--supporting", help="Ask the supporting tests too.")] = False,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Three questions, kept apart: does it learn, does it plan, has it an objective of its own?"""
    can_be_made(out)
    prepare(device)
    from ontogeny.audit import battery
    from ontogeny.runs.files import write_json
    from ontogeny.runs.formats import FORMATS, JSON_REPORT

    told = []
    for subject in _subjects(run):
        with progress("auditing", "tests") as update:
            found = battery.audit(
                subject,
                seed=seed,
                num_lifetimes=num_lifetimes,
                supporting=supporting,
                on_progress=lambda done, total, name: update(done, total, name),
            )
        told.append(battery.as_json(subject, found))
        _print(subject.name, found, told[-1]["in_words"])
    if not supporting:
        typer.echo("Supporting tests, which move no verdict, were not asked: --supporting asks them.")
    typer.echo(CANNOT)
    if out is not None:
        write_json(out, {"format": FORMATS[JSON_REPORT], "seed": seed, "subjects": told})


@app.command(epilog="Examples: ontogeny audit attribution runs/cells --tasks 400; ontogeny audit attribution --known")
def attribution(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="As above.", show_default=False)] = None,
    known: Annotated[bool, typer.Option("--known", help="The cases whose answer is known, in place of a run.")] = False,
    tasks: Annotated[int, typer.Option(min=20, help="Unseen tasks, the same in every cell.")] = 400,
    smallest: Annotated[float | None, typer.Option(help="Smallest gain worth splitting, in score per life.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Where what is gained in use lives: in weights, in activations, or in either; each cell with its interval."""
    if known == (run is not None):
        raise BadInput("name a run, or ask for the known cases by --known")
    can_be_made(out)
    prepare(device)
    from ontogeny import plugins
    from ontogeny.audit.attribution import attribute, known_cases
    from ontogeny.audit.battery import as_plain
    from ontogeny.runs.files import write_json
    from ontogeny.runs.formats import FORMATS, JSON_REPORT

    told = []
    if run is None:
        for name, answer, found in known_cases(plugins.build("environments", KNOWN_IN), num_tasks=tasks, seed=seed):
            _print_split(f"{name}, known to be carried by: {answer}", found)
            told.append({"subject": name, "known": answer} | as_plain(found))
    else:
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
        _print_split(subject.name, found)
        told.append({"subject": subject.name} | as_plain(found))
    if out is not None:
        write_json(out, {"format": FORMATS[JSON_REPORT], "seed": seed, "subjects": told})


@app.command(epilog="Example: ontogeny audit calibrate --audits 1000 --out calibration.json")
def calibrate(
    audits: Annotated[int, typer.Option(min=2, help="Of each organism by each test.")] = 1000,
    test: Annotated[
        list[str] | None, typer.Option(help="Only these tests, else the deciding ones; may be given several times.")
    ] = None,
    organism: Annotated[list[str] | None, typer.Option(help="Only these organisms.")] = None,
    distilled: Annotated[
        Path | None,
        typer.Option(
            help="A folder of networks taught to do as organisms do; those that lack are taught, minutes each."
        ),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """How often the tests are wrong about organisms whose truth is known, the worst first."""
    can_be_made(out)
    from ontogeny import plugins

    for family, given in (("audit", test), ("organisms", organism)):
        for name in given or []:
            if name not in plugins.names(family):
                raise plugins.unknown(plugins.FAMILIES[family], name, plugins.names(family))
    prepare(device)
    from ontogeny.audit import calibration
    from ontogeny.runs.files import write_json
    from ontogeny.runs.formats import FORMATS, JSON_REPORT

    extra = []
    for name in _taught(organism) if distilled is not None else ():
        from ontogeny.studies.mesa import distilled as pupils

        with progress("teaching", "updates") as update:
            pupil = pupils.subject(name, 0, distilled, on_progress=update)
        whole, probe = pupils.fidelity(name, pupil)
        typer.echo(
            f"{pupil.name}: chooses as its teacher would in {whole:.1%} of choices, {probe:.1%} after links shown"
        )
        extra += calibration.taught(name, pupil)
    with progress("calibrating", "organisms") as update:
        rows = calibration.calibrate(
            audits=audits,
            seed=seed,
            only=test or (),
            organisms=organism or (),
            extra=extra,
            on_progress=lambda done, total, name: update(done, total, name),
        )
    for name in dict.fromkeys(row.test for row in rows):
        typer.echo(f"{name}: {audits} audits of each")
        for row in sorted((row for row in rows if row.test == name), key=_worst_first):
            typer.echo(f"  {_told(row)}")
    halves = calibration.halves(rows)
    for half in halves:
        typer.echo(f"  {_judged(half)}")
    wrong = calibration.failures(rows)
    for line in wrong:
        typer.echo(f"falls short: {line}")
    if not wrong:
        typer.echo(
            f"every innocent is called guilty in at most {calibration.MOST_FALSE:.0%} of its audits, every guilty "
            f"one is found in at least {calibration.LEAST_POWER:.0%}"
        )
    if out is not None:
        about = {"format": FORMATS[JSON_REPORT], "audits": audits, "seed": seed, "falls_short": wrong}
        halved = [
            {"test": half.test, "chosen_on": half.chosen_on, "z": half.z}
            | {
                name: None if row is None else {"organism": row.organism, "share": row.yes.share}
                for name, row in (("worst_innocent", half.worst_innocent), ("weakest_guilty", half.weakest_guilty))
            }
            for half in halves
        ]
        records = [calibration.as_record(row) for row in rows]
        write_json(out, about | {"rows": records, "halves": halved})


def _subjects(run: str) -> list[Any]:
    from ontogeny.audit import battery, calibration
    from ontogeny.stages.saved_agent import read_saved_agent

    kind, _, name = run.partition(":")
    if kind == "organism" and name:
        return calibration.subjects_of(name)
    return battery.subjects(read_saved_agent(Path(run)))


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


def _print_split(name: str, found: "Attribution") -> None:
    typer.echo(f"{name}: {found.num_tasks} unseen tasks, score per life with the bootstrapped 95 % interval")
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
    for part_name, part in rows.items():
        typer.echo(f"  {part_name:<41}{short(part.mean):>9}   {short(part.low)} to {short(part.high)}")
    shares = (
        "" if found.shares is None else f"; shares {found.shares[0]:.0%} weights, {found.shares[1]:.0%} activations"
    )
    typer.echo(f"  carried by: {found.verdict}{shares} (smallest gain that counts: {short(found.smallest_gain)})")


def _interval(effect: "Effect") -> str:
    return f"{effect.mean:+.3f}   {effect.low:+.3f} to {effect.high:+.3f}   {effect.num_lifetimes} lives"


def _taught(chosen: list[str] | None) -> list[str]:
    from ontogeny.studies.mesa.distilled import TAUGHT

    return [name for name in TAUGHT if not chosen or name in chosen]


def _worst_first(row: "Row") -> tuple[bool, float]:
    return row.guilty, row.yes.share if row.guilty else -row.yes.share


def _judged(half: "Half") -> str:
    said = [
        f"{kind} {row.organism} {row.yes.share:.1%}"
        for kind, row in (("worst innocent", half.worst_innocent), ("weakest guilty", half.weakest_guilty))
        if row is not None
    ]
    chosen = f"{half.test}: one half of the families chooses z > {half.z}"
    return f"{chosen}; on the other half {' and '.join(said) or 'there is nobody to judge'}"


def _told(row: "Row") -> str:
    truth = "guilty  " if row.guilty else "innocent"
    rate = f"yes {row.yes.share:6.1%} ({row.yes.low:.1%} to {row.yes.high:.1%})   no {row.no.share:6.1%}"
    return f"{truth}  {row.organism:<30}{rate}   {row.pattern}".rstrip()
