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
from ontogeny.lm import hugging_face, lengthening, optimization, weight_types
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.chat_template import ChatTemplate, read_chat_template
from ontogeny.lm.lengthening import WEIGHTS
from ontogeny.lm.tokenizer import SpecialTokens, Tokenizer
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import RunDescription, read_spec
from ontogeny.runs.formats import LANGUAGE_MODEL_RUN, SPEC_FILE
from ontogeny.runs.kinds import require_kind
from ontogeny.runs.recorder import CHECKPOINT_NAME
from ontogeny.runs.stored_arrays import StoredArray

BEST, INITIAL = "best", "initial"  # names of the weights of the lowest held-out loss, and of the first of a fine-tuning
HUGGING_FACE_FOLDER = "Hugging Face folder"  # the name in `run_kinds`, which imports this module


class LanguageModel(NamedTuple):
    """Everything that is needed to score and to continue text.

    Attributes:
        weights: Arrays of JAX, or arrays in files with which only the kernels compute; see `load`.
        run: The folder of its training; None for a model that was not trained by ontogeny.
        chat_template: How the model wants a conversation to be written; None for a plain template.
    """

    config: TransformerConfig
    weights: TransformerWeights
    tokenizer: Tokenizer
    run: Path | None = None
    chat_template: ChatTemplate | None = None


def load(
    folder: Path | str, *, best: bool = False, allow_unfinished: bool = False, weights: str | None = None
) -> LanguageModel:
    """Load the language model in a folder.

    Args:
        folder: A run of `ontogeny lm train`, or a folder of Hugging Face.
        best: Whether to load the weights of the lowest held-out loss instead of the last ones of a run.
        allow_unfinished: Whether to load the last checkpoint of a run that is not finished.
        weights: For a model that only generates and scores text: the type in which the kernels keep its matrices,
            float32, bfloat16, float16 or int8, or `auto` for that of the file. None for float32 arrays of JAX, which
            learning and compiled programs need; without kernels, `auto` and float32 are the same.

    Returns:
        Weights, config and tokenizer.

    Raises:
        BadInput: The folder is absent, unfinished, damaged or of another kind, or the model does not fit into the
            memory.
    """
    folder, weight_type = Path(folder), weight_types.choose(weights)
    if require_kind(folder, LANGUAGE_MODEL_RUN, HUGGING_FACE_FOLDER).name == HUGGING_FACE_FOLDER:
        if best:
            raise BadInput(f"'{folder}' is no run of `ontogeny lm train`, so it has no weights of the lowest loss")
        return _load_hugging_face(folder, weight_type)
    config = read_config(folder)
    if not allow_unfinished and not checkpoint.exists(folder, WEIGHTS):
        raise BadInput(f"the run in '{folder}' is not finished; rerun its command to resume it")
    loaded = _load_weights(folder, config, best, weight_type)
    tokenizer = read_tokenizer(folder)
    is_padded = tokenizer.size < config.vocab_size and "special_tokens" in read_description(folder).details
    if tokenizer.size != config.vocab_size and not is_padded:  # the vocabulary of a fine-tuned model may be padded
        raise BadInput(f"'{folder / tokenizers.FILE}' has {tokenizer.size} tokens, the model has {config.vocab_size}")
    return LanguageModel(config, loaded, tokenizer, folder, read_chat_template(folder))


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


def _load_hugging_face(folder: Path, weight_type: str | None) -> LanguageModel:
    """The model in a folder of Hugging Face."""
    storage_type = None if weight_type in (None, weight_types.AS_IN_FILE) else weight_type
    config, stored, tokenizer = hugging_face.read_folder(folder, storage_type)
    template = read_chat_template(folder)
    if weight_type is None:
        loaded = weight_types.load_arrays(str(folder), stored)
    else:
        loaded = weight_types.load_packed(str(folder), config, stored)
    return LanguageModel(config, loaded, tokenizer, chat_template=template)


def _load_weights(
    folder: Path, config: TransformerConfig, best: bool, weight_type: str | None = None
) -> TransformerWeights:
    """The best or the last weights of a run; those of the checkpoint where the run is not finished."""
    if best and not checkpoint.exists(folder, BEST):
        raise BadInput(f"the held-out text of the run in '{folder}' has not been scored, so no weights are the best")
    if best or checkpoint.exists(folder, WEIGHTS):
        name = BEST if best else WEIGHTS
        if weight_type is None:
            return checkpoint.load(folder, name, make_template(config))
        return weight_types.load_packed(str(folder), config, _find_weights(folder, config, name, weight_type))
    if not checkpoint.exists(folder, CHECKPOINT_NAME):
        raise BadInput(f"the run in '{folder}' has no checkpoint yet; rerun its command to resume it")
    if weight_type not in (None, weight_types.AS_IN_FILE, "float32"):
        raise BadInput(f"the run in '{folder}' is not finished, so its weights are kept in float32, not {weight_type}")
    optimizer = lengthening.read_optimization(folder, read_description(folder))
    base = read_base(folder, config) if optimizer.adapter_rank else None
    shapes = jax.eval_shape(lambda: optimization.init_training(jax.random.key(0), config, optimizer, base))
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    content = checkpoint.load(folder, CHECKPOINT_NAME, template).content
    return optimization.full_weights(optimizer, base, content)


def training_run(model: LanguageModel) -> Path:
    """The folder of the run that trained a model; raises `BadInput` if there is none."""
    if model.run is None:
        raise BadInput(
            "this model was not trained by ontogeny, so its training text is unknown: use --learning "
            "rehearsal_batch_size=0, without fisher_decay or rms"
        )
    return model.run


def read_base(folder: Path, config: TransformerConfig) -> TransformerWeights | None:
    """Read the weights with which a fine-tuning began; None where they were random."""
    return checkpoint.load(folder, INITIAL, make_template(config)) if checkpoint.exists(folder, INITIAL) else None


def _find_weights(folder: Path, config: TransformerConfig, name: str, weight_type: str) -> TransformerWeights:
    """The weights of a run as arrays in its file."""
    parts = checkpoint.find_arrays(folder, name)
    storage_type = "float32" if weight_type == weight_types.AS_IN_FILE else weight_type

    def find(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> StoredArray:
        part = parts.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if part is None or part.shape != leaf.shape or part.type_name != "F32":
            raise BadInput(f"the weights in '{folder}' do not fit the config of the run")
        return StoredArray([part], storage_type)

    return jax.tree_util.tree_map_with_path(find, _init_weights.eval_shape(jax.random.key(0), config))


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
