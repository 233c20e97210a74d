"""The command `audit prequential`: tests whether online scores are those of a first pass."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.shared import JsonFile, Seed, check_new_path, progress, write_report
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from ontogeny.audit.prequential.base import BuildPredictor
    from ontogeny.audit.prequential.calibration import PredictorCalibration
    from ontogeny.audit.prequential.certificate import Certificate

Isolation = Annotated[
    str, typer.Option(help="Isolation of passes: process, or instance (faster, but caches of a module remain).")
]


def prequential(
    predictor: Annotated[
        str | None,
        typer.Argument(
            metavar="PREDICTOR",
            help="Predictor: module:function, file.py:function, a language-model run, or predictor:NAME (a reference).",
            show_default=False,
        ),
    ] = None,
    learning: Annotated[
        str | None, typer.Option(help="Online learning of a language-model run: setting=value,... or 'frozen'.")
    ] = None,
    stream: Annotated[Path | None, typer.Option(help="Tokens to audit on: .npy, or whole numbers as text.")] = None,
    reported: Annotated[
        str | None, typer.Option(help="Published score of the stream to verify, in nats per token.")
    ] = None,
    num_tokens: Annotated[
        int, typer.Option(help="Length of the generated stream; must exceed the predictor's update chunk.")
    ] = 256,
    num_positions: Annotated[int, typer.Option(help="Number of positions at which a token is changed.")] = 24,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=2, help="Upper bound of generated tokens (default: all of the predictor's tokens)."),
    ] = None,
    isolation: Isolation = "process",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of a prefix that counts as rounding, in nats.")
    ] = 1e-4,
    calibrate: Annotated[
        int | None,
        typer.Option(
            "--calibrate", metavar="NUM_AUDITS", min=2, help="Audit every reference predictor this many times."
        ),
    ] = None,
    seed: Seed = 0,
    out: JsonFile = None,
    html: Annotated[Path | None, typer.Option(help="New file for the page of the results.")] = None,
) -> None:
    """Test whether online scores are those of a first pass.

    The exit code is 0 if the predictor is certified, 1 if it is not, and 2 if it cannot be audited.

    Examples: ontogeny audit prequential mine.py:predict; ontogeny audit prequential --calibrate 100
    """
    check_new_path(out)
    check_new_path(html)
    if (predictor is None) == (calibrate is None):
        raise BadInput("give either a predictor or --calibrate with a number of audits")
    if calibrate is not None:
        record, failures = _calibrate(calibrate, seed)
    else:
        config = {"num_tokens": num_tokens, "num_positions": num_positions, "tolerance": tolerance}
        options = {"vocab_size": vocab_size, "reported": reported, "seed": seed}
        options["stream"] = None if stream is None else _read_tokens(stream)
        record, failures = _certify(str(predictor), learning, isolation, config, options)
    _write({"seed": seed} | record, out, html)
    if failures:
        raise typer.Exit(1)


def _write(record: dict[str, Any], out: Path | None, html: Path | None) -> None:
    """Write the record, and its page where one was requested."""
    from ontogeny.audit.suite import to_jsonable
    from ontogeny.runs.files import write_bytes

    content = write_report(out, to_jsonable(record))
    if html is not None:
        from ontogeny.audit.prequential.page import render

        write_bytes(html, render(content).encode())


def _calibrate(num_audits: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The record of a calibration, and the error rates that it misses."""
    from ontogeny.audit.prequential import calibration

    with progress("calibrating", "audits") as update:
        results = calibration.calibrate(num_audits, seed=seed, on_progress=update)
    failures = calibration.find_failures(results)
    _print_calibration(results, failures)
    record = {
        "num_audits": num_audits,
        "predictor_results": [result._asdict() for result in results],
        "failures": failures,
    }
    return record, failures


def _certify(
    name: str, learning: str | None, isolation: str, config: dict[str, Any], options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The record of an audit, and the names of the checks that were not passed."""
    from ontogeny.audit.prequential.certificate import CertificateConfig, certify
    from ontogeny.audit.prequential.passes import PASSES_BY_ISOLATION
    from ontogeny.validation import validate

    if isolation not in PASSES_BY_ISOLATION:
        raise BadInput(f"--isolation must be process or instance, not '{isolation}'")
    checked_config = validate(CertificateConfig, config, "audit prequential")
    run_passes = PASSES_BY_ISOLATION[isolation](name, _find_language_model(name, learning))
    with progress("certifying", "passes") as update:
        certificate = certify(run_passes, config=checked_config, on_progress=update, **options)
    _print_certificate(name, certificate, isolation)
    record = {"predictor": name, "certified": certificate.certified, "isolation": isolation} | certificate._asdict()
    record["checks"] = [check._asdict() for check in certificate.checks]
    return record, [check.name for check in certificate.checks if check.verdict != "pass"]


def _find_language_model(name: str, learning: str | None) -> "BuildPredictor | None":
    """What builds the predictor of a language-model run; None for every other predictor."""
    if not Path(name).is_dir():
        if learning is not None:
            raise BadInput(f"--learning configures a language-model run, and '{name}' is not a folder")
        return None
    from ontogeny.lm import prequential_predictor

    frozen = learning == "frozen"
    build = functools.partial(prequential_predictor.build, name, "" if frozen else learning or "", frozen=frozen)
    build()  # raises the error of an unreadable run here, not in another process
    return build


def _read_tokens(path: Path) -> "np.ndarray":
    """The tokens in a file of NumPy or of whole numbers as text."""
    import numpy as np

    try:
        if path.suffix == ".npy":
            tokens = np.load(path, allow_pickle=False)
        else:
            tokens = np.array([int(word) for word in path.read_text(encoding="utf-8").split()])
    except ValueError as error:
        raise BadInput(f"'{path}' does not contain tokens: {error}") from None
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or (tokens < 0).any():
        raise BadInput(f"'{path}' must contain one sequence of whole numbers from 0 on")
    return tokens.astype(np.int32)


def _print_certificate(name: str, certificate: "Certificate", isolation: str) -> None:
    """Print the verdict of every check and of the predictor."""
    from ontogeny.audit.prequential.certificate import CONDITIONS

    typer.echo(
        f"{name}: {certificate.num_tokens} tokens, vocabulary of {certificate.vocab_size}, "
        f"{certificate.num_passes} passes, each by a new {isolation}"
    )
    for check in certificate.checks:
        typer.echo(f"  {CONDITIONS[check.name]} {check.name:<17}{check.verdict:<13}{check.summary}")
    typer.echo(f"  first pass: {certificate.nats_per_token:.6g} nats per token")
    typer.echo("certified: all checks of a first pass are passed" if certificate.certified else "NOT certified")


def _print_calibration(results: "list[PredictorCalibration]", failures: list[str]) -> None:
    """Print how often every reference predictor is certified, and which checks it fails."""
    from ontogeny.stats import clopper_pearson

    for result in sorted(results, key=lambda result: (not result.is_valid, result.predictor)):
        low, high = clopper_pearson(result.num_certified, result.num_audits)
        failed = "  ".join(
            f"{check} {verdicts['fail'] / result.num_audits:.1%}"
            for check, verdicts in result.verdicts.items()
            if verdicts["fail"]
        )
        group = "valid" if result.is_valid else "invalid"
        rate = f"certified {result.num_certified / result.num_audits:6.1%} ({low:.1%} to {high:.1%})"
        typer.echo(f"  {group:<8} {result.predictor:<26}{rate}   {'failed: ' if failed else ''}{failed}".rstrip())
    for failure in failures:
        typer.echo(f"fails: {failure}")
