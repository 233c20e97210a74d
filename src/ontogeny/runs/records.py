"""Records: JSON lines that one process appends and any process reads; a kill costs at most the last line."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ontogeny.errors import BadInput
from ontogeny.runs.formats import RECORDS_FILE as RECORDS_FILE

TIMING_FILE = "timing.jsonl"  # wall times, which no seed determines
LINE_SEPARATORS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
Record = dict[str, Any]


def encode_line(content: Mapping[str, Any], *, allow_nan: bool = False) -> str:
    """Encode a JSON object as one line for every reader.

    Some readers split lines at U+0085, U+2028 and U+2029, as `str.splitlines` does; JSON has an escape for each.

    Args:
        content: The object.
        allow_nan: Whether numbers that are not finite are written; otherwise they raise `ValueError`.
    """
    return json.dumps(content, ensure_ascii=False, allow_nan=allow_nan).translate(LINE_SEPARATORS)


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One record as it stands in the file, with its line end; numbers that are not finite raise `ValueError`."""
    return (encode_line(record) + "\n").encode()


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record and return when it is on the disk."""
    with path.open("ab") as file:
        file.write(encode_record(record))
        file.flush()
        os.fsync(file.fileno())


def append_timing(folder: Path, timing: Mapping[str, Any]) -> None:
    """Append wall times to the timing file of a run."""
    with (folder / TIMING_FILE).open("ab") as file:
        file.write(encode_record(timing))


def repair_records(path: Path) -> None:
    """Cut off a last line that a killed process left incomplete."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_records(path: Path) -> list[Record]:
    """All records of a file, without a last line that is incomplete.

    Raises:
        BadInput: The file cannot be read, or a line of it is not a JSON object; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"'{path}' is damaged: it is not UTF-8 text (byte {error.start})") from None
    return list(_objects(path, text.split("\n")[:-1]))


def read_timings(folder: Path) -> Iterator[Record]:
    """The timings of a run; lines that a killed process left incomplete are skipped."""
    path = folder / TIMING_FILE
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            timing = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(timing, dict):
            yield timing


def _objects(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """The JSON objects of numbered lines."""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput(f"'{path}', line {number}, is damaged: it is not JSON") from None
        if not isinstance(record, dict):
            raise BadInput(f"'{path}', line {number}, is damaged: it is no JSON object")
        yield record
