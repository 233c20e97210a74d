"""GPT-2 folders of Hugging Face: `config.json`, `model.safetensors` and the files of the tokenizer, read and written.

A model that is read gives the logits that `transformers` gives; a folder that is written can be loaded by it. Settings
that would make another model of the same weights are refused.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ontogeny.content.transformer import TransformerConfig, TransformerWeights, validate_config
from ontogeny.content.transformer_block import BlockWeights, Linear, Norm
from ontogeny.errors import BadInput
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.runs.files import new_folder, write_bytes, write_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "exact_gelu", "relu": "relu"}
REQUIRED_SETTINGS: dict[str, Any] = {  # other values would make another model
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
MAX_SIZE = 1 << 20  # of any integer in a config; larger arrays could not be held
LAYER_PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")  # in the order of BlockWeights


def read_folder(folder: Path) -> tuple[TransformerConfig, TransformerWeights, Tokenizer]:
    """Read a GPT-2 folder.

    Raises:
        BadInput: A file is absent or damaged, or the model is of another kind.
    """
    config = read_config(folder)
    weights = _build_weights(config, _read_arrays(folder), folder)
    tokenizer = tokenizers.read_tokenizer(folder)
    if tokenizer.size > config.vocab_size:
        raise BadInput(
            f"the tokenizer in '{folder}' has {tokenizer.size} tokens, the model has only {config.vocab_size}"
        )
    return config, weights, tokenizer


def read_config(folder: Path) -> TransformerConfig:
    """Read `config.json`; a damaged one, or that of another kind of model, raises `BadInput`."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_bytes())
        model_type = content["model_type"]
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        raise BadInput(f"'{path}' is damaged: it holds no config of a model") from None
    if model_type != "gpt2":
        raise BadInput(f"the model in '{folder}' is of type '{model_type}'; only gpt2 can be read")
    for key, value in REQUIRED_SETTINGS.items():
        if content.get(key, value) != value:
            raise BadInput(f"'{path}' has {key} {content[key]}; only {value} can be read")
    activation = content.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise BadInput(f"'{path}' has the activation '{activation}'; only {', '.join(ACTIVATIONS)} can be read")

    def integer(key: str, default: int | None = None) -> int:
        value = content.get(key, default)
        if not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise BadInput(f"'{path}' is damaged: {key} is {value!r}")
        return value

    width = integer("n_embd", 768)
    return validate_config(
        TransformerConfig(
            vocab_size=integer("vocab_size", 50257),
            context_length=integer("n_positions", 1024),
            num_layers=integer("n_layer", 12),
            num_heads=integer("n_head", 12),
            width=width,
            mlp_width=integer("n_inner") if content.get("n_inner") is not None else 4 * width,
            activation=ACTIVATIONS[activation],
            tie_embeddings=bool(content.get("tie_word_embeddings", True)),
            norm_epsilon=float(content.get("layer_norm_epsilon", 1e-5)),
        )
    )


def write_folder(folder: Path, config: TransformerConfig, weights: TransformerWeights, tokenizer: Tokenizer) -> Path:
    """Write a folder that `transformers` loads, whole or not at all.

    Args:
        folder: A path that does not exist.
        config: Of a model with the architecture `gpt2`.
        weights: Of the model.
        tokenizer: Of the model.

    Returns:
        The folder.

    Raises:
        BadInput: The folder exists or cannot be written, or `transformers` has no such architecture.
    """
    is_gpt2 = (config.positions, config.norm, config.use_biases) == ("learned", "layer", True)
    if not is_gpt2 or config.activation not in ACTIVATIONS.values():
        raise BadInput("only a model of the architecture gpt2 can be exported to transformers; this one is another")
    arrays = {name: np.require(array, np.float32, "C") for name, array in _to_arrays(weights).items()}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context_length}
    if tokenizer.end is not None:
        settings |= {"eos_token": tokenizers.END, "bos_token": tokenizers.END}
    with new_folder(folder) as temporary:
        write_json(temporary / CONFIG, _to_settings(config, tokenizer))
        write_bytes(temporary / WEIGHTS, encode(arrays, metadata={"format": "pt"}))
        write_bytes(temporary / tokenizers.FILE, tokenizer.as_json().encode())
        write_json(temporary / "tokenizer_config.json", settings)
    return folder


def _to_settings(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `config.json`."""
    names = {activation: name for name, activation in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.width,
        "n_inner": config.mlp_width,
        "activation_function": names[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.end,
        "eos_token_id": tokenizer.end,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": "float32",
    }


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder, by their names without the prefix of the model's class."""
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            note = " (pytorch_model.bin is a pickle, which is not read)"
            raise BadInput(f"there is no '{folder / WEIGHTS}'{note * (folder / 'pytorch_model.bin').exists()}")
        try:
            files = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise BadInput(f"'{folder / INDEX}' is damaged: it names no files") from None
    arrays: dict[str, np.ndarray] = {}
    for name in files:
        path = folder / Path(name).name
        try:
            arrays |= decode(path.read_bytes())
        except OSError as error:
            raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BadInput(f"'{path}' is damaged or cut off: {error}") from None
    return {name.removeprefix("transformer."): array for name, array in arrays.items()}


def _build_weights(config: TransformerConfig, arrays: dict[str, np.ndarray], folder: Path) -> TransformerWeights:
    """The weights of a model from arrays by name, whose shapes must be those of the config."""
    W, M = config.width, config.mlp_width

    def take(name: str, *shape: int) -> jnp.ndarray:
        if name not in arrays:
            raise BadInput(f"the weights in '{folder}' lack the array '{name}': this is no GPT-2")
        array = np.asarray(arrays[name], np.float32)
        if array.shape != shape:
            raise BadInput(f"the array '{name}' in '{folder}' is {list(array.shape)}, its config says {list(shape)}")
        if not np.isfinite(array).all():
            raise BadInput(f"the array '{name}' in '{folder}' holds numbers that are not finite")
        return jnp.asarray(array)

    def linear(name: str, inputs: int, outputs: int) -> Linear:
        return Linear(take(f"{name}.weight", inputs, outputs), take(f"{name}.bias", outputs))

    def norm(name: str) -> Norm:
        return Norm(take(f"{name}.weight", W), take(f"{name}.bias", W))

    blocks = tuple(
        BlockWeights(
            norm(f"h.{i}.ln_1"),
            linear(f"h.{i}.attn.c_attn", W, 3 * W),
            linear(f"h.{i}.attn.c_proj", W, W),
            norm(f"h.{i}.ln_2"),
            linear(f"h.{i}.mlp.c_fc", W, M),
            linear(f"h.{i}.mlp.c_proj", M, W),
        )
        for i in range(config.num_layers)
    )
    embedding = take("wte.weight", config.vocab_size, W)
    positions = take("wpe.weight", config.context_length, W)
    lm_head = None if config.tie_embeddings else take("lm_head.weight", config.vocab_size, W)
    return TransformerWeights(embedding, positions, blocks, norm("ln_f"), lm_head)


def _to_arrays(weights: TransformerWeights) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors`."""
    assert weights.positions is not None
    arrays: dict[str, Any] = {"wte.weight": weights.embedding, "wpe.weight": weights.positions}
    parts: list[tuple[str, Linear | Norm]] = [("ln_f", weights.norm)]
    for i, layer in enumerate(weights.blocks):
        parts += [(f"h.{i}.{name}", part) for name, part in zip(LAYER_PARTS, layer, strict=True)]
    for name, part in parts:
        arrays |= {f"{name}.weight": part[0], f"{name}.bias": part[1]}
    prefixed = {f"transformer.{name}": np.asarray(array) for name, array in arrays.items()}
    return prefixed | ({} if weights.lm_head is None else {"lm_head.weight": np.asarray(weights.lm_head)})
