"""Reads a file of choices. Real files have traps: each is handled, and what was decided is said.

One row per trial, one column each (`docs/behaviour.md` has the table); names of columns are ours, common ones, or those
that `columns` gives. A trial is there only if all of it is known; rows that cannot be read are an error that names
their lines, or are left out and named where that was asked for.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ontogeny import plugins
from ontogeny.audit.behavior.base import TASKS, Rows, count
from ontogeny.errors import BadInput

KNOWN = {
    "subject": "subject subjid subjectid subj sub id participant participantid ppt animal animalid mouse rat agent",
    "session": "session sessionid run",
    "trial": "trial trialnumber trialnum trialno trialindex t",
    "choice": "choice choice1 firstchoice level1choice stage1choice step1choice stepone action action1 arm c1",
    "state": "state state2 place secondstate stage2state level2state step2state",
    "transition": "transition transitiontype trans common iscommon",
    "choice2": "choice2 secondchoice level2choice stage2choice step2choice action2 c2",
    "reward": "reward outcome payoff payout points win rewarded gain r",
    "correct": "correct better",
}
MISSED = {"", "na", "nan", "n/a", "none", "null", "missed", "miss", "missing", ".", "-", "<na>"}
COMMON = {"common", "c", "frequent", "likely", "expected", "usual", "true", "t"}
RARE = {"rare", "r", "uncommon", "infrequent", "unlikely", "unexpected", "unusual", "false", "f"}
MAY_BE_MARKED = ("choice", "state", "choice2", "transition")  # by `missed`
SHOWN = 5  # lines that are named


class Line(NamedTuple):
    number: int  # in the file
    fields: dict[str, str]


def read(
    path: Path,
    *,
    text: str | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    missed: Sequence[str] = (),
    leave_out_bad: bool = False,
) -> Rows:
    """The rows of the file. `text` in place of what is in it; `columns`: ours -> the file's; `missed`: further marks of
    a missed trial."""
    if task is not None and task not in TASKS:
        raise plugins.unknown_name_error("task", task, list(TASKS))
    said: list[str] = []
    bad: dict[int, str] = {}
    decimal, names, lines = _lines(path, _text(path, said) if text is None else text, columns or {}, said, bad)
    marks = {mark.strip().lower() for mark in missed}
    if task is None:
        task = "two_step" if names & {"state", "transition", "choice2"} else "bandit"
        said.append(f"read as a {task.replace('_', '-')} task, by its columns")
    if task == "two_step" and not names & {"state", "transition", "choice2"}:
        raise BadInput("a two-step task needs a column 'state', 'transition' or 'choice2'")
    table = {
        name: np.array([_value(line, name, marks if name in MAY_BE_MARKED else set()) for line in lines], object)
        for name in names
    }
    numbers = np.array([line.number for line in lines])
    reader = _Reader(table, numbers, bad, said, decimal)
    choice, arms = reader.labels("choice", (2,) if task == "two_step" else None)
    missing = choice < 0
    place = second = np.zeros(len(lines), int)
    common = None
    has_second = False
    if task == "two_step":
        place, second, has_second, common, unknown = reader.second_stage(choice)
        missing = missing | unknown
    reward = reader.rewards(missing)
    missing = missing | np.isnan(reward)
    trial, session, subject = reader.order()
    correct = reader.flags("correct") if "correct" in names else None
    keep = np.array([number not in bad for number in numbers])
    if bad:
        told = "; ".join(f"line {number}: {bad[number]}" for number in sorted(bad)[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        if not leave_out_bad:
            raise BadInput(f"'{path}' has {count(len(bad), 'bad row')}: {told}{more} (--skip-bad leaves them out)")
        said.append(f"left out {count(len(bad), 'bad row')}: {told}{more}")
    return Rows(
        task,
        arms,
        has_second,
        subject,
        session,
        trial,
        choice,
        place,
        second,
        common,
        reward,
        missing,
        correct,
        keep,
        said,
    )


def _lines(
    path: Path, text: str, columns: Mapping[str, str], said: list[str], bad: dict[int, str]
) -> tuple[str, set[str], list[Line]]:
    """(decimal mark, our names that the file has, its lines by our names)."""
    header = text.partition("\n")[0]
    separator = max("\t;,", key=header.count)
    if separator not in header:
        raise BadInput(f"'{path}' has one column only: separate columns by tab, comma or semicolon")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        heads = [head.strip() for head in next(rows)]
        found = _columns(path, heads, columns)
        lines = []
        for row in rows:
            if not any(field.strip() for field in row):
                continue
            while len(row) > len(heads) and not row[-1].strip():
                row.pop()
            if len(row) != len(heads):
                bad[rows.line_num] = f"{count(len(row), 'field')}, not {len(heads)}"
            else:
                lines.append(Line(rows.line_num, {name: row[at].strip() for name, at in found.items()}))
    except csv.Error as error:
        raise BadInput(f"'{path}' cannot be read after line {rows.line_num}: {error}") from None
    if not lines:
        raise BadInput(f"'{path}' has no rows of {len(heads)} columns")
    for name in ("choice", "reward"):
        if name not in found:
            raise BadInput(
                f"'{path}' has no column '{name}'; its columns are {', '.join(heads)}: name it by "
                f"--columns {name}=THEIRS"
            )
    names = {"\t": "tab", ";": "semicolon", ",": "comma"}
    taken = ", ".join(f"{name} = {heads[at]}" for name, at in found.items() if name != heads[at])
    said.append(f"columns separated by {names[separator]}" + (f"; read as {taken}" if taken else ""))
    return "," if separator == ";" else ".", set(found), lines


def _text(path: Path, said: list[str]) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    for mark, coding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            said.append(f"a byte-order mark was taken off ({coding.removesuffix('-sig')})")
            break
    else:
        coding = "utf-8"
    try:
        return raw.decode(coding)
    except UnicodeDecodeError as error:
        raise BadInput(f"'{path}' is not text in {coding}: byte {error.start} cannot be read") from None


def _columns(path: Path, heads: Sequence[str], given: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, theirs in given.items():
        if name not in KNOWN:
            raise plugins.unknown_name_error("column", name, list(KNOWN))
        if theirs not in heads:
            raise plugins.unknown_name_error(f"column in '{path}' named", theirs, list(heads))
        found[name] = heads.index(theirs)
    for name, alike in KNOWN.items():
        if name in found:
            continue
        plain = [re.sub(r"[^a-z0-9]", "", head.lower()) for head in heads]
        fitting = [
            i for word in alike.split() for i, head in enumerate(plain) if head == word and i not in found.values()
        ]
        if fitting:
            found[name] = fitting[0]
    return found


class _Reader:
    """Columns as numbers; what cannot be read goes to `bad` by line, what was decided to `said`."""

    def __init__(self, table, numbers, bad, said, decimal):
        self.table, self.numbers, self.bad, self.said, self.decimal = table, numbers, bad, said, decimal
        self.order_of: list[str] = []

    def labels(self, name: str, wanted: tuple[int, ...] | None) -> tuple[np.ndarray, int]:
        """A column of labels -> whole numbers from 0, -1 where missed, and how many labels there are.

        `wanted`: how many there may be. 0 and -1 are marks of missed trials where labels are too many, the rarer first.
        """
        values = self.table[name]
        counts = Counter(_plain(value) for value in values if value is not None)
        dropped = []
        if wanted is not None:
            while len(counts) not in wanted and len(counts) > min(wanted) and counts.keys() & {"0", "-1"}:
                dropped.append(min((code for code in ("0", "-1") if code in counts), key=lambda code: counts[code]))
                del counts[dropped[-1]]
            most = max((n for n in wanted if n <= len(counts)), default=0)
            if not most:
                told = ", ".join(sorted(counts)) or "nothing"
                raise BadInput(f"the column '{name}' holds {told}: {' or '.join(map(str, wanted))} values are needed")
            kept = [label for label, _ in counts.most_common(most)]
        else:
            if "-1" in counts and len(counts) > 2:
                dropped.append("-1")
                del counts["-1"]
            kept = list(counts)
            if len(kept) < 2:
                raise BadInput(
                    f"the column '{name}' holds {', '.join(kept) or 'nothing'}: a choice has two values or more"
                )
            if "0" in kept and len(kept) > 2:
                self.said.append(f"'{name}' 0 is taken for a choice; say --missed 0 if it marks missed trials")
        for code in dropped:
            number = sum(_plain(value) == code for value in values if value is not None)
            self.said.append(f"'{name}' {code} marks a missed trial ({number} times)")
        blank = sum(value is None for value in values)
        if blank:
            self.said.append(f"'{name}' is blank or NA in {count(blank, 'row')}: missed trials")
        order = sorted(kept, key=_by_number)
        codes = np.full(len(values), -1)
        for i, value in enumerate(values):
            if value is None or _plain(value) in dropped:
                continue
            if _plain(value) in kept:
                codes[i] = order.index(_plain(value))
            else:
                self.bad[self.numbers[i]] = f"{name} '{value}' is none of {', '.join(order)}"
        self.order_of = order
        return codes, len(order)

    def second_stage(self, choice: np.ndarray):
        """(place, second choice, whether there is one, common or None, which trials lack any of it)."""
        rows = len(choice)
        place, second = np.full(rows, -1), np.zeros(rows, int)
        has_second, many = "choice2" in self.table, 0
        if "state" in self.table:
            place, _ = self.labels("state", (2,))
        if has_second:
            label, many = self.labels("choice2", (2, 4))
            if many == 4 and "state" not in self.table:
                place = np.where(label < 0, -1, label // 2)
                names = self.order_of
                self.said.append(
                    f"second states by second choices: {names[0]} and {names[1]} in one, {names[2]} and {names[3]} in "
                    "the other"
                )
            elif many == 4:
                home = [Counter(place[(label == k) & (place >= 0)]).most_common(1)[0][0] for k in range(4)]
                if sorted(home) != [0, 0, 1, 1]:
                    raise BadInput("the four second choices do not belong to two states by two: look at 'state'")
                for i in np.nonzero((label >= 0) & (place >= 0))[0]:
                    if place[i] != home[label[i]]:
                        self.bad[self.numbers[i]] = f"choice2 '{self.table['choice2'][i]}' belongs to the other state"
                rank = [sum(home[j] == home[k] for j in range(k)) for k in range(4)]
                label = np.where(label < 0, -1, np.array(rank)[label])
            second = np.where(label < 0, 0, label % 2)
            unknown = label < 0
        else:
            unknown = np.zeros(rows, bool)
        common = None
        if "transition" in self.table:
            common = self.transitions()
            unknown = unknown | (common < 0)
            if "state" not in self.table and many != 4:
                place = np.where((choice < 0) | (common < 0), -1, np.where(common == 1, choice, 1 - choice))
                self.said.append(
                    "no column of second states: places are named after the choice that commonly leads there"
                )
        return place, second, has_second, common, unknown | (place < 0)

    def transitions(self) -> np.ndarray:
        """1 common, 0 rare, -1 unknown: by word, as +1 and -1, or of two values the more frequent common."""
        values = self.table["transition"]
        plain = [None if value is None else _plain(value.lower()) for value in values]
        counts = Counter(value for value in plain if value is not None)
        if {"-1", "1"} <= counts.keys():
            meaning = {"1": 1, "-1": 0}
            self.said.append("'transition' 1 is common, -1 is rare")
            if counts["0"]:
                meaning["0"] = -1
                self.said.append(f"'transition' 0 marks a missed trial ({counts['0']} times)")
        elif counts.keys() & (COMMON | RARE):
            meaning = dict.fromkeys(COMMON, 1) | dict.fromkeys(RARE, 0)
            for code in ("0", "-1"):
                if counts[code]:
                    meaning[code] = -1
                    self.said.append(f"'transition' {code} marks a missed trial ({counts[code]} times)")
        else:
            two = counts.most_common(2)
            if len(two) < 2:
                raise BadInput("the column 'transition' never changes: common and rare cannot be told")
            meaning = {two[0][0]: 1, two[1][0]: 0}
            if counts["-1"] and "-1" not in meaning:
                meaning["-1"] = -1
                self.said.append(f"'transition' -1 marks a missed trial ({counts['-1']} times)")
            self.said.append(f"'transition' {two[0][0]} is the more frequent and read as common, {two[1][0]} as rare")
        found = np.full(len(values), -1)
        for i, value in enumerate(plain):
            if value is not None and value not in meaning:
                self.bad[self.numbers[i]] = f"transition '{values[i]}' is neither common nor rare"
            elif value is not None:
                found[i] = meaning[value]
        wrong = (found == 0).sum() > (found == 1).sum()
        if wrong:
            self.said.append(
                "WARNING: rare transitions are more frequent than common ones; are they the wrong way round?"
            )
        return found

    def rewards(self, missed: np.ndarray) -> np.ndarray:
        """As they stand, NaN where missed; -1 is a mark only where every trial that has it was missed anyhow."""
        found = np.array([self.number("reward", i) for i in range(len(missed))])
        minus = found == -1
        if minus.any() and missed[minus].all():
            found[minus] = np.nan
            self.said.append(f"'reward' -1 marks a missed trial ({int(minus.sum())} times)")
        return found

    def number(self, name: str, i: int) -> float:
        value = self.table[name][i]
        if value is None:
            return float("nan")
        try:
            found = float(value.replace(",", ".") if self.decimal == "," else value)
        except ValueError:
            found = float("inf")
        if not np.isfinite(found):
            self.bad[self.numbers[i]] = f"{name} '{value}' is no number"
            return float("nan")
        return found

    def flags(self, name: str) -> np.ndarray:
        found = np.array([self.number(name, i) for i in range(len(self.numbers))])
        for i in np.nonzero(~np.isin(found, (0, 1)) & ~np.isnan(found))[0]:
            self.bad[self.numbers[i]] = f"{name} '{self.table[name][i]}' is neither 0 nor 1"
        return found == 1

    def order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(trial numbers, sessions counted from 0, subjects), a row each."""
        rows = len(self.numbers)
        subject = np.array([str(v) for v in self.table["subject"]]) if "subject" in self.table else np.full(rows, "all")
        if "subject" not in self.table:
            self.said.append("no column of subjects: all rows are one subject's")
        else:
            for i in np.nonzero(np.array([value is None for value in self.table["subject"]]))[0]:
                self.bad[self.numbers[i]] = "no subject"
        given = self.table.get("session", np.full(rows, ""))
        session = np.unique([str(value) for value in given], return_inverse=True)[1]
        if "trial" not in self.table:
            self.said.append("no column of trial numbers: rows are taken as consecutive, deleted ones cannot be seen")
            trial = np.zeros(rows, int)
            for who in np.unique(subject):
                trial[subject == who] = np.arange((subject == who).sum())
            return trial, session, subject
        trial = np.zeros(rows, int)
        for i in range(rows):
            number = self.number("trial", i)
            if np.isnan(number) or number != int(number):
                self.bad.setdefault(self.numbers[i], f"trial '{self.table['trial'][i]}' is no whole number")
            else:
                trial[i] = int(number)
        return trial, session, subject


def _value(line: Line, name: str, marks: set[str]) -> str | None:
    value = line.fields[name].strip()
    return None if value.lower() in MISSED | marks else value


def _plain(value: str) -> str:
    """A label as it counts: numbers without their decimal point."""
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(number)) if number == int(number) else value


def _by_number(label: str) -> tuple[bool, float, str]:
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
