"""Predictors: their equations, depth, categorical outputs, edits of what they represent, and what they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins
from ontogeny.content import base, causal_transformer, gru
from ontogeny.content.base import PredictionBatch
from ontogeny.errors import BadInput

NUM_INPUTS, NUM_OUTPUTS, LENGTH = 4, 3, 12
SETTINGS = {
    "linear": {},
    "mlp": {"hidden_size": 5},
    "gru": {"hidden_size": 6},
    "causal_transformer": {"width": 8, "num_heads": 2, "num_blocks": 2, "window_length": 5},
}


def build(name, **settings):
    return plugins.build("content", name, NUM_INPUTS, NUM_OUTPUTS, **SETTINGS[name] | settings)


def perturb(weights, scale=0.3):
    """Weights with noise of their own on every element, so that no part of the content is zero."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + scale * random.normal(size=leaf.shape).astype(np.float32), weights)


@functools.cache
def subject(name, **settings):
    """A predictor, its perturbed weights, and the inputs of two sequences, the second from step 8 on."""
    predictor = build(name, **settings)
    inputs = np.random.default_rng(1).normal(size=(LENGTH, NUM_INPUTS)).astype(np.float32)
    inputs[:, -1] = np.isin(np.arange(LENGTH), [0, 8])
    return predictor, perturb(jax.jit(predictor.init)(jax.random.key(0))), jnp.array(inputs)


def plain_causal_transformer(weights, inputs, num_heads, window_length):
    """The transformer, written out for whole sequences in NumPy, without the shared block of the package."""

    def normed(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    L, D = len(inputs), weights.embedding.shape[1]
    stream = inputs @ weights.embedding + weights.embedding_bias
    age = np.arange(L)[:, None] - np.arange(L)[None, :]
    sequence = np.cumsum(inputs[:, -1] > 0.5)
    mask = (age >= 0) & (age < window_length) & (sequence[:, None] == sequence[None, :])
    for block in weights.blocks:
        queries, keys, values = (
            part.reshape(L, num_heads, D // num_heads) for part in np.split(normed(stream) @ block.attn_qkv, 3, axis=-1)
        )
        scores = np.einsum("tnd,snd->nts", queries, keys) / np.sqrt(D // num_heads)
        scores = np.where(mask, scores + block.age_bias[:, np.clip(age, 0, window_length - 1)], -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True)
        stream = stream + np.einsum("nts,snd->tnd", shares, values).reshape(L, D) @ block.out_proj
        stream = stream + np.maximum(normed(stream) @ block.up, 0) @ block.down
    return normed(stream) @ weights.readout + weights.readout_bias


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_causal_transformer_agrees_with_its_own_equations_to_1e_5(num_blocks):
    """The predictor uses the block of the language model; here both are compared on the same weights."""
    predictor, weights, inputs = subject("causal_transformer", num_blocks=num_blocks)
    expected = plain_causal_transformer(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights), np.asarray(inputs, np.float64), 2, 5
    )
    np.testing.assert_allclose(jax.jit(predictor.query_sequence)(weights, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_predictions_by_step_equal_predictions_by_sequence_at_every_depth(num_blocks):
    predictor, weights, inputs = subject("causal_transformer", num_blocks=num_blocks)

    def step(memory, step_inputs):
        return predictor.query(weights, memory, step_inputs)[::-1]

    _, by_step = jax.jit(lambda: jax.lax.scan(step, predictor.init_memory(), inputs))()
    assert float(jnp.std(by_step)) > 0.05
    np.testing.assert_allclose(by_step, jax.jit(predictor.query_sequence)(weights, inputs), atol=2e-5)


def test_what_all_blocks_add_at_first_does_not_grow_with_their_number():
    """A deeper stack starts with a stream of the same size, so that one learning rate serves all depths."""
    inputs = jax.random.normal(jax.random.key(1), (64, 40))

    def added_size(num_blocks):
        predictor = causal_transformer.build(40, 3, width=64, num_heads=4, num_blocks=num_blocks)

        @jax.jit
        def streams_of(key):
            return predictor.query_edited(predictor.init(key), inputs, lambda level, stream: stream)[1]

        streams = streams_of(jax.random.key(0))
        return float(jnp.std(streams[-1] - streams[0]))

    assert 0.8 < added_size(4) / added_size(1) < 1.3


@pytest.mark.parametrize("name", SETTINGS)
def test_the_categorical_loss_is_the_cross_entropy_of_the_observed_classes(name):
    """One update of a predictor against Adam's first step along a gradient by hand, which ignores `target`."""
    predictor, weights, inputs = subject(name, outputs="categorical")
    classes = np.arange(LENGTH) % NUM_OUTPUTS
    mask = np.array([0.0, 1.0] * 6)

    def loss(weights):
        logits = predictor.query_sequence(weights, inputs)
        probabilities = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=-1, keepdims=True)
        return -jnp.sum(mask * jnp.log(probabilities[np.arange(LENGTH), classes])) / 6

    gradient = jax.jit(jax.grad(loss))(weights)
    batch = PredictionBatch(
        inputs[None], jnp.array(classes, jnp.int32)[None], jnp.full((1, LENGTH), jnp.nan), mask[None]
    )
    updated, _ = jax.jit(predictor.update)(weights, predictor.init_scratch(weights), batch, jnp.float32(0))
    rate = plugins.default_settings("content", name)["learning_rate"]
    for old, new, slope in zip(*map(jax.tree.leaves, (weights, updated, gradient)), strict=True):
        is_steep = np.abs(slope) > 1e-4  # the first step of Adam is the rate times the sign of the slope
        np.testing.assert_allclose((new - old)[is_steep], -rate * np.sign(slope)[is_steep], rtol=0.02)
        assert is_steep.any()


def test_binary_outputs_read_the_target_and_ignore_other_logits():
    predictor, weights, inputs = subject("linear")
    batch = PredictionBatch(
        inputs[None], jnp.ones((1, LENGTH), jnp.int32), jnp.ones((1, LENGTH)), jnp.ones((1, LENGTH))
    )
    updated, _ = predictor.update(weights, predictor.init_scratch(weights), batch, jnp.float32(0))
    is_changed = np.asarray(updated.bias != weights.bias)
    assert is_changed.tolist() == [False, True, False] and updated.bias[1] > weights.bias[1]


@pytest.mark.parametrize("num_runs", [0, 2])
def test_the_gradient_by_groups_is_that_of_the_batch(monkeypatch, num_runs):
    """Three sequences in two groups, of which the second is filled up; alone, and for several runs under `vmap`."""
    predictor, weights, inputs = subject("causal_transformer", outputs="categorical")
    random = np.random.default_rng(2)
    batch = PredictionBatch(
        jnp.array(random.normal(size=(3, LENGTH, NUM_INPUTS)), jnp.float32).at[0].set(inputs),
        jnp.array(random.integers(0, NUM_OUTPUTS, (3, LENGTH)), jnp.int32),
        jnp.zeros((3, LENGTH)),
        jnp.array(random.integers(0, 2, (3, LENGTH)), jnp.float32),
    )

    def first_moments(weights):
        return predictor.update(weights, predictor.init_scratch(weights), batch, jnp.float32(0))[1]

    expected = jax.tree.leaves(jax.jit(first_moments)(weights))
    monkeypatch.setattr(base, "MAX_GROUP_ELEMENTS", 2 * LENGTH * 32)
    if num_runs:
        runs = jax.tree.map(lambda leaf: jnp.stack([leaf + number for number in range(num_runs)]), weights)
        grouped = jax.tree.map(lambda leaf: leaf[0], jax.jit(jax.vmap(lambda weights: first_moments(weights)))(runs))
    else:
        grouped = jax.jit(lambda weights: first_moments(weights))(weights)
    grouped = jax.tree.leaves(grouped)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in expected)
    assert any((a != b).any() for a, b in zip(expected, grouped, strict=True)), "both were computed in one group"
    for a, b in zip(expected, grouped, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", [*SETTINGS, "latent_predictor"])
def test_outputs_of_no_known_kind_are_rejected(name):
    with pytest.raises(BadInput, match="outputs"):
        plugins.build("content", name, NUM_INPUTS, NUM_OUTPUTS, outputs="ordinal")


def test_an_update_of_the_latent_predictor_trains_the_model_of_its_inputs_without_targets():
    """Without a target the head stays as it is; the world model moves, so that it learns what its inputs are."""
    predictor = plugins.build("content", "latent_predictor", NUM_INPUTS, NUM_OUTPUTS)
    weights = predictor.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (2, LENGTH, NUM_INPUTS)).at[:, 0, -1].set(1.0)
    nothing = jnp.zeros((2, LENGTH))
    batch = PredictionBatch(inputs, nothing.astype(jnp.int32), nothing, nothing)
    updated, scratch = jax.jit(predictor.update)(weights, predictor.init_scratch(weights), batch, jnp.float32(0))
    is_changed = jax.tree.map(lambda before, after: bool((before != after).any()), weights, updated)
    assert not any(jax.tree.leaves(is_changed.head))
    assert is_changed.model.decoder.output.weight and is_changed.model.encoder.weight
    assert scratch.num_updates == 1
    with pytest.raises(BadInput, match="'width' must be at least 8"):
        plugins.build("content", "latent_predictor", NUM_INPUTS, NUM_OUTPUTS, width=4)


def test_an_optimizer_of_no_known_kind_is_rejected():
    with pytest.raises(BadInput, match="optimizer"):
        build("causal_transformer", optimizer="lion")


def test_muon_moves_the_matrices_of_the_blocks_by_orthogonal_steps_and_adam_all_other_weights():
    """A step of Muon has singular values near 1, times 0.2 and the root of the longer side (Liu et al. 2025)."""
    predictor = build("causal_transformer", optimizer="muon", width=16, num_blocks=2, learning_rate=0.1)
    weights = jax.jit(predictor.init)(jax.random.key(0))
    weights = weights._replace(readout=0.3 * jax.random.normal(jax.random.key(1), weights.readout.shape))
    classes = jax.random.randint(jax.random.key(2), (4, LENGTH), 0, NUM_OUTPUTS)
    inputs = jax.random.normal(jax.random.key(3), (4, LENGTH, NUM_OUTPUTS + 1)).at[..., -1].set(0.0)
    batch = PredictionBatch(inputs, classes, jnp.ones((4, LENGTH)), jnp.ones((4, LENGTH)))
    changed, _ = jax.jit(predictor.update)(weights, predictor.init_scratch(weights), batch, jnp.float32(0))
    steps = jax.tree.map(lambda after, before: np.asarray(after - before) / 0.1, changed, weights)
    for block in steps.blocks:
        for matrix in (block.attn_qkv, block.out_proj, block.up, block.down):
            singular_values = np.linalg.svd(matrix / (0.2 * np.sqrt(max(matrix.shape))), compute_uv=False)
            assert singular_values.max() == pytest.approx(1, abs=0.35)
        assert np.abs(block.age_bias).max() <= 1.01  # a step of Adam
    for step in (steps.embedding, steps.readout):
        assert np.abs(step).max() == pytest.approx(1, abs=0.02)


def test_a_transformer_without_blocks_is_rejected():
    with pytest.raises(BadInput, match="'num_blocks' must be at least 1"):
        build("causal_transformer", num_blocks=0)


@pytest.mark.parametrize("name", ["gru", "causal_transformer"])
def test_an_edit_that_changes_nothing_changes_no_prediction(name):
    predictor, weights, inputs = subject(name)
    logits, streams = predictor.query_edited(weights, inputs, lambda level, stream: stream)
    np.testing.assert_allclose(logits, jax.jit(predictor.query_sequence)(weights, inputs), atol=1e-6)
    levels, size = {"gru": (1, 6), "causal_transformer": (3, 8)}[name]
    assert streams.shape == (levels, LENGTH, size) and float(jnp.std(streams)) > 0.05


def test_contents_without_streams_have_no_edited_query():
    assert build("linear").query_edited is None and build("mlp").query_edited is None


@pytest.mark.parametrize("edited_level", [0, 1, 2])
def test_an_edit_acts_on_its_level_its_step_and_what_depends_on_them(edited_level):
    predictor, weights, inputs = subject("causal_transformer")
    t = 3

    def edit(level, stream):
        return stream.at[t].add(1.0) if level == edited_level else stream

    before_logits, before = predictor.query_edited(weights, inputs, lambda level, stream: stream)
    logits, streams = predictor.query_edited(weights, inputs, edit)
    np.testing.assert_array_equal(streams[:edited_level], before[:edited_level])
    np.testing.assert_allclose(
        streams[edited_level] - before[edited_level], np.eye(LENGTH)[t][:, None] * np.ones(8), atol=1e-6
    )
    changed = np.abs(logits - before_logits).max(axis=-1) > 1e-6
    reached = range(t, 8) if edited_level < 2 else [t]  # attention carries the edit on, but not into the next sequence
    assert np.flatnonzero(changed).tolist() == list(reached)


def test_an_edit_of_hidden_units_is_carried_to_later_steps_of_the_sequence():
    predictor, weights, inputs = subject("gru")
    donor = jnp.linspace(-0.5, 0.5, 6)
    before_logits, before = predictor.query_edited(weights, inputs, lambda level, hidden: hidden)
    logits, hidden = predictor.query_edited(weights, inputs, lambda level, hidden: hidden.at[3].set(donor))
    np.testing.assert_array_equal(hidden[0, 3], donor)
    np.testing.assert_array_equal(hidden[0, :3], before[0, :3])
    by_step = gru.step_gru(weights, donor, inputs[4])
    np.testing.assert_allclose(hidden[0, 4], by_step[0], atol=1e-6)
    np.testing.assert_allclose(logits[4], by_step[1], atol=1e-6)
    np.testing.assert_allclose(logits[8:], before_logits[8:], atol=1e-6)  # the next sequence starts afresh


def test_an_edit_of_hidden_units_is_used_at_its_own_step_only():
    predictor, weights, inputs = subject("gru")
    logits, _ = predictor.query_edited(weights, inputs, lambda level, hidden: hidden)

    def edit(level, hidden):
        is_latest = jnp.arange(LENGTH) == jnp.argmax(jnp.where(jnp.any(hidden != 0, axis=1), jnp.arange(LENGTH), -1))
        return jnp.where(is_latest[:, None], hidden, 7.0)

    np.testing.assert_allclose(predictor.query_edited(weights, inputs, edit)[0], logits, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gru", {"hidden_size": 32, "learning_rate": 0.02}),
        (
            "causal_transformer",
            {"width": 16, "num_heads": 2, "num_blocks": 2, "window_length": 8, "learning_rate": 0.01},
        ),
        pytest.param(
            "causal_transformer",
            {"num_blocks": 2, "window_length": 8, "learning_rate": 0.02, "optimizer": "muon"},
            marks=pytest.mark.slow,
        ),
        ("latent_predictor", {"width": 32, "learning_rate": 0.02}),
    ],
)
def test_a_predictor_learns_to_copy_the_class_of_two_steps_ago(name, settings):
    """Classes that were not in the training are predicted; the chance level is a third."""
    predictor = plugins.build("content", name, NUM_OUTPUTS + 1, NUM_OUTPUTS, outputs="categorical", **settings)

    def sample_batch(key):
        classes = jax.random.randint(key, (16, LENGTH), 0, NUM_OUTPUTS)
        inputs = jnp.zeros((16, LENGTH, NUM_OUTPUTS + 1)).at[..., :-1].set(jax.nn.one_hot(classes, NUM_OUTPUTS))
        mask = jnp.ones((16, LENGTH)).at[:, :2].set(0.0)
        return PredictionBatch(inputs.at[:, 0, -1].set(1.0), jnp.roll(classes, 2, axis=1), jnp.zeros_like(mask), mask)

    @jax.jit
    def train(key):
        def step(carry, number):
            return predictor.update(*carry, sample_batch(jax.random.fold_in(key, number)), number / 300), None

        weights = predictor.init(key)
        (weights, _), _ = jax.lax.scan(step, (weights, predictor.init_scratch(weights)), jnp.arange(300))
        batch = sample_batch(jax.random.fold_in(key, 300))
        predicted = jnp.argmax(jax.vmap(predictor.query_sequence, (None, 0))(weights, batch.inputs), axis=-1)
        return jnp.mean(predicted[:, 2:] == batch.target_index[:, 2:])

    assert train(jax.random.key(0)) > 0.95
