"""Fine-tuning: a training that begins with the weights of another model instead of random ones.

The model keeps its architecture, shape and tokenizer; its context may become shorter. All weights are trained, or
adapters of the matrices of the blocks, in float32. The run folder receives a copy of the initial weights, so that it
needs the other folder only once. Its final weights contain the products of the adapters.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import trees
from ontogeny.content.transformer import TransformerConfig
from ontogeny.errors import BadInput
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.adapters import check_rank
from ontogeny.lm.chat_template import write_chat_template
from ontogeny.lm.config import TrainConfig
from ontogeny.lm.model import INITIAL, LanguageModel
from ontogeny.lm.tokenizer import BPETokenizer, SpecialTokens
from ontogeny.lm.tokenizer_settings import TOKENIZER_CONFIG
from ontogeny.runs import checkpoint
from ontogeny.runs.files import write_bytes, write_json

FIXED_SETTINGS = ("size", "architecture", "tokenizer", "vocab_size", "num_layers", "num_heads", "num_kv_heads", "width")
MAX_CONTEXT_LENGTH = 1024  # by default; attention needs memory that grows with its square
BATCH_SIZE = 4  # by default
LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-4, 1e-3  # by default, of all weights and of adapters
MAX_EPOCHS = 3


def complete_config(config: TrainConfig, base: LanguageModel) -> TrainConfig:
    """Fill in the settings that follow from the model with whose weights a training begins.

    Raises:
        BadInput: A setting contradicts the model.
    """
    for name in FIXED_SETTINGS:
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            raise BadInput(f"with --from the model has its own {name}, so --{name.replace('_', '-')} cannot be set")
    if config.adapter_rank and config.optimizer != "adamw":
        raise BadInput(f"adapters are trained by adamw, so --optimizer {config.optimizer} cannot be set")
    check_rank(base.config, config.adapter_rank)
    context_length = config.context_length or min(base.config.context_length, MAX_CONTEXT_LENGTH)
    if context_length > base.config.context_length:
        raise BadInput(f"a context of {context_length} is longer than that of the model, {base.config.context_length}")
    learning_rate = ADAPTER_LEARNING_RATE if config.adapter_rank else LEARNING_RATE
    defaults = {"batch_size": BATCH_SIZE, "learning_rate": learning_rate}
    missing = {name: default for name, default in defaults.items() if getattr(config, name) is None}
    shape = {name: getattr(base.config, name) for name in ("num_layers", "num_heads", "num_kv_heads", "width")}
    limits = {"tokenizer": base.tokenizer.kind, "vocab_size": base.config.vocab_size, "context_length": context_length}
    return config.model_copy(update=missing | shape | limits)


def describe(base: LanguageModel) -> str:
    """The digest of a model's weights, which belongs to the spec of a run that begins with them."""
    return trees.digest(base.weights)


def write_base(folder: Path, base: LanguageModel, context_length: int) -> tuple[TransformerConfig, dict[str, Any]]:
    """Write tokenizer and weights of a model into the folder of a new run.

    Returns:
        The config of the model to train, and details for `spec.json`.
    """
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), base.weights)
    if weights.positions is not None:
        weights = weights._replace(positions=weights.positions[:context_length])
    checkpoint.save(folder, INITIAL, weights, {}, write_once=True)
    write_bytes(folder / tokenizers.FILE, base.tokenizer.as_json().encode())
    if base.chat_template is not None:
        write_chat_template(folder, base.chat_template)
        write_json(folder / TOKENIZER_CONFIG, base.chat_template.special_tokens)
    details: dict[str, Any] = {}
    if isinstance(base.tokenizer, BPETokenizer):
        names = base.tokenizer.start_name, base.tokenizer.end_name, tuple(sorted(base.tokenizer.end_tokens))
        details["special_tokens"] = SpecialTokens(*names)._asdict()
    return base.config._replace(context_length=context_length), details


def count_steps(num_tokens: int, tokens_per_step: int) -> int:
    """Choose the default number of steps: three epochs, at least ten steps."""
    return max(10, MAX_EPOCHS * num_tokens // tokens_per_step)
