"""GPT-2 folders of Hugging Face: `config.json`, `model.safetensors` and the tokenizer's files, read and written.

What is read gives the logits that `transformers` gives; what is written, it loads. Settings that would make another
model of the same weights are refused.
"""

import json
import os
import shutil
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
from ontogeny.runs.files import sync_folder, write_bytes

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FEEDS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "exact_gelu", "relu": "relu"}
FIXED: dict[str, Any] = {  # what makes another model where it is otherwise
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
LARGEST = 1 << 20  # of any whole number in a config: beyond it nothing could be held


def is_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read(folder: Path) -> tuple[TransformerConfig, TransformerWeights, Tokenizer]:
    """A whole GPT-2 folder; what is absent, damaged or of another kind raises `BadInput`."""
    config = read_config(folder)
    weights = _from_arrays(config, _arrays(folder), folder)
    tokenizer = tokenizers.read(folder)
    if tokenizer.size > config.vocab_size:
        raise BadInput(
            f"the tokenizer in '{folder}' has {tokenizer.size} tokens, the model knows {config.vocab_size} of them"
        )
    return config, weights, tokenizer


def read_config(folder: Path) -> TransformerConfig:
    path = folder / CONFIG
    try:
        found = json.loads(path.read_bytes())
        kind = found["model_type"]
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        raise BadInput(f"'{path}' is damaged: it is no config of a model") from None
    if kind != "gpt2":
        raise BadInput(f"the model in '{folder}' is of type '{kind}', only gpt2 can be read")
    for key, value in FIXED.items():
        if found.get(key, value) != value:
            raise BadInput(f"'{path}' has {key} {found[key]}, only {value} can be read")
    feed = found.get("activation_function", "gelu_new")
    if feed not in FEEDS:
        raise BadInput(f"'{path}' has the activation '{feed}', only {', '.join(FEEDS)} can be read")

    def whole(key: str, default: int | None = None) -> int:
        value = found.get(key, default)
        if not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise BadInput(f"'{path}' is damaged: {key} is {value!r}")
        return value

    width = whole("n_embd", 768)
    hidden = whole("n_inner") if found.get("n_inner") is not None else 4 * width
    return validate_config(
        TransformerConfig(
            whole("vocab_size", 50257),
            whole("n_positions", 1024),
            whole("n_layer", 12),
            whole("n_head", 12),
            width,
            hidden,
            activation=FEEDS[feed],
            tie_embeddings=bool(found.get("tie_word_embeddings", True)),
            norm_epsilon=float(found.get("layer_norm_epsilon", 1e-5)),
        )
    )


def write(folder: Path, config: TransformerConfig, weights: TransformerWeights, tokenizer: Tokenizer) -> Path:
    """Writes a folder that `transformers` loads, whole or not at all; an existing one raises `BadInput`."""
    if folder.exists():
        raise BadInput(f"'{folder}' exists; not overwritten")
    if (config.positions, config.norm, config.use_biases) != ("learned", "layer", True) or config.activation == "squared_relu":
        raise BadInput("only a model of the architecture gpt2 has a place in transformers, this one is another")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_bytes(
            temporary / CONFIG, (json.dumps(_as_config(config, tokenizer), indent=2) + "\n").encode()
        )
        arrays = {name: np.require(array, np.float32, "C") for name, array in _to_arrays(weights).items()}
        write_bytes(temporary / WEIGHTS, encode(arrays, metadata={"format": "pt"}))
        write_bytes(temporary / tokenizers.FILE, tokenizer.as_json().encode())
        about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context_length}
        if tokenizer.end is not None:
            about |= {"eos_token": tokenizers.END, "bos_token": tokenizers.END}
        write_bytes(temporary / "tokenizer_config.json", (json.dumps(about, indent=2) + "\n").encode())
        os.rename(temporary, folder)
    except OSError as error:
        raise BadInput(f"the folder '{folder}' cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
    return folder


def _as_config(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    feeds = {ours: theirs for theirs, ours in reversed(FEEDS.items())}
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
        "activation_function": feeds[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.end,
        "eos_token_id": tokenizer.end,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": "float32",
    }


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder, by their names without the model's own prefix."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            pickled = " (pytorch_model.bin is pickle, which is not read)" * (folder / "pytorch_model.bin").exists()
            raise BadInput(f"there is no '{folder / WEIGHTS}'{pickled}")
        try:
            names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise BadInput(f"'{folder / INDEX}' is damaged: it names no files") from None
    found: dict[str, np.ndarray] = {}
    for name in names:
        path = folder / Path(name).name
        try:
            found |= decode(path.read_bytes())
        except OSError as error:
            raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BadInput(f"'{path}' is damaged or cut off: {error}") from None
    return {name.removeprefix("transformer."): array for name, array in found.items()}


def _from_arrays(config: TransformerConfig, arrays: dict[str, np.ndarray], folder: Path) -> TransformerWeights:
    W, M = config.width, config.mlp_width

    def take(name: str, *shape: int) -> jnp.ndarray:
        if name not in arrays:
            raise BadInput(f"the weights in '{folder}' lack the array '{name}': this is no GPT-2")
        found = np.asarray(arrays[name], np.float32)
        if found.shape != shape:
            raise BadInput(f"the array '{name}' in '{folder}' is {list(found.shape)}, its config says {list(shape)}")
        if not np.isfinite(found).all():
            raise BadInput(f"the array '{name}' in '{folder}' holds numbers that are not finite")
        return jnp.asarray(found)

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
    head = None if config.tie_embeddings else take("lm_head.weight", config.vocab_size, W)
    return TransformerWeights(embedding, positions, blocks, norm("ln_f"), head)


def _to_arrays(weights: TransformerWeights) -> dict[str, np.ndarray]:
    assert weights.positions is not None
    named: dict[str, Any] = {"wte.weight": weights.embedding, "wpe.weight": weights.positions}
    parts: list[tuple[str, Linear | Norm]] = [("ln_f", weights.norm)]
    for i, block in enumerate(weights.blocks):
        names = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        parts += [(f"h.{i}.{name}", part) for name, part in zip(names, block, strict=True)]
    for name, part in parts:
        named |= {f"{name}.weight": part[0], f"{name}.bias": part[1]}
    prefixed = {f"transformer.{name}": np.asarray(array) for name, array in named.items()}
    return prefixed | ({} if weights.lm_head is None else {"lm_head.weight": np.asarray(weights.lm_head)})
