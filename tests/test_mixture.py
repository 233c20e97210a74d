"""The mixture of network and memory: order of prediction and learning, normalization, bytes of tokens, its report."""

import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from ontogeny.content import transformer
from ontogeny.lm import byte_decisions, mixture, online, text_memory
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.lm.tokenizer import ByteTokenizer, train_tokenizer

TEXT = "the cat sat on the mat, and the dog sat on the log. " * 6
BPE = train_tokenizer("bpe", 300, [TEXT * 4, "<|endoftext|> ééé"])
TOKENIZERS = {"bytes": ByteTokenizer(), "bpe": BPE, "characters": train_tokenizer("characters", 0, [TEXT])}


def random_network(table, tokens, seed=0):
    """A distribution over the vocabulary for each token, as probabilities of its decisions [T, L] and of tokens."""
    size = len(table.sorted_tokens)
    logits = jax.random.normal(jax.random.key(seed), (len(tokens), size))
    log_probabilities = jax.nn.log_softmax(logits)
    intervals = table.intervals[table.row_of[tokens]]
    padded = byte_decisions.decision_probabilities(log_probabilities, table.sorted_tokens, intervals)
    return np.asarray(padded, np.float64), np.asarray(log_probabilities)


def mix(tokenizer, tokens, seed=0):
    table = byte_decisions.tabulate(tokenizer, tokenizer.size, tokens)
    padded, _ = random_network(table, tokens[1:], seed)
    return mixture.mix(table, tokens, byte_decisions.select(table, tokens[1:], padded))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_decisions_have_the_probability_of_their_token(name):
    tokenizer = TOKENIZERS[name]
    tokens = np.unique(tokenizer.encode(TEXT))
    table = byte_decisions.tabulate(tokenizer, tokenizer.size + 3, tokens)  # a vocabulary padded beyond the tokenizer
    padded, log_probabilities = random_network(table, tokens)
    bits = byte_decisions.select(table, tokens, table.bits[table.row_of[tokens]])
    network = byte_decisions.select(table, tokens, padded)
    probabilities = np.where(bits == 1, network, 1 - network)
    ends = np.cumsum(table.lengths[table.row_of[tokens]])
    sums = np.diff(np.concatenate([[0.0], np.cumsum(np.log(probabilities))])[[0, *ends]])
    np.testing.assert_allclose(sums, log_probabilities[np.arange(len(tokens)), tokens], atol=1e-3)
    num_bits = table.is_byte_bit.sum(axis=1)[table.row_of[tokens]]
    np.testing.assert_array_equal(num_bits, [8 * len(tokenizer.source_of(int(token))) for token in tokens])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_probabilities_of_the_mixture_sum_to_one_over_all_tokens(name):
    tokenizer = TOKENIZERS[name]
    history = tokenizer.encode(TEXT)[:60]
    everything = np.arange(tokenizer.size)
    table = byte_decisions.tabulate(tokenizer, tokenizer.size, everything)
    padded, _ = random_network(table, np.append(history, 0))
    logits = jax.random.normal(jax.random.key(5), (1, tokenizer.size))
    log_probabilities = jax.numpy.repeat(jax.nn.log_softmax(logits), tokenizer.size, axis=0)
    last = np.asarray(
        byte_decisions.decision_probabilities(log_probabilities, table.sorted_tokens, table.intervals[table.row_of])
    )
    network = byte_decisions.select(table, history[1:], padded[1:-1])
    losses = []
    for token in everything:
        tokens = np.append(history, token)
        of_token = byte_decisions.select(table, everything[token : token + 1], last[token : token + 1])
        losses.append(mixture.mix(table, tokens, np.concatenate([network, of_token])).losses[-1])
    assert np.exp(-np.array(losses)).sum() == pytest.approx(1.0, abs=1e-9)
    assert losses[int(tokenizer.encode(TEXT)[60])] < np.median(losses)


def read_tokens(memory, table, tokens, **settings):
    """The probabilities of all decisions of tokens by the mixture, and by the memory alone; the network gives 0.5."""
    rows = table.row_of[tokens]
    columns = [
        byte_decisions.select(table, tokens, part[rows]) for part in (table.bits, table.is_byte_bit, table.prefixes)
    ]
    predictions, network = np.empty((len(columns[0]), 4)), np.full(len(columns[0]), 0.5)
    prefixes = text_memory.Prefixes(table.first_extension, table.extensions, table.prefix_ranks)
    settings = {"learning": False, "mixing": False} | settings
    text_memory.read(
        memory, text_memory.new_reader(), *columns, prefixes, network, settings["learning"], settings["mixing"],
        predictions,
    )  # fmt: skip
    return predictions[:, 1], predictions[:, 0], columns[1]


def test_the_memory_predicts_bytes_alike_whether_a_token_ends_before_them_or_not():
    """At each prefix of a token the probabilities that it ends and that it continues, with the same byte, add up."""
    tokens, sources = BPE.encode(TEXT), [BPE.source_of(token) for token in range(BPE.size)]
    table = byte_decisions.tabulate(BPE, BPE.size, np.arange(BPE.size))
    memory = text_memory.init_memory(len(TEXT))
    read_tokens(memory, table, tokens, learning=True)
    memory.mixing_weights[:] = 0.0, 1.0  # the memory's own prediction of tokens
    pairs = [(p, t) for p in range(BPE.size) for t in range(BPE.size) if sources[p] and sources[t][:-1] == sources[p]]
    assert len(pairs) > 5
    for prefix, longer in pairs:
        next_byte = sources.index(sources[longer][-1:])
        total = 0.0
        for end in ([prefix, next_byte], [longer]):
            by_mixture, by_memory, is_byte_bit = read_tokens(memory, table, np.append(tokens[:40], end))
            bits = np.flatnonzero(is_byte_bit)[-8:]
            total += by_mixture[bits[0] - 1] * by_mixture[bits].prod()  # the decision before the byte is about the end
        assert total == pytest.approx(by_memory[bits].prod(), rel=1e-2)


def test_the_memory_learns_where_tokens_end():
    """A network of random guesses about the ends of tokens costs little once the text repeats itself."""
    evaluation = mix(BPE, BPE.encode(TEXT))
    assert evaluation.losses[-30:].mean() < 0.4 and evaluation.memory_losses[-30:].mean() < 0.2


@pytest.mark.parametrize("changed", [1, 7, 60, 200])
def test_changing_a_byte_changes_no_loss_before_it(changed):
    tokens = TOKENIZERS["bytes"].encode(TEXT)
    altered = tokens.copy()
    altered[changed] = 64 + (tokens[changed] + 1) % 64
    table = byte_decisions.tabulate(ByteTokenizer(), 257, np.concatenate([tokens, altered]))
    padded, _ = random_network(table, tokens[1:])
    evaluations = [
        mixture.mix(table, text, byte_decisions.select(table, text[1:], padded)) for text in (tokens, altered)
    ]
    for losses in zip(*[(result.losses, result.memory_losses) for result in evaluations], strict=True):
        np.testing.assert_array_equal(losses[0][: changed - 1], losses[1][: changed - 1])
        assert losses[0][changed - 1] != losses[1][changed - 1]


def test_the_memory_learns_what_repeats_and_a_memory_that_is_frozen_does_not_change():
    tokens = ByteTokenizer().encode(TEXT)
    evaluation = mix(ByteTokenizer(), tokens)
    assert evaluation.memory_losses[:40].mean() > 3 and evaluation.memory_losses[-100:].mean() < 0.1
    assert evaluation.losses[-100:].mean() < 0.2 and evaluation.mean_weights[1] > evaluation.mean_weights[0]
    before = text_memory.copy_memory(evaluation.memory)
    config = transformer.make_config("gpt2", 257, 24, num_layers=1, num_heads=2, width=16)
    weights = transformer.init_weights(jax.random.key(0), config)
    model = LanguageModel(config, weights, ByteTokenizer())
    windows = tokens[: 4 * 25].reshape(4, 25)
    network = mixture.window_losses(model, weights, None, windows)
    losses = mixture.window_losses(model, weights, evaluation.memory, windows)
    fixed = mixture.window_losses(model, weights, evaluation.memory, windows, mixing=False)
    assert losses.mean() < network.mean() - 1 and losses[-1].mean() != fixed[-1].mean()
    expected = jax.jit(transformer.token_losses, static_argnums=0)(config, weights, windows)
    np.testing.assert_allclose(network, expected, atol=1e-3)
    for name, array in evaluation.memory._asdict().items():
        np.testing.assert_array_equal(array, getattr(before, name))
    empty = text_memory.init_memory(100)
    np.testing.assert_allclose(mixture.window_losses(model, weights, empty, windows), network, atol=1e-3)


def test_a_full_memory_adds_no_context_and_goes_on(monkeypatch):
    monkeypatch.setattr(text_memory, "MAX_TEXT_BYTES", 100)
    evaluation = mix(ByteTokenizer(), ByteTokenizer().encode(TEXT))
    assert evaluation.memory.sizes[0] == 100 and len(evaluation.memory.text) == 100
    assert 2 * evaluation.memory.sizes[1] <= len(evaluation.memory.children)
    assert evaluation.memory_losses[-100:].mean() < 1.0


def test_without_numba_the_results_are_the_same():
    program = (
        "import numpy as np; from ontogeny.lm import text_memory as t; "
        f"bits = np.unpackbits(np.frombuffer({TEXT[:150]!r}.encode(), np.uint8)); "
        "result = np.empty((len(bits), 4)); network = np.random.default_rng(0).random(len(bits)); "
        "prefixes = t.Prefixes(np.array([0, 3], 'i4'), np.frombuffer(b'aet', 'u1'), np.zeros(1, 'i4')); "
        "prefix_of = np.where(np.arange(len(bits)) % 24 == 8, 0, -1); "
        "t.read(t.init_memory(150), t.new_reader(), bits, np.ones(len(bits), bool), prefix_of, prefixes, network, "
        "True, True, result); "
        "print(*np.log(result).sum(axis=0).tolist())"
    )
    sums = [
        [
            float(word)
            for word in subprocess.run(
                [sys.executable, "-W", "error", "-c", program],
                env=os.environ | {"ONTOGENY_KERNELS": kernels},
                check=True, capture_output=True, text=True,
            ).stdout.split()
        ]
        for kernels in ("0", "1")
    ]  # fmt: skip
    assert sums[0] == pytest.approx(sums[1], rel=1e-9)


def test_the_report_has_the_mixture_and_all_bytes_of_the_text():
    text = TEXT[:150] + "<|endoftext|>" + TEXT[:50]
    tokens = BPE.encode(text)
    config = transformer.make_config("gpt2", BPE.size, 24, num_layers=1, num_heads=2, width=16)
    model = LanguageModel(config, transformer.init_weights(jax.random.key(0), config), BPE)
    settings = OnlineConfig(chunk_size=8, rehearsal_batch_size=0)
    evaluation = online.evaluate_online(model, tokens, settings)
    assert evaluation.mixture is not None and evaluation.frozen_mixture is not None
    assert evaluation.mixture.losses.mean() < evaluation.online_full_context.mean()
    record = online.as_record(model, evaluation, tokens, settings, len(text))
    assert record["num_bytes"] + record["num_unscored_bytes"] == len(text)
    assert record["num_unscored_bytes"] == len(BPE.source_of(int(tokens[0])))
    assert list(record["bits_per_byte"])[:2] == ["mixture", "memory"]
    bits = evaluation.online_full_context.sum() / math.log(2) / record["num_bytes"]
    assert record["bits_per_byte"]["online_full_context"]["mean"] == pytest.approx(bits)
    assert set(record["mixture"]["mean_weights"]) == {"network", "memory"} and record["mixture"]["forgetting"] is None
    plain = online.evaluate_online(model, tokens, settings, use_memory=False)
    np.testing.assert_array_equal(plain.online_full_context, evaluation.online_full_context)
    assert plain.mixture is None and online.as_record(model, plain, tokens, settings)["mixture"] is None
