"""A language model on disk: the folder of a finished run, or a folder of Hugging Face.

The folder of a run holds `spec.json`, `tokenizer.json`, the tokens of its corpus, and from the end of the run on
`weights.*`. Weights are safetensors and JSON, never pickle.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import TransformerConfig, TransformerWeights, config_from_settings, init_weights
from ontogeny.errors import BadInput
from ontogeny.lm import hugging_face, lengthening, optimization
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.chat_template import ChatTemplate, read_chat_template
from ontogeny.lm.lengthening import WEIGHTS
from ontogeny.lm.tokenizer import SpecialTokens, Tokenizer
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import RunDescription, read_spec
from ontogeny.runs.formats import LANGUAGE_MODEL_RUN, SPEC_FILE
from ontogeny.runs.kinds import require_kind
from ontogeny.runs.recorder import CHECKPOINT_NAME

BEST, INITIAL = "best", "initial"  # names of the weights of the lowest held-out loss, and of the first of a fine-tuning
HUGGING_FACE_FOLDER = "Hugging Face folder"  # the name in `run_kinds`, which imports this module


class LanguageModel(NamedTuple):
    """Everything that is needed to score and to continue text.

    Attributes:
        run: The folder of its training; None for a model that was not trained by ontogeny.
        chat_template: How the model wants a conversation to be written; None for a plain template.
    """

    config: TransformerConfig
    weights: TransformerWeights
    tokenizer: Tokenizer
    run: Path | None = None
    chat_template: ChatTemplate | None = None


def load(folder: Path | str, *, best: bool = False, allow_unfinished: bool = False) -> LanguageModel:
    """Load the language model in a folder.

    Args:
        folder: A run of `ontogeny lm train`, or a folder of Hugging Face.
        best: Whether to load the weights of the lowest held-out loss instead of the last ones of a run.
        allow_unfinished: Whether to load the last checkpoint of a run that is not finished.

    Returns:
        Weights, config and tokenizer.

    Raises:
        BadInput: The folder is absent, unfinished, damaged or of another kind.
    """
    folder = Path(folder)
    if require_kind(folder, LANGUAGE_MODEL_RUN, HUGGING_FACE_FOLDER).name == HUGGING_FACE_FOLDER:
        if best:
            raise BadInput(f"'{folder}' is no run of `ontogeny lm train`, so it has no weights of the lowest loss")
        return LanguageModel(*hugging_face.read_folder(folder), chat_template=read_chat_template(folder))
    config = read_config(folder)
    if not allow_unfinished and not checkpoint.exists(folder, WEIGHTS):
        raise BadInput(f"the run in '{folder}' is not finished; rerun its command to resume it")
    weights = _load_weights(folder, config, best)
    tokenizer = read_tokenizer(folder)
    is_padded = tokenizer.size < config.vocab_size and "special_tokens" in read_description(folder).details
    if tokenizer.size != config.vocab_size and not is_padded:  # the vocabulary of a fine-tuned model may be padded
        raise BadInput(f"'{folder / tokenizers.FILE}' has {tokenizer.size} tokens, the model has {config.vocab_size}")
    return LanguageModel(config, weights, tokenizer, folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a run; that of a fine-tuned model has the special tokens of its origin."""
    names = read_description(folder).details.get("special_tokens")
    if names is None:
        return tokenizers.read_tokenizer(folder)
    special_tokens = SpecialTokens(names["start"], names["end"], tuple(names["end_tokens"]))
    return tokenizers.read_tokenizer(folder, special_tokens)


def read_checkpoint_step(folder: Path) -> tuple[int, int] | None:
    """Read how many of its steps a run that is not finished has in its checkpoint; None for any other folder."""
    if not (folder / SPEC_FILE).exists() or checkpoint.exists(folder, WEIGHTS):
        return None
    if not checkpoint.exists(folder, CHECKPOINT_NAME):
        return None
    step = checkpoint.read_metadata(folder, CHECKPOINT_NAME)["progress"]["step"]
    return step, lengthening.read_optimization(folder, read_description(folder)).num_steps


def _load_weights(folder: Path, config: TransformerConfig, best: bool) -> TransformerWeights:
    """The best or the last weights of a run; those of the checkpoint where the run is not finished."""
    if best and not checkpoint.exists(folder, BEST):
        raise BadInput(f"the held-out text of the run in '{folder}' has not been scored, so no weights are the best")
    if best or checkpoint.exists(folder, WEIGHTS):
        return checkpoint.load(folder, BEST if best else WEIGHTS, make_template(config))
    if not checkpoint.exists(folder, CHECKPOINT_NAME):
        raise BadInput(f"the run in '{folder}' has no checkpoint yet; rerun its command to resume it")
    optimizer = lengthening.read_optimization(folder, read_description(folder))
    base = read_base(folder, config) if optimizer.adapter_rank else None
    shapes = jax.eval_shape(lambda: optimization.init_training(jax.random.key(0), config, optimizer, base))
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    content = checkpoint.load(folder, CHECKPOINT_NAME, template).content
    return optimization.full_weights(optimizer, base, content)


def read_base(folder: Path, config: TransformerConfig) -> TransformerWeights | None:
    """Read the weights with which a fine-tuning began; None where they were random."""
    return checkpoint.load(folder, INITIAL, make_template(config)) if checkpoint.exists(folder, INITIAL) else None


def make_template(config: TransformerConfig) -> TransformerWeights:
    """Zeros of the shapes and types of a model's weights."""
    shapes = _init_weights.eval_shape(jax.random.key(0), config)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


_init_weights = jax.jit(init_weights, static_argnums=1)


def read_description(folder: Path) -> RunDescription:
    """Read the description of a language-model run.

    Raises:
        BadInput: The folder holds no such run, or `spec.json` is damaged.
    """
    description = read_spec(folder)
    if description.kind != LANGUAGE_MODEL_RUN or not {"model", "optimization"} <= description.details.keys():
        raise BadInput(f"'{folder / SPEC_FILE}' is damaged: it does not describe a language model")
    return description


def read_config(folder: Path) -> TransformerConfig:
    """Read the config of a run's model; a damaged one raises `BadInput`."""
    try:
        return config_from_settings(read_description(folder).details["model"])
    except TypeError:
        raise BadInput(f"'{folder / SPEC_FILE}' is damaged: it holds no config of a model") from None
