"""Reads the `config.json` of a Hugging Face folder, for every family of models that the transformer can compute.

Both spellings of rotary positions are read: `rope_theta` with `rope_scaling`, and `rope_parameters` (since version 5 of
`transformers`). A setting that could change the computation and is not known is refused by name.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.content.transformer import TransformerConfig, validate_config
from ontogeny.content.transformer_block import RopeScaling
from ontogeny.errors import BadInput

CONFIG = "config.json"
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "exact_gelu", "relu": "relu"}  # of GPT-2
GATES = ("silu", "swish")  # two names of one function
MAX_SIZE = 1 << 20  # of widths, layers and vocabularies; larger arrays could not be held
MAX_CONTEXT_LENGTH = 1 << 24
LAYER_TYPES = ("full_attention", "sliding_attention")

# Settings that change no logit of a model without dropout: names, types of files, training, and text generation.
IRRELEVANT_SETTINGS = """
_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures
attention_dropout attn_pdrop auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder is_llama_config keep_fp32_modules
label2id length_penalty max_length max_sequence_length min_length model_type n_ctx n_special no_repeat_ngram_size
num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
output_scores pad_token_id predict_special_tokens prefix pretraining_tp problem_type remove_invalid_values
reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id
summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
"""


class ConfigFile:
    """The settings of one `config.json`, which remembers those that were read.

    Attributes:
        path: Place of the file.
        family: The model type, such as `llama`.
    """

    def __init__(self, folder: Path) -> None:
        """Read the file.

        Raises:
            BadInput: It is absent or damaged.
        """
        self.path = folder / CONFIG
        try:
            content = json.loads(self.path.read_bytes())
            self.family = content["model_type"]
        except OSError as error:
            raise BadInput(f"'{self.path}' cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError, KeyError, TypeError):
            raise BadInput(f"'{self.path}' is damaged: it holds no config of a model") from None
        self._settings: dict[str, Any] = content
        self._read_names: set[str] = set(IRRELEVANT_SETTINGS.split())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting; the default where it is absent."""
        self._read_names.add(name)
        return self._settings.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self._settings

    def integer(self, name: str, default: int | None = None, maximum: int = MAX_SIZE) -> int:
        """The value of a positive integer; null stands for the default."""
        number = self.get(name)
        number = default if number is None else number
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= maximum:
            raise self.damaged(name, number)
        return number

    def number(self, name: str, default: float) -> float:
        """The value of a positive number."""
        return self.as_number(name, self.get(name, default))

    def as_number(self, name: str, number: Any) -> float:
        """The value of a positive number within a setting."""
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < float("inf"):
            raise self.damaged(name, number)
        return float(number)

    def flag(self, name: str, default: bool) -> bool:
        """The value of a setting that is true or false."""
        flag = self.get(name, default)
        if not isinstance(flag, bool):
            raise self.damaged(name, flag)
        return flag

    def choice(self, name: str, default: Any, allowed: Collection[Any]) -> Any:
        """The value of a setting of which only some values can be computed."""
        choice = self.get(name, default)
        if not any(choice == option and type(choice) is type(option) for option in allowed):
            names = ", ".join(str(option).lower() if isinstance(option, bool) else str(option) for option in allowed)
            raise BadInput(f"'{self.path}' has {name} = {json.dumps(choice)}; only {names} can be computed")
        return choice

    def damaged(self, name: str, setting: Any) -> BadInput:
        """The error that a setting is absent or has a value which no model has."""
        if setting is None:
            return BadInput(f"'{self.path}' is damaged: it lacks {name}")
        return BadInput(f"'{self.path}' is damaged: {name} is {json.dumps(setting)}")

    def refuse_unknown(self) -> None:
        """Raise `BadInput` if a setting was not read and may change the computation."""
        unknown = [
            name for name, setting in self._settings.items() if name not in self._read_names and _is_set(setting)
        ]
        if unknown:
            names = ", ".join(f"'{name}'" for name in sorted(unknown)[:5])
            verb = "are settings that are" if len(unknown) > 1 else "is a setting that is"
            raise BadInput(
                f"in '{self.path}', {names} {verb} not known for a model of type {self.family}, so the model cannot be "
                "computed as it was trained"
            )


def read_config(folder: Path) -> TransformerConfig:
    """Read `config.json`.

    Raises:
        BadInput: The file is absent or damaged, or describes a model that cannot be computed.
    """
    file = ConfigFile(folder)
    quantization = file.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise BadInput(f"the model in '{folder}' is quantized ({method or 'unknown method'}), which cannot be read")
    if file.family not in READERS:
        raise BadInput(
            f"the model in '{folder}' is of type '{file.family}'; the types that can be read are {', '.join(READERS)}"
        )
    config = READERS[file.family](file)
    file.refuse_unknown()
    return validate_config(config)


def _is_set(setting: Any) -> bool:
    """Whether the value of an unknown setting asks for anything."""
    return setting not in (None, False, "", [], {})


def _read_gpt2(file: ConfigFile) -> TransformerConfig:
    """GPT-2 (Radford et al. 2019)."""
    file.choice("scale_attn_weights", True, (True,))
    file.choice("scale_attn_by_inverse_layer_idx", False, (False,))
    file.choice("add_cross_attention", False, (False,))
    width = file.integer("n_embd", 768)
    return TransformerConfig(
        vocab_size=file.integer("vocab_size", 50257),
        context_length=file.integer("n_positions", 1024),
        num_layers=file.integer("n_layer", 12),
        num_heads=file.integer("n_head", 12),
        width=width,
        mlp_width=file.integer("n_inner", 4 * width),
        activation=ACTIVATIONS[file.choice("activation_function", "gelu_new", ACTIVATIONS)],
        tie_embeddings=file.flag("tie_word_embeddings", True),
        norm_epsilon=file.number("layer_norm_epsilon", 1e-5),
    )


class RotaryDefaults(NamedTuple):
    """The settings that `transformers` 5.24 gives to a relative of Llama whose file does not say them.

    Attributes:
        context_length: `max_position_embeddings`.
        num_kv_heads: `num_key_value_heads`, where it is absent; null stands for as many as of queries, as does None.
        num_heads: `num_attention_heads`.
        head_size: `head_dim`; None for width / number of heads.
        rope_base: `rope_theta`.
        tie_embeddings: `tie_word_embeddings`.
    """

    context_length: int
    num_kv_heads: int | None
    num_heads: int = 32
    head_size: int | None = None
    rope_base: float = 10000.0
    tie_embeddings: bool = False


DEFAULTS = {
    "llama": RotaryDefaults(2048, None),
    "mistral": RotaryDefaults(131072, 8),
    "qwen2": RotaryDefaults(32768, 32),
    "qwen3": RotaryDefaults(32768, 32, head_size=128),
    "smollm3": RotaryDefaults(32768, 4, num_heads=16, rope_base=2000000.0, tie_embeddings=True),
}


def _read_rotary(file: ConfigFile) -> TransformerConfig:
    """What Llama and its relatives have in common."""
    defaults = DEFAULTS[file.family]
    file.choice("hidden_act", "silu", GATES)
    file.choice("partial_rotary_factor", 1.0, (1.0, None))
    num_heads = file.integer("num_attention_heads", defaults.num_heads)
    num_kv_heads = num_heads if "num_key_value_heads" in file else defaults.num_kv_heads or num_heads
    rope_base, rope_scaling = _read_rope(file, defaults.rope_base)
    head_size = defaults.head_size if file.get("head_dim") is None else file.integer("head_dim")
    return TransformerConfig(
        vocab_size=file.integer("vocab_size"),
        context_length=file.integer("max_position_embeddings", defaults.context_length, MAX_CONTEXT_LENGTH),
        num_layers=file.integer("num_hidden_layers"),
        num_heads=num_heads,
        width=file.integer("hidden_size"),
        mlp_width=file.integer("intermediate_size"),
        positions="rotary",
        norm="rms",
        activation="swiglu",
        use_biases=False,
        tie_embeddings=file.flag("tie_word_embeddings", defaults.tie_embeddings),
        norm_epsilon=file.number("rms_norm_eps", 1e-6),
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        num_kv_heads=file.integer("num_key_value_heads", num_kv_heads),
        head_size=head_size,
    )


def _read_rope(file: ConfigFile, default_base: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling of rotary positions, from either spelling."""
    scaling = file.get("rope_scaling") or {}
    parameters = file.get("rope_parameters") or {}
    if not isinstance(scaling, dict) or not isinstance(parameters, dict):
        raise file.damaged("rope_scaling", scaling or parameters)
    parameters = {"rope_theta": file.get("rope_theta", default_base), **scaling, **parameters}
    base = file.as_number("rope_theta", parameters.pop("rope_theta"))
    kinds = {parameters.pop("rope_type", None), parameters.pop("type", None)} - {None} or {"default"}
    kind = kinds.pop()
    if kinds or kind not in ("default", "linear", "llama3"):
        raise BadInput(
            f"'{file.path}' has the rotary positions {kind!r}; only default, linear and llama3 can be computed"
        )
    if parameters.pop("partial_rotary_factor", 1.0) != 1.0:
        raise BadInput(f"'{file.path}' rotates a part of each head only, which cannot be computed")

    def number(name: str) -> float:
        return file.as_number(f"{name} of the rotary positions", parameters.pop(name, None))

    rope_scaling = None
    if kind == "linear":
        rope_scaling = RopeScaling("linear", number("factor"))
    elif kind == "llama3":
        factors = number("factor"), number("low_freq_factor"), number("high_freq_factor")
        rope_scaling = RopeScaling("llama3", *factors, int(number("original_max_position_embeddings")))
        if rope_scaling.high_frequency_factor <= rope_scaling.low_frequency_factor:
            raise file.damaged("high_freq_factor of the rotary positions", rope_scaling.high_frequency_factor)
    unknown = sorted(name for name, setting in parameters.items() if kind != "default" and _is_set(setting))
    if unknown:
        raise BadInput(f"'{file.path}' has the unknown setting '{unknown[0]}' of rotary positions")
    return base, rope_scaling


def _read_windows(
    file: ConfigFile, config: TransformerConfig, sliding_layers: tuple[int, ...], default_window: int | None = None
) -> TransformerConfig:
    """Adds the layers that have a sliding window.

    Args:
        config: The other settings.
        sliding_layers: Those of the family, unless the file names the type of each layer.
        default_window: Where the file does not say it.
    """
    window = file.get("sliding_window", default_window)
    if window is not None:
        window = file.integer("sliding_window", default_window, MAX_CONTEXT_LENGTH)
    types = file.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != config.num_layers:
            raise file.damaged("layer_types", types)
        for kind in types:
            if kind not in LAYER_TYPES:
                raise BadInput(f"'{file.path}' has a layer of type {kind!r}; only {' and '.join(LAYER_TYPES)} can be")
        sliding_layers = tuple(layer for layer, kind in enumerate(types) if kind == "sliding_attention")
        if sliding_layers and window is None:
            raise file.damaged("sliding_window", window)
    if window is None or window >= config.context_length or not sliding_layers:  # every token sees all before it
        return config
    return config._replace(sliding_window=window, sliding_layers=sliding_layers)


def _require_layer_types(file: ConfigFile, kind: str) -> None:
    """Refuses types of layers that a family does not have, which computes all layers alike."""
    types = file.get("layer_types")
    if types is not None and (not isinstance(types, list) or not types or any(type_ != kind for type_ in types)):
        raise BadInput(
            f"'{file.path}' has layer_types that are not all {kind}, which a model of type {file.family} does not have"
        )


def _read_llama(file: ConfigFile) -> TransformerConfig:
    """Llama 2 and 3, SmolLM2, and others of this type."""
    config = _read_rotary(file)
    _require_layer_types(file, "full_attention")
    has_biases = file.flag("attention_bias", False)
    return config._replace(
        use_qkv_biases=has_biases, use_out_proj_bias=has_biases, use_mlp_biases=file.flag("mlp_bias", False)
    )


def _read_mistral(file: ConfigFile) -> TransformerConfig:
    """Mistral (Jiang et al. 2023, arXiv 2310.06825): every layer has the window."""
    config = _read_rotary(file)
    window = file.get("sliding_window", 4096)
    _require_layer_types(file, "full_attention" if window is None else "sliding_attention")
    return _read_windows(file, config, tuple(range(config.num_layers)), 4096)


def _layers_with_optional_window(file: ConfigFile, config: TransformerConfig) -> tuple[int, ...]:
    """The layers from `max_window_layers` on, where the window is switched on."""
    is_used, first = file.flag("use_sliding_window", False), file.get("max_window_layers", 28)
    if not isinstance(first, int) or first < 0:
        raise file.damaged("max_window_layers", first)
    return tuple(range(first, config.num_layers)) if is_used else ()


def _read_qwen2(file: ConfigFile) -> TransformerConfig:
    """Qwen2 and 2.5: biases on queries, keys and values."""
    config = _read_rotary(file)._replace(use_qkv_biases=True)
    file.choice("use_mrope", False, (False, None))
    return _read_windows(file, config, _layers_with_optional_window(file, config))


def _read_qwen3(file: ConfigFile) -> TransformerConfig:
    """Qwen3: norms of queries and keys."""
    has_biases = file.flag("attention_bias", False)
    config = _read_rotary(file)
    config = config._replace(qk_norm=True, use_qkv_biases=has_biases, use_out_proj_bias=has_biases)
    return _read_windows(file, config, _layers_with_optional_window(file, config))


def _read_smollm3(file: ConfigFile) -> TransformerConfig:
    """SmolLM3: every fourth layer has no positions."""
    has_biases = file.flag("attention_bias", False)
    config = _read_rotary(file)
    interval = file.integer("no_rope_layer_interval", 4)
    default = [int((layer + 1) % interval != 0) for layer in range(config.num_layers)]
    rotated = file.get("no_rope_layers") or default  # in spite of its name, 1 stands for a layer with positions
    if not isinstance(rotated, list) or len(rotated) != config.num_layers or not set(rotated) <= {0, 1}:
        raise file.damaged("no_rope_layers", rotated)
    unrotated = tuple(layer for layer, is_rotated in enumerate(rotated) if not is_rotated)
    config = config._replace(
        unrotated_layers=unrotated,
        use_qkv_biases=has_biases,
        use_out_proj_bias=has_biases,
        use_mlp_biases=file.flag("mlp_bias", False),
    )
    file.get("max_window_layers")
    is_used = file.flag("use_sliding_window", False)
    return _read_windows(file, config, unrotated if is_used else ())


READERS: dict[str, Callable[[ConfigFile], TransformerConfig]] = {
    "gpt2": _read_gpt2,
    "llama": _read_llama,
    "mistral": _read_mistral,
    "qwen2": _read_qwen2,
    "qwen3": _read_qwen3,
    "smollm3": _read_smollm3,
}
