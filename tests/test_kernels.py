"""The kernels of a CPU: they agree with XLA, and no bit depends on what else is computed in the same step."""

import itertools
import os
import subprocess
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

from ontogeny import kernels
from ontogeny.content import transformer as xla
from ontogeny.content.transformer import TransformerConfig
from ontogeny.content.transformer_block import RopeScaling
from ontogeny.engine.runners import TokenDraw
from ontogeny.engine.sampling import SamplingParams, compute_logprobs, sample_token
from ontogeny.lm.adapters import add_adapters, init_adapters
from selection import slow_except

pytest.importorskip("numba")
from ontogeny.engine.kernel_sampling import sample_tokens
from ontogeny.kernels import cache as cache_module
from ontogeny.kernels import packing, transformer
from ontogeny.kernels.cache import SequenceCache, page_bytes
from ontogeny.kernels.elementwise import activate, exponential
from ontogeny.kernels.layout import EXACT_GELU, GELU, SQUARED_RELU
from ontogeny.kernels.team import Team

ROTARY: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "use_biases": False}
CONFIGS = {
    "gpt2": TransformerConfig(130, 80, 2, 4, 64, 100),
    "exact_gelu": TransformerConfig(70, 80, 1, 2, 24, 65, activation="exact_gelu", tie_embeddings=False),
    "llama": TransformerConfig(96, 80, 2, 4, 72, 50, **ROTARY, num_kv_heads=2, head_size=20, use_qkv_biases=True),
    "qwen3": TransformerConfig(64, 80, 2, 4, 32, 96, **ROTARY, num_kv_heads=1, head_size=128, qk_norm=True),
    "window": TransformerConfig(
        65, 80, 2, 2, 16, 33, **{**ROTARY, "norm": "layer", "activation": "squared_relu"}, sliding_window=5,
        sliding_layers=(1,), unrotated_layers=(0,), rope_scaling=RopeScaling("linear", 3.0), use_mlp_biases=True,
        use_out_proj_bias=True,
    ),
}  # fmt: skip
NUM_SEQUENCES, NUM_TOKENS = 17, 71


class Model:
    """A small random model, all weights of which differ from their initial values."""

    def __init__(self, name, weight_type="float32"):
        self.config = CONFIGS[name]
        weights = xla.init_weights(jax.random.key(1), self.config)
        leaves, structure = jax.tree.flatten(weights)
        random = np.random.default_rng(2)
        leaves = [leaf + 0.1 * random.standard_normal(leaf.shape, dtype=np.float32) for leaf in leaves]
        self.weights = jax.tree.unflatten(structure, [jax.numpy.asarray(leaf) for leaf in leaves])
        self.packed = packing.PackedWeights(self.config, self.weights, weight_type)
        self.weight_type = weight_type
        self.tokens = random.integers(0, self.config.vocab_size, (NUM_SEQUENCES, NUM_TOKENS))
        self.caches = self.new_caches(NUM_SEQUENCES)
        self.logits = np.stack([self.extend([c], [t], "all") for c, t in zip(self.caches, self.tokens, strict=True)])

    def extend(self, *arguments):
        return transformer.extend(self.packed, *arguments)

    def new_caches(self, num_sequences):
        return [SequenceCache(self.config) for _ in range(num_sequences)]


@pytest.fixture(autouse=True)
def unwritten_memory_is_not_a_number(monkeypatch):
    """What no sequence has written is never read."""
    new_page = cache_module.new_page
    monkeypatch.setattr(cache_module, "new_page", lambda config: np.full_like(new_page(config), np.nan))


CASES = [(name, "float32") for name in CONFIGS]
CASES += [(name, weight_type) for name in ("exact_gelu", "llama") for weight_type in ("bfloat16", "float16", "int8")]
# Every configuration, and every type of weights once.
QUICK = [*CASES[:5], ("exact_gelu", "bfloat16"), ("llama", "float16"), ("llama", "int8")]


@pytest.fixture(scope="module", params=slow_except(QUICK, CASES, unpack=False), ids="-".join)
def model(request):
    return Model(*request.param)


def equal_bits(left, right):
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def rounded(weights, weight_type):
    """The weights whose matrices have been rounded to a type, in float32."""

    def convert(matrix):
        if weight_type == "int8":  # each column has a scale
            scales = np.abs(matrix).max(axis=0) / np.float32(127)
            return (np.rint(matrix / scales) * scales).astype(np.float32)
        return matrix.astype(weight_type).astype(np.float32)

    def convert_linear(linear):
        return linear._replace(weight=convert(np.asarray(linear.weight)))

    linear_maps = ("attn_qkv", "out_proj", "up", "down")
    blocks = [
        block._replace(**{name: convert_linear(getattr(block, name)) for name in linear_maps})
        for block in weights.blocks
    ]
    embedding, head = (
        None if array is None else convert(np.asarray(array).T).T for array in (weights.embedding, weights.lm_head)
    )
    return weights._replace(blocks=tuple(blocks), embedding=embedding, lm_head=head)


def test_logits_equal_those_of_xla_with_rounded_weights(model):
    forward = jax.jit(xla.forward, static_argnums=0)
    expected = forward(model.config, rounded(model.weights, model.weight_type), model.tokens)
    assert model.logits.std() > 0.3
    np.testing.assert_allclose(model.logits, expected, atol=1e-4)
    if model.weight_type != "float32":
        assert np.abs(model.logits - forward(model.config, model.weights, model.tokens)).max() > 3e-4


def test_a_column_without_weights_has_no_scale():
    panels = packing.pack_panels(np.zeros((3, 70), np.float32), "int8")
    assert panels.shape == (2, 64 * 4 + 3 * 64) and not panels.any()


@pytest.mark.parametrize("num_sequences", range(1, NUM_SEQUENCES + 1))
def test_a_decode_step_has_the_same_bits_for_any_number_of_sequences(model, num_sequences):
    order = np.random.default_rng(num_sequences).permutation(NUM_SEQUENCES)[:num_sequences].tolist()
    lengths = [4 * i + 3 for i in order]  # each sequence is at another position
    caches = model.new_caches(num_sequences)
    model.extend(caches, [model.tokens[i, :n] for i, n in zip(order, lengths, strict=True)], "none")
    logits = model.extend(caches, [model.tokens[i, n : n + 1] for i, n in zip(order, lengths, strict=True)])
    assert equal_bits(logits, np.stack([model.logits[i, n] for i, n in zip(order, lengths, strict=True)]))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8, 13, 32, 63, 64, 65, 71])
def test_prefill_has_the_same_bits_for_any_division_into_chunks(model, chunk):
    caches, parts = model.new_caches(2), []
    for first in range(0, NUM_TOKENS, chunk):
        new = list(model.tokens[:2, first : first + chunk])
        parts.append(model.extend(caches, new, "all").reshape(2, -1, model.config.vocab_size))
    assert equal_bits(np.concatenate(parts, axis=1), model.logits[:2])
    for cache, expected in zip(caches, model.caches, strict=False):
        for part, expected_part in zip(cache.to_layers(NUM_TOKENS), expected.to_layers(NUM_TOKENS), strict=True):
            assert all(equal_bits(left, right) for left, right in zip(part, expected_part, strict=True))


def test_prefill_and_decode_of_different_sequences_may_share_a_step(model):
    caches = model.new_caches(3)
    model.extend(caches[:1], [model.tokens[4, :9]], "none")
    new = [model.tokens[4, 9:10], model.tokens[1, :21], model.tokens[2, :5]]
    logits = model.extend(caches, new, ["last", "none", "all"])
    assert equal_bits(logits, np.concatenate([model.logits[4, 9:10], model.logits[2, :5]]))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 70])
def test_a_sequence_continues_from_the_beginning_of_another_and_from_copied_keys_and_values(model, length):
    [cache] = model.new_caches(1)
    model.extend([cache], [model.tokens[0, :length]], "none")
    forks = [cache.fork(length), SequenceCache.from_layers(model.config, *cache.to_layers(length))]
    model.extend([cache], [model.tokens[1, length:]], "none")  # which changes nothing that others share
    for fork in [*forks, cache.fork(length)]:
        logits = model.extend([fork], [model.tokens[0, length:]], "all")
        assert equal_bits(logits, model.logits[0, length:])


def test_a_context_of_32768_tokens_needs_memory_for_the_tokens_that_it_has():
    config = TransformerConfig(16, 2**15, 1, 1, 16, 32, **ROTARY)
    weights = xla.init_weights(jax.random.key(0), config)
    packed = packing.PackedWeights(config, weights)
    cache, tokens = SequenceCache(config), np.arange(2**15) % 16
    expected = transformer.extend(packed, [SequenceCache(config)], [tokens[:300]])
    assert packed.num_bytes < 2**18
    transformer.extend(packed, [cache], [tokens[:299]], "none")
    assert cache.num_bytes == 5 * page_bytes(config)
    assert equal_bits(transformer.extend(packed, [cache], [tokens[299:300]]), expected)
    logits = expected
    for first in range(300, 2**15, 1024):
        logits = transformer.extend(packed, [cache], [tokens[first : first + 1024]])
    assert cache.num_bytes == 2**15 // 64 * page_bytes(config) and np.isfinite(logits).all()


RANKS = (8, 3, 20)
NUM_ADAPTED = 8


class AdaptedModel:
    """Adapters of several ranks, all numbers of which are random, and the logits of sequences alone."""

    def __init__(self, model):
        self.model, random = model, np.random.default_rng(3)
        self.adapters = [
            jax.tree.map(
                lambda leaf: jax.numpy.asarray(0.05 * random.standard_normal(leaf.shape, dtype=np.float32)),
                init_adapters(model.config, model.weights, rank),
            )
            for rank in RANKS
        ]
        self.packed = [packing.PackedAdapter(model.config, adapter) for adapter in self.adapters]
        packed = [*self.packed, None]
        self.of_sequences = [packed[number % len(packed)] for number in (0, 0, 1, 3, 2, 0, 3, 3)]
        self.logits = np.stack([self.extend([n], [model.tokens[n]], model.new_caches(1)) for n in range(NUM_ADAPTED)])

    def extend(self, numbers, tokens, caches, logits="all"):
        adapters = [self.of_sequences[number] for number in numbers]
        return self.model.extend(caches, tokens, logits, None, adapters)


@pytest.fixture(scope="module")
def adapted(model):
    return AdaptedModel(model)


def decode_together(adapted, numbers):
    """The logits of a decode step of these sequences, each of which is at another position."""
    model, lengths = adapted.model, [5 * number + 3 for number in numbers]
    caches = model.new_caches(len(numbers))
    prompts = [model.tokens[i, :n] for i, n in zip(numbers, lengths, strict=True)]
    adapted.extend(numbers, prompts, caches, "none")
    new = [model.tokens[i, n : n + 1] for i, n in zip(numbers, lengths, strict=True)]
    return adapted.extend(numbers, new, caches), adapted.logits[numbers, lengths]


def test_a_sequence_with_an_adapter_has_the_same_bits_alone_and_among_others(adapted):
    random = np.random.default_rng(0)
    for num_sequences in range(1, NUM_ADAPTED + 1):
        order = random.permutation(NUM_ADAPTED)[:num_sequences].tolist()
        assert equal_bits(*decode_together(adapted, order))
    without = [number for number, adapter in enumerate(adapted.of_sequences) if adapter is None]
    assert equal_bits(adapted.logits[without], adapted.model.logits[without])
    adapted.of_sequences[0], adapted.of_sequences[2] = adapted.of_sequences[2], adapted.of_sequences[0]
    try:  # the same comparison detects adapters that are exchanged
        logits, expected = decode_together(adapted, list(range(NUM_ADAPTED)))
    finally:
        adapted.of_sequences[0], adapted.of_sequences[2] = adapted.of_sequences[2], adapted.of_sequences[0]
    assert [equal_bits(*pair) for pair in zip(logits, expected, strict=True)] == [n not in (0, 2) for n in range(8)]


@pytest.mark.parametrize("chunk", [1, 5, 64, 71])
def test_prefill_with_adapters_has_the_same_bits_for_any_division_into_chunks(adapted, chunk):
    model, numbers, parts = adapted.model, range(5), []
    caches = model.new_caches(len(numbers))
    for first in range(0, NUM_TOKENS, chunk):
        logits = adapted.extend(numbers, list(model.tokens[:5, first : first + chunk]), caches)
        parts.append(logits.reshape(5, -1, model.config.vocab_size))
    assert equal_bits(np.concatenate(parts, axis=1), adapted.logits[:5])


def test_an_adapter_changes_the_logits_as_weights_do_to_which_it_is_added(adapted):
    model, forward = adapted.model, jax.jit(xla.forward, static_argnums=0)
    base = jax.tree.map(jax.numpy.asarray, rounded(model.weights, model.weight_type))
    for adapter, packed in zip(adapted.adapters, adapted.packed, strict=True):
        numbers = [number for number in range(NUM_ADAPTED) if adapted.of_sequences[number] is packed]
        expected = np.asarray(forward(model.config, add_adapters(base, adapter), model.tokens))
        np.testing.assert_allclose(adapted.logits[numbers], expected[numbers], atol=1e-4)
        assert np.abs(adapted.logits[numbers] - model.logits[numbers]).max() > 0.05


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_factors_without_rounding_yield_the_bits_of_weights_to_which_they_are_added(name):
    """The first factor selects the last inputs, times a power of two, for which the weights themselves are zero."""
    model, rank, random = Model(name), 4, np.random.default_rng(7)

    def clear(linear):
        return linear._replace(weight=linear.weight.at[-rank:].set(0))

    names = ("attn_qkv", "out_proj", "up", "down")
    blocks = [part._replace(**{name: clear(getattr(part, name)) for name in names}) for part in model.weights.blocks]
    weights, powers = model.weights._replace(blocks=tuple(blocks)), 2.0 ** random.integers(-3, 4, rank)
    adapters = jax.tree.map(np.zeros_like, init_adapters(model.config, weights, rank))
    for adapter in (adapter for of_block in adapters for adapter in of_block.values()):
        adapter.down[-rank:], adapter.up[:] = np.diag(powers), 0.1 * random.standard_normal(adapter.up.shape)

    def extend(weights, adapters=()):
        packed = packing.PackedWeights(model.config, weights)
        return transformer.extend(packed, model.new_caches(3), list(model.tokens[:3]), "all", None, adapters)

    logits = extend(weights, [packing.PackedAdapter(model.config, adapters)] * 3)
    assert equal_bits(logits, extend(add_adapters(weights, adapters)))
    assert not equal_bits(logits, extend(weights))


def test_steps_have_the_same_bits_with_any_number_of_threads_and_beside_each_other(model, adapted, monkeypatch):
    numbers = range(NUM_ADAPTED)

    def decode(results, number):
        caches, adapted_caches = model.new_caches(NUM_SEQUENCES), model.new_caches(NUM_ADAPTED)
        results[number] = [
            np.concatenate(
                [
                    model.extend(caches, list(model.tokens[:, first : first + 1])),
                    adapted.extend(numbers, list(model.tokens[numbers, first : first + 1]), adapted_caches),
                ]
            )
            for first in range(6)
        ]

    expected = np.concatenate([model.logits[:, :6], adapted.logits[:, :6]])

    for num_threads in (1, 3):
        team = Team(num_threads)
        monkeypatch.setattr(transformer, "team", lambda team=team: team)
        results: list[Any] = [None] * 3
        threads = [threading.Thread(target=decode, args=(results, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for steps in results:
            assert equal_bits(np.stack(steps, axis=1), expected)


def test_functions_of_one_number_have_the_same_bits_wherever_it_stands():
    numbers = np.random.default_rng(0).standard_normal(67, dtype=np.float32) * 4
    for kind in (GELU, EXACT_GELU, SQUARED_RELU):
        separate = np.concatenate([activated(kind, numbers[i : i + 1]) for i in range(len(numbers))])
        for start in range(20):
            assert equal_bits(activated(kind, numbers[start:]), separate[start:])


def activated(kind, numbers):
    copy = numbers.copy()
    activate(kind, copy, len(copy))
    return copy


def test_the_exponential_function_is_accurate():
    for x in np.linspace(-86, 86, 1001, dtype=np.float32):
        exact = np.exp(np.float64(x))
        assert abs(exponential(x) - exact) < 2.5e-7 * exact


@pytest.mark.parametrize("vocab_size", [1, 2, 17, 700])
def test_tokens_are_those_of_the_definition(vocab_size):
    random, draws, expected = np.random.default_rng(vocab_size), [], []
    grid = itertools.product((0.0, 0.3, 2.0, 8.0), (0.0, 0.3, 3.0), (1.0, 0.9, 0.2, 1e-9, 0.0), (0, 1, 9, 600))
    for position, (spread, temperature, top_p, top_k) in enumerate(grid):
        logits = np.round(spread * random.standard_normal(vocab_size, dtype=np.float32), 1)  # some are equal
        params = SamplingParams(temperature, top_p, 2**64 - 1 - position, top_k)
        count, num_top = max(1, vocab_size - position % 3), [None, 0, 5][position % 3]
        adjusted = np.where(np.arange(count) % 7 == 3, np.float32(-1e30), logits[:count]) if position % 2 else None
        candidates = logits[:count] if adjusted is None else adjusted
        draws.append(TokenDraw(logits, count, adjusted, params, position, num_top))
        token = sample_token(candidates, params, position)
        expected.append((token, None if num_top is None else compute_logprobs(logits, token, num_top)))
    sampled = sample_tokens(draws, transformer.Workspace())
    assert [token for token, _ in sampled] == [token for token, _ in expected]
    for (_, logprobs), (_, exact) in zip(sampled, expected, strict=True):
        if exact is not None:
            assert logprobs is not None and abs(logprobs.logprob - exact.logprob) < 1e-6
            size = min(vocab_size, len(exact.top_logprobs))
            pairs = zip(logprobs.top_logprobs[:size], exact.top_logprobs, strict=True)
            assert all(left[0] == right[0] and abs(left[1] - right[1]) < 1e-6 for left, right in pairs)
    for draw, expected_draw in zip(draws, sampled, strict=True):
        assert sample_tokens([draw], transformer.Workspace()) == [expected_draw]


def test_packed_weights_and_adapters_exist_as_long_as_their_arrays():
    config, number = CONFIGS["gpt2"], len(packing._packed)
    weights = xla.init_weights(jax.random.key(0), config)
    adapters = init_adapters(config, weights, 8)
    packed, packed_adapter = packing.pack(config, weights), packing.pack_adapter(config, adapters)
    assert packed is packing.pack(config, weights) and packed_adapter is packing.pack_adapter(config, adapters)
    assert len(packing._packed) == number + 2 and packed_adapter.num_bytes < packed.num_bytes
    del adapters
    assert len(packing._packed) == number + 1
    del weights
    assert len(packing._packed) == number


def test_an_environment_variable_turns_the_kernels_off(monkeypatch):
    assert kernels.is_active() and kernels.describe_path().startswith("numba ")
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, "0")
    assert not kernels.is_active() and kernels.describe_path().startswith("xla ")


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "znver4"])
def test_processors_with_different_vectors_yield_the_same_bits(processor, tmp_path):
    program = (
        "import sys; sys.path.insert(0, 'tests'); import test_kernels as t; import hashlib; "
        "models = [t.Model(*case) for case in t.CASES]; "
        "logits = [model.logits for model in (*models, *map(t.AdaptedModel, models))]; "
        "print(hashlib.sha256(b''.join(part.tobytes() for part in logits)).hexdigest())"
    )
    digests = []
    for name in (processor, None):
        chosen = {} if name is None else {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
        env = os.environ | chosen | {"NUMBA_CACHE_DIR": str(tmp_path / str(name))}
        digests.append(subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True).stdout)
    assert digests[0] == digests[1]
