"""Conversion of the columns of a file to numbers; what cannot be converted is recorded with its line in the file."""

from collections.abc import Mapping, Sequence

import numpy as np

from ontogeny.audit.behavior.csv_file import CsvTable
from ontogeny.audit.behavior.labels import (
    DISTANT_CODES,
    NA_VALUES,
    count_labels,
    decimal_mark,
    normalize_label,
    parse_number,
    separate_arms,
    separate_frequent_labels,
    separate_stated_labels,
    sort_labels,
)
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

CHOICE_COLUMNS = ("choice", "choice2", "state", "transition")  # to which missing values without a column apply
YES_WORDS = frozenset(["true", "t", "yes", "y", "win", "won", "rewarded", "reward", "correct", "hit"])
NO_WORDS = frozenset(["false", "f", "no", "n", "lose", "lost", "loss", "unrewarded", "noreward", "incorrect"])


class ColumnReader:
    """Converts columns to numbers.

    Args:
        table: The file.
        na_values: Further marks of a missed trial by column; those under "" apply to every column of
            `CHOICE_COLUMNS`.
        notes: Receives a sentence about each decision.
        bad_rows: Receives the reason why a row cannot be read, by its line in the file.
    """

    def __init__(
        self,
        table: CsvTable,
        na_values: Mapping[str, set[str]],
        notes: list[str],
        bad_rows: dict[int, str],
    ) -> None:
        self.table, self.notes, self.bad_rows = table, notes, bad_rows
        self.columns: dict[str, list[str]] = {}  # fields by column, empty where missing
        self._decimal_marks = {name: decimal_mark(fields, table.delimiter) for name, fields in table.columns.items()}
        for name, fields in table.columns.items():
            missing = na_values.get(name, set()) | (na_values.get("", set()) if name in CHOICE_COLUMNS else set())
            missing = {self._normalize(name, value) for value in missing} | NA_VALUES
            self.columns[name] = [
                "" if field.lower() in missing or self._normalize(name, field.lower()) in missing else field
                for field in fields
            ]
        parts = [self.columns[name] for name in ("reward", "gain", "loss") if name in self.columns]
        self.rewards = ["" if "" in part else " and ".join(part) for part in zip(*parts, strict=True)]  # as texts

    def _normalize(self, name: str, label: str) -> str:
        """A label of a column, in which whole numbers have no decimal places."""
        return normalize_label(label, self._decimal_marks[name])

    def reject(self, name: str, is_bad: np.ndarray, problem: str) -> None:
        """Records that a column's field has a problem in some rows.

        Args:
            name: The column.
            is_bad: [R] bool.
            problem: Ends the sentence that begins with the field.
        """
        for i in np.nonzero(is_bad)[0].tolist():
            self.bad_rows[self.table.row_numbers[i]] = f"{name} '{self.columns[name][i]}' {problem}"

    def normalized_labels(self, name: str) -> list[str]:
        """Returns the labels of a column [R], empty where missing; labels that differ in case only become one."""
        labels = [self._normalize(name, field) for field in self.columns[name]]
        first_of_case: dict[str, str] = {}
        merged = [first_of_case.setdefault(label.casefold(), label) for label in labels]
        if merged != labels:
            self.notes.append(f"labels of '{name}' that differ in upper and lower case only are one label")
        return merged

    def read_labels(
        self, name: str, allowed_sizes: tuple[int, ...] | None, stated_labels: Sequence[str] = ()
    ) -> tuple[np.ndarray, list[str]]:
        """Codes a column of labels as whole numbers.

        Args:
            name: The column.
            allowed_sizes: Numbers of different labels that are possible; None for two or more.
            stated_labels: The labels, where the user states them.

        Returns:
            Codes from 0, with -1 where missed, [R], and the labels.
        """
        labels = self.normalized_labels(name)
        uses = count_labels(labels, self.rewards)
        if stated_labels:
            stated = [self._normalize(name, label) for label in stated_labels]
            if allowed_sizes is not None and len(stated) not in allowed_sizes:
                sizes = " or ".join(map(str, allowed_sizes))
                raise BadInput(f"the column '{name}' must have {sizes} different values, not {len(stated)}")
            valid_labels, missing_codes = separate_stated_labels(uses, stated)
        elif allowed_sizes is None:
            valid_labels, missing_codes = separate_arms(uses, self.notes)
        else:
            valid_labels, missing_codes = separate_frequent_labels(name, uses, allowed_sizes, self.notes)
        self.note_missing(name, labels)
        codes = {label: code for code, label in enumerate(sort_labels(valid_labels))}
        problem = f"is none of {', '.join(codes)}"
        return self.encode(name, labels, codes | dict.fromkeys(missing_codes, -1), problem), list(codes)

    def note_missing(self, name: str, labels: Sequence[str]) -> None:
        """Notes how many labels [R] of a column are missing."""
        num_missing = labels.count("")
        if num_missing:
            consequence = "" if name == "choice2" else ": missed trials"  # stay probabilities need no second choice
            share = f"{num_missing / len(labels):.1%}"
            self.notes.append(f"'{name}' is blank or NA in {pluralize(num_missing, 'row')} ({share}){consequence}")

    def encode(self, name: str, labels: Sequence[str], codes: Mapping[str, int], problem: str) -> np.ndarray:
        """Returns the code of each label [R], -1 where it is missing; a label without a code is rejected."""
        self.reject(name, np.array([label != "" and label not in codes for label in labels]), problem)
        return np.array([codes.get(label, -1) for label in labels])

    def read_numbers(self, name: str) -> np.ndarray:
        """Reads a column as numbers [R], NaN where a field is missing or not a number."""
        fields, mark = self.columns[name], self._decimal_marks[name]
        numbers = np.array([parse_number(field.replace(mark, ".")) for field in fields], float)  # None is NaN
        self.reject(name, ~np.isfinite(numbers) & (np.array(fields) != ""), "is not a number")
        return np.where(np.isfinite(numbers), numbers, np.nan)

    def read_flags(self, name: str) -> np.ndarray:
        """Reads a column of 0 and 1, or of words such as true and false, as Booleans [R]."""
        flags = self._read_words_or_numbers(name)
        self.reject(name, ~np.isin(flags, (0, 1)) & ~np.isnan(flags), "is neither 0 nor 1")
        return flags == 1

    def _read_words_or_numbers(self, name: str) -> np.ndarray:
        """A column as numbers [R], where words such as true and false are 1 and 0 if all fields are such words."""
        words = [field.lower() for field in self.columns[name]]
        if not set(words) - {""} <= YES_WORDS | NO_WORDS:
            return self.read_numbers(name)
        numbers = {"": np.nan} | dict.fromkeys(YES_WORDS, 1.0) | dict.fromkeys(NO_WORDS, 0.0)
        words_by_value = [", ".join(sorted(set(words) & group)) or "none" for group in (YES_WORDS, NO_WORDS)]
        self.notes.append(f"of the words in '{name}' {words_by_value[0]} is read as 1, {words_by_value[1]} as 0")
        return np.array([numbers[word] for word in words])

    def read_rewards(self, is_missing: np.ndarray) -> np.ndarray:
        """Reads rewards as numbers [R], NaN where missed.

        Args:
            is_missing: [R] bool, trials that other columns show as missed. A reward such as -1 or 99 marks a missed
                trial only where every trial with that reward is missed anyway.

        Raises:
            BadInput: The reward is in several columns that do not fit together.
        """
        reward = self._read_payout() if "loss" in self.columns else self._read_words_or_numbers("reward")
        for code in ("-1", *DISTANT_CODES):
            has_code, is_larger = reward == float(code), np.abs(reward) > abs(int(code)) / 9
            times = f"{int(has_code.sum()):,} times"
            if has_code.any() and is_missing[has_code].all():
                reward[has_code] = np.nan
                self.notes.append(f"'reward' {code} marks a missed trial ({times})")
            elif code in DISTANT_CODES and has_code.any() and not is_larger[~has_code].any():
                self.notes.append(
                    f"WARNING: 'reward' {code} ({times}) is far from all others and is read as a reward; "
                    f"--na-values reward={code} reads it as a missed trial"
                )
        return reward

    def _read_payout(self) -> np.ndarray:
        """The payout [R] from the columns of gains and losses, and, if the file has one, of rewards."""
        names = self.table.names
        advice = (
            "state with --columns reward=NAME which column is the whole payout, or with --columns gain=NAME,loss=NAME "
            "which columns are its parts"
        )
        if "gain" not in self.columns:
            raise BadInput(f"the file has the columns '{names['reward']}' and '{names['loss']}': {advice}")
        gain, loss = self.read_numbers("gain"), self.read_numbers("loss")
        if np.nanmin(loss, initial=0) < 0 < np.nanmax(loss, initial=0):
            raise BadInput(f"the column '{names['loss']}' has values below and above 0: {advice}")
        is_negative = np.nanmin(loss, initial=0) < 0
        payout = gain - np.abs(loss)
        formula = f"'{names['gain']}' {'+' if is_negative else '-'} '{names['loss']}'"
        if "reward" in self.columns:
            reward = self.read_numbers("reward")
            if not np.allclose(reward, payout, equal_nan=True):
                raise BadInput(f"the column '{names['reward']}' is not {formula}: {advice}")
            payout = reward
        self.notes.append(f"the reward is {formula}")
        return payout
