"""Reading of files of choices: the columns become numbers, and every decision about an ambiguous file is noted.

A file has one row per trial. A trial counts only if its choice, its transition and its reward are known. Rows that
cannot be read raise an error which names their lines, or are skipped and noted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ontogeny import plugins
from ontogeny.audit.behavior.base import TASKS, ChoiceData, ChoiceTable
from ontogeny.audit.behavior.column_reader import ColumnReader
from ontogeny.audit.behavior.csv_file import COLUMN_NAMES, decode_file, parse_csv
from ontogeny.audit.behavior.labels import parse_number
from ontogeny.audit.behavior.second_stage import read_second_stage
from ontogeny.audit.behavior.trial_arrays import arrange_trials, group_rows
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

TWO_STEP_COLUMNS = frozenset({"state", "transition", "choice2"})
MAX_NAMED_ROWS = 5
MAX_SKIPPED_SHARE = 0.05  # of rows that are skipped without a further confirmation
MIN_NUMBERED_SHARE = 0.5  # of steps between the sorted values of a column of trial numbers that are steps of one


def read_choices(
    path: Path,
    *,
    text: str | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    na_values: Sequence[str] = (),
    arms: Sequence[str] = (),
    skip_bad_rows: bool = False,
    max_skipped_share: float = MAX_SKIPPED_SHARE,
) -> ChoiceData:
    """Reads a file of choices.

    Args:
        path: The file.
        text: Content that is read in place of the file.
        columns: Names of columns in the file by the names of `csv_file.COLUMN_NAMES`.
        task: One of `TASKS`; by default inferred from the columns.
        na_values: Further marks of a missed trial in columns of choices, or `column=value` for any column.
        arms: The labels of first choices, where they are not to be inferred.
        skip_bad_rows: Skip rows that cannot be read, in place of an error.
        max_skipped_share: The largest share of rows that may be skipped.

    Raises:
        BadInput: The file cannot be read as choices.
    """
    if task is not None and task not in TASKS:
        raise plugins.unknown_name_error("task", task, list(TASKS))
    notes: list[str] = []
    bad_rows: dict[int, str] = {}
    content = decode_file(path, notes) if text is None else text
    table = parse_csv(path, content, columns or {}, notes, bad_rows)
    has_second_stage = not TWO_STEP_COLUMNS.isdisjoint(table.columns)
    if task is None:
        task = "two_step" if has_second_stage else "bandit"
        notes.append(f"the columns are those of a {task.replace('_', '-')} task")
    if task == "two_step" and not has_second_stage:
        raise BadInput("a two-step task needs a column 'state', 'transition' or 'choice2'")
    reader = ColumnReader(table, _missing_values_by_column(na_values), notes, bad_rows)
    choice, labels = reader.read_labels("choice", (2,) if task == "two_step" else None, arms)
    state, second_choice, is_common = np.zeros(len(choice), int), None, None
    if task == "two_step":
        state, second_choice, is_common = read_second_stage(reader, choice)
    reward = reader.read_rewards((choice < 0) | (state < 0))
    order = _read_order(reader)
    is_correct = reader.read_flags("correct") if "correct" in table.columns else None
    max_skipped_rows = max_skipped_share if skip_bad_rows else None
    num_rows = len(set(table.row_numbers) | bad_rows.keys())
    _report_bad_rows(path, bad_rows, num_rows, notes, max_skipped_rows)
    is_readable = ~np.isin(table.row_numbers, list(bad_rows))
    stages = (choice, state, second_choice, is_common)
    return arrange_trials(ChoiceTable(task, len(labels), *stages, reward, *order, is_correct, is_readable, notes))


def _missing_values_by_column(na_values: Sequence[str]) -> dict[str, set[str]]:
    """Marks of missed trials in lower case by column; those without a column are under the empty name."""
    by_column: dict[str, set[str]] = {}
    for text in na_values:
        column, _, value = text.strip().lower().rpartition("=")
        if column and column not in COLUMN_NAMES:
            raise plugins.unknown_name_error("column", column, list(COLUMN_NAMES))
        by_column.setdefault(column, set()).add(value.strip())
    return by_column


def _report_bad_rows(
    path: Path, bad_rows: Mapping[int, str], num_rows: int, notes: list[str], max_skipped_share: float | None
) -> None:
    """Raises or notes the rows that cannot be read; none are skipped if `max_skipped_share` is None."""
    if not bad_rows:
        return
    reasons = "; ".join(f"line {number}: {bad_rows[number]}" for number in sorted(bad_rows)[:MAX_NAMED_ROWS])
    if len(bad_rows) > MAX_NAMED_ROWS:
        reasons += f"; and {len(bad_rows) - MAX_NAMED_ROWS:,} more"
    share = len(bad_rows) / num_rows
    rows = f"{pluralize(len(bad_rows), 'bad row')}: {reasons}; {share:.1%} of {pluralize(num_rows, 'row')}"
    if max_skipped_share is None:
        raise BadInput(f"'{path}' has {rows} (--skip-bad-rows skips them)")
    if share > max_skipped_share:
        raise BadInput(
            f"'{path}' has {rows}; --skip-bad-rows skips at most {max_skipped_share:.1%} "
            f"(--max-skipped-share {np.ceil(share * 100) / 100:g} allows it)"
        )
    notes.append(f"skipped {rows}")


def _read_order(reader: ColumnReader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names of participants, indices of sessions, and trial numbers, [R] each."""
    table, notes = reader.table, reader.notes
    num_rows = len(table.row_numbers)
    subjects = reader.columns.get("subject")
    if subjects is not None and "subject" in table.uncertain and len(set(subjects)) > num_rows / 2:
        notes.append(f"'{table.names['subject']}' differs in nearly every row and is not read as the subject")
        subjects = None
    if subjects is None:
        notes.append("the file has no column of subjects: all rows belong to one participant")
        subjects = ["all"] * num_rows
    for row_number, subject in zip(table.row_numbers, subjects, strict=True):
        if not subject:
            reader.bad_rows[row_number] = "no subject"
    participant = np.array(subjects)
    session = np.unique(reader.columns.get("session", [""] * num_rows), return_inverse=True)[1]
    trial = _read_trial_numbers(reader, participant)
    if trial is not None:
        return participant, session, trial
    notes.append("the file has no column of trial numbers: rows count as consecutive, deleted rows cannot be detected")
    trial = np.zeros(num_rows, int)
    for rows in group_rows(participant):
        trial[rows] = np.arange(len(rows))
    return participant, session, trial


def _read_trial_numbers(reader: ColumnReader, participant: np.ndarray) -> np.ndarray | None:
    """Trial numbers [R]; None if there is no column of them, or if an uncertain one has other content."""
    table = reader.table
    if "trial" not in reader.columns:
        return None
    if "trial" in table.uncertain and not _is_numbered(reader.columns["trial"], participant):
        reader.notes.append(
            f"'{table.names['trial']}' does not number the trials and is not used; "
            f"--columns trial={table.names['trial']} reads it as trial numbers"
        )
        return None
    trial = reader.read_numbers("trial")
    is_whole = trial == np.floor(trial)  # False for NaN
    is_readable = ~np.isin(table.row_numbers, list(reader.bad_rows))
    reader.reject("trial", ~is_whole & is_readable, "is not a whole number")
    return np.where(is_whole, trial, 0).astype(int)


def _is_numbered(fields: Sequence[str], participant: np.ndarray) -> bool:
    """Whether most values of each participant follow each other in steps of one, as trial numbers do."""
    numbers = np.array([parse_number(field) for field in fields], float)  # None is NaN
    steps = np.concatenate([np.diff(np.unique(numbers[rows])) for rows in group_rows(participant)])
    return bool(np.isfinite(numbers).all() and (steps == 1).sum() >= MIN_NUMBERED_SHARE * max(len(steps), 1))
