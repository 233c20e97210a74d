"""Text in and out of a language model: tokenizers, corpora, training that is killed, scores, overlap, continuations."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import texts
from ontogeny import cli, rollouts, steering, trees
from ontogeny.agents import language_model
from ontogeny.content import transformer
from ontogeny.engine import generate as generation
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams, sample_token
from ontogeny.engine.text_stream import TextStream
from ontogeny.environments import text as text_env
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, evaluate, optimization, overlap, page
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.train import TrainConfig, read_records, train

TEXT, OTHER = texts.read(texts.PROCEDURES), texts.read(texts.HELD_OUT)
TINY = {"layers": 1, "heads": 2, "width": 16, "context": 16, "batch": 4}
PLAN = TrainConfig(size="pico", tokenizer="bytes", steps=40, learning_rate=0.01, **TINY)
OPTIONS = ["--size", "pico", "--tokenizer", "bytes", "--steps", "40", "--learning-rate", "0.01"]
OPTIONS += [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
forward = jax.jit(transformer.forward, static_argnums=0)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A person's file."""
    path = tmp_path_factory.mktemp("texts") / "mine.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(mine):
    return train(PLAN, [mine], mine.parent / "run", every=0)


@pytest.fixture(scope="module")
def model(run):
    return models.load(run)


@pytest.fixture
def ontogeny(monkeypatch, capsys, tmp_path):
    """Calls the command in this process -> exit code, what it printed, what it complained of."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ontogeny", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code, *capsys.readouterr()

    return call


# Tokenizers


def made(kind):
    return tokenizers.make(kind, 300, [TEXT])


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_text_comes_back_and_a_tokenizer_that_was_saved_is_the_same(kind):
    tokenizer = made(kind)
    again = tokenizers.parse(tokenizer.as_json())
    tokens = tokenizer.encode(TEXT)
    assert type(again) is type(tokenizer) and (again.size, again.end) == (tokenizer.size, tokenizer.end)
    assert again.encode(TEXT).tolist() == tokens.tolist() and tokens.dtype == np.int32
    assert tokenizers.decode(again, tokens) == TEXT and tokens.min() >= 0 and tokens.max() < tokenizer.size
    assert tokenizers.decode(tokenizer, [tokenizer.end]) == "" and tokenizer.encode("").tolist() == []


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(st.text())
def test_bytes_and_pairs_express_any_text(kind, text):
    tokenizer = made_once(kind)
    assert tokenizers.decode(tokenizer, tokenizer.encode(text)) == text


@lru_cache
def made_once(kind):
    return made(kind)


def test_pieces_are_tokenized_as_the_whole():
    text = TEXT + OTHER + "naïve  café\n\n\u3000 end " * 50
    tokenizer = made_once("bpe")
    whole = tokenizer._made.encode(text).ids
    for length in (13, 200, 3000):
        pieces = list(tokenizers.in_pieces([text[:500], text[500:]], length))
        assert "".join(pieces) == text and len(pieces) > 2
        assert [token for piece in pieces for token in tokenizer.encode(piece).tolist()] == whole


def test_an_unknown_character_is_said():
    with pytest.raises(BadInput, match=r"the character 'ö' at position 3 is not among the \d+"):
        made("characters").encode("Wool"[:3] + "ö")
    with pytest.raises(BadInput, match="one of bytes, characters, bpe"):
        tokenizers.make("words", 300, [TEXT])
    with pytest.raises(BadInput, match="has 257 to"):
        tokenizers.make("bpe", 100, [TEXT])


# Corpora


def test_tails_and_documents_are_held_out(tmp_path):
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(f"text {i}: naïve\n" * (50 + i), encoding="utf-8")
    sources = corpus.look_at(paths)
    for split in corpus.SPLITS:
        parts = corpus.divide(sources, split, 0.2, seed=3)
        texts = {part: ["".join(corpus.read(p)) for p in passages] for part, passages in parts.items()}
        whole = sorted("".join(pair) for pair in zip(texts["training"], texts["held_out"], strict=False))
        if split == "tail":
            assert whole == [path.read_text(encoding="utf-8") for path in paths]
            assert all(text.endswith("\n") for text in texts["training"])
        else:
            assert len(parts["held_out"]) == 1 and not set(parts["held_out"]) & set(parts["training"])
        (folder := tmp_path / split).mkdir()
        tokens = corpus.write(folder, parts, tokenizers.Bytes(), 8)
        for part in corpus.PARTS:
            found = np.asarray(getattr(tokens, part))
            assert found.dtype == np.uint16 and (found == 256).sum() == len(parts[part])
            assert tokenizers.decode(tokenizers.Bytes(), found) == "".join(texts[part])


def test_a_text_longer_than_a_read_is_the_same_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("naïve café 中文\n" * 100, encoding="utf-8")
    expected = corpus.look_at([tmp_path / "a.txt"])
    monkeypatch.setattr(corpus, "READ", 7)
    assert corpus.look_at([tmp_path / "a.txt"]) == expected
    passage = corpus.Passage(tmp_path / "a.txt", 0, expected[0].bytes)
    assert "".join(corpus.read(passage)) == (tmp_path / "a.txt").read_text(encoding="utf-8")


def test_windows_follow_from_seed_and_step_alone():
    tokens = np.arange(1000, dtype=np.uint16)
    many = corpus.sample_batches(tokens, 5, 0, (6, 2, 3), 8)
    later = corpus.sample_batches(tokens, 5, 4, (2, 2, 3), 8)
    assert many.shape == (6, 2, 3, 9) and (np.diff(many) == 1).all() and (many[4:] == later).all()
    assert (many != corpus.sample_batches(tokens, 6, 0, (6, 2, 3), 8)).any()
    spread = corpus.spaced_windows(tokens, 8, 10)
    assert spread.shape == (10, 9) and spread[0, 0] == 0 and spread[-1, -1] == 124 * 8


# Training


def test_training_learns_and_leaves_records_and_a_page(run, model):
    records = read_records(run)
    losses = [record["loss"] for record in records if "loss" in record]
    held_out = [record["held_out"] for record in records if "held_out" in record]
    assert len(losses) == 40 and np.mean(losses[-5:]) < losses[0] - 1.5 and held_out[-1] < held_out[0]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 41))
    html = page.write(run).read_text(encoding="utf-8")
    assert "<svg" in html and "http" not in html.replace("http://www.w3.org", "") and "mine.txt" in html
    assert html == page.render(run)
    assert model.config.vocab_size == 257 and trees.is_finite(model.weights)


class Killed(Exception):
    pass


def test_a_run_that_was_stopped_again_and_again_ends_in_the_same_bits(run, mine, tmp_path):
    def stop(moment):
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            train(PLAN, [mine], tmp_path / "again", on_progress=stop, every=0)
        with (tmp_path / "again" / "records.jsonl").open("a") as file:
            file.write('{"step": 39, "loss": 1.0}\n{"st')  # as if it had gone on and been cut off
    train(PLAN, [mine], tmp_path / "again", every=0)
    one, other = (trees.digest(models.load(folder).weights) for folder in (run, tmp_path / "again"))
    assert one == other and read_records(run) == read_records(tmp_path / "again")
    changed = train(PLAN._replace(seed=1), [mine], tmp_path / "changed")
    assert trees.digest(models.load(changed).weights) != one


def test_a_run_that_was_killed_ends_in_the_same_bits(run, mine, tmp_path):
    command = [sys.executable, "-m", "ontogeny", "train", "text", str(mine), *OPTIONS, "--out", "run", "--every", "0"]
    # The command asks for wide registers, which give other bits than the ones this process began with.
    same = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_cpu_prefer_vector_width=256"}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, env=same) as started:
        while started.poll() is None and not (tmp_path / "run" / "checkpoint.json").exists():
            time.sleep(0.01)
        started.send_signal(signal.SIGKILL)
    unfinished = not (tmp_path / "run" / "weights.json").exists()
    if unfinished:
        with pytest.raises(BadInput, match="is not finished"):
            models.load(tmp_path / "run")
        train(PLAN, [mine], tmp_path / "run")
    assert trees.digest(models.load(tmp_path / "run").weights) == trees.digest(models.load(run).weights)


def test_what_a_killed_process_left_beside_a_folder_is_removed(mine, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        (tmp_path / f".run.{number}.tmp").mkdir()
    with pytest.raises(BadInput):
        train(PLAN._replace(vocabulary=3, tokenizer="bpe"), [mine], tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "muon", "architecture": "modern"}, {"accumulate": 2, "decay": "linear", "precision": "bfloat16"}],
    ids=str,
)
def test_recipes(mine, tmp_path, changes):
    out = train(PLAN._replace(steps=20, **changes), [mine], tmp_path / "run")
    losses = [record["loss"] for record in read_records(out) if "loss" in record]
    assert np.mean(losses[-3:]) < losses[0] - 0.5 and models.load(out).config.vocab_size == 257


def test_accumulated_gradients_are_those_of_one_batch():
    config = transformer.make_config("gpt2", 20, 8, num_layers=1, num_heads=1, width=8)
    one, two = (optimization.OptimizerConfig(steps=5, batch=b, accumulate=a) for b, a in ((4, 1), (2, 2)))
    tokens = jax.random.randint(jax.random.key(0), (1, 4, 9), 0, 20)
    weights = optimization.born(jax.random.key(1), config, one)
    first = jax.jit(optimization.step(config, one))(weights, tokens)
    second = jax.jit(optimization.step(config, two))(weights, tokens.reshape(2, 2, 9))
    np.testing.assert_allclose(first[1]["loss"], second[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(first[1]["norm"], second[1]["norm"], rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_devices_share_is_learned_from_as_by_one(accumulate):
    config = transformer.make_config("gpt2", 16, 8, num_layers=1, num_heads=2, width=8)
    how = optimization.OptimizerConfig(steps=3, batch=4, accumulate=accumulate)
    tokens = np.random.default_rng(0).integers(0, 16, (3, accumulate, 4, 9)).astype(np.int32)
    found = [
        optimization.take_steps(config, how, optimization.born(jax.random.key(0), config, how), tokens, shards=shards)
        for shards in (1, 2)
    ]
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    windows = tokens.reshape(-1, 9)
    one, two = (
        optimization.losses(config, "float32", found[0][0].content, windows, shards=shards) for shards in (1, 2)
    )
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_devices_share_a_batch_only_where_each_has_a_thread_of_its_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert optimization.shards(optimization.OptimizerConfig(steps=1, batch=12)) == 1
    monkeypatch.setenv("XLA_FLAGS", optimization.ONE_THREAD)
    assert optimization.shards(optimization.OptimizerConfig(steps=1, batch=12)) == jax.local_device_count() == 2
    assert optimization.shards(optimization.OptimizerConfig(steps=1, batch=5)) == 1
    assert optimization.shards(optimization.OptimizerConfig(steps=1, batch=12, optimizer="muon")) == 1


def test_the_learning_rate_rises_and_falls():
    rate = optimization.schedule(optimization.OptimizerConfig(steps=100, warmup=0.1, learning_rate=1.0))
    found = [float(rate(step)) for step in (0, 9, 10, 55, 100)]
    np.testing.assert_allclose(found, [0.1, 1.0, 1.0, 0.55, 0.1], atol=1e-3)


# Scores


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_losses_by_sliding_windows_are_those_of_one_token_at_a_time(model, stride):
    tokens, context = model.tokenizer.encode(TEXT)[:61], model.config.context_length
    found = evaluate.losses(model, tokens, stride=stride)
    for i in range(1, len(tokens)):
        end = i if i <= context else min(context + -(-(i - context) // stride) * stride, len(tokens) - 1)
        begin = max(end - context, 0) if i > context else 0
        window = np.zeros(context, np.int32)
        window[: i - begin] = tokens[begin:i]
        logits = forward(model.config, model.weights, jnp.asarray(window)[None])[0, i - begin - 1]
        assert abs(found[i - 1] - float(jax.nn.logsumexp(logits) - logits[tokens[i]])) < 1e-4


def test_a_score_is_what_its_losses_say(model):
    found = evaluate.evaluate(model, OTHER[:3000])
    size = len(OTHER[:3000].encode())
    assert found.tokens == found.bytes == size and found.stride == 8 and found.overlap.share < 0.01
    np.testing.assert_allclose(found.nats_per_token.mean, found.losses.mean())
    np.testing.assert_allclose(found.perplexity.mean, np.exp(found.losses.mean()))
    np.testing.assert_allclose(found.bits_per_byte.mean, found.losses.sum() / np.log(2) / size)
    assert found.bits_per_byte.low < found.bits_per_byte.mean < found.bits_per_byte.high
    assert found.blocks == -(-found.tokens // found.block)
    assert json.loads(json.dumps(evaluate.as_record(found), allow_nan=False))["blocks"] == found.blocks


def test_intervals_hold_the_mean_as_often_as_they_say():
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        lengths = random.integers(1, 4, 600).astype(float)
        nats = 1.5 * lengths + random.normal(size=600)
        _, bits, blocks = evaluate.summary(nats, lengths, 30)
        hits += bits.low < 1.5 / np.log(2) < bits.high
    assert blocks == 20 and 0.92 < hits / 400 < 0.98
    assert np.isnan(evaluate.summary(np.ones(5), np.ones(5), 30)[0].low)


def test_what_was_held_out_is_scored(model):
    found = evaluate.evaluate_held_out(model)
    texts = corpus.load(model.run)
    assert found.overlap is None and found.bytes == texts.about["bytes"]["held_out"]
    again = evaluate.evaluate(model, tokenizers.decode(model.tokenizer, texts.held_out), despite_overlap=True)
    np.testing.assert_allclose(again.losses, found.losses)


def test_a_text_that_was_trained_on_is_refused(model, monkeypatch):
    known = TEXT[TEXT.index("\n", 1000) : TEXT.index("\n", 3000)]
    for piece in (1 << 18, 97):  # pieces of the training text must not hide what lies on their border
        monkeypatch.setattr(overlap, "PIECE", piece)
        training = corpus.load(model.run).training
        inside = overlap.measure(known, model.tokenizer, training)
        assert inside.share == 1 and inside.words == 13 and inside.runs > 200
        mixed = overlap.measure(OTHER[:2000] + TEXT[1000:1500], model.tokenizer, training)
        assert 0.05 < mixed.share < 0.5 and mixed.example in " ".join(overlap.WORD.findall(TEXT.lower()))
        assert overlap.measure(OTHER, model.tokenizer, training).shared == 0
        assert overlap.measure("Wool", model.tokenizer, training).share == 1
        assert overlap.measure(" ?", model.tokenizer, training).share == 0
    with pytest.raises(BadInput, match=r"100.0% of the text's runs of 13 words .* --despite-overlap"):
        evaluate.evaluate(model, known)
    assert evaluate.evaluate(model, known, despite_overlap=True).overlap.share == 1
    assert evaluate.evaluate(model, known, threshold=1.0).overlap.share == 1


# Continuations


GREEDY = SamplingParams(temperature=0)


def test_generation_is_batch_invariant(model):
    """In a batch of one shape, whichever slot a prompt has and whatever the other sequences do."""
    prompts = ["You may", "Lay the clothes", "x", "The"]
    params = SamplingParams(0.9, top_k=20, top_p=0.9)
    uniforms = np.random.default_rng(7).random((4, 8), np.float32)

    def decode(slot, others):
        encoded = [generation.encode_prompt(model, text) for text in others]
        encoded[slot] = generation.encode_prompt(model, "You may")
        state = generation.start(model, encoded, 8, params)
        state = state._replace(num_remaining=state.num_remaining.at[(slot + 1) % 4].set(2))
        numbers = np.roll(uniforms, slot, axis=0)
        state, output = generation.decode(model.config, model.weights, state, numbers, end_token=256)
        cache = jax.tree.leaves(state.cache)
        return [np.asarray(leaf[slot]).tobytes() for leaf in (*output, *cache)]

    assert len({tuple(decode(slot, others)) for slot in range(4) for others in (prompts, prompts[::-1])}) == 1


@pytest.mark.parametrize("params", [SamplingParams(0.7, seed=3), SamplingParams(1.2, 0.8, 2**64 - 1, 30)], ids=str)
def test_the_command_line_and_the_server_draw_the_same_tokens(model, params):
    """What the compiled loop draws equals what the server's sampler draws from the logits of the whole sequence."""
    prompt = generation.encode_prompt(model, "You may")
    completion = generation.generate(model, ["You may"], max_tokens=8, sampling_params=params)[0]
    logits = np.asarray(forward(model.config, model.weights, jnp.array([[*prompt, *completion.tokens]]))[0])
    tokens = [sample_token(logits[len(prompt) - 1 + i], params, i) for i in range(8)]
    assert tokens == list(completion.tokens)


def test_a_server_engine_and_the_command_line_give_the_same_completion(model):
    engine, done, tokens = Engine(model.config, num_workers=1), threading.Event(), []

    def on_output(output):
        if isinstance(output, TokenOutput):
            tokens.append(output.token)
        else:
            done.set()

    params = SamplingParams(0.8, 0.95, seed=11)
    engine.start(model.weights)
    prompt = tuple(generation.encode_prompt(model, "The"))
    engine.submit(GenerationRequest(model.weights, prompt, 8, params._replace(seed=12), None), on_output)
    assert done.wait(60)
    engine.stop()
    completions = generation.generate(model, ["The"], max_tokens=8, sampling_params=params, n=2)
    assert list(completions[1].tokens) == tokens  # completion number i has the seed plus i


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
    stream = TextStream(tokenizers.Bytes(), stops)
    text = "".join(stream.push(token) for token in tokens) + stream.finish()
    whole = tokenizers.decode(tokenizers.Bytes(), tokens)
    if not any(stop in whole for stop in stops if stop):
        assert text == whole and not stream.stopped
    else:
        assert stream.stopped and whole.startswith(text) and not any(stop in text for stop in stops if stop)


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


def test_a_language_model_in_a_env_of_text_guesses_what_its_logits_say(model):
    tokens = model.tokenizer.encode(OTHER)
    env = text_env.from_tokens(tokens, 257, passage_length=5, num_passages=3)
    drives = steering.build(env.spec)
    agent = language_model.language_model_agent(model.config)
    born = agent.init(jax.random.key(0), model.weights)
    trajectory = jax.jit(lambda key: rollouts.rollout(key, agent, env, drives, born, 15, False)[1])(jax.random.key(1))
    logits = forward(model.config, model.weights, trajectory.observation[None])[0]
    assert trajectory.action.tolist() == jnp.argmax(logits, -1).tolist()
    assert (
        trajectory.reward[:-1].tolist() == (trajectory.action[:-1] == trajectory.observation[1:]).astype(float).tolist()
    )
    assert trajectory.first.tolist() == [True, False, False, False, False] * 3


# On the command line


def is_one_sentence(complaint):
    return complaint.startswith("ontogeny: ") and complaint.count("\n") == 1 and "Traceback" not in complaint


def test_from_text_to_use(ontogeny, run):
    Path("mine.txt").write_text(TEXT, encoding="utf-8")
    Path("other.txt").write_text(OTHER, encoding="utf-8")
    code, printed, complaint = ontogeny("train", "text", "mine.txt", *OPTIONS, "--out", "run")
    assert (
        code == 0
        and complaint == ""
        and "after 40 steps and 2,560 tokens" in printed
        and Path("run/report.html").exists()
    )
    assert trees.digest(models.load("run").weights) == trees.digest(models.load(run).weights)
    code, _, complaint = ontogeny("train", "text", "mine.txt", *OPTIONS, "--out", "run")
    assert code == 2 and "finished run; not overwritten" in complaint and is_one_sentence(complaint)
    code, _, complaint = ontogeny("train", "text", "mine.txt", *OPTIONS, "--seed", "2", "--out", "run")
    assert code == 2 and "run of another spec" in complaint

    code, printed, _ = ontogeny("evaluate", "run", "--text", "other.txt", "--json", "--out", "score.json")
    record = json.loads(printed)
    assert code == 0 and record == json.loads(Path("score.json").read_text()) and record["text"] == "other.txt"
    assert record["overlap"]["shared"] == 0 and record["stride"] == 8
    code, printed, _ = ontogeny("evaluate", "run", "--stride", "16")
    assert code == 0 and "held out by its run" in printed and "stride 16" in printed
    code, _, complaint = ontogeny("evaluate", "run", "--text", "mine.txt")
    assert code == 2 and "--despite-overlap" in complaint and is_one_sentence(complaint)
    code, printed, _ = ontogeny("evaluate", "run", "--text", "mine.txt", "--despite-overlap")
    assert code == 0 and "are in the training text" in printed

    same = ["generate", "run", "--prompt", "You may", "--max-tokens", "12", "--seed", "5"]
    code, printed, _ = ontogeny(*same)
    assert code == 0 and printed.startswith("You may") and (code, printed) == ontogeny(*same)[:2]
    lines = ontogeny(*same, "--prompt", "x", "-n", "2", "--json")[1].splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 0, 1]
    assert printed == "You may" + json.loads(ontogeny(*same, "--json")[1])["text"] + "\n"

    code, printed, _ = ontogeny("export", "run", "--out", "theirs")
    assert code == 0 and printed == "wrote theirs\n"
    assert ontogeny(*["generate", "theirs", *same[2:]])[1] == ontogeny(*same)[1]
    code, printed, complaint = ontogeny("evaluate", "theirs", "--text", "mine.txt", "--json")
    assert code == 0 and "cannot be said" in complaint and json.loads(printed)["overlap"] is None
    assert ontogeny("evaluate", "theirs")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "text", "absent.txt", "--out", "x"], "absent.txt' cannot be read: No such file"),
        (["train", "text", "empty.txt", "--out", "x"], "empty.txt' is empty"),
        (["train", "text", "blank.txt", "--out", "x"], "nothing but white space"),
        (["train", "text", "binary", "--out", "x"], "'binary' is not text: it holds the byte 0"),
        (["train", "text", "latin.txt", "--out", "x"], "'latin.txt' is not text in UTF-8"),
        (["train", "text", ".", "--out", "x"], "is a folder"),
        (["train", "text", "short.txt", "--out", "x"], "tokens, less than one block of 64"),
        (["train", "text", "long.txt", "long.txt", "--out", "x"], "the same text as another"),
        (["train", "text", "long.txt", "--size", "mico", "--out", "x"], "no size 'mico'; did you mean micro"),
        (["train", "text", "long.txt", "--heads", "3", "--out", "x"], "3 heads do not divide"),
        (["train", "text", "long.txt", "--steps", "0", "--out", "x"], "'steps' must be at least 1"),
        (["train", "text", "long.txt", "--tokenizer", "words", "--out", "x"], "one of bytes, characters, bpe"),
        (["train", "text", "long.txt", "--split", "document", "--out", "x"], "at least two files"),
        (["train", "text", "long.txt", "--held-out", "1", "--out", "x"], "between 0 and 1"),
        (["train", "text", "long.txt", "--optimizer", "sgd", "--out", "x"], "one of adamw, muon, not 'sgd'"),
        (["train", "text", "long.txt", "--learning-rate", "nan", "--out", "x"], "'learning_rate' must be at least 0"),
        (["train", "text", "long.txt", "--seed", "-1", "--out", "x"], "seed must lie between"),
        (["train", "text", "long.txt", "--out", "full"], "holds no run; not overwritten"),
        (["train", "text", "long.txt", "--out", "long.txt"], "is not a folder"),
        (["generate", "absent"], "there is no model in 'absent'"),
        (["generate", "full"], "holds no language model"),
        (
            ["generate", "RUN", "--prompt", "a long text that fills it all"],
            "leaves no room in the model's context of 16",
        ),
        (["generate", "RUN", "--temperature", "-1"], "the temperature must lie between"),
        (["generate", "RUN", "--top-p", "0"], "top-p must lie above 0"),
        (["generate", "RUN", "--max-tokens", "0"], "at least one token"),
        (["evaluate", "RUN", "--text", "short.txt"], "less than one block of the model's 16"),
        (["evaluate", "RUN", "--text", "binary"], "is not text"),
        (["evaluate", "RUN", "--stride", "17"], "the stride must lie between 1 and the model's context of 16"),
        (["evaluate", "RUN", "--env", "bandit"], "it has no --env"),
        (
            ["evaluate", "--agent", "random", "--env", "bandit", "--stride", "3"],
            "are for the run of a language model",
        ),
        (["evaluate", "full", "--text", "long.txt"], "holds no language model"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_half_written(ontogeny, run, arguments, said):
    files = {"empty.txt": b"", "blank.txt": b" \n\n", "binary": b"\0\1\2" * 50, "latin.txt": "é".encode("latin-1") * 99}
    files |= {"short.txt": b"too short\n", "long.txt": OTHER.encode(), "full/other": b"of somebody"}
    Path("full").mkdir()
    for name, content in files.items():
        Path(name).write_bytes(content)
    code, printed, complaint = ontogeny(*[str(run) if word == "RUN" else word for word in arguments])
    assert code == 2 and printed == "" and said in complaint and is_one_sentence(complaint), complaint
    found = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert found == files


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json", "spec.json", "tokenizer.json"])
def test_a_truncated_run_is_one_sentence(ontogeny, run, name):
    import shutil

    shutil.copytree(run, "damaged")
    data = (Path("damaged") / name).read_bytes()
    (Path("damaged") / name).write_bytes(data[: len(data) // 2])
    code, printed, complaint = ontogeny("generate", "damaged", "--prompt", "a")
    assert code == 2 and printed == "" and is_one_sentence(complaint), complaint
