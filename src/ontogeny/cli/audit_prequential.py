"""The command `audit prequential`: tests whether online scores are those of a first pass."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import (
    JsonFile,
    JsonOutput,
    NumHostDevices,
    Seed,
    check_new_path,
    print_history,
    print_note,
    progress,
    write_report,
)
from ontogeny.errors import BadInput
from ontogeny.plugins import MAX_INT
from ontogeny.printable import to_printable

if TYPE_CHECKING:
    import numpy as np

    from ontogeny.audit.history import AuditHistory
    from ontogeny.audit.prequential.base import BuildPredictor

Isolation = Annotated[
    str, typer.Option(help="Isolation of passes: process, or instance (faster, but caches of a module remain).")
]
PredictorName = Annotated[
    str | None,
    typer.Argument(
        metavar="PREDICTOR",
        help="Predictor: module:function, file.py:function, a language-model run, or predictor:NAME (a reference).",
        show_default=False,
    ),
]
NumPositions = Annotated[
    int, typer.Option(min=1, help="Number of positions at which a token is changed; a certificate needs 17.")
]
VocabSize = Annotated[
    int | None, typer.Option(min=2, help="Upper bound of generated tokens (default: all of the predictor's tokens).")
]
NumAudits = Annotated[
    int | None,
    typer.Option("--calibrate", metavar="NUM_AUDITS", min=2, help="Audit every reference predictor this many times."),
]
MAX_OUTPUT_CHARS = 4000  # of what the predictor prints, kept in the record


def prequential(
    predictor: PredictorName = None,
    learning: Annotated[
        str | None, typer.Option(help="Online learning of a language-model run: setting=value,... or 'frozen'.")
    ] = None,
    stream: Annotated[Path | None, typer.Option(help="Tokens to audit on: .npy, or whole numbers as text.")] = None,
    reported: Annotated[
        str | None, typer.Option(help="Published score of the stream to verify, in nats per token.")
    ] = None,
    num_tokens: Annotated[
        int, typer.Option(min=16, help="Length of the generated stream; must exceed the predictor's update chunk.")
    ] = 256,
    num_positions: NumPositions = 24,
    vocab_size: VocabSize = None,
    isolation: Isolation = "process",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of a prefix that counts as rounding, in nats.")
    ] = 1e-4,
    calibrate: NumAudits = None,
    seed: Seed = 0,
    as_json: JsonOutput = False,
    out: JsonFile = None,
    html: Annotated[Path | None, typer.Option(help="New file for the page of the results.")] = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Test whether online scores are those of a first pass.

    The exit code is 0 if the predictor is certified, 1 if it is not, and 2 if it cannot be audited.

    Examples: ontogeny audit prequential mine.py:predict; ontogeny audit prequential --calibrate 100
    """
    check_new_path(out)
    check_new_path(html)
    if (predictor is None) == (calibrate is None):
        raise BadInput("give either a predictor or --calibrate with a number of audits")
    history = None
    if calibrate is not None:
        if num_host_devices is not None:
            raise BadInput("--num-host-devices configures a language-model run, and --calibrate audits none")
        record, failures = _calibrate(calibrate, seed)
    else:
        config = {"num_tokens": num_tokens, "num_positions": num_positions, "tolerance": tolerance}
        options = {"vocab_size": vocab_size, "reported": reported, "seed": seed}
        options["stream"] = None if stream is None else _read_tokens(stream)
        build = _find_language_model(str(predictor), learning, num_host_devices)
        history = _begin_history(str(predictor), learning, isolation, config | options)
        record, failures = _certify(str(predictor), build, isolation, config, options)
        record["history"] = history.to_record()
        history.end({"certified": record["certified"], "not passed": failures})
    content = _write({"seed": seed} | record, out, html)
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
    elif calibrate is not None:
        _print_calibration(content)
    else:
        _print_certificate(content)
        if history is not None:
            print_history(history)
    if failures:
        raise typer.Exit(1)


def _write(record: dict[str, Any], out: Path | None, html: Path | None) -> dict[str, Any]:
    """Write the record, and its page where one was requested, and return what was written."""
    from ontogeny.audit.suite import to_jsonable
    from ontogeny.runs.files import write_bytes

    content = write_report(out, to_jsonable(record))
    if html is not None:
        from ontogeny.audit.prequential.page import render

        write_bytes(html, render(content).encode())
    return content


def _calibrate(num_audits: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The record of a calibration, and the required error rates that are surely missed."""
    from ontogeny.audit.prequential import calibration

    with progress("calibrating", "audits") as update:
        results = calibration.calibrate(num_audits, seed=seed, on_progress=update)
    failures, undetermined = calibration.claim_error_rates(results)
    record = {
        "num_audits": num_audits,
        "predictor_results": [result._asdict() for result in results],
        "failures": failures,
        "undetermined": undetermined,
    }
    return record, failures


def _begin_history(name: str, learning: str | None, isolation: str, settings: dict[str, Any]) -> "AuditHistory":
    """Record the audit in the history of a run, or of a file of the user's own."""
    from ontogeny.audit.history import begin_audit

    file, colon, _ = name.partition(".py:")
    source = Path(name) if Path(name).is_dir() else Path(f"{file}.py") if colon else None
    stream = settings["stream"]
    digest = None if stream is None else hashlib.sha256(stream.tobytes()).hexdigest()
    settings = settings | {"predictor": name, "learning": learning, "isolation": isolation, "stream": digest}
    return begin_audit(source if source is not None and source.exists() else None, "audit prequential", settings)


def _certify(
    name: str, build: "BuildPredictor | None", isolation: str, config: dict[str, Any], options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The record of an audit, and the names of the checks that were not passed."""
    from ontogeny.audit.prequential.certificate import CertificateConfig, certify
    from ontogeny.audit.prequential.passes import PASSES_BY_ISOLATION
    from ontogeny.validation import validate

    if isolation not in PASSES_BY_ISOLATION:
        raise BadInput(f"--isolation must be process or instance, not '{isolation}'")
    checked_config = validate(CertificateConfig, config, "audit prequential")
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "output.txt"
        run_passes = PASSES_BY_ISOLATION[isolation](name, build, log_path=log_path)
        with progress("certifying", "passes") as update:
            certificate = certify(run_passes, config=checked_config, on_progress=update, **options)
        text = log_path.read_text(encoding="utf-8", errors="replace") if log_path.exists() else ""
    _note_output(text)
    record = {"predictor": name, "certified": certificate.certified, "isolation": isolation} | certificate._asdict()
    record["checks"] = [check._asdict() for check in certificate.checks]
    record["predictor_output"] = text[-MAX_OUTPUT_CHARS:]
    return record, [check.name for check in certificate.checks if check.verdict != "pass"]


def _note_output(text: str) -> None:
    """Tell the user on standard error what the predictor printed, which is no part of the result."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines:
        print_note(f"the predictor printed {len(lines):,} lines, the last: {lines[-1].strip()[:200]}")


def _find_language_model(name: str, learning: str | None, num_host_devices: int | None) -> "BuildPredictor | None":
    """What builds the predictor of a language-model run; None for every other predictor."""
    if not Path(name).is_dir():
        for option, value in (("--learning", learning), ("--num-host-devices", num_host_devices)):
            if value is not None:
                raise BadInput(f"{option} configures a language-model run, and '{name}' is not a folder")
        return None
    configure_jax(None, num_host_devices)
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
            tokens = np.array([int(word) for word in path.read_text(encoding="utf-8-sig").split()])
    except ValueError as error:
        raise BadInput(f"'{path}' does not contain tokens: {error}") from None
    is_whole = tokens.ndim == 1 and np.issubdtype(tokens.dtype, np.integer)
    if not is_whole or (tokens < 0).any() or (tokens > MAX_INT).any():
        raise BadInput(f"'{path}' must contain one sequence of whole numbers from 0 to {MAX_INT}")
    return tokens.astype(np.int32)


def _print_certificate(record: dict[str, Any]) -> None:
    """Print the verdict of every check and of the predictor."""
    from ontogeny.audit.prequential.certificate import CONDITIONS

    tokens = f"{record['vocab_size']} tokens in rows of {record['num_columns']} columns"
    if record["vocab_size"] == record["num_columns"]:
        tokens = f"vocabulary of {record['vocab_size']}"
    typer.echo(
        f"{to_printable(record['predictor'])}: {record['num_tokens']} tokens, {tokens}, {_describe_passes(record)}"
    )
    for check in record["checks"]:
        typer.echo(f"  {CONDITIONS[check['name']]} {check['name']:<17}{check['verdict']:<13}{check['summary']}")
        if check["advice"]:
            typer.echo(f"{'':36}what to do: {check['advice']}")
    typer.echo(f"  score of the first pass: {_format_score(record['nats_per_token'])}")
    typer.echo("certified: all checks of a first pass are passed" if record["certified"] else "NOT certified")


def _describe_passes(record: dict[str, Any]) -> str:
    """The number of passes and how they are isolated."""
    if record["isolation"] == "instance":
        return f"{record['num_passes']} passes, each by a new instance"
    return f"{record['num_passes']} passes, each by a new instance, and a new process for each check"


def _format_score(nats_per_token: float | str) -> str:
    """A score of a record, which holds a number that is not finite as text."""
    return "infinite" if isinstance(nats_per_token, str) else f"{nats_per_token:.6g} nats per token"


def _print_calibration(record: dict[str, Any]) -> None:
    """Print how often every reference predictor is certified, which checks it fails, and what can be claimed."""
    from ontogeny.audit.prequential.calibration import MAX_FALSE_POSITIVE_RATE, MIN_POWER
    from ontogeny.stats import clopper_pearson

    num_audits = record["num_audits"]
    for row in sorted(record["predictor_results"], key=lambda row: (not row["is_valid"], row["predictor"])):
        low, high = clopper_pearson(row["num_certified"], num_audits)
        failed = "  ".join(
            f"{check} {verdicts['fail'] / num_audits:.1%}"
            for check, verdicts in row["verdicts"].items()
            if verdicts["fail"]
        )
        group = "valid" if row["is_valid"] else "invalid"
        rate = f"certified {row['num_certified'] / num_audits:6.1%} ({low:.1%} to {high:.1%})"
        typer.echo(f"  {group:<8} {row['predictor']:<26}{rate}   {'failed: ' if failed else ''}{failed}".rstrip())
    for failure in record["failures"]:
        typer.echo(f"fails: {failure}")
    for sentence in record["undetermined"]:
        typer.echo(f"no claim: {sentence}")
    if not record["failures"] and not record["undetermined"]:
        typer.echo(
            f"every valid predictor is certified in at least {1 - MAX_FALSE_POSITIVE_RATE:.0%} of audits and every "
            f"invalid one rejected in at least {MIN_POWER:.0%}, by the bounds of 95 % intervals"
        )
