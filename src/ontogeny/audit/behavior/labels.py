"""Labels of choices and states: which values of a column are choices, and which mark a missed trial.

A number such as -1 or 99 may be either. Its rewards decide first: a missed trial has no reward or always the same one,
so a value with two different rewards is a choice. Otherwise a rare value marks a missed trial. Every decision is noted
together with the option that reverses it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ontogeny.errors import BadInput

NA_VALUES = frozenset({"", "na", "nan", "n/a", "n.a.", "#n/a", "#na", "<na>", "none", "null", ".", "-", "?"}) | {
    *("missed", "miss", "missing", "omitted", "undefined", "timeout", "noresponse", "no response", "too slow"),
}
MISSING_CODES = ("0", "-1")  # numbers that often mark a missed trial
DISTANT_CODES = ("-9", "-99", "-999", "-9999", "9", "99", "999", "9999")  # the same, unless a neighboring number occurs
MAX_MISSED_SHARE = 0.1  # a more frequent value is a choice


class LabelUse(NamedTuple):
    """How a label is used in a column."""

    num_rows: int  # with the label
    rewards: frozenset[str]  # different rewards in these rows, missing ones left out


def count_labels(labels: Sequence[str], rewards: Sequence[str]) -> dict[str, LabelUse]:
    """Counts the rows and collects the rewards of each label that is not empty.

    Args:
        labels: [R], one per row.
        rewards: [R], as texts; empty where missing.
    """
    rewards_by_label: dict[str, set[str]] = {label: set() for label in labels}
    for label, reward in zip(labels, rewards, strict=True):
        rewards_by_label[label].add(reward)
    counts = Counter(filter(None, labels))
    return {label: LabelUse(count, frozenset(rewards_by_label[label] - {""})) for label, count in counts.items()}


def separate_arms(uses: Mapping[str, LabelUse], notes: list[str]) -> tuple[list[str], list[str]]:
    """Separates the arms of a bandit from the values of the column `choice` that mark missed trials.

    Args:
        uses: The labels of the column.
        notes: Receives a sentence about each value that could be either.

    Returns:
        Labels of arms, and values that mark missed trials.

    Raises:
        BadInput: There are fewer than two arms.
    """
    num_rows = sum(use.num_rows for use in uses.values())
    missing_codes: list[str] = []
    if len(uses) > 2:
        for code in _possible_codes(uses):
            use = uses[code]
            rewards = ", ".join(sorted(use.rewards))
            reward = f"its reward is always {rewards}" if use.rewards else "it has no reward"
            is_rare, is_varied = use.num_rows <= MAX_MISSED_SHARE * num_rows, len(use.rewards) > 1
            times = f"{use.num_rows:,} of {num_rows:,} times, {use.num_rows / num_rows:.1%}"
            if not use.rewards or (is_rare and not is_varied and code != "0"):
                missing_codes.append(code)
                notes.append(
                    f"'choice' {code} ({times}) marks a missed trial, as {reward}; "
                    f"--arms {','.join(sort_labels(uses))} reads it as an arm"
                )
            else:
                reason = "as its rewards differ" if is_varied else f"although {reward}"
                notes.append(
                    ("" if is_varied else "WARNING: ")
                    + f"'choice' {code} ({times}) is an arm, {reason}; --na-values {code} reads it as a missed trial"
                )
    arms = [label for label in uses if label not in missing_codes]
    if len(arms) < 2:
        contents = ", ".join(arms) or "nothing"
        raise BadInput(f"the column 'choice' contains {contents}: a choice has two values or more")
    return arms, missing_codes


def separate_frequent_labels(
    name: str, uses: Mapping[str, LabelUse], allowed_sizes: Sequence[int], notes: list[str]
) -> tuple[list[str], list[str]]:
    """Separates the labels of a column that has a fixed number of them from values that mark missed trials.

    Where there are too many labels, numbers such as 0 and -1 mark missed trials, the rarest first, unless they have
    different rewards and are as frequent as the labels. Further labels are errors.

    Args:
        name: The column.
        uses: Its labels.
        allowed_sizes: How many labels it may have.
        notes: Receives a sentence about each value that marks missed trials.

    Raises:
        BadInput: There are too few labels.
    """
    rest, missing_codes = dict(uses), []
    while True:
        size = max((size for size in allowed_sizes if size <= len(rest)), default=0)
        frequent = sorted(rest, key=lambda label: -rest[label].num_rows)[:size]
        codes = [c for c in _possible_codes(rest) if len(rest[c].rewards) < 2 or c not in frequent]
        if len(rest) in allowed_sizes or not size or not codes:
            break
        code = min(codes, key=lambda code: (len(rest[code].rewards) > 1, rest[code].num_rows))
        missing_codes.append(code)
        notes.append(f"'{name}' {code} marks a missed trial ({rest.pop(code).num_rows:,} times)")
    if not size:
        contents, sizes = ", ".join(sort_labels(rest)) or "nothing", " or ".join(map(str, allowed_sizes))
        raise BadInput(f"the column '{name}' contains {contents}: it must have {sizes} different values")
    return frequent, missing_codes


def separate_stated_labels(uses: Mapping[str, LabelUse], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the labels that the user states, and of the others the numbers that may mark missed trials."""
    return list(labels), [code for code in (*MISSING_CODES, *DISTANT_CODES) if code in uses and code not in labels]


def _possible_codes(labels: Mapping[str, LabelUse]) -> list[str]:
    """The labels that may mark missed trials."""
    distant = [c for c in DISTANT_CODES if not {str(int(c) - 1), str(int(c) + 1)} & labels.keys()]
    return [code for code in (*MISSING_CODES, *distant) if code in labels]


def parse_number(text: str) -> float | None:
    """Returns the number that a text denotes, if any."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def normalize_label(label: str, decimal_mark: str = ".") -> str:
    """Returns a label, in which whole numbers have no decimal places."""
    number = parse_number(label.replace(decimal_mark, ".", 1))
    return str(int(number)) if number is not None and number.is_integer() else label


def sort_labels(labels: Sequence[str] | Mapping[str, LabelUse]) -> list[str]:
    """Sorts labels: numbers by value, then texts."""

    def sort_key(label: str) -> tuple[bool, float, str]:
        number = parse_number(label)
        return number is None, number or 0.0, label

    return sorted(labels, key=sort_key)


def decimal_mark(fields: Sequence[str], delimiter: str) -> str:
    """Returns the decimal mark of a column: a comma in a file with semicolons, or where fields such as `0,5` show it.

    Groups of three digits only, as in `1,000`, may be thousands and are no evidence.
    """
    if delimiter == ";":
        return ","
    with_comma = [field for field in fields if re.fullmatch(r"[-+]?\d+,\d+", field)]
    is_decimal = any(not re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", field) for field in with_comma)
    return "," if is_decimal and not any("." in field for field in fields) else "."
