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

GAIN_NAMES = "gain gains win wins won winnings"
COLUMN_NAMES = {  # common names of each column, without regard to case and punctuation
    "subject": "subject subjid subjectid subj sub participant participantid ppt pid animal animalid mouse rat agent id",
    "session": "session sessionid run",
    "trial": "trial trialnumber trialnum trialno trialindex t",
    "choice": "choice choice1 firstchoice level1choice stage1choice step1choice stepone action action1 arm c1 deck",
    "state": "state state2 place secondstate stage2state level2state step2state",
    "transition": "transition transitiontype trans common iscommon",
    "choice2": "choice2 secondchoice level2choice stage2choice step2choice action2 c2",
    "reward": f"reward outcome payoff payout points rewarded r {GAIN_NAMES}",
    "gain": GAIN_NAMES,
    "loss": "loss losses lose lost penalty punishment",
    "correct": "correct better",
}
REQUIRED_COLUMNS = ("choice", "reward")
DECISIVE_COLUMNS = (*REQUIRED_COLUMNS, "gain", "loss")  # two different candidates for one of them are an error
UNCERTAIN_NAMES = ("t", "id")  # names that often mean something else; the content decides
DELIMITERS = {"\t": "tab", ";": "semicolon", ",": "comma", "|": "vertical bar"}
SPACE = " "  # a delimiter only where the header has no other, as names may contain spaces
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
LEGACY_ENCODING = "cp1252"  # of spreadsheets on Windows


class CsvTable(NamedTuple):
    """The fields of a file, and how to read them."""

    columns: dict[str, list[str]]  # the fields of each column that the file has, by the names of `COLUMN_NAMES`
    row_numbers: list[int]  # the number of the last line that each row occupies in the file
    delimiter: str
    names: dict[str, str]  # the name of each column in the file
    uncertain: frozenset[str]  # columns that are recognized by one of `UNCERTAIN_NAMES` only


def decode_file(path: Path, notes: list[str]) -> str:
    """Reads a text file in UTF-8, or in the encoding that its byte-order mark states.

    Args:
        path: The file.
        notes: Receives a sentence if there is a byte-order mark, or if the encoding is not UTF-8.

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
        problem = f"'{path}' is not text in {encoding}: byte {error.start} cannot be read"
    try:
        text = content.decode(LEGACY_ENCODING)
    except UnicodeDecodeError:
        text = "\0"
    if encoding != "utf-8" or "\0" in text:
        raise BadInput(problem)
    notes.append(f"the file is not text in UTF-8 and is read in the encoding {LEGACY_ENCODING}")
    return text


def parse_csv(
    path: Path, text: str, columns: Mapping[str, str], notes: list[str], bad_rows: dict[int, str]
) -> CsvTable:
    """Splits the text of a file into rows and recognizes its columns.

    Args:
        path: The file, for messages.
        text: Its content.
        columns: Names of columns in the file by the names of `COLUMN_NAMES`; others are recognized by common names.
        notes: Receives sentences about delimiter and columns.
        bad_rows: Receives the rows with a wrong number of fields, by their line in the file.

    Raises:
        BadInput: The text is not CSV, has no rows, lacks a required column, or has two candidates for one.
    """
    delimiter, header, numbered_rows = _split_rows(path, text)
    rows, row_numbers = [], []
    for number, fields in numbered_rows:
        if len(fields) != len(header):
            bad_rows[number] = f"{pluralize(len(fields), 'field')}, not {len(header)}"
        else:
            rows.append([field.strip() for field in fields])
            row_numbers.append(number)
    if not rows:
        raise BadInput(f"'{path}' has no rows of {len(header)} columns")
    indices = _find_columns(path, header, rows, columns, notes)
    for name in REQUIRED_COLUMNS:
        if name not in indices and not (name == "reward" and {"gain", "loss"} <= indices.keys()):
            raise BadInput(
                f"'{path}' has no column '{name}'; its columns are {', '.join(header)}: "
                f"name the column with --columns {name}=NAME"
            )
    renamed = ", ".join(f"{name} = {header[i]}" for name, i in indices.items() if name != header[i])
    delimiter_name = DELIMITERS.get(delimiter, "space")
    notes.append(f"columns are separated by {delimiter_name}" + (f"; read as {renamed}" if renamed else ""))
    unused = [name for i, name in enumerate(header) if name and i not in indices.values()]
    if unused:
        notes.append(f"columns that are not used: {', '.join(unused)}")
    fields_by_column = {name: [fields[i] for fields in rows] for name, i in indices.items()}
    names = {name: header[i] for name, i in indices.items()}
    uncertain = frozenset(n for n in names if n not in columns and _simplify(names[n]) in UNCERTAIN_NAMES)
    return CsvTable(fields_by_column, row_numbers, delimiter, names, uncertain)


def _split_rows(path: Path, text: str) -> tuple[str, list[str], list[tuple[int, list[str]]]]:
    """The delimiter, the header, and every further row that is not blank with the number of its last line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first_line, _, rest = text.partition("\n")
    statement = re.fullmatch(r'"?sep=(.)"?\s*?\1*', first_line, re.IGNORECASE)  # Excel states the delimiter so
    if statement:
        text, first_line = rest, rest.partition("\n")[0]
    delimiter = statement[1] if statement else _detect_delimiter(path, first_line)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((reader.line_num + bool(statement), fields))
    except csv.Error as error:
        raise BadInput(f"'{path}' cannot be read after line {reader.line_num}: {error}") from None
    if rows and all(len(fields) == len(header) + 1 and fields[0].strip() and fields[-1].strip() for _, fields in rows):
        header = ["", *header]  # R's write.table gives no name to the column of row names
    for _, fields in rows:
        while len(fields) > len(header) and not fields[-1].strip():
            fields.pop()
    return delimiter, header, rows


def _detect_delimiter(path: Path, header: str) -> str:
    """The delimiter that divides the header into the most columns."""
    num_columns = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in (*DELIMITERS, SPACE)}
    delimiter = max(DELIMITERS, key=lambda mark: num_columns[mark])
    if num_columns[delimiter] < 2:
        delimiter = SPACE
    if not header.strip():
        raise BadInput(f"'{path}' is empty or begins with an empty line: the first line must name the columns")
    if num_columns[delimiter] < 2:
        raise BadInput(
            f"'{path}' has one column only: separate columns by tab, comma, semicolon, vertical bar or space"
        )
    return delimiter


def _find_columns(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], columns: Mapping[str, str], notes: list[str]
) -> dict[str, int]:
    """The index of each recognized column."""
    indices: dict[str, int] = {}
    for name, name_in_file in columns.items():
        if name not in COLUMN_NAMES:
            raise plugins.unknown_name_error("column", name, list(COLUMN_NAMES))
        if name_in_file not in header:
            raise plugins.unknown_name_error(f"column in '{path}' named", name_in_file, list(header))
        indices[name] = header.index(name_in_file)
    free = {i: _simplify(name) for i, name in enumerate(header) if i not in indices.values()}
    candidates = {
        name: [i for common_name in common_names.split() for i in free if free[i] == common_name]
        for name, common_names in COLUMN_NAMES.items()
    }
    if not candidates["loss"] and "loss" not in indices:
        candidates["gain"] = []  # without losses a gain is the reward
    else:
        candidates["reward"] = [i for i in candidates["reward"] if i not in candidates["gain"]]
    if "reward" in indices:
        candidates["gain"] = candidates["loss"] = []
    elif {"gain", "loss"} <= indices.keys():
        candidates["reward"] = []
    for name, candidate_indices in candidates.items():
        if name in indices or not candidate_indices:
            continue
        indices[name] = candidate_indices[0]
        rivals = [i for i in candidate_indices[1:] if free[i] not in UNCERTAIN_NAMES]
        rivals = [i for i in rivals if any(fields[i] != fields[candidate_indices[0]] for fields in rows)]
        if not rivals:
            continue
        names = " and ".join(f"'{header[i]}'" for i in (candidate_indices[0], *rivals))
        if name in DECISIVE_COLUMNS and header[candidate_indices[0]].lower() not in (name, f"{name}1"):
            raise BadInput(
                f"the columns {names} of '{path}' could both be '{name}': state one with --columns {name}=NAME"
            )
        notes.append(f"of the columns {names} the first is read as '{name}'; --columns {name}=NAME states another one")
    return indices


def _simplify(name: str) -> str:
    """A name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
