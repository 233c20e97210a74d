"""Folders of Hugging Face as people have them, and folders that are damaged, incomplete or of another kind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ontogeny import kernels, memory, trees
from ontogeny.engine import generate
from ontogeny.engine.grammar import compile_json_schema
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.kernels import packing
from ontogeny.lm import evaluation, hugging_face, weight_types
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.hugging_face.special_tokens import read_special_tokens

GOLDEN = Path(__file__).parent / "golden"


def copy_folder(family, target):
    """A copy of a golden folder, which a test may change."""
    return Path(shutil.copytree(GOLDEN / family, target / family))


def change_json(path, **changes):
    """Changes settings of a file; those that become None are removed."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_config(folder, **changes):
    change_json(folder / "config.json", **changes)


def change_arrays(folder, change):
    """Writes the arrays that a function makes of those of a folder."""
    arrays = load_file(folder / "model.safetensors")
    save_file(change(arrays), folder / "model.safetensors")


def remove_array(folder, name):
    change_arrays(folder, lambda arrays: {key: array for key, array in arrays.items() if key != name})


def add_array(folder, name, array):
    change_arrays(folder, lambda arrays: arrays | {name: array})


def truncate(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def rope(**settings):
    return {"rope_parameters": {"rope_theta": 100.0, **settings}}


DAMAGED = [
    ("gpt2", lambda f: truncate(f, "model.safetensors"), "damaged or cut off"),
    ("gpt2", lambda f: truncate(f, "config.json"), "config.json' is damaged"),
    ("gpt2", lambda f: truncate(f, "tokenizer.json"), "tokenizer.json' is damaged"),
    ("gpt2", lambda f: (f / "model.safetensors").unlink(), "there is no"),
    ("gpt2", lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    ("gpt2", lambda f: change_config(f, model_type="gemma"), "of type 'gemma'; the types that can be read are gpt2,"),
    ("gpt2", lambda f: change_config(f, n_embd=64), r"is \[384, 32\], its config says \[384, 64\]"),
    ("gpt2", lambda f: change_config(f, n_layer=3), "lack the array 'h.2.ln_1.weight'"),
    ("gpt2", lambda f: change_config(f, n_layer=1), "hold 'h.1.attn.c_attn.bias', .* and 9 more, which its config"),
    ("gpt2", lambda f: change_config(f, n_layer=-1), "n_layer is -1"),
    ("gpt2", lambda f: change_config(f, activation_function="silu"), 'activation_function = "silu"; only gelu_new'),
    (
        "gpt2",
        lambda f: change_config(f, scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx = true",
    ),
    ("gpt2", lambda f: change_config(f, n_head=5), "5 heads do not divide"),
    ("gpt2", lambda f: remove_array(f, "transformer.wte.weight"), "lack the array 'wte.weight'"),
    ("gpt2", lambda f: shutil.rmtree(f), "the folder does not exist"),
    ("gpt2", lambda f: (f / "config.json").unlink(), "not a language-model run or a Hugging Face folder"),
    ("gpt2", lambda f: change_config(f, quantization_config={"quant_method": "gptq"}), r"is quantized \(gptq\)"),
    ("gpt2", lambda f: change_config(f, logit_scale=2.0), "'logit_scale' is a setting that is not known"),
    ("gpt2", lambda f: add_array(f, "lm_head.weight", np.zeros((384, 32), np.float32)), "differs from 'wte.weight'"),
    ("gpt2", lambda f: add_array(f, "h.0.attn.lora_A", np.zeros((4, 4), np.float32)), "hold 'h.0.attn.lora_A'"),
    ("qwen3", lambda f: change_config(f, **rope(rope_type="yarn", factor=4.0)), "rotary positions 'yarn'; only"),
    ("qwen3", lambda f: change_config(f, **rope(rope_type="linear")), "lacks factor of the rotary positions"),
    ("qwen3", lambda f: change_config(f, **rope(rope_type="linear", factor=2.0, beta=1.0)), "setting 'beta' of rotary"),
    ("qwen3", lambda f: change_config(f, hidden_act="gelu"), 'hidden_act = "gelu"; only silu'),
    ("qwen3", lambda f: change_config(f, num_key_value_heads=3), "3 heads of keys do not divide 4 heads"),
    ("qwen3", lambda f: change_config(f, hidden_size=None), "lacks hidden_size"),
    ("qwen3", lambda f: change_config(f, attention_bias=True), "lack the array 'layers.0.self_attn.q_proj.bias'"),
    ("qwen3", lambda f: change_config(f, layer_types=["full_attention", "linear"]), "layer of type 'linear'"),
    ("smollm3", lambda f: change_config(f, no_rope_layers=[1]), "no_rope_layers is"),
    ("mistral", lambda f: next(f.glob("*-00002-of-*")).unlink(), "is missing, although the index names it"),
    ("mistral", lambda f: truncate(f, next(f.glob("*-00002-of-*")).name), "damaged or cut off"),
    ("mistral", lambda f: (f / "model.safetensors.index.json").write_text("{}"), "it names no files"),
    ("mistral", lambda f: save_file({}, f / "model.safetensors"), "holds two models: 'model.safetensors', and"),
]


@pytest.mark.parametrize(("family", "damage", "message"), DAMAGED)
def test_a_damaged_or_unsupported_folder_is_rejected_in_one_sentence(tmp_path, family, damage, message):
    folder = copy_folder(family, tmp_path)
    damage(folder)
    with pytest.raises(BadInput, match=message):
        models.load(folder)


def test_integer_weights_are_not_scored_as_numbers(tmp_path):
    folder = copy_folder("qwen3", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    change_arrays(folder, lambda arrays: arrays | {name: (100 * arrays[name]).astype(np.int8)})
    with pytest.raises(BadInput, match=r"up_proj.weight' .* numbers of the type I8; quantized weights cannot be read"):
        models.load(folder)


def unchanged(folder):
    """A folder as it was written."""


def without_prefix(folder):
    change_arrays(folder, lambda arrays: {name.removeprefix("model."): array for name, array in arrays.items()})


def tied_under_the_other_name(folder):
    change_arrays(
        folder,
        lambda arrays: {name.replace("model.embed_tokens", "lm_head"): array for name, array in arrays.items()},
    )


def with_buffers(folder):
    add_array(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", np.zeros(8, np.float32))


def with_the_old_spelling(folder):
    change_config(
        folder, rope_parameters=None, rope_theta=10000.0, rope_scaling=None, dtype=None, torch_dtype="float32"
    )


def with_harmless_settings(folder):
    change_config(folder, _name_or_path="x", pretraining_tp=1, unknown_and_off=False, temperature=0.6)
    change_config(folder, is_llama_config=True, rope_interleaved=False, max_sequence_length=64)  # SmolLM2, Llama 1


AS_PEOPLE_HAVE_THEM = [
    unchanged,
    without_prefix,
    tied_under_the_other_name,
    with_buffers,
    with_the_old_spelling,
    with_harmless_settings,
]


@pytest.mark.parametrize("change", AS_PEOPLE_HAVE_THEM)
def test_folders_as_people_have_them_hold_the_same_model(tmp_path, change):
    expected = models.load(GOLDEN / "qwen3")
    folder = copy_folder("qwen3", tmp_path)
    change(folder)
    model = models.load(folder)
    assert model.config == expected.config and trees.bitwise_equal(model.weights, expected.weights)


def test_settings_that_published_models_of_gpt2_have_and_that_change_nothing_are_read(tmp_path):
    folder = copy_folder("gpt2", tmp_path)
    change_config(folder, _num_labels=1, n_special=0, predict_special_tokens=True, output_past=True, n_ctx=64)
    change_config(folder, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}})
    assert models.load(folder).config == models.load(GOLDEN / "gpt2").config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_every_type_are_read(tmp_path, dtype):
    folder = copy_folder("qwen3", tmp_path)
    change_arrays(folder, lambda arrays: {name: array.astype(dtype) for name, array in arrays.items()})
    expected = load_file(GOLDEN / "qwen3" / "model.safetensors")["model.norm.weight"].astype(dtype)
    assert np.array_equal(np.asarray(models.load(folder).weights.norm.scale), expected.astype(np.float32))


def test_words_of_the_model_without_a_token_are_never_generated():
    model = models.load(GOLDEN / "qwen2")
    assert model.config.vocab_size == model.tokenizer.size + 8
    head = np.array(model.weights.embedding)
    head[model.tokenizer.size :] *= 50.0  # by far the most probable
    model = model._replace(weights=model.weights._replace(embedding=head))
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature)
        completions = generate.generate(model, ["You may"], max_tokens=20, sampling_params=params, n=4)
        assert all(max(completion.tokens) < model.tokenizer.size for completion in completions)
    tokens = np.arange(40) % model.config.vocab_size
    assert np.isfinite(evaluation.token_losses(model, tokens)).all()
    assert tokenizers.decode(model.tokenizer, [model.tokenizer.size + 3]) == ""


def test_the_tokens_that_end_an_answer_are_those_of_the_generation_config(tmp_path):
    folder = copy_folder("qwen3", tmp_path)
    end = models.load(folder).tokenizer.end
    change_config(folder, eos_token_id=[end, 17])
    assert models.load(folder).tokenizer.end_tokens == {end, 17}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [21, 22]}))
    assert models.load(folder).tokenizer.end_tokens == {end, 21, 22}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "21"}))
    with pytest.raises(BadInput, match="eos_token_id is '21'"):
        models.load(folder)


@pytest.mark.parametrize("is_special", [True, False])
def test_an_end_token_that_only_the_config_names_ends_documents_and_answers_in_json(tmp_path, is_special):
    folder = copy_folder("llama2", tmp_path)
    expected = models.load(folder).tokenizer
    (folder / "tokenizer_config.json").unlink()
    if not is_special:
        settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for word in settings["added_tokens"]:
            word["special"] = False
        (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = models.load(folder).tokenizer
    assert (tokenizer.end, tokenizer.end_name) == (expected.end, "</s>") and tokenizer.end_tokens == expected.end_tokens
    constraint = compile_json_schema({"const": "</s>"}, tokenizer)
    tokens = []
    while tokenizer.end not in tokens:
        tokens.append(int(np.argmax(constraint.find_allowed_tokens(tokens))))
    assert json.loads(tokenizers.decode(tokenizer, tokens[:-1])) == "</s>"


@pytest.mark.parametrize(
    ("family", "num_kv_heads", "context_length"),
    [("llama", 32, 2048), ("mistral", 8, 131072), ("qwen2", 32, 32768), ("qwen3", 32, 32768), ("smollm3", 4, 32768)],
)
def test_settings_that_are_absent_are_the_defaults_of_their_class(family, num_kv_heads, context_length, tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    settings = {"model_type": family, "num_attention_heads": 32, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = hugging_face.read_config(tmp_path)
    assert (config.kv_heads, config.context_length) == (num_kv_heads, context_length)
    assert config.sliding_window == (4096 if family == "mistral" else None)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_key_value_heads": None}))
    assert hugging_face.read_config(tmp_path).kv_heads == 32


def test_types_of_layers_are_accepted_where_they_say_what_the_family_does(tmp_path):
    folder = copy_folder("llama2", tmp_path)
    config = hugging_face.read_config(folder)
    change_config(folder, layer_types=["full_attention"] * config.num_layers)
    assert hugging_face.read_config(folder) == config
    change_config(folder, layer_types=["sliding_attention"] * config.num_layers)
    with pytest.raises(BadInput, match="layer_types that are not all full_attention"):
        hugging_face.read_config(folder)
    folder = copy_folder("mistral", tmp_path)
    config = hugging_face.read_config(folder)
    change_config(folder, layer_types=["sliding_attention"] * config.num_layers)
    assert hugging_face.read_config(folder) == config
    change_config(folder, layer_types=["full_attention"] * config.num_layers)
    with pytest.raises(BadInput, match="layer_types that are not all sliding_attention"):
        hugging_face.read_config(folder)


def test_special_tokens_are_read_from_their_map_where_transformers_reads_it(tmp_path):
    folder = copy_folder("gpt2", tmp_path)
    name = "<|other|>"
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": name}, "bos_token": name}))
    special_tokens = read_special_tokens(folder)
    assert special_tokens.end == special_tokens.start == name
    change_json(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert read_special_tokens(folder).end != name


def test_a_written_folder_has_the_chat_template(tmp_path):
    folder = copy_folder("qwen3", tmp_path)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ pad_token }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    change_json(folder / "tokenizer_config.json", pad_token="<pad>")
    model = models.load(folder)
    hugging_face.write_folder(tmp_path / "written", *model[:3], model.chat_template)
    message = [{"role": "user", "content": "hello"}]
    for template in (model.chat_template, models.load(tmp_path / "written").chat_template):
        assert template is not None and template.render(message).endswith("hello<pad>")
        assert template.render(message, tools=[{"type": "function"}]) == "tools"


def test_words_of_added_tokens_are_part_of_the_vocabulary(tmp_path):
    folder = copy_folder("qwen2", tmp_path)
    size = models.load(folder).tokenizer.size
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": size, "<call>": size + 1}))
    tokenizer = models.load(folder).tokenizer
    assert tokenizer.size == size + 2 and tokenizer.encode("a<call>b").tolist()[1] == size + 1
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": size + 5}))
    with pytest.raises(BadInput, match=f"gives '<tool>' the number {size + 5}, the tokenizer {size}"):
        models.load(folder)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    folder = copy_folder("qwen3", tmp_path)
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": 280}))
    with pytest.raises(BadInput, match="has 281 tokens, the model has only 280"):
        models.load(folder)


def test_the_sentencepiece_style_writes_unknown_characters_as_bytes():
    tokenizer = models.load(GOLDEN / "llama2").tokenizer
    tokens = tokenizer.encode("中")
    assert [tokenizer.bytes_of(token) for token in tokens.tolist()[-3:]] == [bytes([byte]) for byte in "中".encode()]
    assert tokenizers.decode(tokenizer, tokens) == " 中"
    long = "the license " * 200_000  # more than one piece of byte-level tokenizers
    assert tokenizers.decode(tokenizer, tokenizer.encode(long)) == " " + long


def test_a_config_with_a_window_as_long_as_the_context_has_no_window(tmp_path):
    folder = copy_folder("mistral", tmp_path)
    change_config(folder, sliding_window=64)
    assert hugging_face.read_config(folder).sliding_layers == ()


def test_bits_per_byte_are_over_the_bytes_of_the_text_and_not_of_its_normal_form(tmp_path):
    folder = copy_folder("qwen3", tmp_path)
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(settings | {"normalizer": {"type": "NFC"}}), encoding="utf-8")
    model = models.load(folder)
    texts = ["caf\u00e9 in the License " * 9, "cafe\u0301 in the License " * 9]
    composed, decomposed = (evaluation.evaluate(model, text) for text in texts)
    assert np.array_equal(composed.losses, decomposed.losses)
    assert [(e.num_bytes, e.num_unscored_bytes) for e in (composed, decomposed)] == [(189, 0), (198, 0)]
    assert np.isclose(composed.bits_per_byte.mean * 189, decomposed.bits_per_byte.mean * 198)
    spaced = evaluation.evaluate(models.load(GOLDEN / "llama2"), "You may</s> use")  # two spaces are added
    assert (spaced.num_bytes, spaced.num_unscored_bytes) == (15, 0)


def test_a_vocabulary_with_merges_is_read_as_that_of_gpt2_alone(tmp_path):
    folder = copy_folder("gpt2", tmp_path)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("".join(f"{' '.join(merge)}\n" for merge in model["merges"]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    text = "You may 1234 use this<|endoftext|>é中"
    tokens = models.load(folder).tokenizer.encode(text)
    assert tokens.tolist() == models.load(GOLDEN / "gpt2").tokenizer.encode(text).tolist()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(BadInput, match=r"lacks tokenizer.json; .* as those of GPT-2, not of Qwen2Tokenizer"):
        models.load(folder)


def read_as_bfloat16(folder):
    """Converts the arrays of a folder."""
    change_arrays(folder, lambda arrays: {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()})
    return folder


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_weights_stay_in_the_type_of_the_file_or_in_another_one(family, tmp_path):
    pytest.importorskip("numba")
    folder = read_as_bfloat16(copy_folder(family, tmp_path))
    arrays = models.load(folder)
    tokens = np.random.default_rng(0).integers(0, arrays.config.vocab_size, 3 * arrays.config.context_length)
    expected = evaluation.token_losses(arrays, tokens)
    for weights, weight_type, tolerance in (
        ("auto", "bfloat16", 1e-4), ("float32", "float32", 1e-4), ("float16", "float16", 1e-4), ("int8", "int8", 0.3),
    ):  # fmt: skip
        model = models.load(folder, weights=weights)
        packed = packing.pack(model.config, model.weights)
        assert packed.weight_type == weight_type and trees.digest(model.weights) != trees.digest(arrays.weights)
        losses = evaluation.token_losses(model, tokens)
        np.testing.assert_allclose(losses, expected, atol=tolerance)
        assert (np.abs(losses - expected).max() > 1e-4) == (tolerance > 1e-4)
        predicted = packing.predict_num_bytes(model.config, model.weights, weight_type)
        assert predicted <= packed.num_bytes < predicted + 40_000  # norms, biases and constants


def test_loaded_weights_have_the_digest_of_the_arrays_in_the_file():
    pytest.importorskip("numba")
    arrays = trees.digest(models.load(GOLDEN / "gpt2").weights)
    digests = [weight_types.digest(models.load(GOLDEN / "gpt2", weights=w).weights) for w in ("auto", "int8")]
    assert digests[0] == arrays != digests[1]


def test_a_model_that_does_not_fit_into_the_memory_is_refused_with_the_figures(tmp_path, monkeypatch):
    folder = copy_folder("gpt2", tmp_path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**8)
    models.load(folder, weights="auto")
    monkeypatch.setattr(packing, "predict_num_bytes", lambda *_: 2 * 10**9)
    with pytest.raises(BadInput, match=r"needs 2\.2 GB of memory with weights in bfloat16, and only 100 MB are"):
        models.load(folder, weights="bfloat16")
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(BadInput, match=r"needs .* kB of memory with weights in float32, and only 1,000 bytes are"):
        models.load(folder)


def test_types_of_weights_that_need_the_kernels_are_refused_without_them(monkeypatch):
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, "0")
    assert not weight_types.is_stored(models.load(GOLDEN / "gpt2", weights="auto").weights)
    with pytest.raises(BadInput, match="weights in int8 need the kernels of a processor"):
        models.load(GOLDEN / "gpt2", weights="int8")
    with pytest.raises(BadInput, match="'weights' must be one of auto, float32, bfloat16, float16, int8, not 'int4'"):
        models.load(GOLDEN / "gpt2", weights="int4")


def test_a_weight_beyond_the_range_of_float16_is_refused(tmp_path):
    pytest.importorskip("numba")
    folder = copy_folder("gpt2", tmp_path)
    change_arrays(
        folder, lambda arrays: {name: array * 1e6 if "c_fc.weight" in name else array for name, array in arrays.items()}
    )
    with pytest.raises(BadInput, match="a weight exceeds the largest number of float16, 65504"):
        models.load(folder, weights="float16")


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_number_that_is_not_finite_is_refused_in_every_type(dtype, number, tmp_path):
    folder = copy_folder("gpt2", tmp_path)

    def change(arrays):
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
        arrays["transformer.h.0.mlp.c_proj.weight"][1, 2] = number
        return arrays

    change_arrays(folder, change)
    for weights in ("auto", None):
        with pytest.raises(BadInput, match=r"'transformer.h.0.mlp.c_proj.weight' .* that are not finite"):
            models.load(folder, weights=weights)


@pytest.mark.slow
def test_loading_needs_little_more_memory_than_the_weights():
    pytest.importorskip("numba")
    benchmark = Path(__file__).parents[1] / "benchmarks" / "lm_memory.py"
    options = ["--shapes", "smollm2-135m", "--weights", "auto", "int8", "float32", "--rounds", "1", "--max-tokens", "2"]
    output = subprocess.run([sys.executable, str(benchmark), *options], capture_output=True, check=True, text=True)
    ratios = [record["ratio"] for record in map(json.loads, output.stdout.splitlines()) if "loading" in record["name"]]
    assert len(ratios) == 3 and all(0.9 < ratio < 1.2 for ratio in ratios)
