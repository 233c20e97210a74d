"""The kinds of folder that hold a language model: runs of `ontogeny lm train`, and folders of Hugging Face."""

from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.files import read_json
from ontogeny.runs.formats import LANGUAGE_MODEL_RUN, SPEC_FILE
from ontogeny.runs.kinds import Run, RunKind, described_kind

if TYPE_CHECKING:
    from ontogeny.lm.model import LanguageModel

COMMANDS = ("ontogeny lm evaluate", "ontogeny lm generate", "ontogeny serve")
HUGGING_FACE_CONFIG = "config.json"
HUGGING_FACE_FOLDER = "Hugging Face folder"


def _is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of Hugging Face."""
    return (folder / HUGGING_FACE_CONFIG).is_file() and not (folder / SPEC_FILE).exists()


def _open_hugging_face(folder: Path) -> Run:
    """The description of such a folder."""
    return Run(folder, HUGGING_FACE_FOLDER, read_json(folder / HUGGING_FACE_CONFIG), [], "finished")


def _load(folder: Path, online: bool) -> "LanguageModel":
    """Load the model of a folder."""
    if online:
        raise BadInput(f"'{folder}' holds a language model; its weights learn in `ontogeny serve --online`")
    from ontogeny.lm.model import load

    return load(folder)


def _write_page(folder: Path) -> Path:
    """Write the page of a run."""
    from ontogeny.lm.page import write_page

    return write_page(folder)


def _is_finished(folder: Path, *_: object) -> bool:
    """Whether a run has its final weights."""
    return checkpoint.exists(folder, "weights")


KINDS = (
    described_kind(
        LANGUAGE_MODEL_RUN, (*COMMANDS, "ontogeny report"), is_finished=_is_finished, load=_load, write_page=_write_page
    ),
    RunKind(HUGGING_FACE_FOLDER, _is_hugging_face, _open_hugging_face, _load, COMMANDS),
)
