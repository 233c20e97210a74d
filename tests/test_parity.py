"""Models in Hugging Face folders agree with transformers: with committed fixtures, and with torch where it is there.

`tests/golden/make_models.py` wrote the fixtures. `make parity` requires torch and compares with transformers itself.
"""

import json
import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ontogeny import kernels, trees
from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm import evaluation, hugging_face
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.hugging_face import config_file
from selection import slow_except

FOLDER = Path(__file__).parent / "golden"
FAMILIES = ("gpt2", "llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm3")
GREEDY = SamplingParams(temperature=0.0)
MAX_DIFFERENCE = 1e-4

forward = jax.jit(transformer.forward, static_argnums=0)


class Golden:
    """A folder with the outputs that transformers gave."""

    def __init__(self, family):
        folder = FOLDER / family
        self.family, self.model = family, models.load(folder)
        self.outputs = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        self.logits = load_file(folder / "golden.safetensors")["logits"]

    def max_logit_difference(self, model=None):
        """The largest absolute difference between a logit of the model and that of transformers."""
        model = model or self.model
        logits = forward(model.config, model.weights, jnp.array([self.outputs["tokens"][0]]))[0]
        return float(np.abs(np.asarray(logits) - self.logits).max())


@pytest.fixture(scope="module", params=slow_except(["gpt2", "llama3", "mistral", "qwen3"], FAMILIES))
def golden(request):
    return Golden(request.param)


@pytest.fixture(params=["kernels", "xla"])
def path(request, monkeypatch):
    """Each path by which text is generated."""
    if request.param == "kernels":
        pytest.importorskip("numba")
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, str(int(request.param == "kernels")))


def test_a_folder_is_small():
    for family in FAMILIES[1:]:
        assert sum(file.stat().st_size for file in (FOLDER / family).iterdir()) < 200_000


def test_tokens_and_text_equal_those_of_transformers(golden):
    tokenizer = golden.model.tokenizer
    for text, tokens in zip(golden.outputs["scored"], golden.outputs["tokens"], strict=True):
        encoded = tokenizer.encode(text)
        assert tokenizers.begin_prompt(tokenizer, encoded.tolist())[:40] == tokens
        # Llama 2 puts a space before each text, which is part of its first token.
        assert tokenizers.decode(tokenizer, encoded).removeprefix(" ") == text
    if golden.family not in ("llama2", "mistral"):  # for which transformers writes bytes that are no text otherwise
        texts = [tokenizers.decode(tokenizer, ids) for ids in golden.outputs["greedy"]]
        assert texts == golden.outputs["greedy_text"] and tokenizer.end == 0


def test_logits_equal_those_of_transformers(golden):
    assert golden.logits.std() > 0.3 and golden.max_logit_difference() < MAX_DIFFERENCE


def test_log_probabilities_equal_those_of_transformers(golden):
    for tokens, expected in zip(golden.outputs["tokens"], golden.outputs["log_probabilities"], strict=True):
        np.testing.assert_allclose(-evaluation.token_losses(golden.model, tokens), expected, atol=MAX_DIFFERENCE)


def test_greedy_continuations_of_prompts_of_different_lengths_equal_those_of_transformers(golden, path):
    prompts, expected = golden.outputs["prompts"], golden.outputs["greedy"]
    completions = generate.generate(golden.model, prompts, max_tokens=len(expected[0]), sampling_params=GREEDY)
    assert [list(completion.tokens) for completion in completions] == expected


def test_the_server_engine_continues_prompts_as_transformers_does(golden, path):
    model, outputs = golden.model, golden.outputs
    tokens: list[list[int]] = [[] for _ in outputs["prompts"]]
    done = [threading.Event() for _ in tokens]
    engine = Engine(model.config)
    engine.start(model.weights)
    for number, prompt in enumerate(outputs["prompts"]):

        def collect(output, number=number):
            if isinstance(output, TokenOutput):
                tokens[number].append(output.token)
            else:
                done[number].set()

        prompt_tokens = tuple(generate.encode_prompt(model, prompt))
        request = GenerationRequest(model.weights, prompt_tokens, len(outputs["greedy"][0]), GREEDY)
        request = request._replace(end_tokens=model.tokenizer.end_tokens, num_candidate_tokens=model.tokenizer.size)
        engine.submit(request, collect)
    assert all(event.wait(120) for event in done)
    engine.stop()
    # transformers counts the end token as a part of the answer.
    expected = [[t for t in ids if t not in model.tokenizer.end_tokens] for ids in outputs["greedy"]]
    assert tokens == expected


PLANTED = [
    ("gpt2", {"norm_epsilon": 1e-2}),
    ("gpt2", {"activation": "exact_gelu"}),
    ("gpt2", {"num_heads": 2}),
    ("llama2", {"rope_scaling": None}),
    ("llama2", {"rope_base": 1000.0}),
    ("llama3", {"rope_scaling": None}),
    ("llama3", {"rope_scaling": transformer.RopeScaling("linear", 8.0)}),
    ("mistral", {"sliding_layers": ()}),
    ("mistral", {"sliding_window": 7}),
    ("qwen2", {"sliding_layers": ()}),
    ("qwen2", {"sliding_layers": (0, 1)}),
    ("smollm3", {"unrotated_layers": ()}),
    ("smollm3", {"unrotated_layers": (0,)}),
    ("smollm3", {"norm_epsilon": 1e-2}),
]


@pytest.mark.parametrize(("family", "changed"), PLANTED)
def test_a_planted_error_in_the_config_changes_the_logits(family, changed):
    golden = Golden(family)
    changed_model = golden.model._replace(config=golden.model.config._replace(**changed))
    assert golden.max_logit_difference(changed_model) > 5 * MAX_DIFFERENCE


def test_the_norms_of_queries_and_keys_change_the_logits():
    golden = Golden("qwen3")
    blocks = [block._replace(query_norm=None, key_norm=None) for block in golden.model.weights.blocks]
    weights = golden.model.weights._replace(blocks=tuple(blocks))
    assert golden.max_logit_difference(golden.model._replace(weights=weights)) > 10 * MAX_DIFFERENCE


def test_noise_in_any_weight_array_changes_the_logits(golden):
    leaves, structure = jax.tree.flatten(golden.model.weights)
    random = np.random.default_rng(0)
    for i, leaf in enumerate(leaves):
        noise = 0.05 * random.normal(size=leaf.shape).astype(np.float32)
        changed = jax.tree.unflatten(structure, [*leaves[:i], leaf + noise, *leaves[i + 1 :]])
        assert golden.max_logit_difference(golden.model._replace(weights=changed)) > 1e-4, i


def test_a_written_folder_loads_as_the_same_model(golden, tmp_path):
    model = golden.model
    hugging_face.write_folder(tmp_path / "folder", model.config, model.weights, model.tokenizer)
    reloaded = models.load(tmp_path / "folder")
    assert trees.bitwise_equal(reloaded.weights, model.weights)
    tokens = jnp.array([golden.outputs["tokens"][0]])
    logits = [forward(loaded.config, loaded.weights, tokens) for loaded in (model, reloaded)]
    assert np.array_equal(*logits)
    before, after = model.tokenizer, reloaded.tokenizer
    assert after.as_json() == before.as_json() and after.prefix == before.prefix
    assert (after.start, after.end, after.end_tokens) == (before.start, before.end, before.end_tokens)
    with pytest.raises(BadInput, match="exists; not overwritten"):
        hugging_face.write_folder(tmp_path / "folder", model.config, model.weights, model.tokenizer)


def test_a_model_that_transformers_does_not_have_is_not_written(golden, tmp_path):
    config = transformer.make_config("llama", 8, 8, num_layers=1, num_heads=1, width=8)._replace(norm="layer")
    with pytest.raises(BadInput, match="no architecture of transformers"):
        weights = transformer.init_weights(jax.random.key(0), config)
        hugging_face.write_folder(tmp_path / "folder", config, weights, golden.model.tokenizer)
    assert not list(tmp_path.iterdir())


TEXT = "In the beginning was the word, and the word was tokenized.\n"


def load_in_torch(folder):
    """The model and the tokenizer of a folder as transformers loads them; skips where torch is absent."""
    if os.environ.get("ONTOGENY_REQUIRE_TORCH") != "1":
        pytest.importorskip("torch", reason="`make parity` installs torch")
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def logits_in_torch(peer, tokens):
    """The logits [T, V] that transformers computes."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return peer(torch.tensor(np.asarray(tokens)[None].astype(np.int64))).logits[0].numpy()


def write_and_compare(folder, config, tokenizer):
    """Writes a model, loads it in transformers, and compares the logits of a text."""
    weights = jax.tree.map(lambda leaf: leaf + 0.1, transformer.init_weights(jax.random.key(0), config))
    hugging_face.write_folder(folder, config, weights, tokenizer)
    peer, peer_tokenizer = load_in_torch(folder)
    tokens = tokenizer.encode(TEXT)[:60]
    decoded = peer_tokenizer.decode(tokens)
    assert peer_tokenizer(TEXT)["input_ids"][:60] == tokens.tolist() and decoded == TEXT[: len(decoded)]
    logits = forward(config, weights, jnp.asarray(tokens)[None])[0]
    np.testing.assert_allclose(logits, logits_in_torch(peer, tokens), atol=MAX_DIFFERENCE)
    return weights, logits


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_a_written_folder_and_computes_the_same_logits(tmp_path, kind):
    tokenizer = tokenizers.train_tokenizer(kind, 300, [TEXT])
    config = transformer.make_config("gpt2", tokenizer.size, 64, num_layers=2, num_heads=2, width=16)
    write_and_compare(tmp_path / "folder", config, tokenizer)


LLAMA3_SCALING = transformer.RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
SHAPES = {
    "llama": {},
    "llama, one head of keys": {"num_kv_heads": 1, "use_qkv_biases": True, "use_out_proj_bias": True},
    "llama, scaled": {"rope_scaling": LLAMA3_SCALING, "rope_base": 300.0, "use_mlp_biases": True},
    "llama, wide heads": {"head_size": 10, "tie_embeddings": False, "rope_scaling": LLAMA3_SCALING},
    "mistral": {"sliding_window": 5, "sliding_layers": (0, 1, 2), "num_kv_heads": 2},
    "qwen2, wide heads": {"use_qkv_biases": True, "head_size": 6},
    "smollm3, wide heads": {"unrotated_layers": (1,), "head_size": 6},
    "qwen2": {"use_qkv_biases": True, "sliding_window": 5, "sliding_layers": (1, 2)},
    "qwen3": {"qk_norm": True, "head_size": 6, "sliding_window": 9, "sliding_layers": (2,)},
    "smollm3": {"unrotated_layers": (1,), "num_kv_heads": 2, "sliding_window": 4, "sliding_layers": (1,)},
    "smollm3, biases": {"unrotated_layers": (0, 2), "use_qkv_biases": True, "use_out_proj_bias": True},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same_logits_for_every_family(tmp_path, name):
    tokenizer = tokenizers.train_tokenizer("bytes", 300, [TEXT])
    config = transformer.make_config("llama", tokenizer.size, 64, num_layers=3, num_heads=4, width=16)
    config = transformer.validate_config(config._replace(**SHAPES[name]))
    weights, logits = write_and_compare(tmp_path / "folder", config, tokenizer)
    model = models.load(tmp_path / "folder")
    tokens = jnp.asarray(tokenizer.encode(TEXT)[:60])[None]
    assert trees.bitwise_equal(model.weights, weights)
    assert np.array_equal(forward(model.config, model.weights, tokens)[0], logits)


@pytest.mark.parametrize("family", config_file.DEFAULTS)
def test_settings_that_a_file_does_not_say_are_those_of_transformers(tmp_path, family):
    if os.environ.get("ONTOGENY_REQUIRE_TORCH") != "1":
        pytest.importorskip("torch", reason="`make parity` installs torch")
    import transformers  # pyright: ignore[reportMissingImports]

    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    settings = {"model_type": family, "num_attention_heads": 32, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = hugging_face.read_config(tmp_path)
    peer = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.kv_heads, config.context_length) == (peer.num_key_value_heads, peer.max_position_embeddings)
    assert config.size_of_head == (getattr(peer, "head_dim", None) or 64 // 32)
    assert (config.rope_base, config.tie_embeddings) == (
        peer.rope_parameters["rope_theta"],
        peer.tie_word_embeddings,
    )
    assert config.sliding_window == (4096 if family == "mistral" else None)


@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_committed_logits(golden):
    peer, _ = load_in_torch(FOLDER / golden.family)
    logits = logits_in_torch(peer.float(), golden.outputs["tokens"][0])
    np.testing.assert_allclose(logits, golden.logits, atol=1e-2)  # rotary positions may have the stored type
