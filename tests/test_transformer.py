"""The transformer: one token at a time gives what whole sequences give, rows leave each other alone, bit for bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, trees
from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache
from ontogeny.errors import BadInput

R, K, C, V = 5, 4, 12, 40
VARIANTS = {
    "gpt2": transformer.make_config("gpt2", V, C, num_layers=2, num_heads=2, width=16),
    "modern": transformer.make_config("modern", V, C, num_layers=2, num_heads=2, width=16),
    "squared_relu": transformer.make_config("modern", V, C, num_layers=1, num_heads=1, width=8)._replace(
        activation="squared_relu", tie_embeddings=False
    ),
}


forward = jax.jit(transformer.forward, static_argnums=0)
losses = jax.jit(transformer.token_losses, static_argnums=(0, 3))
append = jax.jit(transformer.extend_cache, static_argnums=0, static_argnames="all_logits")


@partial(jax.jit, static_argnums=0)
def weights_of(config, key=0):
    """Larger than at birth, so that a wrong part is seen."""
    born = transformer.init_weights(jax.random.key(key), config)
    leaves, structure = jax.tree.flatten(born)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


@pytest.fixture(scope="module", params=list(VARIANTS))
def made(request):
    config = VARIANTS[request.param]
    return config, weights_of(config)


def test_rows_at_different_places_read_as_whole_sequences_do(made):
    config, weights = made
    texts = jax.random.randint(jax.random.key(2), (3, C), 0, V)
    whole = forward(config, weights, texts)
    cache, place = transformer.init_cache(config, 3), np.zeros(3, int)
    for counts in ([4, 2, 0], [1, 4, 3], [0, 1, 4], [4, 0, 2]):
        part = jnp.stack([jnp.roll(text, -at)[:K] for text, at in zip(texts, place, strict=True)])
        before = cache
        cache, logits = append(config, weights, before, part, jnp.array(counts), all_logits=True)
        _, last = append(config, weights, before, part, jnp.array(counts))
        for row, count in enumerate(counts):
            expected = whole[row, place[row] : place[row] + count]
            np.testing.assert_allclose(logits[row, :count], expected, atol=2e-5)
            if count:
                np.testing.assert_array_equal(last[row], logits[row, count - 1])
        place += counts
    assert cache.length.tolist() == place.tolist()


def test_a_row_has_the_same_bits_alone_and_among_others_and_wherever_it_stands(made):
    """Also among rows that hold what is no number."""
    config, weights = made
    random = np.random.default_rng(0)
    mine = random.integers(0, V, (3, K))
    results = set()
    for place in range(R):
        for company in ("none", "others", "nan"):
            cache = transformer.init_cache(config, R)
            if company == "nan":
                broken = [keys.at[(place + 1) % R].set(jnp.nan) for keys in cache.keys]
                cache = KVCache(tuple(broken), cache.values, cache.length)
            for chunk in mine:
                tokens = random.integers(0, V, (R, K)) if company != "none" else np.zeros((R, K), int)
                count = random.integers(0, K + 1, R) if company != "none" else np.zeros(R, int)
                tokens[place], count[place] = chunk, K
                cache, logits = append(config, weights, cache, jnp.asarray(tokens), jnp.asarray(count))
            held = [leaf[place] for leaf in (*cache.keys, *cache.values)]
            results.add(np.asarray(logits[place]).tobytes() + b"".join(np.asarray(leaf).tobytes() for leaf in held))
    assert len(results) == 1


def test_a_row_that_read_its_companion_would_be_found():
    config = VARIANTS["gpt2"]
    weights = weights_of(config)
    tokens = jax.random.randint(jax.random.key(0), (2, K), 0, V)

    def leaking(tokens):
        cache, _ = append(config, weights, transformer.init_cache(config, 2), tokens, jnp.array([K, K]))
        mixed = cache._replace(keys=tuple(keys.mean(0, keepdims=True) + 0 * keys for keys in cache.keys))
        return append(config, weights, mixed, tokens[:, :1], jnp.array([1, 1]))[1][0]

    assert not trees.bitwise_equal(leaking(tokens), leaking(tokens.at[1].set(0)))


def test_what_lies_beyond_the_count_or_the_capacity_is_not_read(made):
    config, weights = made
    tokens = jax.random.randint(jax.random.key(3), (1, K), 0, V)
    other = tokens.at[0, 2:].add(1) % V
    empty = transformer.init_cache(config, 1)
    read = [append(config, weights, empty, text, jnp.array([2])) for text in (tokens, other)]
    assert trees.bitwise_equal(*read)
    small = transformer.init_cache(config, 1, K - 1)
    full, _ = append(config, weights, small, tokens, jnp.array([K]))
    assert full.length.tolist() == [K - 1]
    after, _ = append(config, weights, full, other, jnp.array([1]))
    assert trees.bitwise_equal((after.keys, after.values, after.length), (full.keys, full.values, full.length))
    assert transformer.clear_sequences(full, jnp.array([True])).length.tolist() == [0]


def test_no_token_sees_what_follows_it(made):
    config, weights = made
    tokens = jax.random.randint(jax.random.key(4), (1, C), 0, V)
    changed = tokens.at[0, 7].add(1) % V
    one, other = (forward(config, weights, text) for text in (tokens, changed))
    assert trees.bitwise_equal(one[:, :7], other[:, :7]) and not np.allclose(one[:, 7:], other[:, 7:])


def test_losses_are_the_negative_log_probabilities_of_what_came(made):
    config, weights = made
    tokens = jax.random.randint(jax.random.key(5), (2, 6), 0, V)
    shares = jax.nn.softmax(forward(config, weights, tokens))
    expected = -jnp.log(jnp.take_along_axis(shares[:, :-1], tokens[:, 1:, None], 2)[..., 0])
    np.testing.assert_allclose(losses(config, weights, tokens), expected, atol=2e-5)


def test_the_world_model_learns_what_it_is_shown():
    model = plugins.build("content", "transformer", vocab_size=5, context_length=8, num_layers=1, width=16, learning_rate=0.02)
    weights = model.init(jax.random.key(0))
    cycle = jnp.tile(jnp.arange(5), 4)[None, :9]
    update = jax.jit(model.update)
    for _ in range(60):
        weights, info = update(weights, cycle)
    predicted = model.query(weights.content, cycle[0, :8])
    assert float(info["loss"]) < 0.1 and jnp.argmax(predicted, -1).tolist() == cycle[0, 1:].tolist()
    np.testing.assert_allclose(jnp.exp(predicted).sum(-1), 1, atol=1e-5)


def test_products_in_bfloat16_are_near():
    config = VARIANTS["modern"]
    weights = transformer.init_weights(jax.random.key(0), config)
    tokens = jax.random.randint(jax.random.key(6), (2, C), 0, V)
    exact, rough = (losses(config, weights, tokens, kind) for kind in (jnp.float32, jnp.bfloat16))
    assert rough.dtype == jnp.float32 and 0 < float(jnp.abs(exact - rough).max()) < 0.02


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_heads": 3}, "3 heads do not divide a width of 64"),
        ({"num_layers": 0}, "'num_layers' must be at least 1"),
        ({"context_length": 1}, "'context_length' must be at least 2"),
        ({"architecture": "gpt9"}, "must be gpt2 or modern"),
        ({"architecture": "modern", "num_heads": 64}, "even width"),
    ],
)
def test_what_cannot_be_a_transformer_is_said(settings, said):
    with pytest.raises(BadInput, match=said):
        plugins.build("content", "transformer", **settings)


def test_a_context_longer_than_the_models_is_said():
    config = VARIANTS["gpt2"]
    with pytest.raises(BadInput, match="13 tokens are more than the model's context of 12"):
        transformer.forward(config, weights_of(config), jnp.zeros((1, C + 1), int))
    with pytest.raises(BadInput, match="does not fit the model's context"):
        transformer.init_cache(config, 1, C + 1)
