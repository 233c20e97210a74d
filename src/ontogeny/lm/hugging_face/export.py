"""Writes a Hugging Face folder that `transformers` loads: `config.json`, `model.safetensors` and the tokenizer."""

from pathlib import Path
from typing import Any

from safetensors.numpy import save as encode

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.chat_template import ChatTemplate, write_chat_template
from ontogeny.lm.hugging_face.array_files import WEIGHTS
from ontogeny.lm.hugging_face.config_file import ACTIVATIONS, CONFIG
from ontogeny.lm.hugging_face.layout import to_arrays
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.lm.tokenizer_settings import TOKENIZER_CONFIG
from ontogeny.runs.files import new_folder, write_bytes, write_json


def write_folder(
    folder: Path,
    config: TransformerConfig,
    weights: TransformerWeights,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None = None,
) -> Path:
    """Write a folder that `transformers` loads, whole or not at all.

    Args:
        folder: A path that does not exist.
        config: Of the model.
        weights: Of the model.
        tokenizer: Of the model.
        chat_template: Of the model, if it has one.

    Returns:
        The folder.

    Raises:
        BadInput: The folder exists or cannot be written, or `transformers` has no such architecture.
    """
    ends = sorted(tokenizer.end_tokens, key=lambda token: token != tokenizer.end)
    model_settings = _describe(config) | {
        "bos_token_id": tokenizer.start,
        "eos_token_id": ends if len(ends) > 1 else tokenizer.end,
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context_length}
    if tokenizer.end is not None:
        settings |= {"eos_token": tokenizer.end_name, "bos_token": tokenizer.start_name}
    if chat_template is not None:  # a template may write the start token of every model that names one
        settings = {name: value for name, value in settings.items() if name != "bos_token"}
        settings |= chat_template.special_tokens
    with new_folder(folder) as temporary:
        write_json(temporary / CONFIG, model_settings)
        write_bytes(temporary / WEIGHTS, encode(to_arrays(config, weights), metadata={"format": "pt"}))
        write_bytes(temporary / tokenizers.FILE, tokenizer.as_json().encode())
        write_json(temporary / TOKENIZER_CONFIG, settings)
        if chat_template is not None:
            write_chat_template(temporary, chat_template)
    return folder


def _describe(config: TransformerConfig) -> dict[str, Any]:
    """The settings of `config.json`; raises `BadInput` where no family of models has such a config."""
    if (config.positions, config.norm, config.use_biases) == ("learned", "layer", True) and (
        config.activation in ACTIVATIONS.values()
    ):
        return _describe_gpt2(config)
    if (config.positions, config.norm, config.use_biases, config.activation) == ("rotary", "rms", False, "swiglu"):
        for family, (class_name, settings) in _rotary_families(config).items():
            if settings is not None:
                names = {"architectures": [class_name], "model_type": family}
                return names | _describe_rotary(config) | settings
    raise BadInput("no architecture of transformers has the settings of this model, so it cannot be exported")


def _describe_gpt2(config: TransformerConfig) -> dict[str, Any]:
    """The settings of a GPT-2."""
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
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": "float32",
    }


def _describe_rotary(config: TransformerConfig) -> dict[str, Any]:
    """The settings that Llama and its relatives share, as all versions of `transformers` read them."""
    scaling = config.rope_scaling
    rope_scaling: dict[str, Any] | None = None
    if scaling is not None:
        rope_scaling = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope_scaling |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_context_length,
            }
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.size_of_head,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "torch_dtype": "float32",
    }


def _rotary_families(config: TransformerConfig) -> dict[str, tuple[str, dict[str, Any] | None]]:
    """The relatives of Llama: the name of the class, and the further settings if this config is one of theirs."""
    biases = (config.use_qkv_biases, config.use_out_proj_bias, config.use_mlp_biases)
    has_attention_biases, has_mlp_biases = biases[0], biases[2]
    is_even = biases[0] == biases[1]  # all linear maps of attention have biases, or none has
    every_layer = tuple(range(config.num_layers))
    is_plain = not (config.qk_norm or config.unrotated_layers)
    windows: dict[str, Any] = {"use_sliding_window": bool(config.sliding_layers), "max_window_layers": 0}
    if config.sliding_layers:
        windows["sliding_window"] = config.sliding_window
        windows["layer_types"] = [
            "sliding_attention" if layer in config.sliding_layers else "full_attention" for layer in every_layer
        ]
    attention_bias = {"attention_bias": has_attention_biases}
    rotated = {"no_rope_layers": [int(layer not in config.unrotated_layers) for layer in every_layer]}
    is_llama = is_plain and is_even and not config.sliding_layers
    is_mistral = is_plain and not any(biases) and config.sliding_layers == every_layer
    is_qwen2 = is_plain and biases == (True, False, False)
    is_qwen3 = config.qk_norm and is_even and not has_mlp_biases and not config.unrotated_layers
    is_smollm3 = not config.qk_norm and is_even
    mlp_bias = {"mlp_bias": has_mlp_biases}
    smollm3 = windows | attention_bias | mlp_bias | rotated | {"pad_token_id": None}  # its default is a large number
    return {
        "llama": ("LlamaForCausalLM", attention_bias | mlp_bias if is_llama else None),
        "mistral": ("MistralForCausalLM", {"sliding_window": config.sliding_window} if is_mistral else None),
        "qwen2": ("Qwen2ForCausalLM", windows if is_qwen2 else None),
        "qwen3": ("Qwen3ForCausalLM", windows | attention_bias if is_qwen3 else None),
        "smollm3": ("SmolLM3ForCausalLM", smollm3 if is_smollm3 else None),
    }
