"""The command `audit behavior`: analyzes logged choices in a two-step task or a bandit."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import Device, NumHostDevices, Seed, check_new_path, print_history, progress
from ontogeny.errors import BadInput

Choices = Annotated[
    Path,
    typer.Argument(metavar="CSV", help="File of choices, or a run in two_step or bandit, whose choices are simulated."),
]
Task = Annotated[str | None, typer.Option(help="Task: two_step or bandit (default: inferred from the columns).")]
ColumnNames = Annotated[
    str | None,
    typer.Option(metavar="COLUMN=NAME,...", help="Names of columns in the file, e.g. choice=level1_choice."),
]
MissingValues = Annotated[
    str | None,
    typer.Option(
        metavar="[COLUMN=]VALUE,...",
        help="Further values that mark a missed trial: in columns of choices, or in one column.",
    ),
]
Arms = Annotated[
    str | None,
    typer.Option(metavar="LABEL,...", help="Labels of the first choice, where one could mark a missed trial."),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Skip rows that cannot be read, and name them.")]
MaxSkippedShare = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Largest share of rows that --skip-bad-rows may skip.")
]


def behavior(
    choices: Choices,
    columns: ColumnNames = None,
    task: Task = None,
    na_values: MissingValues = None,
    arms: Arms = None,
    skip_bad_rows: SkipBadRows = False,
    max_skipped_share: MaxSkippedShare = 0.05,
    stays_only: Annotated[
        bool, typer.Option("--stays-only", help="Compute stay probabilities and their regression, and fit no models.")
    ] = False,
    num_groups: Annotated[
        int | None,
        typer.Option(min=1, help="Groups of simulated participants per model (default: 40 simulations per model)."),
    ] = None,
    num_lifetimes: Annotated[
        int, typer.Option(min=2, help="Lifetimes to simulate of a run, one per participant.")
    ] = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="New folder for behavior.html and behavior.json.")] = None,
    device: Device = None,
    num_host_devices: NumHostDevices = None,
) -> None:
    """Analyze logged choices: stay probabilities, their regression, choice models and model recovery.

    Examples: ontogeny audit behavior choices.csv --out behavior; ontogeny audit behavior choices.csv --columns
    subject=subjID,choice=level1_choice
    """
    check_new_path(out)
    column_names = _parse_columns(columns)
    missing_values, labels = _split_list(na_values, "--na-values"), _split_list(arms, "--arms")
    configure_jax(device, num_host_devices)
    from ontogeny.audit.behavior.analysis import analyze_choices, analyze_stays_only
    from ontogeny.audit.behavior.reading import read_choices
    from ontogeny.audit.history import AuditHistory, begin_audit

    text, history = None, AuditHistory(None)
    if choices.is_dir():
        from ontogeny.audit.behavior.simulated_choices import simulate_choices

        text = simulate_choices(choices, num_lifetimes=num_lifetimes, seed=seed)
        settings = {"seed": seed, "num_lifetimes": num_lifetimes, "num_groups": num_groups, "stays_only": stays_only}
        history = begin_audit(choices, "audit behavior", settings)
    choice_data = read_choices(
        choices,
        text=text,
        columns=column_names,
        task=task,
        na_values=missing_values,
        arms=labels,
        skip_bad_rows=skip_bad_rows,
        max_skipped_share=max_skipped_share,
    )
    for note in choice_data.notes:
        typer.echo(note)
    if stays_only:
        record = analyze_stays_only(choice_data)
    else:
        with progress("fitting", "batches") as update:
            record = analyze_choices(choice_data, num_groups=num_groups, seed=seed, on_progress=update)
    record |= {"file": choices.name, "seed": seed, "history": history.to_record()}
    history.end({"sentences": record["verdict_text"]})
    _print_record(record)
    print_history(history)
    if out is not None:
        _write(out, record, text)
        typer.echo(f"wrote {out / 'behavior.html'}")


def _write(out: Path, record: dict[str, Any], text: str | None) -> None:
    """Write the page, the record and, of simulated choices, the choices into a new folder."""
    from ontogeny.audit.behavior import page
    from ontogeny.runs.files import new_folder, write_bytes, write_json

    html = page.render(record, f"Choices in {record['file']}")
    with new_folder(out) as folder:
        write_bytes(folder / "behavior.html", html.encode())
        write_json(folder / "behavior.json", record)
        if text is not None:
            write_bytes(folder / "choices.csv", text.encode())


def _split_list(text: str | None, option: str) -> tuple[str, ...]:
    """The elements of an option that are separated by commas; none where the option is not given."""
    parts = () if text is None else tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise BadInput(f"{option} takes values that are separated by commas, and in '{text}' one of them is empty")
    return parts


def _parse_columns(text: str | None) -> dict[str, str]:
    """`'choice=level1_choice'` as a mapping of column names."""
    columns = {}
    for pair in filter(None, (text or "").split(",")):
        column, equals, name = pair.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"'{pair}' in --columns is not of the form column=name")
        columns[column.strip()] = name.strip()
    return columns


def _print_record(record: dict[str, Any]) -> None:
    """Print stay probabilities, regressions and choice models."""
    stays = record["stay_analysis"]
    typer.echo("stay probability, mean over participants and 95 % interval")
    for name, mean in stays["cell_means"].items():
        typer.echo(f"  {name:<24}{_format_mean(mean).replace('+', ' ')}")
    for name, mean in stays["contrasts"].items():
        typer.echo(f"  {name:<24}{_format_mean(mean)}")
    source = record["better_choice_source"]
    for title, key in (("plain", "regression"), (f"corrected (better choice {source})", "corrected_regression")):
        if stays[key]:
            typer.echo(f"log odds of staying, {title}")
            for name, mean in stays[key].items():
                typer.echo(f"  {name:<24}{_format_mean(mean)}")
    if "models" in record:
        _print_models(record)
    for sentence in record["verdict_text"]:
        typer.echo(sentence)


def _print_models(record: dict[str, Any]) -> None:
    """Print one line per choice model."""
    typer.echo(
        "models: summed BIC; participants with the lowest BIC; expected frequency; protected exceedance probability; "
        "simulated participants recognized"
    )
    shares = record["recovery"]["by_participant"]
    for i, model in enumerate(record["models"]):
        best = f"{model['num_best']} ({model['share_best']:.0%})"
        typer.echo(
            f"  {model['name']:<26}{model['summed_bic']:>10,.1f}{best:>12}   {model['frequency']['mean']:>4.0%}"
            f"   {model['protected_exceedance_prob']:.3f}   {shares[i][i]:>4.0%}"
        )


def _format_mean(mean: dict[str, Any], places: int = 3) -> str:
    """A mean with the ends of its interval, where it has one; unknown where no pairs of trials determine it."""
    if mean["mean"] is None:
        return " unknown"
    ends = "" if mean["low"] is None else f"   {mean['low']:+.{places}f} to {mean['high']:+.{places}f}"
    return f"{mean['mean']:+.{places}f}{ends}"
