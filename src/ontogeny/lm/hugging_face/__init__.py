"""Folders of Hugging Face: `config.json`, safetensors files and the files of the tokenizer, read and written.

A model that is read gives the logits that `transformers` gives; a folder that is written can be loaded by it. Settings
that would make another model of the same weights are refused. `config_file` reads the settings, `array_files` the
arrays, `layout` says where each array belongs, `export` writes.
"""

from pathlib import Path

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.hugging_face.array_files import ArrayFiles
from ontogeny.lm.hugging_face.config_file import read_config
from ontogeny.lm.hugging_face.export import write_folder
from ontogeny.lm.hugging_face.layout import find_layout, find_weights
from ontogeny.lm.hugging_face.special_tokens import read_special_tokens
from ontogeny.lm.tokenizer import Tokenizer

__all__ = ["read_config", "read_folder", "write_folder"]


def read_folder(
    folder: Path, weight_type: str | None = None
) -> tuple[TransformerConfig, TransformerWeights, Tokenizer]:
    """Read all of a folder but the numbers of its arrays.

    Args:
        folder: Any path.
        weight_type: Type in which the kernels keep matrices; None for that of the file.

    Returns:
        Config, weights whose leaves are `StoredArray`, and tokenizer.

    Raises:
        BadInput: A file is absent or damaged, or the model is of a kind that cannot be computed.
    """
    config = read_config(folder)
    tokenizer = tokenizers.read_tokenizer(folder, read_special_tokens(folder))
    if tokenizer.size > config.vocab_size:
        raise BadInput(
            f"the tokenizer in '{folder}' has {tokenizer.size} tokens, the model has only {config.vocab_size}"
        )
    weights = find_weights(config, ArrayFiles(folder, find_layout(config).prefix), weight_type)
    return config, weights, tokenizer
