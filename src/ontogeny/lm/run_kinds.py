"""The kinds of run of this package: language-model runs and GPT-2 folders of Hugging Face."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.errors import BadInput
from ontogeny.runs.files import read_json
from ontogeny.runs.folder import has_kind
from ontogeny.runs.formats import LANGUAGE_MODEL_RUN, SPEC_FILE
from ontogeny.runs.kinds import Run, RunKind, open_described_run

if TYPE_CHECKING:
    from ontogeny.lm.model import LanguageModel

HUGGING_FACE = "Hugging Face folder"
COMMANDS = ("ontogeny lm evaluate", "ontogeny lm generate", "ontogeny serve")


def _open_run(folder: Path) -> Run:
    return open_described_run(folder, "weights.json")


def _is_hugging_face(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / SPEC_FILE).exists()


def _open_hugging_face(folder: Path) -> Run:
    return Run(folder, HUGGING_FACE, read_json(folder / "config.json"), [], "finished")


def _load(folder: Path, online: bool) -> "LanguageModel":
    if online:
        raise BadInput(f"'{folder}' holds a language model; `online` applies to agents, `ontogeny serve --online` to both")
    from ontogeny.lm.model import load

    return load(folder)


def _write_page(folder: Path) -> Path:
    from ontogeny.lm import page

    return page.write(folder)


KINDS = (
    RunKind(LANGUAGE_MODEL_RUN, partial(has_kind, kind=LANGUAGE_MODEL_RUN), _open_run, _load, COMMANDS, _write_page),
    RunKind(HUGGING_FACE, _is_hugging_face, _open_hugging_face, _load, COMMANDS),
)
