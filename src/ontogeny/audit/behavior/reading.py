"""Reading of files of choices: the columns become numbers, and every decision about an ambiguous file is noted.

A file has one row per trial. A trial is complete only if nothing in it is missing. Rows that cannot be read raise an
error which names their lines, or are skipped and noted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mode

import numpy as np

from ontogeny import plugins
from ontogeny.audit.behavior.base import TASKS, ChoiceData, ChoiceTable
from ontogeny.audit.behavior.csv_file import CsvTable, decode_file, parse_csv
from ontogeny.audit.behavior.trial_arrays import arrange_trials
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

NA_VALUES = frozenset({"", "na", "nan", "n/a", "none", "null", "missed", "miss", "missing", ".", "-", "<na>"})
COMMON_WORDS = frozenset({"common", "c", "frequent", "likely", "expected", "usual", "true", "t"})
RARE_WORDS = frozenset({"rare", "r", "uncommon", "infrequent", "unlikely", "unexpected", "unusual", "false", "f"})
MISSING_CODES = ("0", "-1")  # numbers that often mark a missed trial
TWO_STEP_COLUMNS = frozenset({"state", "transition", "choice2"})
CHOICE_COLUMNS = (*sorted(TWO_STEP_COLUMNS), "choice")  # columns to which further missing values apply
MAX_NAMED_ROWS = 5


def read_choices(
    path: Path,
    *,
    text: str | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    na_values: Sequence[str] = (),
    skip_bad_rows: bool = False,
) -> ChoiceData:
    """Reads a file of choices.

    Args:
        path: The file.
        text: Content that is read in place of the file.
        columns: Names of columns in the file by the names of `csv_file.COLUMN_NAMES`.
        task: One of `TASKS`; by default inferred from the columns.
        na_values: Further marks of a missed trial.
        skip_bad_rows: Skip rows that cannot be read, in place of an error.

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
    reader = _ColumnReader(table, {value.strip().lower() for value in na_values}, notes, bad_rows)
    choice, num_arms = reader.read_labels("choice", (2,) if task == "two_step" else None)
    state, second_choice, is_common = np.zeros(len(choice), int), None, None
    if task == "two_step":
        state, second_choice, is_common = reader.read_second_stage(choice)
    is_missed = (choice < 0) | (state < 0)
    reward = reader.read_rewards(is_missed)
    order = reader.read_order()
    is_correct = reader.read_flags("correct") if "correct" in table.columns else None
    _report_bad_rows(path, bad_rows, notes, skip_bad_rows)
    is_readable = ~np.isin(table.row_numbers, list(bad_rows))
    stages = (choice, state, second_choice, is_common)
    return arrange_trials(ChoiceTable(task, num_arms, *stages, reward, *order, is_correct, is_readable, notes))


def _report_bad_rows(path: Path, bad_rows: Mapping[int, str], notes: list[str], skip: bool) -> None:
    """Raises or notes the rows that cannot be read."""
    if not bad_rows:
        return
    reasons = "; ".join(f"line {number}: {bad_rows[number]}" for number in sorted(bad_rows)[:MAX_NAMED_ROWS])
    if len(bad_rows) > MAX_NAMED_ROWS:
        reasons += f"; and {len(bad_rows) - MAX_NAMED_ROWS} more"
    rows = pluralize(len(bad_rows), "bad row")
    if not skip:
        raise BadInput(f"'{path}' has {rows}: {reasons} (--skip-bad-rows skips them)")
    notes.append(f"skipped {rows}: {reasons}")


class _ColumnReader:
    """Converts columns to numbers.

    Args:
        table: The file.
        na_values: Further marks of a missed trial, in lower case.
        notes: Receives a sentence about each decision.
        bad_rows: Receives the reason why a row cannot be read, by its line in the file.
    """

    def __init__(self, table: CsvTable, na_values: set[str], notes: list[str], bad_rows: dict[int, str]) -> None:
        self.table, self.notes, self.bad_rows = table, notes, bad_rows
        self.columns: dict[str, list[str]] = {}  # fields by column, empty where missing
        for name, fields in table.columns.items():
            missing = NA_VALUES | na_values if name in CHOICE_COLUMNS else NA_VALUES
            self.columns[name] = ["" if field.lower() in missing else field for field in fields]

    def _reject(self, name: str, is_bad: np.ndarray, problem: str) -> None:
        """Records that a column's field has a problem in some rows; `is_bad` is [R]."""
        for i in np.nonzero(is_bad)[0].tolist():
            self.bad_rows[self.table.row_numbers[i]] = f"{name} '{self.columns[name][i]}' {problem}"

    def read_labels(self, name: str, allowed_sizes: tuple[int, ...] | None) -> tuple[np.ndarray, int]:
        """Codes a column of labels as whole numbers.

        Args:
            name: The column.
            allowed_sizes: Numbers of different labels that are possible; None for two or more.

        Returns:
            Codes from 0, with -1 where missed, [R], and the number of different labels.
        """
        labels = [_normalize_label(field) for field in self.columns[name]]
        counts = Counter(filter(None, labels))
        if allowed_sizes is None:
            valid_labels, missing_codes = self._arm_labels(name, counts)
        else:
            valid_labels, missing_codes = _frequent_labels(name, counts, allowed_sizes)
        for code in missing_codes:
            self.notes.append(f"'{name}' {code} marks a missed trial ({counts[code]} times)")
        num_missing = labels.count("")
        if num_missing:
            self.notes.append(f"'{name}' is blank or NA in {pluralize(num_missing, 'row')}: missed trials")
        codes = {label: code for code, label in enumerate(sorted(valid_labels, key=_numeric_order))}
        problem = f"is none of {', '.join(codes)}"
        return self._encode(name, labels, codes | dict.fromkeys(missing_codes, -1), problem), len(codes)

    def _encode(self, name: str, labels: Sequence[str], codes: Mapping[str, int], problem: str) -> np.ndarray:
        """The code of each label [R], -1 where it is missing; a label without a code is rejected with `problem`."""
        self._reject(name, np.array([label != "" and label not in codes for label in labels]), problem)
        return np.array([codes.get(label, -1) for label in labels])

    def _arm_labels(self, name: str, counts: Counter[str]) -> tuple[list[str], list[str]]:
        """The labels of a bandit's arms, and the codes of missed trials."""
        missing_codes = ["-1"] if "-1" in counts and len(counts) > 2 else []
        valid_labels = [label for label in counts if label not in missing_codes]
        if len(valid_labels) < 2:
            contents = ", ".join(valid_labels) or "nothing"
            raise BadInput(f"the column '{name}' contains {contents}: a choice has two values or more")
        if "0" in valid_labels and len(valid_labels) > 2:
            self.notes.append(f"'{name}' 0 is an arm; use --na-values 0 if it marks missed trials")
        return valid_labels, missing_codes

    def read_second_stage(self, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Reads the columns of the second stage of a two-step task.

        Args:
            choice: [R], first choices.

        Returns:
            The state [R] from 0, -1 where anything of the second stage is missed; the second choice [R], 0 or 1; and
            1 for a common, 0 for a rare and -1 for a missed transition [R]. None where the file has no such column.
        """
        state, second_choice, is_common = np.full(len(choice), -1), None, None
        num_labels, is_missing = 0, np.zeros(len(choice), bool)
        if "state" in self.columns:
            state, _ = self.read_labels("state", (2,))
        if "choice2" in self.columns:
            label, num_labels = self.read_labels("choice2", (2, 4))
            if num_labels == 4 and "state" in self.columns:
                label = self._options_within_states(label, state)
            elif num_labels == 4:
                state = np.where(label < 0, -1, label // 2)
                self.notes.append(
                    "each state is derived from its second choices, the two lower or the two higher labels"
                )
            second_choice, is_missing = np.where(label < 0, 0, label % 2), label < 0
        if "transition" in self.columns:
            is_common = self._read_transitions()
            is_missing |= is_common < 0
            if "state" not in self.columns and num_labels != 4:
                state = np.where(choice < 0, -1, np.where(is_common == 1, choice, 1 - choice))
                self.notes.append("states are derived from transitions, as the file has no column of states")
        return np.where(is_missing, -1, state), second_choice, is_common

    def _options_within_states(self, label: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Four labels of second choices [R] as 0 and 1 within each state, -1 where missed."""
        states = np.array([mode(state[(label == k) & (state >= 0)].tolist() or [-1]) for k in range(4)])
        if sorted(states) != [0, 0, 1, 1]:
            raise BadInput("two of the four second choices must belong to each state: check the column 'state'")
        self._reject("choice2", (label >= 0) & (state >= 0) & (state != states[label]), "belongs to the other state")
        rank = np.array([np.sum(states[:k] == states[k]) for k in range(4)])
        return np.where(label < 0, -1, rank[label])

    def _read_transitions(self) -> np.ndarray:
        """1 for common, 0 for rare, -1 where missed [R]."""
        labels = [_normalize_label(field.lower()) for field in self.columns["transition"]]
        codes = self._transition_codes(Counter(filter(None, labels)))
        is_common = self._encode("transition", labels, codes, "is neither common nor rare")
        if (is_common == 0).sum() > (is_common == 1).sum():
            self.notes.append("WARNING: rare transitions are more frequent than common ones; check their coding")
        return is_common

    def _transition_codes(self, counts: Counter[str]) -> dict[str, int]:
        """The code of each label, 1 for common, 0 for rare, -1 for missed, from the number of rows with each label.

        Known words and the numbers 1 and -1 have a fixed meaning; otherwise the more frequent of two labels is common.
        """
        missing_codes = MISSING_CODES
        if {"-1", "1"} <= counts.keys():
            codes = {"1": 1, "-1": 0}
            self.notes.append("'transition' 1 is common, -1 is rare")
        elif counts.keys() & (COMMON_WORDS | RARE_WORDS):
            codes = dict.fromkeys(COMMON_WORDS, 1) | dict.fromkeys(RARE_WORDS, 0)
        elif len(counts) < 2:
            raise BadInput("the column 'transition' has a single value: common and rare cannot be distinguished")
        else:
            (common, _), (rare, _) = counts.most_common(2)
            codes, missing_codes = {common: 1, rare: 0}, ("-1",)  # a third label 0 is an error
            self.notes.append(f"'transition' {common} is more frequent and read as common, {rare} as rare")
        for missing_code in missing_codes:
            if counts[missing_code] and missing_code not in codes:
                codes[missing_code] = -1
                self.notes.append(f"'transition' {missing_code} marks a missed trial ({counts[missing_code]} times)")
        return codes

    def read_rewards(self, is_missing: np.ndarray) -> np.ndarray:
        """Reads rewards as numbers [R], NaN where missed.

        Args:
            is_missing: [R] bool, trials that other columns show as missed. A reward of -1 marks a missed trial only
                where every trial with that reward is missed anyway.
        """
        reward = self._read_numbers("reward")
        is_minus_one = reward == -1
        if is_minus_one.any() and is_missing[is_minus_one].all():
            reward[is_minus_one] = np.nan
            self.notes.append(f"'reward' -1 marks a missed trial ({int(is_minus_one.sum())} times)")
        return reward

    def _read_numbers(self, name: str) -> np.ndarray:
        """A column as numbers [R], NaN where a field is missing or not a number."""
        fields, decimal_mark = self.columns[name], self.table.decimal_mark
        numbers = np.array([_parse_number(field.replace(decimal_mark, ".")) for field in fields], float)  # None is NaN
        self._reject(name, ~np.isfinite(numbers) & (np.array(fields) != ""), "is not a number")
        return np.where(np.isfinite(numbers), numbers, np.nan)

    def read_flags(self, name: str) -> np.ndarray:
        """Reads a column of 0 and 1 as Booleans [R].

        Args:
            name: The column.
        """
        flags = self._read_numbers(name)
        self._reject(name, ~np.isin(flags, (0, 1)) & ~np.isnan(flags), "is neither 0 nor 1")
        return flags == 1

    def read_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns names of participants, indices of sessions, and trial numbers, [R] each."""
        row_numbers = self.table.row_numbers
        num_rows = len(row_numbers)
        if "subject" not in self.columns:
            self.notes.append("the file has no column of subjects: all rows belong to one participant")
        subjects = self.columns.get("subject", ["all"] * num_rows)
        for row_number, subject in zip(row_numbers, subjects, strict=True):
            if not subject:
                self.bad_rows[row_number] = "no subject"
        participant = np.array(subjects)
        session = np.unique(self.columns.get("session", [""] * num_rows), return_inverse=True)[1]
        if "trial" not in self.columns:
            self.notes.append(
                "the file has no column of trial numbers: rows count as consecutive, deleted rows cannot be detected"
            )
            trial = np.zeros(num_rows, int)
            for name in np.unique(participant):
                trial[participant == name] = np.arange((participant == name).sum())
            return participant, session, trial
        trial = self._read_numbers("trial")
        is_whole = trial == np.floor(trial)  # False for NaN
        is_readable = ~np.isin(row_numbers, list(self.bad_rows))
        self._reject("trial", ~is_whole & is_readable, "is not a whole number")
        return participant, session, np.where(is_whole, trial, 0).astype(int)


def _frequent_labels(name: str, counts: Counter[str], allowed_sizes: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """The labels of a column that has a fixed number of them, and the codes of missed trials.

    Where there are too many labels, 0 and -1 mark missed trials, the rarer first; other labels are errors.
    """
    counts, missing_codes = Counter(counts), []
    while len(counts) not in allowed_sizes and len(counts) > min(allowed_sizes) and counts.keys() & set(MISSING_CODES):
        missing_codes.append(min((code for code in MISSING_CODES if code in counts), key=lambda code: counts[code]))
        del counts[missing_codes[-1]]
    size = max((size for size in allowed_sizes if size <= len(counts)), default=0)
    if not size:
        contents, sizes = ", ".join(sorted(counts)) or "nothing", " or ".join(map(str, allowed_sizes))
        raise BadInput(f"the column '{name}' contains {contents}: it must have {sizes} different values")
    return [label for label, _ in counts.most_common(size)], missing_codes


def _parse_number(text: str) -> float | None:
    """The number that a text denotes, if any."""
    try:
        return float(text)
    except ValueError:
        return None


def _normalize_label(label: str) -> str:
    """A label, in which whole numbers have no decimal places."""
    number = _parse_number(label)
    return str(int(number)) if number is not None and number.is_integer() else label


def _numeric_order(label: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, then texts."""
    number = _parse_number(label)
    return number is None, number or 0.0, label
