"""Texts that are learned in part: pieces, shares of steps, their records, and their computation from the journal."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import texts
from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.lm import online
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.server.learning import journal, learner, listing, partial_steps, text_scores, versions
from ontogeny.server.learning.acceptance import do_not_pause
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.learning.listing import PageRequest
from ontogeny.server.learning.partial_steps import CHUNKS_PER_PIECE, SHARES, PieceStep
from ontogeny.server.store import Store
from ontogeny.stats import RunningSums
from ontogeny.types import Weights
from serving import load, shared_run
from stepping import fake_learner

LIMIT = 1.0


def adding_learner():
    """A learner of one number: each token adds its value, one token is a chunk, and the number is what is forgotten."""
    fake = fake_learner()

    def learn(weights, tokens, chunks, pause=do_not_pause):
        total = np.float32(sum(float(tokens[chunk + 1]) for chunk in chunks))
        content = jax.tree.map(lambda leaf: leaf + total, weights.content)
        return Weights(content, np.int32(weights.scratch + len(chunks)))

    def held_out_loss(weights: TransformerWeights, pause=do_not_pause):
        return 2.0 + float(np.asarray(weights.embedding).flat[0])  # 0 at first

    return fake._replace(
        chunk_size=1, encode=lambda text: np.array(json.loads(text)), learn=learn, held_out_loss=held_out_loss
    )


def learn(branch_learner, tokens):
    pauses = {"learning": do_not_pause, "testing": do_not_pause}
    return partial_steps.learn_text(branch_learner, branch_learner.init(), np.array(tokens), LIMIT, **pauses)


def piece(total):
    """The tokens of one piece that adds `total`."""
    return [total] + [0.0] * (CHUNKS_PER_PIECE - 1)


@pytest.mark.parametrize(
    ("totals", "shares"),
    [
        ([0.5], [1.0]),
        ([1.5], [0.5]),
        ([3.0], [0.25]),
        ([8.0], [0.125]),
        ([8.5], [0.0]),
        ([float("nan")], [0.0]),
        ([0.5, 90.0, -0.25, 1.5], [1.0, 0.0, 1.0, 0.5]),
        ([1.0, 0.1, -1.0, 0.1], [1.0, 0.0, 1.0, 1.0]),
    ],
)
def test_each_piece_takes_the_largest_share_of_its_step_that_passes(totals, shares):
    learned = learn(adding_learner(), [0.0, *(token for total in totals for token in piece(total))])
    assert learned.steps == tuple(PieceStep(CHUNKS_PER_PIECE, share) for share in shares)
    number = sum(share * total for share, total in zip(shares, totals, strict=True) if share)
    if learned.full_weights is None:
        assert set(shares) == {0.0}
    else:
        assert learned.held_out_loss == pytest.approx(2.0 + number) and number <= LIMIT
        assert float(np.asarray(learned.weights.content.embedding).flat[0]) == pytest.approx(number)
    # The scratch of a rejected piece is that of before.
    assert int(learned.weights.scratch) == CHUNKS_PER_PIECE * sum(share > 0 for share in shares)
    assert (learned.reason is None) == (0.0 not in shares)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=60))
def test_weights_are_computed_again_from_the_recorded_steps(tokens):
    branch_learner = adding_learner()
    learned = learn(branch_learner, tokens)
    assert sum(step.num_chunks for step in learned.steps) == len(tokens) - 1
    assert all(step.share in (*SHARES, 0.0) for step in learned.steps)
    steps = partial_steps.steps_from_json(partial_steps.steps_as_json(learned.steps))
    replayed = partial_steps.replay_text(branch_learner, branch_learner.init(), json.dumps(tokens), steps, do_not_pause)
    assert trees.bitwise_equal(replayed, learned.weights)
    assert 0 <= partial_steps.mean_share(learned.steps) <= 1
    assert (partial_steps.describe_steps(learned.steps) is None) == (partial_steps.mean_share(learned.steps) == 1)


def test_parts_are_described_in_words():
    def describe(*shares):
        return partial_steps.describe_steps([PieceStep(16, share) for share in shares])

    assert describe(0.125) == "1/8 of the step was taken"
    assert describe(1.0, 1.0, 0.5, 0.0) == "of 4 pieces, 2 were learned, 1 by 1/2 of the step, 1 were rejected"


# --- with a language model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(shared_run(tmp_path_factory))


def open_branches(branch_learner, folder, max_forgetting, **limits) -> BranchManager:
    config = BranchConfig(max_forgetting=max_forgetting, **limits)
    return BranchManager(Store(folder), "story", branch_learner, config=config)


def teach(branches: BranchManager, *examples: str) -> list[int | None]:
    numbers = [branches.add_example("a", "a", text) for text in examples]
    while branches.learn_next():
        pass
    return numbers


@pytest.fixture(scope="module")
def partly_learned(model, tmp_path_factory):
    """Branches of a hasty learner with a low limit that have learned texts of three pieces, some in part."""
    hasty = learner.build(model, OnlineConfig(rehearsal_batch_size=0, learning_rate=2e-3, chunk_size=16))
    branches = open_branches(hasty, tmp_path_factory.mktemp("partly") / "state", 0.4, snapshot_interval=100)
    text = texts.read_training()
    teach(branches, *("".join(reversed(text[start : start + 700])) for start in range(0, 2800, 700)))
    return branches


@pytest.mark.computes
def test_texts_learned_in_part_are_recorded_and_computed_again_bit_for_bit(partly_learned, tmp_path):
    branches = partly_learned
    branch_versions = versions.list_versions(branches.store, "story/a")[1:]
    all_steps = [partial_steps.steps_from_json(version.steps) for version in branch_versions]
    shares = {step.share for steps in all_steps for step in steps or []}
    assert len(shares) > 1 and any(0 < share < 1 for share in shares), shares
    limit = branches.learner.trained_loss + branches.config.max_forgetting
    assert all(version.held_out_loss <= limit for version in branch_versions)
    decisions = [d for d in journal.list_decisions(branches.store, "story") if d.kind == "learned"]
    for decision, steps in zip(decisions, all_steps, strict=True):
        assert steps is not None and decision.share == partial_steps.mean_share(steps)
        assert (decision.share == 1) == ("piece" not in decision.reason and "step" not in decision.reason)
    listed, _ = listing.list_examples_of_key(branches.store, "story/a", "a", PageRequest())
    assert {example.number: example.share for example in listed if example.status == "learned"} == {
        decision.example: decision.share for decision in decisions
    }
    weights = branches.current("a").weights
    reopened = open_branches(branches.learner, branches.store.folder, 0.4)  # without a stop and without a snapshot
    assert trees.bitwise_equal(reopened.current("a").weights, weights)


@pytest.mark.computes
def test_every_text_is_scored_once_before_it_is_learned(model, partly_learned):
    branches = partly_learned
    examples = journal.list_examples(branches.store, "story/a")
    scores, _ = listing.list_scores(branches.store, "story/a", PageRequest())
    assert [score.example for score in scores] == [example.number for example in examples]
    first = scores[0]
    assert first.frozen_bits == first.live_bits and first.version == 0
    assert all(score.frozen_bits != score.live_bits for score in scores[1:])
    tokens = model.tokenizer.encode(str(examples[0].text))
    config = OnlineConfig(chunk_size=16)
    pretrained = online.pretrained_weights(model, config)
    frozen = online.run_condition(model, pretrained, tokens, config, True, False).losses.sum()
    assert first.frozen_bits * np.log(2) == pytest.approx(frozen, rel=1e-5)
    assert first.num_bytes == len(tokens) - 1
    sums = RunningSums()
    for score in scores:
        sums = sums.add(score.num_bytes, score.frozen_bits - score.live_bits)
        assert np.allclose(score.sums, sums)
    assert text_scores.find_newest(branches.store, "story/a") == scores[-1]


@pytest.mark.computes
def test_an_erased_text_leaves_the_sums_and_others_keep_their_scores(model, tmp_path):
    branches = open_branches(learner.build(model, OnlineConfig()), tmp_path / "state", 5.0)
    numbers = teach(branches, "A lamp went out.", "A bell rang below the water.", "Nobody was aboard.", "x")
    before, _ = listing.list_scores(branches.store, "story/a", PageRequest())
    assert [score.example for score in before] == numbers[:3]  # the last text is too short to be scored
    branches.erase_example(numbers[1] or 0, "test")
    teach(branches)
    after, _ = listing.list_scores(branches.store, "story/a", PageRequest())
    assert [score[:8] for score in after] == [before[0][:8], before[2][:8]]
    sums = RunningSums()
    for score in after:
        sums = sums.add(score.num_bytes, score.frozen_bits - score.live_bits)
        assert np.allclose(score.sums, sums)
    assert after[-1].total_frozen_bits == pytest.approx(after[0].frozen_bits + after[1].frozen_bits)
