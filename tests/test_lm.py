"""Language models: tokenizers, corpora, training that is killed, evaluation, overlap, generation, commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

import ontogeny
import texts
from ontogeny import rollouts, steering, trees
from ontogeny.agents import language_model
from ontogeny.content import transformer, transformer_block
from ontogeny.engine import generate as generation
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams, derive_seed, sample_token
from ontogeny.engine.text_stream import TextStream
from ontogeny.environments import text as text_env
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, evaluation, optimization, overlap
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.config import TrainConfig
from ontogeny.lm.optimization import OptimizerConfig
from ontogeny.lm.page import render_page, write_page
from ontogeny.lm.training import train
from ontogeny.runs.records import read_records
from selection import slow_except

TEXT, UNSEEN_TEXT = texts.read(texts.PROCEDURES), texts.read(texts.HELD_OUT)
TINY = {"num_layers": 1, "num_heads": 2, "width": 16, "context_length": 16, "batch_size": 4}
CONFIG = TrainConfig(size="pico", tokenizer="bytes", num_steps=40, learning_rate=0.01, **TINY)
OPTIONS = ["--size", "pico", "--tokenizer", "bytes", "--num-steps", "40", "--learning-rate", "0.01"]
OPTIONS += [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
forward = jax.jit(transformer.forward, static_argnums=0)


def change(**settings):
    return CONFIG.model_copy(update=settings)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "mine.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text_file):
    return train(CONFIG, [text_file], text_file.parent / "run", checkpoint_interval=0)


@pytest.fixture(scope="module")
def model(run):
    return models.load(run)


# Tokenizers


@lru_cache
def make_tokenizer(kind):
    return tokenizers.train_tokenizer(kind, 300, [TEXT])


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_tokenizers_are_lossless_and_survive_saving(kind):
    tokenizer = make_tokenizer(kind)
    loaded = tokenizers.parse_tokenizer(tokenizer.as_json())
    tokens = tokenizer.encode(TEXT)
    assert type(loaded) is type(tokenizer) and (loaded.size, loaded.end) == (tokenizer.size, tokenizer.end)
    assert loaded.encode(TEXT).tolist() == tokens.tolist() and tokens.dtype == np.int32
    assert tokenizers.decode(loaded, tokens) == TEXT and tokens.min() >= 0 and tokens.max() < tokenizer.size
    assert tokenizers.decode(tokenizer, [tokenizer.end]) == "" and tokenizer.encode("").tolist() == []


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(st.text())
def test_byte_and_bpe_tokenizers_encode_any_text(kind, text):
    tokenizer = make_tokenizer(kind)
    assert tokenizers.decode(tokenizer, tokenizer.encode(text)) == text


def test_a_split_text_is_tokenized_like_the_whole():
    text = TEXT + UNSEEN_TEXT + "naïve  café\n\n\u3000 end " * 50
    tokenizer = make_tokenizer("bpe")
    expected = tokenizer._library.encode(text).ids
    for length in (13, 200, 3000):
        pieces = list(tokenizers.split_text([text[:500], text[500:]], length))
        assert "".join(pieces) == text and len(pieces) > 2
        assert [token for piece in pieces for token in tokenizer.encode(piece).tolist()] == expected


WORDS_OF_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    "text",
    ["中国人在家。日本人，也在家！\n" * 40, "123\n4567\n\n8\r\n" * 60, "a['b'] <e> c\n\n d'll (x);\n" * 40],
)
def test_texts_without_spaces_between_words_are_split_at_words_too(text):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(WORDS_OF_LLAMA_3), "isolated")
    words_of = pre_tokenizers.Sequence([split, byte_level]).pre_tokenize_str
    expected = [word for word, _ in words_of(text)]
    for length in (20, 31, 50):
        pieces = list(tokenizers.split_text([text[:300], text[300:]], length))
        assert "".join(pieces) == text and len(pieces) > 4
        assert [word for piece in pieces for word, _ in words_of(piece)] == expected


def test_tokenizers_whose_words_depend_on_more_than_their_neighbors_get_an_undivided_text(monkeypatch):
    monkeypatch.setattr(tokenizers, "split_text", partial(tokenizers.split_text, length=4))
    texts = ["one two three ", "four five six"]
    for family in ("gpt2", "llama2", "llama3", "mistral", "qwen3"):
        tokenizer = models.load(Path(__file__).parent / "golden" / family).tokenizer
        assert len(list(tokenizer.split(texts))) == (1 if family in ("llama2", "mistral") else 5), family


def test_invalid_tokenizers_and_unknown_characters_are_rejected():
    with pytest.raises(BadInput, match=r"the character 'ö' at position 3 is not among the \d+"):
        make_tokenizer("characters").encode("Woo" + "ö")
    with pytest.raises(BadInput, match="one of bytes, characters, bpe"):
        tokenizers.train_tokenizer("words", 300, [TEXT])
    with pytest.raises(BadInput, match="has 257 to"):
        tokenizers.train_tokenizer("bpe", 100, [TEXT])


# Corpora


def test_tails_and_documents_are_held_out(tmp_path):
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(f"text {i}: naïve\n" * (50 + i), encoding="utf-8")
    files = corpus.scan_files(paths)
    for split in corpus.SPLITS:
        parts = corpus.split_files(files, split, 0.2, seed=3)
        contents = {part: ["".join(corpus.read_passage(p)) for p in passages] for part, passages in parts.items()}
        joined = sorted("".join(pair) for pair in zip(contents["training"], contents["held_out"], strict=False))
        if split == "tail":
            assert joined == [path.read_text(encoding="utf-8") for path in paths]
            assert all(text.endswith("\n") for text in contents["training"])
        else:
            assert len(parts["held_out"]) == 1 and not set(parts["held_out"]) & set(parts["training"])
        (folder := tmp_path / split).mkdir()
        written = corpus.write_corpus(folder, parts, tokenizers.ByteTokenizer(), 8)
        for part in corpus.PARTS:
            tokens = np.asarray(getattr(written, part))
            assert tokens.dtype == np.uint16 and (tokens == 256).sum() == len(parts[part])
            assert tokenizers.decode(tokenizers.ByteTokenizer(), tokens) == "".join(contents[part])


def test_a_text_read_in_many_pieces_is_the_same_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("naïve café 中文\n" * 100, encoding="utf-8")
    expected = corpus.scan_files([tmp_path / "a.txt"])
    monkeypatch.setattr(corpus, "READ_SIZE", 7)
    assert corpus.scan_files([tmp_path / "a.txt"]) == expected
    passage = corpus.Passage(tmp_path / "a.txt", 0, expected[0].num_bytes)
    assert "".join(corpus.read_passage(passage)) == (tmp_path / "a.txt").read_text(encoding="utf-8")


def test_batches_depend_on_seed_and_step_alone():
    tokens = np.arange(1000, dtype=np.uint16)
    batches = corpus.sample_batches(tokens, 5, 0, (6, 2, 3), 8)
    resumed = corpus.sample_batches(tokens, 5, 4, (2, 2, 3), 8)
    assert batches.shape == (6, 2, 3, 9) and (np.diff(batches) == 1).all() and (batches[4:] == resumed).all()
    assert (batches != corpus.sample_batches(tokens, 6, 0, (6, 2, 3), 8)).any()
    windows = corpus.spaced_windows(tokens, 8, 10)
    assert windows.shape == (10, 9) and windows[0, 0] == 0 and windows[-1, -1] == 124 * 8


# Training


def read_losses(folder):
    return [record["loss"] for record in read_records(folder / "records.jsonl") if "loss" in record]


def test_training_learns_and_leaves_records_and_a_page(run, model):
    records, losses = read_records(run / "records.jsonl"), read_losses(run)
    held_out = [record["held_out_loss"] for record in records if "held_out_loss" in record]
    assert len(losses) == 40 and np.mean(losses[-5:]) < losses[0] - 1.5 and held_out[-1] < held_out[0]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 41))
    page = write_page(run).read_text(encoding="utf-8")
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "") and "mine.txt" in page
    assert page == render_page(run)
    assert model.config.vocab_size == 257 and trees.is_finite(model.weights)


def test_a_run_is_opened_and_loaded_by_the_public_functions(run, model):
    opened = ontogeny.open_run(run)
    assert (opened.kind, opened.status, len(opened.records)) == ("language-model run", "finished", 44)
    assert opened.spec["num_layers"] == 1
    assert trees.bitwise_equal(ontogeny.load(run).weights, model.weights)
    assert ontogeny.lm.load is models.load and ontogeny.lm.evaluate is evaluation.evaluate


class InterruptedTraining(Exception):
    pass


def test_an_interrupted_run_ends_in_bitwise_equal_weights(run, text_file, tmp_path):
    def interrupt(_):
        raise InterruptedTraining

    for _ in range(3):
        with pytest.raises(InterruptedTraining):
            train(CONFIG, [text_file], tmp_path / "resumed", on_progress=interrupt, checkpoint_interval=0)
        with (tmp_path / "resumed" / "records.jsonl").open("a") as file:
            file.write('{"step": 39, "loss": 1.0}\n{"st')  # as if it had continued and been cut off
    train(CONFIG, [text_file], tmp_path / "resumed", checkpoint_interval=0)
    assert trees.bitwise_equal(models.load(run).weights, models.load(tmp_path / "resumed").weights)
    assert (run / "records.jsonl").read_bytes() == (tmp_path / "resumed" / "records.jsonl").read_bytes()
    other_seed = train(change(seed=1), [text_file], tmp_path / "changed")
    assert not trees.bitwise_equal(models.load(other_seed).weights, models.load(run).weights)


def test_a_stopped_run_can_be_evaluated_sampled_from_and_resumed(run, text_file, tmp_path, call_cli):
    folder = tmp_path / "stopped"

    def interrupt(state):
        if state.step == 20:
            raise InterruptedTraining

    with pytest.raises(InterruptedTraining):
        train(CONFIG, [text_file], folder, on_progress=interrupt, checkpoint_interval=0)
    with pytest.raises(BadInput, match="is not finished"):
        models.load(folder)
    assert not trees.bitwise_equal(models.load(folder, allow_unfinished=True).weights, models.load(run).weights)
    code, _, error = call_cli("lm", "generate", str(folder), "--prompt", "a", "--max-tokens", "2")
    assert code == 0 and "is not finished: its weights are those after step 20 of 40" in error
    code, output, error = call_cli("lm", "evaluate", str(folder), "--json")
    assert code == 0 and json.loads(output)["num_tokens"] and "after step 20 of 40" in error
    write_page(folder)
    code, _, error = call_cli("lm", "train", str(text_file), *OPTIONS, "--out", str(folder), "--sample-prompt", "To")
    assert code == 0 and f"the run in '{folder}' is resumed after step 20 of 40" in error
    assert "--- sample after step 30\nTo" in error and "--- sample after step 20\n" not in error
    assert trees.bitwise_equal(models.load(folder).weights, models.load(run).weights)


@pytest.mark.parametrize(("second", "is_named"), [("changed line\n", True), (None, False)])
def test_documents_that_are_split_although_they_are_nearly_equal_are_named(call_cli, second, is_named):
    Path("first.txt").write_text(TEXT, encoding="utf-8")
    Path("second.txt").write_text(UNSEEN_TEXT if second is None else TEXT + second, encoding="utf-8")
    options = [*OPTIONS, "--num-steps", "1", "--split", "document"]
    code, _, error = call_cli("lm", "train", "first.txt", "second.txt", *options, "--out", "run")
    assert code == 0 and ("of the 13-grams of words of the held-out files" in error) == is_named


@pytest.mark.parametrize("option", ["--prompt", "--stop"])
def test_an_argument_that_is_not_utf_8_is_refused(call_cli, run, option):
    code, output, error = call_cli("lm", "generate", str(run), option, "a\udcffb")
    assert code == 2 and output == "" and "is not text in UTF-8" in error and is_one_sentence(error)
    with pytest.raises(BadInput, match="half a surrogate pair"):
        make_tokenizer("bpe").encode("a\udcffb")


@pytest.mark.parametrize(
    ("prompt", "message"), [("a\udcffb", "is not text in UTF-8"), ("a" * 15, "leaves no space in the model's context")]
)
def test_a_prompt_that_cannot_be_continued_is_refused_before_the_first_step(call_cli, text_file, prompt, message):
    code, _, error = call_cli("lm", "train", str(text_file), *OPTIONS, "--out", "run", "--sample-prompt", prompt)
    assert code == 2 and message in error and not Path("run").exists()


def test_a_refused_prompt_changes_nothing_in_a_finished_run(call_cli, text_file, run, tmp_path):
    shutil.copytree(run, "copy")
    options = ["--num-steps", "100000", "--lengthen", "--sample-prompt", "a" * 15]
    code, _, error = call_cli("lm", "train", str(text_file), *OPTIONS, "--out", "copy", *options)
    assert code == 2 and "leaves no space" in error and not Path("copy/lengthening.json").exists()


def test_a_lack_of_memory_is_named_without_words_of_environments_alone(call_cli, monkeypatch, run):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(evaluation, "evaluate_held_out", fail)
    code, _, error = call_cli("lm", "evaluate", str(run))
    assert code != 0 and "use smaller batches" in error and is_one_sentence(error)


@pytest.mark.parametrize("family", slow_except(["qwen3"], ["gpt2", "llama2", "qwen3"]))
def test_a_folder_of_another_model_is_fine_tuned(call_cli, tmp_path, text_file, family):
    """The training begins with the weights of the folder, and its run has the tokens that end an answer there."""
    folder = Path(__file__).parent / "golden" / family
    base = models.load(folder)
    options = ["--num-steps", "20", "--context-length", "16", "--batch-size", "4", "--learning-rate", "1e-3"]
    command = ("lm", "train", str(text_file), "--from", str(folder), *options, "--out", str(tmp_path / "run"))
    code, _, error = call_cli(*command)
    assert code == 0, error
    tuned = models.load(tmp_path / "run")
    assert tuned.config == base.config._replace(context_length=16)
    assert (tuned.tokenizer.end, tuned.tokenizer.start) == (base.tokenizer.end, base.tokenizer.start)
    assert tuned.tokenizer.end_tokens == base.tokenizer.end_tokens and "fine-tuned" in render_page(tmp_path / "run")
    held_out = corpus.load_corpus(tmp_path / "run").held_out
    before, after = (evaluation.token_losses(model, held_out[:65], stride=8).mean() for model in (base, tuned))
    assert after < before - 0.1
    first_loss = read_losses(tmp_path / "run")[0]
    assert abs(first_loss - before) < 1.0
    code, _, error = call_cli(*command, "--num-layers", "3")
    assert code == 2 and "--num-layers cannot be set" in error


def test_adapters_are_trained_in_place_of_the_weights(call_cli, tmp_path, text_file, monkeypatch):
    """A stopped run resumes to bitwise equal weights: those of the folder plus the products of the adapters."""
    golden = Path(__file__).parent / "golden"
    folder = Path(shutil.copytree(golden / "qwen3", tmp_path / "qwen3"))
    shutil.copy(golden / "chat" / "tools_as_json.jinja", folder / "chat_template.jinja")
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del names["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    base = models.load(folder)
    settings = {"num_steps": 20, "context_length": 16, "batch_size": 4, "adapter_rank": 2, "dropout": 0.1}
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.chdir(tmp_path)
    code, _, error = call_cli("lm", "train", str(text_file), "--from", str(folder), *options, "--out", "run")
    assert code == 0 and "adapters of" in error and "dropout=0.1, adapter_rank=2" in error, error
    tuned = models.load(Path("run"))

    def interrupt(state):
        if state.step == 10:
            raise InterruptedTraining

    with pytest.raises(InterruptedTraining):
        train(settings, [text_file], "stopped", initial=base, on_progress=interrupt, checkpoint_interval=0)
    halfway = models.load(Path("stopped"), allow_unfinished=True).weights
    train(settings, [text_file], "stopped", initial=base)
    assert trees.bitwise_equal(models.load(Path("stopped")).weights, tuned.weights)
    for before, between, after in zip(base.weights.blocks, halfway.blocks, tuned.weights.blocks, strict=True):
        change = after.up.weight - before.up.weight
        assert np.linalg.matrix_rank(change, 1e-4) == 2 and not np.array_equal(between.up.weight, after.up.weight)
        assert np.array_equal(after.norm_1.scale, before.norm_1.scale)
    assert np.array_equal(tuned.weights.embedding, base.weights.embedding)
    code, _, error = call_cli("lm", "export", "run", "--out", "exported")
    exported = models.load(Path("exported"))
    assert code == 0 and trees.bitwise_equal(exported.weights, tuned.weights), error
    templates = [model.chat_template for model in (base, tuned, exported)]
    assert all(templates) and len({str((template.source, template.special_tokens)) for template in templates}) == 1
    for arguments, message in (
        (["--from", str(folder), "--optimizer", "muon"], "adapters are trained by adamw"),
        ([], "--adapter-rank requires --from"),
        (["--from", str(folder), "--adapter-rank", "1000"], "an adapter of rank 1,000 is larger than the smallest"),
    ):
        code, _, error = call_cli("lm", "train", str(text_file), "--adapter-rank", "2", *arguments, "--out", "none")
        assert code == 2 and message in error and not Path("none").exists()


def test_dropout_is_off_in_evaluation_and_has_the_same_bits_after_a_resumption(run, text_file, tmp_path):
    config = change(num_steps=20, dropout=0.3)
    trained = train(config, [text_file], tmp_path / "run")

    def interrupt(_):
        raise InterruptedTraining

    with pytest.raises(InterruptedTraining):
        train(config, [text_file], tmp_path / "stopped", on_progress=interrupt, checkpoint_interval=0)
    train(config, [text_file], tmp_path / "stopped")
    assert trees.bitwise_equal(models.load(trained).weights, models.load(tmp_path / "stopped").weights)
    assert read_losses(trained)[0] != read_losses(run)[0]
    model, texts_of_run = models.load(trained), corpus.load_corpus(trained)
    windows = jnp.asarray(corpus.spaced_windows(texts_of_run.held_out, 16, 256))
    held_out = read_records(trained / "records.jsonl")[-1]["held_out_loss"]
    assert np.isclose(transformer.token_losses(model.config, model.weights, windows).mean(), held_out, rtol=1e-4)


def test_dropout_sets_its_share_to_zero_and_keeps_the_mean():
    inputs, keys = jnp.ones((64, 100)), jax.random.split(jax.random.key(0), 64)
    dropped = transformer_block.Dropout(0.25, keys).apply(inputs)
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)} and abs(dropped.mean() - 1) < 0.02
    remaining = transformer_block.Dropout(0.25, keys[1:]).apply(inputs[1:])
    assert np.array_equal(remaining, dropped[1:])  # the zeros of a sequence do not depend on the others
    assert not np.array_equal(transformer_block.Dropout(0.25, keys).fold(1).apply(inputs), dropped)


def test_a_finished_run_is_lengthened_in_place(run, text_file, tmp_path, call_cli):
    """Killed, it resumes to bitwise equal weights; until it ends, or where it is refused, the finished run stays."""
    folders = [Path(shutil.copytree(run, tmp_path / name)) for name in ("straight", "killed")]
    first = models.load(run)

    def interrupt(state):
        if state.step == 60:
            raise InterruptedTraining

    arguments = change(num_steps=70), [text_file]
    with pytest.raises(InterruptedTraining):
        train(*arguments, folders[1], lengthen=True, on_progress=interrupt, checkpoint_interval=0)
    assert trees.bitwise_equal(models.load(folders[1]).weights, first.weights)
    with pytest.raises(BadInput, match="is being lengthened to 70 steps; finish this first"):
        train(change(num_steps=80), [text_file], folders[1], lengthen=True)
    command = ("lm", "train", str(text_file), *OPTIONS, "--num-steps")
    for folder in folders:
        code, output, error = call_cli(*command, "70", "--lengthen", "--out", str(folder))
        assert code == 0 and "after 70 steps" in output, error
    assert "is resumed after step 60 of 70" in error
    longer = models.load(folders[0])
    assert trees.bitwise_equal(longer.weights, models.load(folders[1]).weights)
    assert not trees.bitwise_equal(longer.weights, first.weights)
    assert (folders[0] / "records.jsonl").read_bytes() == (folders[1] / "records.jsonl").read_bytes()
    assert (folders[0] / "records.jsonl").read_bytes().startswith((run / "records.jsonl").read_bytes())
    assert [record["step"] for record in read_records(folders[0] / "records.jsonl") if "loss" in record] == [
        *range(1, 71)
    ]
    assert (
        "after step 40 to 70 steps" in render_page(folders[0]) and len([*folders[0].glob("weights*.safetensors")]) == 1
    )
    for steps, options, message in (
        ("70", ["--lengthen"], "has 70 steps; --lengthen requires a larger --num-steps"),
        ("90", [], "--lengthen continues it"),
        ("90", ["--lengthen", "--seed", "1"], "holds a run of another spec (seed differs)"),
    ):
        code, _, error = call_cli(*command, steps, *options, "--out", str(folders[0]))
        assert code == 2 and message in error and is_one_sentence(error)
    assert trees.bitwise_equal(models.load(folders[0]).weights, longer.weights)
    code, _, error = call_cli(*command, "90", "--lengthen", "--out", str(tmp_path / "absent"))
    assert code == 2 and "holds no training that --lengthen could continue" in error
    assert not (tmp_path / "absent").exists()


def test_a_finished_run_is_lengthened_in_a_new_folder(run, model, text_file, tmp_path):
    longer = train({"num_steps": 30, "learning_rate": 3e-3, "batch_size": 4}, [text_file], tmp_path, initial=model)
    held_out = [corpus.load_corpus(folder).held_out for folder in (run, longer)]
    assert np.array_equal(*held_out)
    last, lengthened = (read_records(folder / "records.jsonl")[-1]["held_out_loss"] for folder in (run, longer))
    assert lengthened < last and models.load(longer).tokenizer.kind == "bytes"


def test_the_weights_of_the_lowest_held_out_loss_are_preserved(text_file, tmp_path, call_cli):
    """With a learning rate that is too high the loss rises again; the report exists while the run goes on."""
    evaluations = []

    def on_evaluation(state, model):
        write_page(tmp_path / "run")
        evaluations.append((state.held_out_loss, trees.to_arrays(model.weights)))

    config = change(learning_rate=0.3, num_steps=60, decay_schedule="linear", warmup_fraction=0.0)
    train(config, [text_file], tmp_path / "run", on_evaluation=on_evaluation)
    losses = [loss for loss, _ in evaluations]
    records = read_records(tmp_path / "run" / "records.jsonl")
    assert losses == [record["held_out_loss"] for record in records if "held_out_loss" in record]
    best = models.load(tmp_path / "run", best=True)
    expected = evaluations[int(np.argmin(losses))][1]
    assert all(np.array_equal(array, expected[name]) for name, array in trees.to_arrays(best.weights).items())
    code, _, error = call_cli("lm", "generate", str(tmp_path / "run"), "--best", "--max-tokens", "2")
    assert code == 0 and error == ""
    page = render_page(tmp_path / "run")
    assert "held-out bits per byte" in page and "learning rate" in page


def test_a_training_whose_loss_is_not_finite_ends_with_a_sentence(text_file, tmp_path):
    with pytest.raises(BadInput, match=r"diverged: .* not finite in steps \d+ to \d+; use a lower --learning-rate"):
        train(change(learning_rate=1e30, max_gradient_norm=1e30), [text_file], tmp_path / "run")


def test_a_killed_run_ends_in_bitwise_equal_weights(run, text_file, tmp_path):
    command = [sys.executable, "-m", "ontogeny", "lm", "train", str(text_file), *OPTIONS, "--out", "run"]
    command += ["--checkpoint-interval", "0"]
    # The command sets wide registers, whose results differ in bits from those of the flags of this process.
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_cpu_prefer_vector_width=256"}
    deadline = time.monotonic() + 240
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, env=env) as process:
        while process.poll() is None and not (tmp_path / "run" / "checkpoint.json").exists():
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert time.monotonic() < deadline, "the command wrote no checkpoint within 240 s"
    if not (tmp_path / "run" / "weights.json").exists():
        with pytest.raises(BadInput, match="is not finished"):
            models.load(tmp_path / "run")
        train(CONFIG, [text_file], tmp_path / "run")
    assert trees.bitwise_equal(models.load(tmp_path / "run").weights, models.load(run).weights)


def test_a_run_that_cannot_begin_leaves_no_folder(text_file, tmp_path):
    with pytest.raises(BadInput, match="has 257 to"):
        train(change(vocab_size=3, tokenizer="bpe"), [text_file], tmp_path / "runs" / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon", "architecture": "llama"},
        {"gradient_accumulation": 2, "decay_schedule": "linear", "precision": "bfloat16"},
    ],
    ids=str,
)
def test_other_optimizers_and_architectures_learn(text_file, tmp_path, settings):
    out = train(change(num_steps=20, **settings), [text_file], tmp_path / "run")
    losses = read_losses(out)
    assert np.mean(losses[-3:]) < losses[0] - 0.5 and models.load(out).config.vocab_size == 257


def test_accumulated_gradients_are_those_of_one_batch():
    config = transformer.make_config("gpt2", 20, 8, num_layers=1, num_heads=1, width=8)
    plain, accumulating = (
        OptimizerConfig(num_steps=5, batch_size=size, gradient_accumulation=count, dropout=0.2)
        for size, count in ((4, 1), (2, 2))
    )
    tokens = jax.random.randint(jax.random.key(0), (1, 4, 9), 0, 20)
    keys = jax.random.split(jax.random.key(2), (1, 4))
    weights = optimization.init_training(jax.random.key(1), config, plain)
    _, info = jax.jit(optimization.make_train_step(config, plain))(weights, (tokens, keys))
    batches = tokens.reshape(2, 2, 9), keys.reshape(2, 2)
    _, accumulated = jax.jit(optimization.make_train_step(config, accumulating))(weights, batches)
    np.testing.assert_allclose(info["loss"], accumulated["loss"], rtol=1e-5)
    np.testing.assert_allclose(info["gradient_norm"], accumulated["gradient_norm"], rtol=1e-4)


@pytest.mark.parametrize("gradient_accumulation", [1, 2])
def test_a_batch_sharded_over_devices_gives_the_same_step(gradient_accumulation):
    config = transformer.make_config("gpt2", 16, 8, num_layers=1, num_heads=2, width=8)
    optimizer = OptimizerConfig(num_steps=3, batch_size=4, gradient_accumulation=gradient_accumulation, dropout=0.1)
    keys = optimization.sample_dropout_keys(optimizer, jax.random.key(1), 0, 3)
    tokens = np.random.default_rng(0).integers(0, 16, (3, gradient_accumulation, 4, 9)).astype(np.int32)
    results = [
        optimization.take_steps(
            config,
            optimizer,
            optimization.init_training(jax.random.key(0), config, optimizer),
            tokens,
            keys=keys,
            num_shards=num_shards,
        )
        for num_shards in (1, 2)
    ]
    for unsharded, sharded in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(unsharded, sharded, atol=1e-6)
    content, windows = results[0][0].content, tokens.reshape(-1, 9)
    unsharded, sharded = (
        optimization.window_losses(config, "float32", content, windows, num_shards=num_shards) for num_shards in (1, 2)
    )
    np.testing.assert_allclose(unsharded, sharded, atol=1e-6)


def test_devices_share_a_batch_only_where_each_has_a_thread_of_its_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert optimization.count_shards(OptimizerConfig(num_steps=1, batch_size=12)) == 1
    monkeypatch.setenv("XLA_FLAGS", optimization.ONE_THREAD)
    assert optimization.count_shards(OptimizerConfig(num_steps=1, batch_size=12)) == jax.local_device_count() == 2
    assert optimization.count_shards(OptimizerConfig(num_steps=1, batch_size=5)) == 1
    assert optimization.count_shards(OptimizerConfig(num_steps=1, batch_size=12, optimizer="muon")) == 1


def test_the_learning_rate_rises_and_falls():
    config = OptimizerConfig(num_steps=100, warmup_fraction=0.1, learning_rate=1.0)
    schedule = optimization.make_schedule(config)
    rates = [float(schedule(step)) for step in (0, 9, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0.1, 1.0, 1.0, 0.55, 0.1], atol=1e-3)


# Evaluation


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_losses_by_sliding_windows_are_those_of_one_token_at_a_time(model, stride):
    tokens, context = model.tokenizer.encode(TEXT)[:61], model.config.context_length
    losses = evaluation.token_losses(model, tokens, stride=stride)
    for i in range(1, len(tokens)):
        end = i if i <= context else min(context + -(-(i - context) // stride) * stride, len(tokens) - 1)
        begin = max(end - context, 0) if i > context else 0
        window = np.zeros(context, np.int32)
        window[: i - begin] = tokens[begin:i]
        logits = forward(model.config, model.weights, jnp.asarray(window)[None])[0, i - begin - 1]
        assert abs(losses[i - 1] - float(jax.nn.logsumexp(logits) - logits[tokens[i]])) < 1e-4


def test_perplexity_and_bits_per_byte_follow_from_the_losses(model):
    result = evaluation.evaluate(model, UNSEEN_TEXT[:3000])
    size = len(UNSEEN_TEXT[:3000].encode())
    assert result.num_tokens == result.num_bytes == size and result.stride == 8 and result.overlap.fraction < 0.01
    np.testing.assert_allclose(result.nats_per_token.mean, result.losses.mean())
    np.testing.assert_allclose(result.perplexity.mean, np.exp(result.losses.mean()))
    np.testing.assert_allclose(result.bits_per_byte.mean, result.losses.sum() / np.log(2) / size)
    assert result.bits_per_byte.low < result.bits_per_byte.mean < result.bits_per_byte.high
    assert result.num_segments == -(-result.num_tokens // result.segment_size)
    record = json.loads(json.dumps(evaluation.as_record(result), allow_nan=False))
    assert record["num_segments"] == result.num_segments


@pytest.mark.parametrize("num_bytes", [1, 5, 15, 16, 17])
def test_a_text_shorter_than_the_context_is_scored(model, num_bytes):
    text = UNSEEN_TEXT[:num_bytes]
    result = evaluation.evaluate(model, text, allow_overlap=True)
    tokens = np.concatenate([[model.tokenizer.start], model.tokenizer.encode(text)])
    expected = evaluation.token_losses(model, tokens, stride=1)
    if num_bytes <= model.config.context_length:
        np.testing.assert_allclose(result.losses, expected, atol=1e-5)
    assert (result.num_bytes, result.num_unscored_bytes) == (num_bytes, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 16, None])
def test_the_batch_size_changes_no_loss_beyond_rounding(model, batch_size, monkeypatch):
    tokens = model.tokenizer.encode(UNSEEN_TEXT[:150])
    expected = evaluation.token_losses(model, tokens, stride=5, batch_size=7)
    monkeypatch.setattr("ontogeny.content.transformer.MAX_LOGITS", 3 * model.config.vocab_size)  # parts of 3 tokens
    jax.clear_caches()
    shapes, compute = [], evaluation._last_token_losses
    monkeypatch.setattr(evaluation, "_last_token_losses", lambda *a: shapes.append(a[2].shape) or compute(*a))
    losses = evaluation.token_losses(model, tokens, stride=5, batch_size=batch_size)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    # No window is computed twice, and no batch is filled up.
    assert sum(shape[0] for shape in shapes) == 1 + -(-(len(tokens) - 1 - 16) // 5)
    jax.clear_caches()


def test_the_names_of_special_tokens_in_a_text_are_bytes_of_it():
    """Bits per byte are those of the whole text, in which `<|endoftext|>` are 13 bytes and one token."""
    text = ("one " + tokenizers.END) * 20
    tokenizer = tokenizers.train_tokenizer("bpe", 260, [text])
    config = transformer.make_config("gpt2", tokenizer.size, 16, num_layers=1, num_heads=1, width=8)
    model = models.LanguageModel(config, transformer.init_weights(jax.random.key(0), config), tokenizer)
    result = evaluation.evaluate(model, text)
    assert (result.num_bytes, result.num_unscored_bytes) == (len(text), 0)
    assert result.num_tokens == len(tokenizer.encode(text)) and tokenizer.end in tokenizer.encode(text)
    np.testing.assert_allclose(result.bits_per_byte.mean, result.losses.sum() / np.log(2) / len(text))
    first = evaluation.evaluate(model, tokenizers.END + "one one")  # a text that begins with its own first token
    assert (first.num_bytes, first.num_unscored_bytes) == (7, 13)
    with pytest.raises(BadInput, match="no token that can be scored"):
        evaluation.evaluate(model, tokenizers.END)


def test_losses_that_are_not_finite_are_an_error_and_no_report(model):
    broken = model._replace(weights=model.weights._replace(norm=model.weights.norm._replace(bias=np.full(16, np.nan))))
    with pytest.raises(BadInput, match="not finite"):
        evaluation.evaluate(broken, UNSEEN_TEXT[:100], allow_overlap=True)


def test_intervals_cover_the_mean_as_often_as_they_claim():
    generator, num_covered = np.random.default_rng(0), 0
    for _ in range(400):
        num_bytes = generator.integers(1, 4, 600).astype(float)
        losses = 1.5 * num_bytes + generator.normal(size=600)
        _, bits, num_segments = evaluation.summarize(losses, num_bytes, 30)
        num_covered += bits.low < 1.5 / np.log(2) < bits.high
    assert num_segments == 20 and 0.92 < num_covered / 400 < 0.98
    assert np.isnan(evaluation.summarize(np.ones(5), np.ones(5), 30)[0].low)


def test_the_held_out_text_of_a_run_is_scored(model):
    held_out = evaluation.evaluate_held_out(model)
    tokens = corpus.load_corpus(model.run)
    assert held_out.overlap is None and held_out.num_bytes == tokens.metadata["num_bytes"]["held_out"]
    text = tokenizers.decode(model.tokenizer, tokens.held_out)
    np.testing.assert_allclose(evaluation.evaluate(model, text, allow_overlap=True).losses, held_out.losses)


def test_a_text_that_was_trained_on_is_rejected(model, monkeypatch):
    trained = TEXT[TEXT.index("\n", 1000) : TEXT.index("\n", 3000)]
    for piece in (1 << 18, 97):  # pieces of the training text must not hide n-grams on their borders
        monkeypatch.setattr(overlap, "PIECE_TOKENS", piece)
        training = corpus.load_corpus(model.run).training
        full = overlap.measure_overlap(trained, model.tokenizer, training)
        assert full.fraction == 1 and full.ngram_size == 13 and full.num_ngrams > 200
        mixed = overlap.measure_overlap(UNSEEN_TEXT[:2000] + TEXT[1000:1500], model.tokenizer, training)
        assert 0.05 < mixed.fraction < 0.5 and mixed.example in " ".join(overlap.WORD.findall(TEXT.lower()))
        assert overlap.measure_overlap(UNSEEN_TEXT, model.tokenizer, training).num_shared == 0
        assert overlap.measure_overlap("Wool", model.tokenizer, training).fraction == 1
        assert overlap.measure_overlap(" ?", model.tokenizer, training).fraction == 0
    with pytest.raises(BadInput, match=r"100.0% of the text's 13-grams of words .* --allow-overlap"):
        evaluation.evaluate(model, trained)
    assert evaluation.evaluate(model, trained, allow_overlap=True).overlap.fraction == 1
    assert evaluation.evaluate(model, trained, max_overlap=1.0).overlap.fraction == 1


# Generation


GREEDY = SamplingParams(temperature=0.0)


def test_generation_is_batch_invariant(model):
    """A prompt is answered bitwise equal in every slot of a batch of one shape and beside any other sequences."""
    prompts = ["You may", "Lay the clothes", "x", "The"]
    params = SamplingParams(0.9, top_k=20, top_p=0.9)
    uniforms = np.random.default_rng(7).random((4, 8), np.float32)

    def decode(slot, texts):
        encoded = [generation.encode_prompt(model, text) for text in texts]
        encoded[slot] = generation.encode_prompt(model, "You may")
        state = generation.start(model, encoded, 8, params)
        state = state._replace(num_remaining=state.num_remaining.at[(slot + 1) % 4].set(2))
        numbers = np.roll(uniforms, slot, axis=0)
        state, output = generation.decode(model.config, model.weights, state, numbers, end_tokens=(256,))
        cache = jax.tree.leaves(state.cache)
        return [np.asarray(leaf[slot]).tobytes() for leaf in (*output, *cache)]

    assert len({tuple(decode(slot, batch)) for slot in range(4) for batch in (prompts, prompts[::-1])}) == 1


@pytest.mark.parametrize("params", [SamplingParams(0.7, seed=3), SamplingParams(1.2, 0.8, 2**64 - 1, 30)], ids=str)
def test_the_command_line_and_the_server_draw_the_same_tokens(model, params):
    """The compiled loop draws the tokens that the server's sampler draws from the logits of the whole sequence."""
    prompt = generation.encode_prompt(model, "You may")
    completion = generation.generate(model, ["You may"], max_tokens=8, sampling_params=params)[0]
    logits = np.asarray(forward(model.config, model.weights, jnp.array([[*prompt, *completion.tokens]]))[0])
    tokens = [sample_token(logits[len(prompt) - 1 + i], params, i) for i in range(8)]
    assert tokens == list(completion.tokens)


def test_a_server_engine_and_the_command_line_give_the_same_completion(model):
    engine, done, tokens = Engine(model.config), threading.Event(), []

    def on_output(output):
        if isinstance(output, TokenOutput):
            tokens.append(output.token)
        else:
            done.set()

    params = SamplingParams(0.8, 0.95, seed=11)
    engine.start(model.weights)
    prompt = tuple(generation.encode_prompt(model, "The"))
    engine.submit(GenerationRequest(model.weights, prompt, 8, params._replace(seed=derive_seed(11, 1))), on_output)
    assert done.wait(60)
    engine.stop()
    completions = generation.generate(model, ["The"], max_tokens=8, sampling_params=params, n=2)
    assert list(completions[1].tokens) == tokens


def test_the_same_seed_gives_the_same_text_and_callbacks_receive_all_of_it(model):
    parts = {}

    def on_text(index, text):
        parts[index] = parts.get(index, "") + text

    def complete(seed, **callback):
        params = SamplingParams(seed=seed)
        return generation.generate(model, ["You may", ""], max_tokens=40, sampling_params=params, n=2, **callback)

    completions = complete(3, on_text=on_text)
    assert completions == complete(3) != complete(4)
    assert len({c.text for c in completions}) == 4
    assert [parts.get(i, "") for i in range(4)] == [c.text for c in completions]
    assert all(c.text == tokenizers.decode(model.tokenizer, c.tokens) for c in completions)


def test_a_text_longer_than_the_context_continues_from_its_second_half(model):
    completions = generation.generate(model, ["You", "Wool"], max_tokens=30, sampling_params=GREEDY)
    for prompt, completion in zip(("You", "Wool"), completions, strict=True):
        assert completion.finish_reason == "length" and len(completion.tokens) == 30
        tokens, begin = model.tokenizer.encode(prompt).tolist(), 0
        for token in completion.tokens:
            if len(tokens) - begin > model.config.context_length:
                begin = len(tokens) - model.config.context_length // 2
            window = np.zeros(model.config.context_length, np.int32)
            window[: len(tokens) - begin] = tokens[begin:]
            logits = forward(model.config, model.weights, jnp.asarray(window)[None])[0, len(tokens) - begin - 1]
            assert token == int(jnp.argmax(logits))
            tokens.append(token)


@given(st.lists(st.integers(0, 256), max_size=30), st.lists(st.text(max_size=3), max_size=3))
def test_a_text_stream_yields_the_text_up_to_the_first_stop_string(tokens, stops):
    stream = TextStream(tokenizers.ByteTokenizer(), stops)
    text = "".join(stream.push(token) for token in tokens) + stream.finish()
    full_text = tokenizers.decode(tokenizers.ByteTokenizer(), tokens)
    if not any(stop in full_text for stop in stops if stop):
        assert text == full_text and not stream.stopped
    else:
        assert stream.stopped and full_text.startswith(text) and not any(stop in text for stop in stops if stop)


def test_stop_strings_and_the_end_token_end_a_text(model):
    def complete(weights=model.weights, prompt="You may", max_tokens=30, params=GREEDY, stop=()):
        changed = model._replace(weights=weights)
        return generation.generate(changed, [prompt], max_tokens=max_tokens, sampling_params=params, stop=stop)[0]

    plain = complete()
    stop = plain.text[8:11]
    cut = complete(stop=[stop, "zzz"])
    assert cut.finish_reason == "stop" and cut.text == plain.text[: plain.text.index(stop)]
    uniform = model.weights._replace(norm=jax.tree.map(jnp.zeros_like, model.weights.norm))  # all logits are equal
    assert complete(uniform, "a").finish_reason == "length"  # the first token is the most probable
    ended = complete(uniform, "a", 900, SamplingParams(seed=2))
    assert ended.finish_reason == "end" and ended.tokens[-1] == 256 and 256 not in ended.tokens[:-1]


# As an agent


def test_a_language_model_in_an_environment_of_text_predicts_what_its_logits_say(model):
    tokens = model.tokenizer.encode(UNSEEN_TEXT)
    env = text_env.from_tokens(tokens, 257, passage_length=5, num_passages=3)
    drives = steering.build(env.spec)
    agent = language_model.language_model_agent(model.config)
    state = agent.init(jax.random.key(0), model.weights)
    run = jax.jit(lambda key: rollouts.rollout(key, agent, env, drives, state, 15, False)[1])
    trajectory = run(jax.random.key(1))
    logits = forward(model.config, model.weights, trajectory.observation[None])[0]
    assert trajectory.action.tolist() == jnp.argmax(logits, -1).tolist()
    is_correct = (trajectory.action[:-1] == trajectory.observation[1:]).astype(float)
    assert trajectory.reward[:-1].tolist() == is_correct.tolist()
    assert trajectory.first.tolist() == [True, False, False, False, False] * 3


# On the command line


def is_one_sentence(message):
    return message.startswith("ontogeny: ") and message.count("\n") == 1 and "Traceback" not in message


def test_the_commands_train_evaluate_generate_and_export(call_cli, run):
    Path("mine.txt").write_text(TEXT, encoding="utf-8")
    Path("other.txt").write_text(UNSEEN_TEXT, encoding="utf-8")
    code, output, error = call_cli("lm", "train", "mine.txt", *OPTIONS, "--out", "run")
    assert code == 0 and "after 40 steps and 2,560 tokens" in output
    assert error.startswith("note: 7,680 parameters") and "learning_rate=0.01" in error and "num_steps=40" in error
    assert Path("run/report.html").exists()
    assert trees.digest(models.load("run").weights) == trees.digest(models.load(run).weights)
    code, _, error = call_cli("lm", "train", "mine.txt", *OPTIONS, "--out", "run")
    assert code == 2 and "finished run; not overwritten" in error and is_one_sentence(error)
    code, _, error = call_cli("lm", "train", "mine.txt", *OPTIONS, "--seed", "2", "--out", "run")
    assert code == 2 and "run of another spec" in error

    code, output, _ = call_cli("lm", "evaluate", "run", "--text", "other.txt", "--json", "--out", "score.json")
    record = json.loads(output)
    assert code == 0 and record == json.loads(Path("score.json").read_text()) and record["text"] == "other.txt"
    assert record["overlap"]["num_shared"] == 0 and record["stride"] == 8
    code, output, _ = call_cli("lm", "evaluate", "run", "--stride", "16")
    assert code == 0 and "held out by its run" in output and "stride 16" in output
    code, _, error = call_cli("lm", "evaluate", "run", "--text", "mine.txt")
    assert code == 2 and "--allow-overlap" in error and is_one_sentence(error)
    code, output, _ = call_cli("lm", "evaluate", "run", "--text", "mine.txt", "--allow-overlap")
    assert code == 0 and "are in the training text" in output

    command = ["lm", "generate", "run", "--prompt", "You may", "--max-tokens", "12", "--seed", "5"]
    code, output, _ = call_cli(*command)
    assert code == 0 and output.startswith("You may") and (code, output) == call_cli(*command)[:2]
    lines = call_cli(*command, "--prompt", "x", "-n", "2", "--json")[1].splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 0, 1]
    assert output == "You may" + json.loads(call_cli(*command, "--json")[1])["text"] + "\n"

    code, output, _ = call_cli("lm", "export", "run", "--out", "theirs")
    assert code == 0 and output == "wrote theirs\n"
    assert call_cli("lm", "generate", "theirs", *command[3:])[1] == call_cli(*command)[1]
    code, output, error = call_cli("lm", "evaluate", "theirs", "--text", "mine.txt", "--json")
    assert code == 0 and "was not checked" in error and json.loads(output)["overlap"] is None
    assert call_cli("lm", "evaluate", "theirs")[0] == 2


TRAIN = ("lm", "train", "long.txt", "--out", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm", "train", "absent.txt", "--out", "x"], "absent.txt' cannot be read: No such file"),
        (["lm", "train", "empty.txt", "--out", "x"], "empty.txt' is empty"),
        (["lm", "train", "blank.txt", "--out", "x"], "nothing but white space"),
        (["lm", "train", "binary", "--out", "x"], "'binary' is not text: it contains the byte 0"),
        (["lm", "train", "latin.txt", "--out", "x"], "'latin.txt' is not text in UTF-8"),
        (["lm", "train", ".", "--out", "x"], "is a folder"),
        (["lm", "train", "short.txt", "--out", "x"], "tokens, fewer than a context of 64"),
        (["lm", "train", "long.txt", "long.txt", "--out", "x"], "the same text as another"),
        ([*TRAIN, "--size", "mico"], "no size 'mico'; did you mean micro"),
        ([*TRAIN, "--num-heads", "3"], "3 heads do not divide"),
        ([*TRAIN, "--num-steps", "0"], "'num_steps' in [lm train] must be greater than or equal to 1"),
        ([*TRAIN, "--tokenizer", "words"], "must be 'bytes', 'characters' or 'bpe', not 'words'"),
        ([*TRAIN, "--split", "document"], "at least two files"),
        ([*TRAIN, "--held-out-fraction", "1"], "'held_out_fraction' in [lm train] must be less than 1"),
        ([*TRAIN, "--optimizer", "sgd"], "must be 'adamw' or 'muon', not 'sgd'"),
        ([*TRAIN, "--learning-rate", "nan"], "'learning_rate' in [lm train] must be"),
        ([*TRAIN, "--seed", "-1"], "'seed' in [lm train] must be a whole number from 0 to 4294967295, not -1"),
        ([*TRAIN, "--heads", "3"], "`--heads` was renamed `--num-heads`"),
        (["lm", "train", "long.txt", "--out", "full"], "holds no run; not overwritten"),
        (["lm", "train", "long.txt", "--out", "long.txt"], "is not a folder"),
        (["lm", "generate", "absent"], "there is no run in 'absent'"),
        (["lm", "generate", "full"], "'full' is a folder of other files, not"),
        (
            ["lm", "generate", "RUN", "--prompt", "a long text that fills it all"],
            "leaves no space in the model's context of 16",
        ),
        (["lm", "generate", "RUN", "--temperature", "-1"], "the temperature must lie between"),
        (["lm", "generate", "RUN", "--top-p", "1.5"], "top-p must lie between 0 and 1"),
        (["lm", "generate", "RUN", "--max-tokens", "0"], "at least one token"),
        (["lm", "evaluate", "RUN", "--batch-size", "0"], "a batch has at least one window, not 0"),
        (["lm", "evaluate", "RUN", "--text", "binary"], "is not text"),
        (["lm", "evaluate", "RUN", "--stride", "17"], "the stride must lie between 1 and the model's context of 16"),
        (["lm", "evaluate", "RUN", "--env", "bandit"], "--env"),
        (["evaluate", "RUN"], "is a language-model run, not"),
        (["lm", "evaluate", "RUN", "--learning", "chunk_size=8"], "it requires --online"),
        (["lm", "evaluate", "RUN", "--no-memory"], "it requires --online"),
        (
            ["lm", "evaluate", "RUN", "--online", "--text", "long.txt", "--learning", "block=8"],
            "unknown key 'block' in [learning]",
        ),
        (
            ["lm", "evaluate", "RUN", "--online", "--text", "long.txt", "--learning", "optimizer=newton"],
            "'optimizer' in [learning] must be 'adam', 'rms' or 'sgd', not 'newton'",
        ),
        (["lm", "evaluate", "full", "--text", "long.txt"], "'full' is a folder of other files, not"),
    ],
)
def test_bad_input_is_reported_in_one_sentence_and_leaves_no_files(call_cli, run, arguments, message):
    files = {"empty.txt": b"", "blank.txt": b" \n\n", "binary": b"\0\1\2" * 50, "latin.txt": "é".encode("latin-1") * 99}
    files |= {"short.txt": b"too short\n", "long.txt": UNSEEN_TEXT.encode(), "full/other": b"of somebody"}
    Path("full").mkdir()
    for name, content in files.items():
        Path(name).write_bytes(content)
    code, output, error = call_cli(*[str(run) if word == "RUN" else word for word in arguments])
    assert code == 2 and output == "" and message in error and is_one_sentence(error), error
    present = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert present == files


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json", "spec.json", "tokenizer.json"])
def test_a_truncated_run_is_reported_in_one_sentence(call_cli, run, name):
    shutil.copytree(run, "damaged")
    data = (Path("damaged") / name).read_bytes()
    (Path("damaged") / name).write_bytes(data[: len(data) // 2])
    code, output, error = call_cli("lm", "generate", "damaged", "--prompt", "a")
    assert code == 2 and output == "" and is_one_sentence(error), error
