"""A text read as a stream, frozen or learning: each block is scored first, and only then learned from.

The score is prequential (Dawid 1984): no token's score can depend on itself or on what comes after it. Four cells of
one design: weights frozen or online, activations kept or restored at every block. Activations are the tokens that the
model looks back on, at most its context; restored, a block is scored with the one token before it. A fifth cell scores
restored with weights that were learned in the life in which activations were kept.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import stats
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, online_learner, optimization
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.types import Weights

DISPATCH = 50  # blocks in one
FISHER_WINDOWS = 256
HELD_OUT_WINDOWS = 512
LONG = 1024  # tokens of a stretch over which intervals are taken: what is near in a text is alike
Progress = Callable[[int, int], None]


class Reading(NamedTuple):
    """What a text cost in each cell, nats [N] of all tokens but the first, and the weights at the end."""

    frozen_reset: np.ndarray
    frozen_kept: np.ndarray
    online_reset: np.ndarray
    online_kept: np.ndarray
    on_log: np.ndarray  # restored, with the weights of `online_kept`
    weights: TransformerWeights  # as `online_kept` left them
    relative_weight_change: float  # their distance from the trained ones, as a share of those


def pretrained_weights(model: LanguageModel, plan: OnlineConfig) -> PretrainedWeights:
    """What a learner by this plan starts from; `BadInput` where it needs a training text that is not there."""
    if not online_learner.needs_squares(plan):
        return PretrainedWeights(model.weights, None)
    windows = corpus.spaced_windows(rehearsed(model), model.config.context_length, FISHER_WINDOWS)
    return PretrainedWeights(model.weights, online_learner.squares_of(model.config, model.weights, windows))


def evaluate_online(
    model: LanguageModel, tokens: np.ndarray, plan: OnlineConfig, *, seed: int = 0, on_progress: Progress | None = None
) -> Reading:
    """Reads tokens [T] in all cells. With `rehearsal` a model that was not trained here raises `BadInput`."""
    plan = online_learner.checked(plan, model.config.context_length)
    if len(tokens) < 2 * plan.chunk_size:
        raise BadInput(f"the text has {len(tokens):,} tokens, less than two blocks of {plan.chunk_size}")
    trained = pretrained_weights(model, plan)
    cells: dict[str, np.ndarray] = {}
    last: Any = None
    runs = [("kept", True), ("kept", False), ("reset", True), ("reset", False)]
    total = len(runs) * (len(tokens) - 1)
    for number, (activations, online) in enumerate(runs):
        done = number * (len(tokens) - 1)
        tell = None if on_progress is None else partial(_shifted, on_progress, done, total)
        nats, beside, weights = run_condition(model, trained, tokens, plan, activations == "kept", online, seed, tell)
        cells[f"{'online' if online else 'frozen'}_{activations}"] = nats
        if activations == "kept" and online:
            cells["on_log"], last = beside, weights
    return Reading(**cells, weights=last, relative_weight_change=relative_weight_change(last, model.weights))


def run_condition(
    model: LanguageModel,
    trained: PretrainedWeights,
    tokens: np.ndarray,
    plan: OnlineConfig,
    kept: bool,
    online: bool,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray, TransformerWeights]:
    """One cell: nats [T - 1], the same with activations restored (the same array where they are), weights at the end.

    The rehearsal of a block is drawn by (seed, block) alone.
    """
    config = model.config
    read = online_learner.build(config, plan)
    weights = read.init(trained)
    context = config.context_length if kept else plan.chunk_size
    starts = np.arange(0, len(tokens) - 1, plan.chunk_size)
    again = rehearsed(model) if online and plan.rehearsal_batch_size else np.zeros(config.context_length + 1, np.int32)
    nats, beside = np.empty(len(tokens) - 1), np.empty(len(tokens) - 1)
    for first in range(0, len(starts), DISPATCH):
        some = starts[first : first + DISPATCH]
        filled = np.concatenate([some, np.repeat(starts[-1:], DISPATCH - len(some))])
        windows, sizes = context_windows(tokens, filled, plan.chunk_size, context, config.context_length)
        short, short_sizes = context_windows(tokens, filled, plan.chunk_size, plan.chunk_size, config.context_length)
        rehearsal = (
            corpus.sample_batches(again, seed, first, (DISPATCH, 1, plan.rehearsal_batch_size), config.context_length)[:, 0]
            if online and plan.rehearsal_batch_size
            else np.zeros((DISPATCH, 0, config.context_length + 1), np.int32)
        )
        live = np.arange(DISPATCH) < len(some)
        given = (windows, sizes, short[:, : plan.chunk_size + 1], short_sizes, rehearsal, live)
        weights, (found, alone) = _dispatch(config, plan, kept, online, trained, weights, given)
        found, alone = np.asarray(found, np.float64), np.asarray(alone, np.float64)
        for row, start in enumerate(some):
            stop = min(start + plan.chunk_size, len(tokens) - 1)
            end, own = sizes[row], stop - start
            nats[start:stop] = found[row, end - own : end]
            beside[start:stop] = alone[row, short_sizes[row] - own : short_sizes[row]] if kept else nats[start:stop]
        if on_progress is not None:
            on_progress(int(min(some[-1] + plan.chunk_size, len(tokens) - 1)), len(tokens) - 1)
    return nats, beside, read.model(trained, weights.content)


def context_windows(
    tokens: np.ndarray, starts: np.ndarray, block: int, look: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """For blocks at `starts`, the tokens that end with each and look back at most `look` -> [S, width + 1], sizes [S].

    A size counts predictions; what lies beyond it is filled with zeros, which no prediction within it sees. A last
    block that is cut short looks back as far as a whole one would: no score may depend on where the text ends.
    """
    stops = np.minimum(starts + block, len(tokens) - 1)
    begins = np.maximum(starts + block - look, 0)
    begins = np.minimum(begins, starts)
    found = np.zeros((len(starts), width + 1), np.int32)
    for row, (begin, stop) in enumerate(zip(begins, stops, strict=True)):
        found[row, : stop - begin + 1] = tokens[begin : stop + 1]
    return found, (stops - begins).astype(np.int32)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _dispatch(
    config: TransformerConfig,
    plan: OnlineConfig,
    kept: bool,
    online: bool,
    trained: PretrainedWeights,
    weights: Weights,
    given: tuple[Array, ...],
) -> tuple[Weights, tuple[Array, Array]]:
    """Blocks one after the other, each scored before its step is taken."""
    read = online_learner.build(config, plan)

    def one(weights: Weights, block: tuple[Array, ...]) -> tuple[Weights, tuple[Array, Array]]:
        window, size, short, short_size, again, live = block
        del short_size
        whole = read.model(trained, weights.content)
        alone = transformer.token_losses(config, whole, short[None])[0] if kept and online else jnp.zeros(plan.chunk_size)
        if not online:
            if kept:
                return weights, (transformer.token_losses(config, whole, window[None])[0], alone)
            return weights, (transformer.token_losses(config, whole, short[None])[0], alone)
        new, nats = read.update(trained, weights, window, size, again)
        weights = jax.tree.map(lambda old, changed: jnp.where(live, changed, old), weights, new)
        return weights, (nats, alone)

    return jax.lax.scan(one, weights, given)


def by_block(found: Reading, block: int) -> np.ndarray:
    """Mean nats per token of stretches of about `block` tokens in the order of `attribution.split`: [N, 5]."""
    cells = np.stack(found[:5], axis=1)
    starts = np.arange(0, max(len(cells) - block + 1, 1), block)
    return np.add.reduceat(cells, starts, axis=0) / np.diff(np.append(starts, len(cells)))[:, None]


def as_record(model: LanguageModel, found: Reading, tokens: np.ndarray, plan: OnlineConfig) -> dict[str, Any]:
    """What was read as plain JSON: bits per byte of every cell, what was saved, what was forgotten."""
    lengths = np.array([len(model.tokenizer.bytes_of(int(token))) for token in tokens[1:]], np.float64)
    cells = dict(zip(found._fields[:5], found[:5], strict=True))

    def ratio(above: np.ndarray, below: np.ndarray, scale: float) -> dict[str, float]:
        starts = np.arange(0, max(len(above) - LONG + 1, 1), LONG)
        return _ratio(np.add.reduceat(above, starts), np.add.reduceat(below, starts), scale)

    return {
        "plan": plan._asdict(),
        "tokens": len(tokens),
        "bits_per_byte": {name: ratio(nats, lengths, 1 / math.log(2)) for name, nats in cells.items()},
        "saved": ratio(found.frozen_kept - found.online_kept, found.frozen_kept, 1.0),
        "forgotten": None if model.run is None else forgotten(model, found.weights),
        "relative_weight_change": found.relative_weight_change,
    }


def forgotten(model: LanguageModel, weights: TransformerWeights) -> dict[str, float]:
    """By how much the loss on the original held-out text rose, nats per token, over windows, with its interval."""
    windows = corpus.spaced_windows(corpus.load(_run_of(model)).held_out, model.config.context_length, HELD_OUT_WINDOWS)
    parts = np.array_split(windows, -(-len(windows) // 32))
    now, then = (
        np.concatenate(
            [np.asarray(optimization.losses(model.config, "float32", w, part), np.float64) for part in parts]
        )
        for w in (weights, model.weights)
    )
    return _ratio((now - then).sum(axis=1), np.full(len(now), float(now.shape[1])), 1.0)


def _ratio(above: np.ndarray, below: np.ndarray, scale: float) -> dict[str, float]:
    """A ratio of sums and its 95 % interval by the residuals' spread (Cochran 1977, chapter 6) and Student's t."""
    mean = float(above.sum() / below.sum())
    reach = math.nan
    if len(above) > 1:
        errors = (above - mean * below) / below.mean()
        reach = float(errors.std(ddof=1)) / math.sqrt(len(above)) * stats.critical_value(stats.Z95, len(above) - 1)
    return {"mean": scale * mean, "low": scale * (mean - reach), "high": scale * (mean + reach)}


def relative_weight_change(weights: TransformerWeights, origin: TransformerWeights) -> float:
    """How far weights are from others, as a share of the others' norm."""
    ones, others = jax.tree.leaves(weights), jax.tree.leaves(origin)
    apart = sum(float(jnp.sum(jnp.square(a - b))) for a, b in zip(ones, others, strict=True))
    return float(np.sqrt(apart / sum(float(jnp.sum(jnp.square(b))) for b in others)))


def rehearsed(model: LanguageModel) -> np.ndarray:
    """The training text, windows of which are learned again."""
    return corpus.load(_run_of(model)).training


def _run_of(model: LanguageModel) -> Path:
    if model.run is None:
        raise BadInput(
            "this model was not trained here, so there is no training text to rehearse or to anchor by: "
            "--learning rehearsal_batch_size=0, without anchor or rms, reads all the same"
        )
    return model.run


def _shifted(tell: Progress, before: int, total: int, done: int, _: int) -> None:
    tell(before + done, total)
