"""Format numbers of everything that ontogeny writes to disk, and the refusal of every other format.

A number goes up by one whenever a file written before could no longer be read. Old files are never converted and never
called damaged: the message names the last commit that reads them. The one exception is the database of a server: it
holds acknowledged training examples, so from format 3 on it is converted in place (`ontogeny.server.schema`).
"""

import json
from pathlib import Path
from typing import Any, cast

from ontogeny.errors import BadInput

AGENT_RUN = "agent run"
SAVED_DEPLOYMENT = "saved deployment"
LANGUAGE_MODEL_RUN = "language-model run"
STUDY = "study"
MESA_STUDY = "mesa study"
NEURAL_STUDY = "neural study"
SESSION_STATE = "session state"
BRANCH_STATE = "branch state"
SERVER_DATABASE = "server database"
CHECKPOINT = "checkpoint"
JSON_REPORT = "JSON report"
AUDIT_HISTORY = "audit history"

FORMATS = {
    AGENT_RUN: 2,
    SAVED_DEPLOYMENT: 2,
    LANGUAGE_MODEL_RUN: 2,
    STUDY: 2,
    MESA_STUDY: 2,
    NEURAL_STUDY: 1,
    SESSION_STATE: 2,
    BRANCH_STATE: 2,
    SERVER_DATABASE: 8,
    CHECKPOINT: 2,  # a pytree: genome, weights or state
    JSON_REPORT: 2,  # what `--out` and `--json` of evaluate and audit write
    AUDIT_HISTORY: 2,  # audits of an agent, one line per begin and end
}
LAST_READER = "e4ec9bd"  # the last commit that reads formats below these
SPEC_FILE, RECORDS_FILE = "spec.json", "records.jsonl"


def check_format(path: Path | str, kind: str, number: Any) -> None:
    """Refuse a file or folder of another format than the one that this version reads.

    Args:
        path: The file or folder, as the message names it.
        kind: A key of `FORMATS`.
        number: The format number found in the file, or None where there is none.

    Raises:
        BadInput: The number differs from `FORMATS[kind]`.
    """
    current = FORMATS[kind]
    if str(number) == str(current):
        return
    if str(number).isdigit() and int(number) < current:
        raise BadInput(
            f"'{path}' is {with_article(kind)} of format {number}; this version reads format {current}. "
            f"Commit {LAST_READER} is the last that reads it."
        )
    stated = "has no format number" if number is None else f"is {with_article(kind)} of format {number!r}"
    raise BadInput(f"'{path}' {stated}; this version reads format {current}")


def with_article(kind: str) -> str:
    """Returns the name of a kind after its indefinite article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def refuse_old_folder(folder: Path) -> None:
    """Refuse a folder that a version of ontogeny with older formats wrote.

    Folders of format 1 do not name their kind in `spec.json`, so it is derived from their files.

    Args:
        folder: A folder of any content; one that no version of ontogeny wrote passes.

    Raises:
        BadInput: The folder is a run, saved deployment or study of format 1.
    """
    spec = first_object(folder / SPEC_FILE)
    if spec.get("format") == 1 and "run" in spec:
        agent_kind = SAVED_DEPLOYMENT if (folder / "state.json").exists() else AGENT_RUN
        check_format(folder, LANGUAGE_MODEL_RUN if spec.get("kind") == "language" else agent_kind, 1)
    header = first_object(folder / RECORDS_FILE)
    if header.get("format") == 1 and header.get("kind") in ("study", "mesa"):
        check_format(folder, STUDY if header["kind"] == "study" else MESA_STUDY, 1)


def refuse_run_folder(folder: Path, purpose: str) -> None:
    """Refuse to write other files into the folder of a run.

    Args:
        folder: A folder of any content, or an absent one.
        purpose: What it was to hold, for the message: `the state of a server`.

    Raises:
        BadInput: The folder is that of a run, of any format.
    """
    refuse_old_folder(folder)
    if (folder / SPEC_FILE).exists():
        raise BadInput(f"'{folder}' is the folder of a run; name another folder for {purpose}")


def first_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds, or that its first line holds; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content: object = json.loads(text if path.suffix == ".json" else text.partition("\n")[0])
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}
