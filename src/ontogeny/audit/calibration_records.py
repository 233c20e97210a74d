"""Records of a calibration as JSON lines, one per chunk, and its tables in Markdown."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ontogeny.audit.calibration import Chunk, ControlResult, Rate, sort_worst_first
from ontogeny.errors import BadInput
from ontogeny.runs.records import append_record, read_records, repair_records

CLAIMS = {"yes": "met", "no": "missed", "undetermined": "too few audits"}  # words by `ControlResult.claim`


def read_chunks(path: Path, *, must_exist: bool = False) -> list[Chunk]:
    """Returns the chunks of a file; none where it does not exist, unless it must. A cut last line is removed.

    Raises:
        BadInput: If the file cannot be read, or a line of it is no record of a calibration.
    """
    if not path.exists() and not must_exist:
        return []
    repair_records(path)
    chunks = []
    for number, record in enumerate(read_records(path), start=1):
        if record.keys() != set(Chunk._fields):
            raise BadInput(f"'{path}', line {number}, is no record of a calibration of this version")
        chunks.append(Chunk(**record))
    return chunks


def append_chunk(path: Path, chunk: Chunk) -> None:
    """Appends a chunk to a file."""
    append_record(path, chunk._asdict())


def markdown_tables(results: Sequence[ControlResult]) -> str:
    """Returns the table of error rates by test and environment, and that of new or failing controls, as Markdown."""
    return "\n".join([*_summary_rows(results), "", *_control_rows(results), ""])


def _summary_rows(results: Sequence[ControlResult]) -> Iterator[str]:
    """One row per test and environment, with the worst controls."""
    titles = ["test", "environment", "audits", "per control", "negative controls", "largest false-positive rate"]
    yield from _heading([*titles, "positive controls", "smallest power", "both bounds", "seconds per audit", "hours"])
    for test, env in dict.fromkeys((control.test, control.env) for control in results):
        of_test = sort_worst_first([control for control in results if (control.test, control.env) == (test, env)])
        num_audits = [control.yes.num_audits for control in of_test]
        cells = [f"`{test}`", f"`{env}`", f"{sum(num_audits):,}", _range(num_audits)]
        for positive in (False, True):
            group = [control for control in of_test if control.positive == positive]
            num_held_out = sum(control.held_out for control in group)
            cells.append(f"{len(group)}, of them {num_held_out} new" if num_held_out else f"{len(group)}")
            cells.append(f"{_format_rate(group[0].yes)}, `{group[0].organism}`" if group else "none")
        cells.append(_combined_claim(of_test))
        seconds = [control.seconds_per_audit for control in of_test]
        hours = sum(control.seconds_per_audit * control.yes.num_audits for control in of_test) / 3600
        yield _format_cells([*cells, f"{sum(seconds) / len(seconds):.2g}", f"{hours:.2g}"])


def _control_rows(results: Sequence[ControlResult]) -> Iterator[str]:
    """One row per control that was written after the thresholds had been fixed, or whose requirement is not met."""
    yield from _heading(["test", "environment", "control", "ground truth", "yes", "no", "pattern", "requirement"])
    for test, env in dict.fromkeys((control.test, control.env) for control in results):
        for control in sort_worst_first([control for control in results if (control.test, control.env) == (test, env)]):
            if not control.held_out and control.claim == "yes":
                continue
            name = f"`{control.organism}`" + (", new" if control.held_out else "")
            truth = "yes" if control.positive else "no"
            rates = [_format_rate(control.yes), f"{control.no.share:.1%}"]
            yield _format_cells([f"`{test}`", f"`{env}`", name, truth, *rates, control.pattern, CLAIMS[control.claim]])


def _combined_claim(controls: Sequence[ControlResult]) -> str:
    """Whether the required error rates are met for every control."""
    claims = [control.claim for control in controls]
    return CLAIMS["no" if "no" in claims else "undetermined" if "undetermined" in claims else "yes"]


def _heading(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [_format_cells(titles), "|" + "---|" * len(titles)]


def _format_cells(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def _range(counts: Sequence[int]) -> str:
    """The counts as one number, or from the smallest to the largest."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _format_rate(rate: Rate) -> str:
    """A rate with its interval."""
    return f"{rate.share:.1%} ({rate.low:.1%} to {rate.high:.1%})"
