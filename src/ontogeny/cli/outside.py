"""The commands that audit what is no agent of ours: scores of any predictor, choices that others logged."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import Device, Seed, check_new_path, progress
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ontogeny.audit.prequential.certificate import Certificate, Row

Out = Annotated[Path | None, typer.Option(help="A new file for the JSON.")]


def behaviour(
    choices: Annotated[Path, typer.Argument(help="A file of choices, or a run in two_step or bandit, which is lived.")],
    columns: Annotated[
        str | None, typer.Option(metavar="OURS=THEIRS,...", help="What the file calls our columns.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="two_step or bandit; by default what the columns say.")] = None,
    missed: Annotated[str | None, typer.Option(help="Further marks of a missed trial, separated by commas.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read, and name them.")
    ] = False,
    groups: Annotated[int | None, typer.Option(min=1, help="Groups of organisms per model, for recovery.")] = None,
    num_lifetimes: Annotated[int, typer.Option(min=2, help="Of a run: as many subjects.")] = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="A new folder for behaviour.html and behaviour.json.")] = None,
    device: Device = None,
) -> None:
    """What choices that others logged show: staying, its regression, models, and how far models can be told apart."""
    check_new_path(out)
    given = _pairs(columns)
    configure_jax(device)
    import json

    text = None
    if choices.is_dir():
        from ontogeny.audit.behavior import own_choices

        text = own_choices.of_run(choices, num_lifetimes=num_lifetimes, seed=seed)
    from ontogeny.audit.behavior import page as behaviour_page
    from ontogeny.audit.behavior import report as audit

    found = audit.read(
        choices,
        text=text,
        columns=given,
        task=task,
        missed=missed.split(",") if missed else (),
        leave_out_bad=skip_bad,
    )
    for line in found.said:
        typer.echo(line)
    with progress("fitting", "models") as update:
        record = audit.measured(found, groups=groups, seed=seed, on_progress=update)
    record |= {"file": choices.name, "seed": seed}
    _print_behaviour(record)
    if out is not None:
        html = behaviour_page.render(record, f"Choices in {choices.name}")
        out.mkdir()
        (out / "behaviour.html").write_text(html, encoding="utf-8")
        (out / "behaviour.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if text is not None:
            (out / "choices.csv").write_text(text, encoding="utf-8")
        typer.echo(f"wrote {out / 'behaviour.html'}")


def _pairs(text: str | None) -> dict[str, str]:
    found = {}
    for pair in filter(None, (text or "").split(",")):
        ours, equals, theirs = pair.partition("=")
        if not equals or not theirs.strip():
            raise BadInput(f"'{pair}' in --columns is not of the form ours=theirs")
        found[ours.strip()] = theirs.strip()
    return found


def _print_behaviour(record: dict[str, Any]) -> None:
    own = record["stays"]
    typer.echo("share of choices repeated, mean over subjects and 95 % interval")
    for name, mean in own["pooled"].items():
        typer.echo(f"  {name:<24}{_told(mean).replace('+', ' ')}")
    for name, mean in own["contrasts"].items():
        typer.echo(f"  {name:<24}{_told(mean)}")
    for kind in ("plain", "corrected"):
        if own[kind]:
            typer.echo(f"log odds of staying, {kind}{' (' + record['correct'] + ')' if kind == 'corrected' else ''}")
            for name, mean in own[kind].items():
                typer.echo(f"  {name:<24}{_told(mean)}")
    typer.echo("models: summed BIC; behind the best per subject; subjects won; one organism of it recognised")
    shares = record["recovery"]["by_subject"]
    for i, model in enumerate(record["models"]):
        behind = _told(model["behind"], 1) if model["behind"] else "lowest"
        won = record["winners"].count(model["name"])
        typer.echo(f"  {model['name']:<14}{model['summed_bic']:>10,.1f}   {behind:<26}{won:>4}   {shares[i][i]:.0%}")
    for line in record["in_words"]:
        typer.echo(line)


def _told(mean: dict[str, Any], digits: int = 3) -> str:
    if mean["mean"] is None:
        return "no pairs"
    ends = "" if mean["low"] is None else f"   {mean['low']:+.{digits}f} to {mean['high']:+.{digits}f}"
    return f"{mean['mean']:+.{digits}f}{ends}"


def prequential(
    predictor: Annotated[
        str | None,
        typer.Argument(
            help="module:function or file.py:function; a saved language run, which reads online; or predictor:NAME."
        ),
    ] = None,
    learning: Annotated[str | None, typer.Option(help="How a saved run learns: setting=value,... or 'frozen'.")] = None,
    stream: Annotated[Path | None, typer.Option(help="Tokens to test on, .npy or whole numbers as text.")] = None,
    reported: Annotated[str | None, typer.Option(help="Nats per token that were published for this stream.")] = None,
    tokens: Annotated[int, typer.Option(help="Of a drawn stream: more than the predictor's longest block.")] = 256,
    positions: Annotated[int, typer.Option(help="At how many positions a token is changed.")] = 24,
    vocabulary: Annotated[int | None, typer.Option(min=2, help="Draw tokens below this; by default all.")] = None,
    fresh: Annotated[str, typer.Option(help="What is new for each pass: process, or instance (quicker).")] = "process",
    rounding: Annotated[float, typer.Option(min=0, help="Nats by which rows of a cut stream may differ.")] = 1e-4,
    calibrate: Annotated[int | None, typer.Option(min=2, help="In place of a predictor: audits of each known.")] = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Certify that online scores are those of a first pass. Exit code 0: certified; 1: not; 2: it cannot be tested."""
    check_new_path(out)
    if (predictor is None) == (calibrate is None):
        raise BadInput("name either a predictor or --calibrate with a number of audits")
    if fresh not in ("process", "instance"):
        raise BadInput(f"--fresh is process or instance, not '{fresh}'")
    from ontogeny.audit.prequential import certificate as certificate
    from ontogeny.runs.files import write_json
    from ontogeny.runs.formats import FORMATS, JSON_REPORT

    if calibrate is not None:
        with progress("calibrating", "audits") as update:
            rows = certificate.calibrate(calibrate, seed=seed, on_progress=update)
        wrong = certificate.failures(rows)
        _print_calibration(rows, wrong)
        record = {"audits": calibrate, "rows": [row._asdict() for row in rows], "falls_short": wrong}
    else:
        of_name = certificate.in_processes if fresh == "process" else certificate.in_instances
        passes = of_name(str(predictor), _saved(str(predictor), learning))
        with progress("certifying", "passes") as update:
            found = certificate.audit(
                passes,
                settings=certificate.Settings(tokens=tokens, positions=positions, rounding=rounding),
                stream=None if stream is None else _tokens(stream),
                vocabulary=vocabulary,
                reported=reported,
                seed=seed,
                on_progress=update,
            )
        _print_certificate(str(predictor), found, fresh)
        record = {"predictor": predictor, "certified": found.certified, "fresh": fresh} | found._asdict()
        record["checks"] = [check._asdict() for check in found.checks]
        wrong = [check.name for check in found.checks if check.verdict != "pass"]
    if out is not None:
        from ontogeny.audit.suite import to_jsonable

        record = {"format": FORMATS[JSON_REPORT], "seed": seed} | record
        write_json(out, to_jsonable(record))
    if wrong:
        raise typer.Exit(1)


def _saved(name: str, learning: str | None) -> "Callable[[], Callable[[np.ndarray], np.ndarray]] | None":
    """What makes a predictor of a saved language model; None for what is a predictor already."""
    if not Path(name).is_dir():
        if learning is not None:
            raise BadInput(f"--learning says how a saved run learns, and '{name}' is no folder")
        return None
    from ontogeny.lm import prequential_predictor

    frozen = learning == "frozen"
    make = functools.partial(prequential_predictor.build, name, "" if frozen else learning or "", frozen=frozen)
    make()  # what cannot be read is refused here, not in another process
    return make


def _tokens(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            found = np.array([int(word) for word in path.read_text(encoding="utf-8").split()])
    except ValueError as error:
        raise BadInput(f"'{path}' holds no tokens: {error}") from None
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or (found < 0).any():
        raise BadInput(f"'{path}' must hold one row of whole numbers from 0 on")
    return found.astype(np.int32)


def _print_certificate(name: str, found: "Certificate", fresh: str) -> None:
    from ontogeny.audit.prequential.certificate import LETTERS

    typer.echo(f"{name}: {found.tokens} tokens of {found.vocabulary}, {found.passes} passes, each by a new {fresh}")
    for check in found.checks:
        typer.echo(f"  {LETTERS[check.name]} {check.name:<11}{check.verdict:<13}{check.told}")
    typer.echo(f"  first pass: {found.nats_per_token:.6g} nats per token")
    typer.echo("certified: a first pass, by these tests" if found.certified else "NOT certified")


def _print_calibration(rows: "list[Row]", wrong: list[str]) -> None:
    from ontogeny.stats import clopper_pearson

    for row in sorted(rows, key=lambda row: (not row.honest, row.predictor)):
        low, high = clopper_pearson(row.certified, row.audits)
        fails = "  ".join(
            f"{check} {said['fail'] / row.audits:.1%}" for check, said in row.said.items() if said["fail"]
        )
        truth = "honest" if row.honest else "guilty"
        share = f"certified {row.certified / row.audits:6.1%} ({low:.1%} to {high:.1%})"
        typer.echo(f"  {truth}  {row.predictor:<17}{share}   {'fails: ' if fails else ''}{fails}".rstrip())
    for line in wrong:
        typer.echo(f"falls short: {line}")
