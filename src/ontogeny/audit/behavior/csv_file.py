"""CSV files of choices: decoding, delimiter, and the recognition of columns by their names."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

COLUMN_NAMES = {  # common names of each column, without regard to case and punctuation
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
REQUIRED_COLUMNS = ("choice", "reward")
DELIMITERS = {"\t": "tab", ";": "semicolon", ",": "comma"}
BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class CsvTable(NamedTuple):
    """The fields of a file, and how to read them."""

    columns: dict[str, list[str]]  # the fields of each column that the file has, by the names of `COLUMN_NAMES`
    row_numbers: list[int]  # the number of the last line that each row occupies in the file
    decimal_mark: str


def decode_file(path: Path, notes: list[str]) -> str:
    """Reads a text file in UTF-8, or in the encoding that its byte-order mark states.

    Args:
        path: The file.
        notes: Receives a sentence if there is a byte-order mark.

    Raises:
        BadInput: The file cannot be read or is not text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    if encoding != "utf-8":
        notes.append(f"the byte-order mark ({encoding.removesuffix('-sig')}) is ignored")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInput(f"'{path}' is not text in {encoding}: byte {error.start} cannot be read") from None


def parse_csv(
    path: Path, text: str, columns: Mapping[str, str], notes: list[str], bad_rows: dict[int, str]
) -> CsvTable:
    """Splits the text of a file into rows and recognizes its columns.

    Args:
        path: The file, for messages.
        text: Its content.
        columns: Names of columns in the file by the names of `COLUMN_NAMES`; others are recognized by common names.
        notes: Receives a sentence about delimiter and columns.
        bad_rows: Receives the rows with a wrong number of fields, by their line in the file.

    Raises:
        BadInput: The text is not CSV, has no rows, or lacks a required column.
    """
    first_line = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    if delimiter not in first_line:
        raise BadInput(f"'{path}' has one column only: separate columns by tab, comma or semicolon")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader)]
        indices = _find_columns(path, header, columns)
        rows, row_numbers = [], []
        for fields in reader:
            while len(fields) > len(header) and not fields[-1].strip():
                fields.pop()
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                bad_rows[reader.line_num] = f"{pluralize(len(fields), 'field')}, not {len(header)}"
            else:
                rows.append(fields)
                row_numbers.append(reader.line_num)
    except csv.Error as error:
        raise BadInput(f"'{path}' cannot be read after line {reader.line_num}: {error}") from None
    if not rows:
        raise BadInput(f"'{path}' has no rows of {len(header)} columns")
    for name in REQUIRED_COLUMNS:
        if name not in indices:
            raise BadInput(
                f"'{path}' has no column '{name}'; its columns are {', '.join(header)}: "
                f"name the column with --columns {name}=NAME"
            )
    renamed = ", ".join(f"{name} = {header[i]}" for name, i in indices.items() if name != header[i])
    notes.append(f"columns are separated by {DELIMITERS[delimiter]}" + (f"; read as {renamed}" if renamed else ""))
    fields_by_column = {name: [fields[i].strip() for fields in rows] for name, i in indices.items()}
    return CsvTable(fields_by_column, row_numbers, "," if delimiter == ";" else ".")


def _find_columns(path: Path, header: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    """The index of each recognized column."""
    indices: dict[str, int] = {}
    for name, name_in_file in columns.items():
        if name not in COLUMN_NAMES:
            raise plugins.unknown_name_error("column", name, list(COLUMN_NAMES))
        if name_in_file not in header:
            raise plugins.unknown_name_error(f"column in '{path}' named", name_in_file, list(header))
        indices[name] = header.index(name_in_file)
    free_indices: dict[str, int] = {}  # by name without case and punctuation; of equal names the first one counts
    for i, name in enumerate(header):
        if i not in indices.values():
            free_indices.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), i)
    for name, common_names in COLUMN_NAMES.items():
        matches = [free_indices[common_name] for common_name in common_names.split() if common_name in free_indices]
        if matches:
            indices.setdefault(name, matches[0])
    return indices
