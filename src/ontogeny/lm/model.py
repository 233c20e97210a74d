"""A language model on disk: the folder of a finished run, or a GPT-2 folder of Hugging Face.

A run's folder holds `spec.json`, whose kind is `language`, `tokenizer.json`, from its end on `weights.*`, and the
tokens of its corpus. Weights are safetensors and JSON, never pickle.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import TransformerConfig, TransformerWeights, init_weights, validate_config
from ontogeny.errors import BadInput
from ontogeny.lm import hugging_face
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.runs import checkpoint
from ontogeny.runs.files import read_json

SPEC, WEIGHTS, KIND = "spec.json", "weights", "language"


class LanguageModel(NamedTuple):
    """All that is needed to score and to continue text."""

    config: TransformerConfig
    weights: TransformerWeights
    tokenizer: Tokenizer
    run: Path | None = None  # the folder of its training, where that was here


def is_language(folder: Path | str) -> bool:
    """Whether a folder is for this room: a run of `ontogeny train text`, or a model's config. Reads no weights."""
    folder = Path(folder)
    try:
        return json.loads((folder / SPEC).read_bytes()).get("kind") == KIND
    except (OSError, ValueError, AttributeError, RecursionError):
        return hugging_face.is_folder(folder) and not (folder / SPEC).exists()


def load(folder: Path | str) -> LanguageModel:
    """The model in a folder; absent, unfinished, damaged or foreign ones raise `BadInput`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"there is no model in '{folder}'")
    if not is_language(folder):
        raise BadInput(f"'{folder}' holds no language model: neither a run of `ontogeny train text` nor a GPT-2 folder")
    if not (folder / SPEC).exists():
        return LanguageModel(*hugging_face.read(folder))
    config = read_config(folder)
    if not checkpoint.exists(folder, WEIGHTS):
        raise BadInput(f"the run in '{folder}' is not finished; the command that began it resumes it")
    weights = checkpoint.load(folder, WEIGHTS, template(config))
    tokenizer = tokenizers.read(folder)
    if tokenizer.size != config.vocab_size:
        raise BadInput(f"'{folder / tokenizers.FILE}' has {tokenizer.size} tokens, the model has {config.vocab_size}")
    return LanguageModel(config, weights, tokenizer, folder)


def template(config: TransformerConfig) -> TransformerWeights:
    """Weights of the right shapes and types that nobody has drawn."""
    shapes = jax.eval_shape(lambda: init_weights(jax.random.key(0), config))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def read_spec(folder: Path) -> dict[str, Any]:
    """What a run of ours was made with, as it stands in its `spec.json`."""
    content = read_json(folder / SPEC)
    if content.get("kind") != KIND or not isinstance(content.get("run"), dict):
        raise BadInput(f"'{folder / SPEC}' is damaged: it is not of a language model")
    return content


def read_config(folder: Path) -> TransformerConfig:
    """The config of a run of ours."""
    found = read_spec(folder).get("config")
    try:
        return validate_config(TransformerConfig(**found))  # type: ignore[arg-type]
    except (TypeError, BadInput):
        raise BadInput(f"'{folder / SPEC}' is damaged: it holds no config") from None
