"""GPT-2 folders give what transformers gives: against a committed fixture, and against torch where there is one.

`tests/golden/make_gpt2.py` wrote the fixture. `make parity` runs the live comparison, which fails without torch there.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ontogeny import trees
from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm import evaluation, hugging_face
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.model import LanguageModel

FOLDER = Path(__file__).parent / "golden" / "gpt2"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
LOGITS = load_file(FOLDER / "golden.safetensors")["logits"]


forward = jax.jit(transformer.forward, static_argnums=0)


@pytest.fixture(scope="module")
def model():
    return models.load(FOLDER)


def difference(model):
    """The largest difference of a logit from transformers' own."""
    found = forward(model.config, model.weights, jnp.array([GOLDEN["tokens"][0]]))[0]
    return float(np.abs(np.asarray(found) - LOGITS).max())


def test_tokens_and_text_are_those_of_transformers(model):
    for text, tokens in zip(GOLDEN["scored"], GOLDEN["tokens"], strict=True):
        assert model.tokenizer.encode(text)[:40].tolist() == tokens
        assert tokenizers.decode(model.tokenizer, model.tokenizer.encode(text)) == text
    texts = [tokenizers.decode(model.tokenizer, ids) for ids in GOLDEN["greedy"]]
    assert texts == GOLDEN["greedy_text"] and model.tokenizer.end == 0


def test_logits_are_those_of_transformers(model):
    assert LOGITS.std() > 0.3 and difference(model) < 1e-4


def test_log_probabilities_are_those_of_transformers(model):
    for tokens, expected in zip(GOLDEN["tokens"], GOLDEN["log_probabilities"], strict=True):
        np.testing.assert_allclose(-evaluation.token_losses(model, tokens), expected, atol=1e-4)


def test_prompts_of_unequal_length_go_on_as_in_transformers(model):
    greedy = SamplingParams(temperature=0)
    found = generate.generate(model, GOLDEN["prompts"], max_tokens=len(GOLDEN["greedy"][0]), sampling_params=greedy)
    assert [list(each.tokens) for each in found] == GOLDEN["greedy"]


@pytest.mark.parametrize(
    "changed",
    [{"norm_epsilon": 1e-2}, {"activation": "exact_gelu"}, {"num_heads": 2}],
)
def test_a_planted_error_is_found(model, changed):
    assert difference(model._replace(config=model.config._replace(**changed))) > 1e-4


def test_every_array_matters(model):
    leaves, structure = jax.tree.flatten(model.weights)
    random = np.random.default_rng(0)
    for i, leaf in enumerate(leaves):
        others = [*leaves[:i], leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), *leaves[i + 1 :]]
        assert difference(model._replace(weights=jax.tree.unflatten(structure, others))) > 1e-4, i


def test_a_folder_that_is_written_is_the_same_model(model, tmp_path):
    hugging_face.write_folder(tmp_path / "ours", model.config, model.weights, model.tokenizer)
    again = models.load(tmp_path / "ours")
    assert again.config == model.config and trees.bitwise_equal(again.weights, model.weights)
    assert again.tokenizer.as_json() == model.tokenizer.as_json()
    with pytest.raises(BadInput, match="exists; not overwritten"):
        hugging_face.write_folder(tmp_path / "ours", model.config, model.weights, model.tokenizer)


def test_a_modern_model_has_no_place_in_transformers(model, tmp_path):
    config = transformer.make_config("modern", 8, 8, num_layers=1, num_heads=1, width=8)
    with pytest.raises(BadInput, match="only a model of the architecture gpt2"):
        weights = transformer.init_weights(jax.random.key(0), config)
        hugging_face.write_folder(tmp_path / "ours", config, weights, model.tokenizer)
    assert not list(tmp_path.iterdir())


def changed_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(folder, name):
    arrays = load_file(folder / "model.safetensors")
    del arrays[name]
    save_file(arrays, folder / "model.safetensors")


def truncated(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: truncated(f, "model.safetensors"), "damaged or cut off"),
        (lambda f: truncated(f, "config.json"), "config.json' is damaged"),
        (lambda f: truncated(f, "tokenizer.json"), "tokenizer.json' is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: changed_config(f, model_type="llama"), "of type 'llama'"),
        (lambda f: changed_config(f, n_embd=64), r"is \[32\], its config says \[64\]"),
        (lambda f: changed_config(f, n_layer=3), "lack the array 'h.2.ln_1.weight'"),
        (lambda f: changed_config(f, n_layer=-1), "n_layer is -1"),
        (lambda f: changed_config(f, activation_function="silu"), "the activation 'silu'"),
        (lambda f: changed_config(f, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx True"),
        (lambda f: changed_config(f, n_head=5), "5 heads do not divide"),
        (lambda f: without(f, "transformer.wte.weight"), "lack the array 'wte.weight'"),
        (lambda f: shutil.rmtree(f), "there is no model"),
        (lambda f: (f / "config.json").unlink(), "holds no language model"),
    ],
)
def test_what_is_damaged_or_foreign_is_one_sentence(tmp_path, damage, said):
    folder = tmp_path / "gpt2"
    shutil.copytree(FOLDER, folder)
    damage(folder)
    with pytest.raises(BadInput, match=said):
        models.load(folder)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_what_is_written_here(tmp_path, kind):
    if os.environ.get("ONTOGENY_REQUIRE_TORCH") != "1":
        pytest.importorskip("torch", reason="`make parity` brings it")
    import torch
    import transformers

    text = "In the beginning was the word, and the word was tokenized.\n"
    tokenizer = tokenizers.train_tokenizer(kind, 300, [text])
    config = transformer.make_config("gpt2", tokenizer.size, 64, num_layers=2, num_heads=2, width=16)
    weights = jax.tree.map(lambda leaf: leaf + 0.1, transformer.init_weights(jax.random.key(0), config))
    ours = LanguageModel(config, weights, tokenizer)
    hugging_face.write_folder(tmp_path / "ours", *ours[:3])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    tokens = tokenizer.encode(text)[:60]
    assert (
        words(text)["input_ids"][:60] == tokens.tolist() and words.decode(tokens) == text[: len(words.decode(tokens))]
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None].astype(np.int64))).logits.numpy()
    found = transformer.forward(config, weights, jnp.asarray(tokens)[None])
    np.testing.assert_allclose(found, expected, atol=1e-4)
