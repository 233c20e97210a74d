"""Reading online: scored before learned, the same bits whatever follows, adapters, anchors, and counts as control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny import trees
from ontogeny.audit.prequential.certificate import CertificateConfig, certify
from ontogeny.audit.prequential.passes import passes_by_instance
from ontogeny.content import transformer
from ontogeny.errors import BadInput
from ontogeny.lm import ngram, online, online_learner, prequential_predictor
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.lm.tokenizer import Bytes

CONFIG = transformer.make_config("gpt2", 257, 24, num_layers=1, num_heads=2, width=16)
MODEL = LanguageModel(CONFIG, jax.jit(transformer.init_weights, static_argnums=1)(jax.random.key(0), CONFIG), Bytes())
losses = jax.jit(transformer.token_losses, static_argnums=0)
TOKENS = np.random.default_rng(0).integers(97, 101, 203).astype(np.int32)
PLAN = OnlineConfig(chunk_size=8, rehearsal_batch_size=0, learning_rate=3e-3)


def nats(tokens=TOKENS, plan=PLAN, kept=True, learning=True):
    trained = online.pretrained_weights(MODEL, plan)
    found, beside, weights = online.run_condition(MODEL, trained, tokens, plan, kept, learning)
    return found, beside, weights


def first_that_differs(at, **how):
    """The first score that changes when the token `at` does; the score of token t is number t - 1."""
    changed = TOKENS.copy()
    changed[at] = 120
    one, other = nats(**how)[0], nats(changed, **how)[0]
    return int(np.flatnonzero(one != other)[0])


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("at", [1, 8, 9, 40, 100, 202])
def test_no_score_depends_on_its_own_token_before_it_is_given_or_on_later_ones(kept, at):
    assert first_that_differs(at, kept=kept) == at - 1


def test_learning_from_a_block_before_it_is_scored_would_be_found(monkeypatch):
    """The planted error: scores under the weights that the block itself has made."""
    build = online_learner.build

    def cheats(config, plan):
        honest = build(config, plan)

        def update(trained, weights, window, read, again):
            new, _ = honest.update(trained, weights, window, read, again)
            return new, transformer.token_losses(config, honest.model(trained, new.content), window[None])[0]

        return honest._replace(update=update)

    monkeypatch.setattr(online_learner, "build", cheats)
    jax.clear_caches()
    try:
        assert first_that_differs(44) < 43
        with pytest.raises(BadInput, match="the scores that are reported differ"):
            prequential_predictor.of_model(MODEL, PLAN)(TOKENS)
    finally:
        monkeypatch.undo()
        jax.clear_caches()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_as_a_predictor_gives_the_scores_that_are_reported_and_is_certified(frozen):
    predict = prequential_predictor.of_model(MODEL, PLAN, frozen=frozen)
    rows = predict(TOKENS)
    scored = nats(learning=not frozen)[0]
    np.testing.assert_allclose(-rows[np.arange(1, len(TOKENS)), TOKENS[1:]], scored, atol=1e-4)
    config = CertificateConfig(num_tokens=64, num_positions=6, num_prefixes=2, num_random_streams=2)
    certificate = certify(passes_by_instance("saved model", lambda: predict), config=config)
    assert certificate.certified, certificate.checks


def test_a_cut_stream_is_scored_like_the_whole():
    for length in (81, 84):  # at the end of a block, and within one
        whole, cut = nats()[0], nats(TOKENS[:length])[0]
        np.testing.assert_array_equal(whole[: length - 1], cut)


def test_cells_are_what_they_are_called():
    frozen_kept, _, weights = nats(learning=False)
    assert trees.bitwise_equal(weights, MODEL.weights)
    window = TOKENS[160 - 24 : 161]
    np.testing.assert_allclose(
        frozen_kept[152:160], losses(CONFIG, MODEL.weights, jnp.asarray(window[None]))[0][-8:], rtol=1e-5
    )
    frozen_reset = nats(learning=False, kept=False)[0]
    block = TOKENS[152:161]
    np.testing.assert_allclose(
        frozen_reset[152:160], losses(CONFIG, MODEL.weights, jnp.asarray(block[None]))[0], rtol=1e-5
    )
    found = online.evaluate_online(MODEL, TOKENS, PLAN)
    np.testing.assert_array_equal(found.frozen_kept, frozen_kept)
    assert found.online_kept.mean() < found.frozen_kept.mean() - 1 and found.relative_weight_change > 0
    assert found.on_log[100:].mean() < found.frozen_reset[100:].mean() - 1


def test_no_learning_rate_is_no_learning():
    plan = PLAN._replace(learning_rate=0.0)
    np.testing.assert_allclose(nats(plan=plan)[0], nats(plan=plan, learning=False)[0], rtol=1e-5)
    assert trees.bitwise_equal(nats(plan=plan)[2], MODEL.weights)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_decay_draws_the_weights_back(optimizer):
    plan = PLAN._replace(optimizer=optimizer)
    free = online.relative_weight_change(nats(plan=plan)[2], MODEL.weights)
    held = online.relative_weight_change(nats(plan=plan._replace(decay=0.2))[2], MODEL.weights)
    assert 0 < held < 0.6 * free


def test_an_adapter_adds_nothing_at_first_and_is_all_that_changes():
    plan = PLAN._replace(adapter_rank=2)
    read = online_learner.build(CONFIG, plan)
    trained = online.pretrained_weights(MODEL, plan)
    assert trees.bitwise_equal(read.model(trained, read.init(trained).content), MODEL.weights)
    weights = nats(plan=plan)[2]
    assert trees.bitwise_equal(weights.embedding, MODEL.weights.embedding)
    assert not np.array_equal(weights.blocks[0].attn_qkv.weight, MODEL.weights.blocks[0].attn_qkv.weight)
    assert np.array_equal(weights.blocks[0].attn_qkv.bias, MODEL.weights.blocks[0].attn_qkv.bias)


def test_an_anchor_holds_most_what_the_training_text_leans_on():
    """Two weights moved alike: the one with the larger squared gradient is drawn back further."""
    squared_gradients = jax.tree.map(jnp.zeros_like, MODEL.weights)
    squared_gradients = squared_gradients._replace(embedding=squared_gradients.embedding.at[0, 0].set(1.0))
    trained = online_learner.PretrainedWeights(MODEL.weights, squared_gradients)
    plan = PLAN._replace(decay=1e-3, fisher_anchor=True, learning_rate=0.0)
    read = online_learner.build(CONFIG, plan)
    weights = read.init(trained)
    moved = weights._replace(content=weights.content._replace(embedding=weights.content.embedding + 1))
    window = jnp.asarray(TOKENS[:25])
    after, _ = jax.jit(read.update)(trained, moved, window, jnp.int32(24), jnp.zeros((0, 25), jnp.int32))
    apart = np.asarray(after.content.embedding - MODEL.weights.embedding)
    assert apart[0, 0] == pytest.approx(0.9, abs=1e-3) and apart[5, 5] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (OnlineConfig(chunk_size=25), "longer than the model's context"),
        (OnlineConfig(chunk_size=8, optimizer="newton"), "must be one of adam, rms, sgd"),
        (OnlineConfig(chunk_size=8, decay=1.0), "between 0 and 1"),
        (OnlineConfig(chunk_size=8, adapter_rank=2, fisher_anchor=True), "neither 'fisher_anchor' nor"),
        (OnlineConfig(chunk_size=8), "rehearsal_batch_size=0"),
        (OnlineConfig(chunk_size=8, rehearsal_batch_size=0, optimizer="rms"), "training text"),
    ],
)
def test_what_cannot_be_read_is_refused(plan, said):
    with pytest.raises(BadInput, match=said):
        online.evaluate_online(MODEL, TOKENS, plan)


def test_a_text_shorter_than_two_blocks_is_refused():
    with pytest.raises(BadInput, match="less than two blocks"):
        online.evaluate_online(MODEL, TOKENS[:10], PLAN)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4))
def test_counts_predict_distributions(read, order):
    made = ngram.Counts(4, order)
    made.read(read)
    each = [
        made.read([*read[-(order - 1) :], token] if order > 1 else [token], learning=False)[-1] for token in range(4)
    ]
    assert sum(each) == pytest.approx(1.0)


def test_counts_score_before_they_count_and_forget_nothing():
    one = ngram.Counts(4, 3).read([0, 1, 2, 3, 0, 1, 2])
    other = ngram.Counts(4, 3).read([0, 1, 2, 3, 0, 1, 3])
    np.testing.assert_array_equal(one[:-1], other[:-1])
    assert one[0] == 0.25 and one[-1] > 0.5 > other[-1]
    # Witten and Bell by hand: after "0" came "1" once, so p(1 | 0) = (1 + 1 * p(1)) / 2, p(1) = (1 + 4 / 4) / (4 + 4).
    assert ngram.Counts(4, 2).read([0, 1, 2, 3, 0, 1])[-1] == pytest.approx((1 + (1 + 4 / 4) / (5 + 4)) / 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)), min_size=1, max_size=60))
def test_a_mixture_is_never_far_from_the_better_one(pairs):
    one, other = np.array(pairs).T
    found = ngram.mixed(one, other, switch=0.0)
    assert found.sum() <= min(one.sum(), other.sum()) + np.log(2) + 1e-9
    assert (found >= np.minimum(one, other) - 1e-9).all()
