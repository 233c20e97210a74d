"""Learning a text in pieces, each of which changes the weights by as much of its step as the acceptance test allows.

The step of a piece is the difference between the weights after and before its update chunks. If the weights with the
whole step would forget too much, a half, a quarter and an eighth of it are tested (backtracking, Armijo 1966, with the
acceptance test as its condition), and the largest share that passes is taken. If none passes, the piece is rejected:
the weights and the moments of the optimizer are those of before. With a partial step the moments are those of the whole
step. The shares are recorded, so that the weights can be computed again without the acceptance test.
"""

import json
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from ontogeny.content.transformer import TransformerWeights
from ontogeny.server.learning.acceptance import Pause, rejection_reason
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.types import PyTree, Weights

SHARES = (1.0, 0.5, 0.25, 0.125)  # of a step, in the order in which they are tested
CHUNKS_PER_PIECE = 16  # update chunks: the acceptance test then takes about a tenth of the time of learning


class PieceStep(NamedTuple):
    """What became of one piece of a text.

    Attributes:
        num_chunks: The update chunks of the piece.
        share: The share of its step that was taken, one of `SHARES`, or 0 if the piece was rejected.
    """

    num_chunks: int
    share: float


class LearnedText(NamedTuple):
    """The weights after a text.

    Attributes:
        weights: Content and scratch; those of before if no piece was accepted.
        full_weights: The weights that were tested, or None if no piece was accepted.
        steps: One per piece.
        held_out_loss: Of the weights, in nats per token; if no piece was accepted, of the last ones that were tested.
        reason: Why the last rejected piece was rejected, or None if none was.
    """

    weights: Weights
    full_weights: TransformerWeights | None
    steps: tuple[PieceStep, ...]
    held_out_loss: float
    reason: str | None


def count_chunks(learner: BranchLearner, tokens: np.ndarray) -> int:
    """The number of update chunks of a text; 0 if it is too short to learn from."""
    return max(math.ceil((len(tokens) - 1) / learner.chunk_size), 0)


def learn_text(
    learner: BranchLearner,
    weights: Weights,
    tokens: np.ndarray,
    max_forgetting: float,
    *,
    learning: Pause,
    testing: Pause,
) -> LearnedText:
    """Learns a text of at least one update chunk, and judges each of its pieces.

    Args:
        learner: How the text is learned.
        weights: Before the text.
        tokens: Of the text.
        max_forgetting: The limit of the acceptance test.
        learning: Called while a piece is learned; an exception ends the update.
        testing: Called while weights are tested.
    """
    full_weights, accepted_loss = None, math.nan
    reason, rejected_loss = None, math.nan
    steps: list[PieceStep] = []
    for chunks in _split(count_chunks(learner, tokens)):
        after = learner.learn(weights, tokens, chunks, learning)
        attempts = (_test_share(learner, weights, after, share, max_forgetting, testing) for share in SHARES)
        attempt = next(attempt for attempt in attempts if attempt.failure is None or attempt.share == SHARES[-1])
        if attempt.failure is None:
            weights, full_weights, accepted_loss = attempt.weights, attempt.full_weights, attempt.loss
        else:
            reason, rejected_loss = f"{attempt.failure}, by {Fraction(attempt.share)} of the step", attempt.loss
        steps.append(PieceStep(len(chunks), attempt.share if attempt.failure is None else 0.0))
    loss = rejected_loss if full_weights is None else accepted_loss
    return LearnedText(weights, full_weights, tuple(steps), loss, reason)


def replay_text(
    learner: BranchLearner, weights: Weights, text: str, steps: Sequence[PieceStep] | None, pause: Pause
) -> Weights:
    """Computes the weights after a text again, bit for bit.

    Args:
        learner: How the text was learned.
        weights: Before the text.
        text: All of it, tokens of rejected pieces included.
        steps: What became of its pieces; None if the text was learned as a whole.
        pause: Called at intervals.
    """
    tokens, first = learner.encode(text), 0
    for step in steps or [PieceStep(count_chunks(learner, tokens), 1.0)]:
        chunks = range(first, first + step.num_chunks)
        if step.share:
            weights = take_share(weights, learner.learn(weights, tokens, chunks, pause), step.share)
        first += step.num_chunks
    return weights


def take_share(before: Weights, after: Weights, share: float) -> Weights:
    """Returns the weights at a share of the way from `before` to `after`, with the scratch of `after`."""
    return after if share == 1.0 else after._replace(content=_interpolate(before.content, after.content, share))


def mean_share(steps: Sequence[PieceStep]) -> float:
    """The share of the step of a whole text: the mean over its update chunks."""
    return sum(step.num_chunks * step.share for step in steps) / sum(step.num_chunks for step in steps)


def describe_steps(steps: Sequence[PieceStep]) -> str | None:
    """Says in words which part of a text was learned, or returns None if all of it was."""
    if all(step.share == 1.0 for step in steps):
        return None
    if len(steps) == 1:
        return f"{Fraction(steps[0].share)} of the step was taken"
    counts = {share: sum(step.share == share for step in steps) for share in (*SHARES, 0.0)}
    parts = [f"{counts[1.0]} were learned"]
    parts += [f"{counts[share]} by {Fraction(share)} of the step" for share in SHARES[1:] if counts[share]]
    parts += [f"{counts[0.0]} were rejected"] if counts[0.0] else []
    return f"of {len(steps)} pieces, {', '.join(parts)}"


def steps_as_json(steps: Sequence[PieceStep]) -> str:
    """The form in which steps are recorded: a list of pairs of update chunks and share."""
    return json.dumps(steps)


def steps_from_json(text: str | None) -> list[PieceStep] | None:
    """Reads recorded steps; None stands for a text that was learned as a whole."""
    return None if text is None else [PieceStep(*pair) for pair in json.loads(text)]


def _split(num_chunks: int) -> Iterator[range]:
    """The update chunks of each piece of a text."""
    for start in range(0, num_chunks, CHUNKS_PER_PIECE):
        yield range(start, min(start + CHUNKS_PER_PIECE, num_chunks))


class _TestedShare(NamedTuple):
    """The weights after a share of a step, and the result of the acceptance test."""

    share: float
    weights: Weights
    full_weights: TransformerWeights
    loss: float
    failure: str | None  # why the weights are rejected, or None


def _test_share(
    learner: BranchLearner, before: Weights, after: Weights, share: float, max_forgetting: float, pause: Pause
) -> _TestedShare:
    """Tests a share of a step."""
    weights = take_share(before, after, share)
    full_weights = learner.full_weights(weights.content)
    loss = learner.held_out_loss(full_weights, pause)
    failure = rejection_reason(loss, learner.trained_loss, max_forgetting)
    return _TestedShare(share, weights, full_weights, loss, failure)


@partial(jax.jit, static_argnames="share")
def _interpolate(before: PyTree, after: PyTree, share: float) -> PyTree:
    """The point at a share of the way between two trees of arrays."""

    def interpolate(start: Array, end: Array) -> Array:
        return (start + share * (end - start)).astype(start.dtype)

    return jax.tree.map(interpolate, before, after)
