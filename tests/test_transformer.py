"""The transformer: cached decoding against whole sequences, batch invariance bit for bit, causality, learning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, trees
from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache
from ontogeny.errors import BadInput
from selection import slow_except

B, K, C, V = 5, 4, 12, 40
VARIANTS = {
    "gpt2": transformer.make_config("gpt2", V, C, num_layers=2, num_heads=2, width=16),
    "llama": transformer.make_config("llama", V, C, num_layers=1, num_heads=2, width=16),
    "squared_relu": transformer.make_config("llama", V, C, num_layers=1, num_heads=1, width=8)._replace(
        activation="squared_relu", tie_embeddings=False
    ),
}


forward = jax.jit(transformer.forward, static_argnums=0)
token_losses = jax.jit(transformer.token_losses, static_argnums=(0, 3))
extend_cache = jax.jit(transformer.extend_cache, static_argnums=0, static_argnames="all_logits")


@partial(jax.jit, static_argnums=0)
def weights_of(config, key=0):
    """Initial weights with noise, so that an error in any part changes the outputs."""
    initial = transformer.init_weights(jax.random.key(key), config)
    leaves, structure = jax.tree.flatten(initial)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


@pytest.fixture(scope="module", params=slow_except(["gpt2", "llama"], VARIANTS))
def model(request):
    config = VARIANTS[request.param]
    return config, weights_of(config)


def test_cached_sequences_of_different_lengths_equal_whole_sequences(model):
    config, weights = model
    sequences = jax.random.randint(jax.random.key(2), (3, C), 0, V)
    expected_logits = forward(config, weights, sequences)
    cache, length = transformer.init_cache(config, 3), np.zeros(3, int)
    for counts in ([4, 2, 0], [1, 4, 3], [0, 1, 4], [4, 0, 2]):
        tokens = jnp.stack([jnp.roll(row, -at)[:K] for row, at in zip(sequences, length, strict=True)])
        before = cache
        cache, logits = extend_cache(config, weights, before, tokens, jnp.array(counts), all_logits=True)
        _, last = extend_cache(config, weights, before, tokens, jnp.array(counts))
        for row, count in enumerate(counts):
            expected = expected_logits[row, length[row] : length[row] + count]
            np.testing.assert_allclose(logits[row, :count], expected, atol=2e-5)
            if count:
                np.testing.assert_array_equal(last[row], logits[row, count - 1])
        length += counts
    assert cache.length.tolist() == length.tolist()


def test_sequence_is_bitwise_invariant_to_its_row_and_to_the_rest_of_the_batch(model):
    """Also where another sequence of the batch holds NaN."""
    config, weights = model
    random = np.random.default_rng(0)
    chunks = random.integers(0, V, (3, K))
    outputs = set()
    for row in range(B):
        for rest in ("empty", "random", "nan"):
            cache = transformer.init_cache(config, B)
            if rest == "nan":
                broken = [keys.at[(row + 1) % B].set(jnp.nan) for keys in cache.keys]
                cache = KVCache(tuple(broken), cache.values, cache.length)
            for chunk in chunks:
                tokens = random.integers(0, V, (B, K)) if rest != "empty" else np.zeros((B, K), int)
                count = random.integers(0, K + 1, B) if rest != "empty" else np.zeros(B, int)
                tokens[row], count[row] = chunk, K
                cache, logits = extend_cache(config, weights, cache, jnp.asarray(tokens), jnp.asarray(count))
            arrays = [logits[row], *(leaf[row] for leaf in (*cache.keys, *cache.values))]
            outputs.add(b"".join(np.asarray(array).tobytes() for array in arrays))
    assert len(outputs) == 1


def test_leak_between_sequences_would_be_detected():
    config = VARIANTS["gpt2"]
    weights = weights_of(config)
    tokens = jax.random.randint(jax.random.key(0), (2, K), 0, V)

    def leaking_logits(tokens):
        cache, _ = extend_cache(config, weights, transformer.init_cache(config, 2), tokens, jnp.array([K, K]))
        mixed = cache._replace(keys=tuple(keys.mean(0, keepdims=True) + 0 * keys for keys in cache.keys))
        return extend_cache(config, weights, mixed, tokens[:, :1], jnp.array([1, 1]))[1][0]

    assert not trees.bitwise_equal(leaking_logits(tokens), leaking_logits(tokens.at[1].set(0)))


def test_tokens_beyond_the_count_or_the_capacity_are_ignored(model):
    config, weights = model
    tokens = jax.random.randint(jax.random.key(3), (1, K), 0, V)
    changed = tokens.at[0, 2:].add(1) % V
    empty = transformer.init_cache(config, 1)
    extended = [extend_cache(config, weights, empty, sequence, jnp.array([2])) for sequence in (tokens, changed)]
    assert trees.bitwise_equal(*extended)
    small = transformer.init_cache(config, 1, K - 1)
    full, _ = extend_cache(config, weights, small, tokens, jnp.array([K]))
    assert full.length.tolist() == [K - 1]
    after, _ = extend_cache(config, weights, full, changed, jnp.array([1]))
    assert trees.bitwise_equal((after.keys, after.values, after.length), (full.keys, full.values, full.length))
    assert transformer.clear_sequences(full, jnp.array([True])).length.tolist() == [0]


def test_predictions_do_not_depend_on_later_tokens(model):
    config, weights = model
    tokens = jax.random.randint(jax.random.key(4), (1, C), 0, V)
    changed = tokens.at[0, 7].add(1) % V
    before, after = (forward(config, weights, sequence) for sequence in (tokens, changed))
    assert trees.bitwise_equal(before[:, :7], after[:, :7]) and not np.allclose(before[:, 7:], after[:, 7:])


def test_losses_are_negative_log_probabilities_of_the_next_tokens(model):
    config, weights = model
    tokens = jax.random.randint(jax.random.key(5), (2, 6), 0, V)
    probabilities = jax.nn.softmax(forward(config, weights, tokens))
    expected = -jnp.log(jnp.take_along_axis(probabilities[:, :-1], tokens[:, 1:, None], 2)[..., 0])
    np.testing.assert_allclose(token_losses(config, weights, tokens), expected, atol=2e-5)


def test_world_model_learns_a_repeated_sequence():
    model = plugins.build(
        "content", "transformer", vocab_size=5, context_length=8, num_layers=1, width=16, learning_rate=0.02
    )
    weights = jax.jit(model.init)(jax.random.key(0))
    cycle = jnp.tile(jnp.arange(5), 4)[None, :9]
    update = jax.jit(model.update)
    for _ in range(60):
        weights, info = update(weights, cycle)
    log_probabilities = jax.jit(model.query)(weights.content, cycle[0, :8])
    assert float(info["loss"]) < 0.1 and jnp.argmax(log_probabilities, -1).tolist() == cycle[0, 1:].tolist()
    np.testing.assert_allclose(jnp.exp(log_probabilities).sum(-1), 1, atol=1e-5)


def test_bfloat16_losses_are_near_those_of_float32():
    config = VARIANTS["llama"]
    weights = transformer.init_weights(jax.random.key(0), config)
    tokens = jax.random.randint(jax.random.key(6), (2, C), 0, V)
    exact, rough = (token_losses(config, weights, tokens, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert rough.dtype == jnp.float32 and 0 < float(jnp.abs(exact - rough).max()) < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "3 heads do not divide a width of 64"),
        ({"num_layers": 0}, "'num_layers' must be at least 1"),
        ({"context_length": 1}, "'context_length' must be at least 2"),
        ({"architecture": "gpt9"}, "must be one of gpt2, llama, qwen3"),
        ({"architecture": "llama", "num_heads": 64}, "even width"),
    ],
)
def test_invalid_configs_are_rejected(settings, message):
    with pytest.raises(BadInput, match=message):
        plugins.build("content", "transformer", **settings)


def test_sequence_or_cache_longer_than_the_context_is_rejected():
    config = VARIANTS["gpt2"]
    with pytest.raises(BadInput, match="13 tokens are more than the model's context of 12"):
        transformer.forward(config, weights_of(config), jnp.zeros((1, C + 1), int))
    with pytest.raises(BadInput, match="does not fit the model's context"):
        transformer.init_cache(config, 1, C + 1)
