"""The kinds of folder that hold a language model: runs of `ontogeny lm train`, and GPT-2 folders of Hugging Face."""

from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.files import read_json
from ontogeny.runs.folder import has_kind, read_spec
from ontogeny.runs.formats import LANGUAGE_MODEL_RUN, RECORDS_FILE, SPEC_FILE
from ontogeny.runs.kinds import Run, RunKind
from ontogeny.runs.records import read_records

if TYPE_CHECKING:
    from ontogeny.lm.model import LanguageModel

COMMANDS = ("ontogeny lm evaluate", "ontogeny lm generate", "ontogeny serve")
HUGGING_FACE_CONFIG = "config.json"


def _open_run(folder: Path) -> Run:
    description, path = read_spec(folder), folder / RECORDS_FILE
    records = read_records(path) if path.exists() else []
    status = "finished" if checkpoint.exists(folder, "weights") else "unfinished"
    return Run(folder, description.kind, description.spec, records, status)


def _is_hugging_face(folder: Path) -> bool:
    return (folder / HUGGING_FACE_CONFIG).is_file() and not (folder / SPEC_FILE).exists()


def _open_hugging_face(folder: Path) -> Run:
    return Run(folder, "Hugging Face GPT-2 folder", read_json(folder / HUGGING_FACE_CONFIG), [], "finished")


def _load(folder: Path, online: bool) -> "LanguageModel":
    if online:
        raise BadInput(f"'{folder}' holds a language model; its weights learn in `ontogeny serve --online`")
    from ontogeny.lm.model import load

    return load(folder)


def _write_page(folder: Path) -> Path:
    from ontogeny.lm.page import write_page

    return write_page(folder)


def _is_run(folder: Path) -> bool:
    return has_kind(folder, LANGUAGE_MODEL_RUN)


KINDS = (
    RunKind(LANGUAGE_MODEL_RUN, _is_run, _open_run, _load, (*COMMANDS, "ontogeny report"), _write_page),
    RunKind("Hugging Face GPT-2 folder", _is_hugging_face, _open_hugging_face, _load, COMMANDS),
)
