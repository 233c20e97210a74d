"""Models in GPT-2 folders agree with transformers: with a committed fixture, and with torch where it is installed.

`tests/golden/make_gpt2.py` wrote the fixture. `make parity` requires torch and compares with transformers itself.
"""

import json
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ontogeny import trees
from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm import evaluation, hugging_face
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers

FOLDER = Path(__file__).parent / "golden" / "gpt2"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
LOGITS = load_file(FOLDER / "golden.safetensors")["logits"]


forward = jax.jit(transformer.forward, static_argnums=0)


@pytest.fixture(scope="module")
def model():
    return models.load(FOLDER)


def max_logit_difference(model):
    """The largest absolute difference between a logit of the model and that of transformers."""
    logits = forward(model.config, model.weights, jnp.array([GOLDEN["tokens"][0]]))[0]
    return float(np.abs(np.asarray(logits) - LOGITS).max())


def test_tokens_and_text_equal_those_of_transformers(model):
    for text, tokens in zip(GOLDEN["scored"], GOLDEN["tokens"], strict=True):
        assert model.tokenizer.encode(text)[:40].tolist() == tokens
        assert tokenizers.decode(model.tokenizer, model.tokenizer.encode(text)) == text
    texts = [tokenizers.decode(model.tokenizer, ids) for ids in GOLDEN["greedy"]]
    assert texts == GOLDEN["greedy_text"] and model.tokenizer.end == 0


def test_logits_equal_those_of_transformers(model):
    assert LOGITS.std() > 0.3 and max_logit_difference(model) < 1e-4


def test_log_probabilities_equal_those_of_transformers(model):
    for tokens, expected in zip(GOLDEN["tokens"], GOLDEN["log_probabilities"], strict=True):
        np.testing.assert_allclose(-evaluation.token_losses(model, tokens), expected, atol=1e-4)


def test_greedy_continuations_of_prompts_of_different_lengths_equal_those_of_transformers(model):
    greedy = SamplingParams(temperature=0.0)
    max_tokens = len(GOLDEN["greedy"][0])
    completions = generate.generate(model, GOLDEN["prompts"], max_tokens=max_tokens, sampling_params=greedy)
    assert [list(completion.tokens) for completion in completions] == GOLDEN["greedy"]


def test_the_server_engine_continues_prompts_as_transformers_does(model):
    max_tokens, params = len(GOLDEN["greedy"][0]), SamplingParams(temperature=0.0)
    tokens: list[list[int]] = [[] for _ in GOLDEN["prompts"]]
    done = [threading.Event() for _ in tokens]
    engine = Engine(model.config)
    engine.start(model.weights)
    for number, prompt in enumerate(GOLDEN["prompts"]):

        def collect(output, number=number):
            if isinstance(output, TokenOutput):
                tokens[number].append(output.token)
            else:
                done[number].set()

        prompt_tokens = tuple(model.tokenizer.encode(prompt).tolist())
        engine.submit(GenerationRequest(model.weights, prompt_tokens, max_tokens, params, None), collect)
    assert all(event.wait(120) for event in done)
    engine.stop()
    assert tokens == GOLDEN["greedy"]


@pytest.mark.parametrize(
    "changed",
    [{"norm_epsilon": 1e-2}, {"activation": "exact_gelu"}, {"num_heads": 2}],
)
def test_a_planted_error_in_the_config_changes_the_logits(model, changed):
    assert max_logit_difference(model._replace(config=model.config._replace(**changed))) > 1e-4


def test_noise_in_any_weight_array_changes_the_logits(model):
    leaves, structure = jax.tree.flatten(model.weights)
    random = np.random.default_rng(0)
    for i, leaf in enumerate(leaves):
        noise = 0.05 * random.normal(size=leaf.shape).astype(np.float32)
        changed = jax.tree.unflatten(structure, [*leaves[:i], leaf + noise, *leaves[i + 1 :]])
        assert max_logit_difference(model._replace(weights=changed)) > 1e-4, i


def test_a_written_folder_loads_as_the_same_model(model, tmp_path):
    hugging_face.write_folder(tmp_path / "folder", model.config, model.weights, model.tokenizer)
    reloaded = models.load(tmp_path / "folder")
    assert reloaded.config == model.config and trees.bitwise_equal(reloaded.weights, model.weights)
    assert reloaded.tokenizer.as_json() == model.tokenizer.as_json()
    with pytest.raises(BadInput, match="exists; not overwritten"):
        hugging_face.write_folder(tmp_path / "folder", model.config, model.weights, model.tokenizer)


def test_a_model_of_the_modern_architecture_is_not_written_for_transformers(model, tmp_path):
    config = transformer.make_config("modern", 8, 8, num_layers=1, num_heads=1, width=8)
    with pytest.raises(BadInput, match="only a model of the architecture gpt2"):
        weights = transformer.init_weights(jax.random.key(0), config)
        hugging_face.write_folder(tmp_path / "folder", config, weights, model.tokenizer)
    assert not list(tmp_path.iterdir())


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_array(folder, name):
    arrays = load_file(folder / "model.safetensors")
    del arrays[name]
    save_file(arrays, folder / "model.safetensors")


def truncate(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f, "model.safetensors"), "damaged or cut off"),
        (lambda f: truncate(f, "config.json"), "config.json' is damaged"),
        (lambda f: truncate(f, "tokenizer.json"), "tokenizer.json' is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: change_config(f, model_type="llama"), "of type 'llama'"),
        (lambda f: change_config(f, n_embd=64), r"is \[32\], its config says \[64\]"),
        (lambda f: change_config(f, n_layer=3), "lack the array 'h.2.ln_1.weight'"),
        (lambda f: change_config(f, n_layer=-1), "n_layer is -1"),
        (lambda f: change_config(f, activation_function="silu"), "the activation 'silu'"),
        (lambda f: change_config(f, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx True"),
        (lambda f: change_config(f, n_head=5), "5 heads do not divide"),
        (lambda f: remove_array(f, "transformer.wte.weight"), "lack the array 'wte.weight'"),
        (lambda f: shutil.rmtree(f), "the folder does not exist"),
        (lambda f: (f / "config.json").unlink(), "not a language-model run or a Hugging Face GPT-2 folder"),
    ],
)
def test_a_damaged_or_unsupported_folder_is_rejected_in_one_sentence(tmp_path, damage, message):
    folder = tmp_path / "gpt2"
    shutil.copytree(FOLDER, folder)
    damage(folder)
    with pytest.raises(BadInput, match=message):
        models.load(folder)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_a_written_folder_and_computes_the_same_logits(tmp_path, kind):
    if os.environ.get("ONTOGENY_REQUIRE_TORCH") != "1":
        pytest.importorskip("torch", reason="`make parity` installs torch")
    import torch
    import transformers

    text = "In the beginning was the word, and the word was tokenized.\n"
    tokenizer = tokenizers.train_tokenizer(kind, 300, [text])
    config = transformer.make_config("gpt2", tokenizer.size, 64, num_layers=2, num_heads=2, width=16)
    weights = jax.tree.map(lambda leaf: leaf + 0.1, transformer.init_weights(jax.random.key(0), config))
    hugging_face.write_folder(tmp_path / "folder", config, weights, tokenizer)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    tokens = tokenizer.encode(text)[:60]
    decoded = peer_tokenizer.decode(tokens)
    assert peer_tokenizer(text)["input_ids"][:60] == tokens.tolist() and decoded == text[: len(decoded)]
    with torch.no_grad():
        expected = peer(torch.tensor(tokens[None].astype(np.int64))).logits.numpy()
    logits = transformer.forward(config, weights, jnp.asarray(tokens)[None])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
