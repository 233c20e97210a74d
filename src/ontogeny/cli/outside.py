"""The commands that audit what is no agent of ours: scores of any predictor, choices that others logged."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.cli.shared import Seed, can_be_made, progress
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from ontogeny.audit.prequential import Certificate, Row

Out = Annotated[Path | None, typer.Option(help="A new file for the JSON.")]


def prequential(
    predictor: Annotated[
        str | None,
        typer.Argument(help="module:function or file.py:function; or predictor:NAME, whose truth is known."),
    ] = None,
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
    can_be_made(out)
    if (predictor is None) == (calibrate is None):
        raise BadInput("name either a predictor or --calibrate with a number of audits")
    if fresh not in ("process", "instance"):
        raise BadInput(f"--fresh is process or instance, not '{fresh}'")
    from ontogeny.audit import prequential as certificate
    from ontogeny.lifecycle import checkpoint

    if calibrate is not None:
        with progress("calibrating", "audits") as update:
            rows = certificate.calibrate(calibrate, seed=seed, on_progress=update)
        wrong = certificate.failures(rows)
        _print_calibration(rows, wrong)
        record = {"audits": calibrate, "rows": [row._asdict() for row in rows], "falls_short": wrong}
    else:
        passes = (certificate.in_processes if fresh == "process" else certificate.in_instances)(str(predictor))
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
        from ontogeny.audit.battery import as_plain

        record = {"format": checkpoint.FORMAT, "seed": seed} | record
        checkpoint.write_json(out, as_plain(record))
    if wrong:
        raise typer.Exit(1)


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
    from ontogeny.audit.prequential import LETTERS

    typer.echo(f"{name}: {found.tokens} tokens of {found.vocabulary}, {found.passes} passes, each by a new {fresh}")
    for check in found.checks:
        typer.echo(f"  {LETTERS[check.name]} {check.name:<11}{check.verdict:<13}{check.told}")
    typer.echo(f"  first pass: {found.nats_per_token:.6g} nats per token")
    typer.echo("certified: a first pass, by these tests" if found.certified else "NOT certified")


def _print_calibration(rows: "list[Row]", wrong: list[str]) -> None:
    from ontogeny.intervals import of_share

    for row in sorted(rows, key=lambda row: (not row.honest, row.predictor)):
        low, high = of_share(row.certified, row.audits)
        fails = "  ".join(
            f"{check} {said['fail'] / row.audits:.1%}" for check, said in row.said.items() if said["fail"]
        )
        truth = "honest" if row.honest else "guilty"
        share = f"certified {row.certified / row.audits:6.1%} ({low:.1%} to {high:.1%})"
        typer.echo(f"  {truth}  {row.predictor:<17}{share}   {'fails: ' if fails else ''}{fails}".rstrip())
    for line in wrong:
        typer.echo(f"falls short: {line}")
