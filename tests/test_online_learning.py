"""Online learning of a language model: order of scoring and learning, reproducibility, adapters, the n-gram control."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny import trees
from ontogeny.audit.prequential.certificate import CertificateConfig, certify
from ontogeny.audit.prequential.passes import passes_by_instance
from ontogeny.cli import shared
from ontogeny.content import transformer
from ontogeny.errors import BadInput
from ontogeny.lm import online, online_learner, prequential_predictor
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig, parse_config
from ontogeny.lm.tokenizer import ByteTokenizer

MODEL_CONFIG = transformer.make_config("gpt2", 257, 24, num_layers=1, num_heads=2, width=16)
WEIGHTS = jax.jit(transformer.init_weights, static_argnums=1)(jax.random.key(0), MODEL_CONFIG)
MODEL = LanguageModel(MODEL_CONFIG, WEIGHTS, ByteTokenizer())
TOKENS = np.random.default_rng(0).integers(97, 101, 203).astype(np.int32)
CONFIG = OnlineConfig(chunk_size=8, rehearsal_batch_size=0, learning_rate=3e-3)
ngram = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ngram.py")))
token_losses = jax.jit(transformer.token_losses, static_argnums=0)


def change(**updates):
    return CONFIG.model_copy(update=updates)


def run_condition(tokens=TOKENS, config=CONFIG, keep_activations=True, learning=True):
    pretrained = online.pretrained_weights(MODEL, config)
    return online.run_condition(MODEL, pretrained, tokens, config, keep_activations, learning)


def first_changed_loss(changed_token, **condition):
    """The first loss that changes when a token does; the loss of token t is number t - 1."""
    changed = TOKENS.copy()
    changed[changed_token] = 120
    before, after = run_condition(**condition).losses, run_condition(changed, **condition).losses
    return int(np.flatnonzero(before != after)[0])


@pytest.mark.parametrize("keep_activations", [True, False])
@pytest.mark.parametrize("token", [1, 8, 9, 40, 100, 202])
def test_changing_a_token_changes_no_loss_of_an_earlier_token(keep_activations, token):
    assert first_changed_loss(token, keep_activations=keep_activations) == token - 1


def test_learning_from_a_chunk_before_it_is_scored_is_detected(monkeypatch):
    """The planted error: losses under the weights that the chunk itself has updated."""
    build = online_learner.build

    def build_cheating(model_config, config):
        learner = build(model_config, config)

        def update(pretrained, state, window, num_read, rehearsal):
            state, _ = learner.update(pretrained, state, window, num_read, rehearsal)
            weights = learner.full_weights(pretrained, state.content)
            return state, transformer.token_losses(model_config, weights, window[None])[0]

        return learner._replace(update=update)

    monkeypatch.setattr(online_learner, "build", build_cheating)
    jax.clear_caches()
    try:
        assert first_changed_loss(44) < 43
        with pytest.raises(BadInput, match="the losses that are reported differ"):
            prequential_predictor.make_predictor(MODEL, CONFIG)(TOKENS)
    finally:
        monkeypatch.undo()
        jax.clear_caches()


def test_a_learner_that_diverges_is_reported_as_diverged():
    config = change(optimizer="sgd", learning_rate=1e30, max_gradient_norm=math.inf)
    with pytest.raises(BadInput, match=r"the learner diverged: after \d+ tokens its losses or weights are not finite"):
        prequential_predictor.make_predictor(MODEL, config)(TOKENS)
    with pytest.raises(BadInput, match=r"the learner diverged: after \d+ tokens its losses or weights are not finite"):
        run_condition(config=config)


def test_weights_that_diverge_in_the_last_step_are_reported_as_diverged(monkeypatch):
    """The losses of all chunks are finite, since no chunk is scored after the last step."""
    monkeypatch.setattr(online.trees, "is_finite", lambda _: False)
    with pytest.raises(BadInput, match="the learner diverged"):
        run_condition(config=CONFIG)


def test_reports_are_strict_json():
    record = {"interval": (0.0, math.nan), "gain": {"mean": 1.0, "low": math.nan, "high": math.inf}, "text": "a"}
    assert shared.strict_json(record) == {
        "interval": [0.0, None], "gain": {"mean": 1.0, "low": None, "high": None}, "text": "a",
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"the result 'gain\.mean' is not a finite number"):
        shared.strict_json({"gain": {"mean": math.nan}})


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_as_a_predictor_gives_the_reported_losses_and_is_certified(frozen):
    predict = prequential_predictor.make_predictor(MODEL, CONFIG, frozen=frozen)
    log_probabilities = predict(TOKENS)
    losses = run_condition(learning=not frozen).losses
    np.testing.assert_allclose(-log_probabilities[np.arange(1, len(TOKENS)), TOKENS[1:]], losses, atol=1e-4)
    config = CertificateConfig(num_tokens=64, num_positions=20, num_prefixes=2, num_random_streams=2)
    certificate = certify(passes_by_instance("the model", lambda: predict), config=config)
    assert certificate.certified, certificate.checks


def test_a_cut_stream_is_scored_like_the_whole_stream():
    for length in (81, 84):  # at the end of a chunk, and within one
        losses, cut_losses = run_condition().losses, run_condition(TOKENS[:length]).losses
        np.testing.assert_array_equal(losses[: length - 1], cut_losses)


def test_each_condition_freezes_or_resets_the_part_that_it_names():
    frozen_full_context = run_condition(learning=False)
    assert trees.bitwise_equal(frozen_full_context.weights, MODEL.weights)
    window = jnp.asarray(TOKENS[None, 160 - 24 : 161])
    expected = token_losses(MODEL_CONFIG, MODEL.weights, window)[0][-8:]
    np.testing.assert_allclose(frozen_full_context.losses[152:160], expected, rtol=1e-5)
    frozen_reset = run_condition(learning=False, keep_activations=False)
    expected = token_losses(MODEL_CONFIG, MODEL.weights, jnp.asarray(TOKENS[None, 152:161]))[0]
    np.testing.assert_allclose(frozen_reset.losses[152:160], expected, rtol=1e-5)
    evaluation = online.evaluate_online(MODEL, TOKENS, CONFIG)
    np.testing.assert_array_equal(evaluation.frozen_full_context, frozen_full_context.losses)
    np.testing.assert_array_equal(evaluation.frozen_reset, frozen_reset.losses)
    assert (
        evaluation.online_full_context.mean() < evaluation.frozen_full_context.mean() - 1
        and evaluation.relative_weight_change > 0
    )
    assert evaluation.weights_from_log[100:].mean() < evaluation.frozen_reset[100:].mean() - 1


def test_a_learning_rate_of_zero_changes_nothing():
    config = change(learning_rate=0.0)
    online_full_context, frozen_full_context = (
        run_condition(config=config),
        run_condition(config=config, learning=False),
    )
    np.testing.assert_allclose(online_full_context.losses, frozen_full_context.losses, rtol=1e-5)
    assert trees.bitwise_equal(online_full_context.weights, MODEL.weights)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_decay_keeps_the_weights_near_the_trained_ones(optimizer):
    free = run_condition(config=change(optimizer=optimizer)).weights
    decayed = run_condition(config=change(optimizer=optimizer, decay_rate=0.2)).weights
    distances = [online.relative_weight_change(weights, MODEL.weights) for weights in (decayed, free)]
    assert 0 < distances[0] < 0.6 * distances[1]


def test_an_adapter_adds_nothing_at_first_and_is_all_that_changes():
    config = change(adapter_rank=2)
    learner, pretrained = online_learner.build(MODEL_CONFIG, config), online.pretrained_weights(MODEL, config)
    initial = learner.full_weights(pretrained, learner.init(pretrained).content)
    assert trees.bitwise_equal(initial, MODEL.weights)
    weights = run_condition(config=config).weights
    assert trees.bitwise_equal(weights.embedding, MODEL.weights.embedding)
    (block,), (trained_block,) = weights.blocks, MODEL.weights.blocks
    assert not np.array_equal(block.attn_qkv.weight, trained_block.attn_qkv.weight)
    assert np.array_equal(block.attn_qkv.bias, trained_block.attn_qkv.bias)


def test_fisher_decay_is_strongest_where_the_training_gradient_is_largest():
    """Two weights changed alike: the one with the larger squared gradient moves back further."""
    squares = jax.tree.map(jnp.zeros_like, MODEL.weights)
    squares = squares._replace(embedding=squares.embedding.at[0, 0].set(1.0))
    pretrained = online_learner.PretrainedWeights(MODEL.weights, squares)
    learner = online_learner.build(MODEL_CONFIG, change(decay_rate=1e-3, fisher_decay=True, learning_rate=0.0))
    state = learner.init(pretrained)
    state = state._replace(content=state.content._replace(embedding=state.content.embedding + 1))
    window = jnp.asarray(TOKENS[:25])
    state, _ = jax.jit(learner.update)(pretrained, state, window, jnp.int32(24), jnp.zeros((0, 25), jnp.int32))
    change_left = np.asarray(state.content.embedding - MODEL.weights.embedding)
    assert change_left[0, 0] == pytest.approx(0.9, abs=1e-3) and change_left[5, 5] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        ("chunk_size=25", "longer than the model's context"),
        ("optimizer=newton", "must be 'adam', 'rms' or 'sgd', not 'newton'"),
        ("decay_rate=1.0", "'decay_rate' in \\[learning\\] must be less than 1"),
        ("chunk_size=8,adapter_rank=1000", "an adapter of rank 1,000 is larger than the smallest dimension"),
        ("adapter_rank=2,fisher_decay=true", "must not combine adapter_rank with fisher_decay or rms"),
        ("chunk_size=8", "rehearsal_batch_size=0"),
        ("chunk_size=8,rehearsal_batch_size=0,optimizer=rms", "training text is unknown"),
        ("block=8", "unknown key 'block' in \\[learning\\]"),
        ("decay_rate=nan", "must be a valid number"),
    ],
)
def test_invalid_settings_of_online_learning_are_rejected(learning, message):
    with pytest.raises(BadInput, match=message):
        online.evaluate_online(MODEL, TOKENS, parse_config(learning))


def test_a_text_shorter_than_two_chunks_is_rejected():
    with pytest.raises(BadInput, match="fewer than two chunks"):
        online.evaluate_online(MODEL, TOKENS[:10], CONFIG)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4))
def test_an_n_gram_model_predicts_distributions(tokens, order):
    model = ngram.NgramModel(4, order)
    model.predict(tokens)
    history = tokens[-(order - 1) :] if order > 1 else []
    assert sum(model.predict([*history, token], learning=False)[-1] for token in range(4)) == pytest.approx(1.0)


def test_an_n_gram_model_predicts_before_it_counts_and_forgets_nothing():
    probabilities = ngram.NgramModel(4, 3).predict([0, 1, 2, 3, 0, 1, 2])
    changed = ngram.NgramModel(4, 3).predict([0, 1, 2, 3, 0, 1, 3])
    np.testing.assert_array_equal(probabilities[:-1], changed[:-1])
    assert probabilities[0] == 0.25 and probabilities[-1] > 0.5 > changed[-1]
    # Witten and Bell by hand: after 0 came 1 once, so p(1 | 0) = (1 + 1 * p(1)) / 2, with p(1) = (1 + 4 / 4) / (5 + 4).
    by_hand = (1 + (1 + 4 / 4) / (5 + 4)) / 2
    assert ngram.NgramModel(4, 2).predict([0, 1, 2, 3, 0, 1])[-1] == pytest.approx(by_hand)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)), min_size=1, max_size=60))
def test_a_mixture_is_never_far_from_the_better_predictor(pairs):
    first, second = np.array(pairs).T  # losses of two predictors
    mixture = ngram.mix_predictions(first, second, switch_rate=0.0)
    assert mixture.sum() <= min(first.sum(), second.sum()) + np.log(2) + 1e-9
    assert (mixture >= np.minimum(first, second) - 1e-9).all()
