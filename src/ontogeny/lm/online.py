"""Evaluation on a text as a stream, with frozen or online weights: each chunk is scored first and then learned from.

The score is prequential (Dawid 1984): no token's score depends on itself or on later tokens. Four conditions form a
2 x 2 design: weights frozen or online, activations carried over or reset at every chunk. Activations are the tokens in
the model's context; where they are reset, a chunk is scored with the one token before it. A fifth condition scores with
reset activations, but with the weights that were learned while activations were carried over.

Letters: T tokens, C context.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import trees
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm import byte_decisions, corpus, online_learner
from ontogeny.lm import mixture as mixtures
from ontogeny.lm.byte_decisions import DecisionTable
from ontogeny.lm.evaluation import OnTokensProgress, scale_estimate, token_bytes
from ontogeny.lm.forgetting import measure_forgetting, measure_mixture_forgetting
from ontogeny.lm.mixture import MixtureEvaluation
from ontogeny.lm.model import LanguageModel, training_run
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.report.formatting import pluralize
from ontogeny.seeds import check_seed
from ontogeny.stats import RatioEstimate, ratio_of_sums
from ontogeny.types import Weights

CHUNKS_PER_CALL = 50
MAX_FISHER_WINDOWS = 256
SEGMENT_TOKENS = 1024  # tokens of a segment over which intervals are taken, since nearby tokens are correlated
NON_FINITE_LOSSES = "the losses of the frozen model are not finite, so its weights cannot be used on this text"
# Defaults of an evaluation, which reads a long text in one pass; those of `OnlineConfig` are for short requests.
EVALUATION_DEFAULTS = {"learning_rate": 3e-4, "rehearsal_weight": 8.0}
CONDITIONS = ("frozen_reset", "frozen_full_context", "online_reset", "online_full_context", "weights_from_log")


class OnlineEvaluation(NamedTuple):
    """The losses of all tokens but the first in each condition, nats [T - 1], and the weights at the end.

    Attributes:
        weights_from_log: The fifth condition: activations reset, with the weights of `online_full_context`.
        weights: After `online_full_context`.
        relative_weight_change: The distance of `weights` from the trained weights, divided by the norm of these.
        mixture: `online_full_context` mixed with a memory of the text; None where it was not requested.
        frozen_mixture: `frozen_full_context` mixed with a memory of the text.
    """

    frozen_reset: np.ndarray
    frozen_full_context: np.ndarray
    online_reset: np.ndarray
    online_full_context: np.ndarray
    weights_from_log: np.ndarray
    weights: TransformerWeights
    relative_weight_change: float
    mixture: MixtureEvaluation | None = None
    frozen_mixture: MixtureEvaluation | None = None


class ConditionResult(NamedTuple):
    """The losses of one condition, nats [T - 1], and the weights at the end.

    Attributes:
        losses_after_reset: With the same weights and reset activations; equal to `losses` where they are reset anyway.
        decision_probabilities: [D], the probability of outcome 1 at each decision of all tokens but the first, before
            anything was learned from their chunk; None where it was not requested.
    """

    losses: np.ndarray
    losses_after_reset: np.ndarray
    weights: TransformerWeights
    decision_probabilities: np.ndarray | None = None


class _ChunkBatch(NamedTuple):
    """Consecutive chunks for one compiled call; the leading axis is that of the chunks."""

    windows: Int32[Array, "S C1"]  # tokens that end with each chunk
    num_read: Int32[Array, "S"]  # predictions in each window
    short_windows: Int32[Array, "S K1"]  # each chunk with the one token before it
    rehearsal: Int32[Array, "S B C1"]
    is_valid: Array  # [S] bool; the last call is padded
    intervals: Int32[Array, "S K L 3"]  # decisions of the tokens of each chunk, without any where none are requested


def pretrained_weights(model: LanguageModel, config: OnlineConfig) -> PretrainedWeights:
    """The trained weights with the squared gradients that a config needs.

    Raises:
        BadInput: The config needs the training text of a model that was not trained by ontogeny.
    """
    if not config.needs_squared_gradients:
        return PretrainedWeights(model.weights, None)
    windows = corpus.spaced_windows(training_tokens(model), model.config.context_length, MAX_FISHER_WINDOWS)
    return PretrainedWeights(model.weights, online_learner.mean_squared_gradients(model.config, model.weights, windows))


def evaluate_online(
    model: LanguageModel,
    tokens: np.ndarray,
    config: OnlineConfig,
    *,
    seed: int = 0,
    use_memory: bool = True,
    on_progress: OnTokensProgress | None = None,
) -> OnlineEvaluation:
    """Score a stream of tokens in all conditions.

    Args:
        model: As `ontogeny.load` returns it.
        tokens: [T], at least two chunks.
        config: Settings of the online learner.
        seed: Determines the rehearsal windows.
        use_memory: Whether the network is also mixed with a memory of the text.
        on_progress: Called with the number of scored tokens and of all tokens of the four conditions.

    Raises:
        BadInput: The text is too short, or rehearsal needs the training text of a model that was not trained by
            ontogeny.
    """
    seed = check_seed(seed)
    online_learner.check_config(config, model.config)
    if len(tokens) < 2 * config.chunk_size:
        raise BadInput(f"the text has {pluralize(len(tokens), 'token')}, fewer than two chunks of {config.chunk_size}")
    pretrained = pretrained_weights(model, config)
    conditions = [(True, True), (True, False), (False, True), (False, False)]
    results, num_losses = {}, len(tokens) - 1
    table = byte_decisions.tabulate(model.tokenizer, model.config.vocab_size, tokens) if use_memory else None

    for number, (keep_activations, online) in enumerate(conditions):

        def report(num_done: int, _: int, first: int = number * num_losses) -> None:
            if on_progress is not None:
                on_progress(first + num_done, len(conditions) * num_losses)

        results[keep_activations, online] = run_condition(
            model,
            pretrained,
            tokens,
            config,
            keep_activations,
            online,
            seed,
            report,
            table if keep_activations else None,
        )
    full_context = results[True, True]
    mixture, frozen_mixture = (_mix(table, tokens, results[True, online]) for online in (True, False))
    return OnlineEvaluation(
        results[False, False].losses,
        results[True, False].losses,
        results[False, True].losses,
        full_context.losses,
        full_context.losses_after_reset,
        full_context.weights,
        relative_weight_change(full_context.weights, model.weights),
        mixture,
        frozen_mixture,
    )


def _mix(table: DecisionTable | None, tokens: np.ndarray, condition: ConditionResult) -> MixtureEvaluation | None:
    """The mixture of a condition with a memory of the text; None where no decisions were scored."""
    if table is None or condition.decision_probabilities is None:
        return None
    return mixtures.mix(table, tokens, condition.decision_probabilities)


def run_condition(
    model: LanguageModel,
    pretrained: PretrainedWeights,
    tokens: np.ndarray,
    config: OnlineConfig,
    keep_activations: bool,
    online: bool,
    seed: int = 0,
    on_progress: OnTokensProgress | None = None,
    table: DecisionTable | None = None,
) -> ConditionResult:
    """Score a stream of tokens in one condition.

    Args:
        model: As `ontogeny.load` returns it.
        pretrained: As `pretrained_weights` returns them.
        tokens: [T], at least two chunks.
        config: Settings of the online learner.
        keep_activations: Whether a chunk is scored with the whole context before it.
        online: Whether the weights learn from each chunk after it is scored.
        seed: The rehearsal windows of a chunk depend on this seed and the chunk's number alone.
        on_progress: Called with the number of scored tokens and of all tokens.
        table: Decisions of the tokens, whose probabilities are computed too; None to compute losses alone.

    Raises:
        BadInput: A loss is not finite.
    """
    learner = online_learner.build(model.config, config)
    state, size, num_losses = learner.init(pretrained), config.chunk_size, len(tokens) - 1
    starts = np.arange(0, num_losses, size)
    text = training_tokens(model) if online and config.rehearsal_batch_size > 0 else None
    losses, after_reset, decisions = np.empty(num_losses), np.empty(num_losses), []
    for first_chunk in range(0, len(starts), CHUNKS_PER_CALL):
        call_starts = starts[first_chunk : first_chunk + CHUNKS_PER_CALL]
        batch, num_short = _make_batch(model, tokens, starts, first_chunk, config, keep_activations, text, seed, table)
        num_read = np.asarray(batch.num_read)
        state, device_results = _process_chunks(
            model.config, config, keep_activations, online, pretrained, table and table.sorted_tokens, state, batch
        )
        window_losses, reset_losses, probabilities = (np.asarray(part, np.float64) for part in device_results)
        for row, start in enumerate(call_starts):
            stop = min(start + size, num_losses)
            losses[start:stop] = window_losses[row, num_read[row] - (stop - start) : num_read[row]]
            after_reset[start:stop] = losses[start:stop]
            if keep_activations:
                after_reset[start:stop] = reset_losses[row, num_short[row] - (stop - start) : num_short[row]]
            if table is not None:
                chunk = probabilities[row, size - (stop - start) :]
                decisions.append(byte_decisions.select(table, tokens[start + 1 : stop + 1], chunk))
        if on_progress is not None:
            on_progress(int(min(call_starts[-1] + size, num_losses)), num_losses)
    is_finite = np.isfinite(losses) & np.isfinite(after_reset)
    if not is_finite.all():
        raise BadInput(explain_divergence(int(is_finite.argmin())) if online else NON_FINITE_LOSSES)
    weights = learner.full_weights(pretrained, state.content)
    if online and not trees.is_finite(weights):
        raise BadInput(explain_divergence(len(losses)))
    return ConditionResult(losses, after_reset, weights, None if table is None else np.concatenate(decisions))


def _make_batch(
    model: LanguageModel,
    tokens: np.ndarray,
    starts: np.ndarray,
    first_chunk: int,
    config: OnlineConfig,
    keep_activations: bool,
    rehearsal_text: np.ndarray | None,
    seed: int,
    table: DecisionTable | None,
) -> tuple[_ChunkBatch, np.ndarray]:
    """The input of one compiled call; arguments as of `run_condition`.

    Args:
        starts: The first token of each chunk of the text.
        first_chunk: The number of the first chunk of the call.
        rehearsal_text: Training text; None for no rehearsal.

    Returns:
        The batch, and the number of predictions in each short window.
    """
    size, context_length = config.chunk_size, model.config.context_length
    call_starts = starts[first_chunk : first_chunk + CHUNKS_PER_CALL]
    padded = np.concatenate([call_starts, np.repeat(starts[-1:], CHUNKS_PER_CALL - len(call_starts))])
    history = context_length if keep_activations else size
    windows, num_read = context_windows(tokens, padded, size, history, context_length)
    short_windows, num_short = context_windows(tokens, padded, size, size, context_length)
    rehearsal = np.zeros((CHUNKS_PER_CALL, 0, context_length + 1), np.int32)
    if rehearsal_text is not None:
        shape = (CHUNKS_PER_CALL, 1, config.rehearsal_batch_size)
        rehearsal = corpus.sample_batches(rehearsal_text, seed, first_chunk, shape, context_length)[:, 0]
    is_valid = np.arange(CHUNKS_PER_CALL) < len(call_starts)
    intervals = np.zeros((CHUNKS_PER_CALL, size, 0, 3), np.int32)
    if table is not None:
        positions = np.maximum(num_read[:, None] - size + np.arange(size), 0) + 1
        intervals = table.intervals[table.row_of[np.take_along_axis(windows, positions, axis=1)]]
    arrays = (windows, num_read, short_windows[:, : size + 1], rehearsal, is_valid, intervals)
    return _ChunkBatch(*map(jnp.asarray, arrays)), num_short


def explain_divergence(num_tokens: int) -> str:
    """Returns the sentence about a learner whose losses are not finite any more.

    Args:
        num_tokens: Number of tokens whose losses are finite.
    """
    return (
        f"the learner diverged: after {num_tokens} tokens its losses or weights are not finite; use a smaller "
        "learning rate (--learning learning_rate=...)"
    )


def context_windows(
    tokens: np.ndarray, starts: np.ndarray, chunk_size: int, max_history: int, width: int
) -> tuple[Int32[np.ndarray, "S C1"], Int32[np.ndarray, "S"]]:
    """Cut the windows that end with given chunks.

    A last chunk that is cut short has as much context as a whole one would have: no score may depend on where the text
    ends.

    Args:
        tokens: [T].
        starts: [S], the first token of each chunk.
        chunk_size: Tokens of a chunk.
        max_history: The most predictions in a window, those of the chunk included.
        width: Predictions that a window can hold.

    Returns:
        Windows of `width` + 1 tokens, padded with zeros at the end, and the number of predictions in each.
    """
    stops = np.minimum(starts + chunk_size, len(tokens) - 1)
    begins = np.minimum(np.maximum(starts + chunk_size - max_history, 0), starts)
    windows = np.zeros((len(starts), width + 1), np.int32)
    for row, (begin, stop) in enumerate(zip(begins, stops, strict=True)):
        windows[row, : stop - begin + 1] = tokens[begin : stop + 1]
    return windows, (stops - begins).astype(np.int32)


class UpdateChunk(NamedTuple):
    """The input of one update of a learner."""

    window: Int32[np.ndarray, "C1"]
    num_read: np.int32  # predictions in the window
    rehearsal: Int32[np.ndarray, "B C1"]


def read_chunk(
    tokens: np.ndarray,
    start: int,
    config: OnlineConfig,
    context_length: int,
    rehearsal_text: np.ndarray | None,
    rehearsal_key: tuple[int, int],
) -> UpdateChunk:
    """Read one chunk with all the context before it that fits, and the windows that are rehearsed beside it.

    Args:
        tokens: [T].
        start: The first token of the chunk.
        config: Settings of the online learner.
        context_length: Of the model.
        rehearsal_text: Training text; None for no rehearsal.
        rehearsal_key: Seed and step that determine the rehearsed windows.
    """
    windows, num_read = context_windows(tokens, np.array([start]), config.chunk_size, context_length, context_length)
    rehearsal = np.zeros((0, context_length + 1), np.int32)
    if rehearsal_text is not None and config.rehearsal_batch_size:
        shape = (1, 1, config.rehearsal_batch_size)
        rehearsal = corpus.sample_batches(rehearsal_text, *rehearsal_key, shape, context_length)[0, 0]
    return UpdateChunk(windows[0], num_read[0], rehearsal)


def segment_means(evaluation: OnlineEvaluation, segment_tokens: int) -> Float[np.ndarray, "N 5"]:
    """Average the losses over segments, a column for each condition in the order of `audit.attribution.divide_gain`."""
    losses = np.stack([getattr(evaluation, name) for name in CONDITIONS], axis=1)
    starts = np.arange(0, max(len(losses) - segment_tokens + 1, 1), segment_tokens)
    return np.add.reduceat(losses, starts, axis=0) / np.diff(np.append(starts, len(losses)))[:, None]


def as_record(
    model: LanguageModel,
    evaluation: OnlineEvaluation,
    tokens: np.ndarray,
    config: OnlineConfig,
    num_text_bytes: int | None = None,
) -> dict[str, Any]:
    """Convert an evaluation to JSON values: bits per byte of every condition, bits saved by learning, forgetting.

    Args:
        model: As `ontogeny.load` returns it.
        evaluation: Of the tokens.
        tokens: [T].
        config: Settings of the online learner.
        num_text_bytes: Bytes of the text, which are divided in proportion to those that the tokens encode; None where
            the tokens encode the text byte by byte.
    """
    num_bytes = token_bytes(model, tokens)
    num_text_bytes = round(num_bytes.sum()) if num_text_bytes is None else num_text_bytes
    num_bytes = num_bytes[1:] * (num_text_bytes / num_bytes.sum())
    losses_by_condition = {name: getattr(evaluation, name) for name in CONDITIONS}
    if evaluation.mixture is not None:
        parts = {"mixture": evaluation.mixture.losses, "memory": evaluation.mixture.memory_losses}
        losses_by_condition = parts | losses_by_condition
    if evaluation.frozen_mixture is not None:
        losses_by_condition["frozen_mixture"] = evaluation.frozen_mixture.losses

    def ratio(numerators: np.ndarray, denominators: np.ndarray) -> RatioEstimate:
        starts = np.arange(0, max(len(numerators) - SEGMENT_TOKENS + 1, 1), SEGMENT_TOKENS)
        return ratio_of_sums(np.add.reduceat(numerators, starts), np.add.reduceat(denominators, starts))

    bits_per_byte = {
        name: scale_estimate(ratio(losses, num_bytes), 1 / math.log(2)) for name, losses in losses_by_condition.items()
    }
    bits_saved = ratio(evaluation.frozen_full_context - evaluation.online_full_context, evaluation.frozen_full_context)
    return {
        "learning": config.model_dump(),
        "num_tokens": len(tokens),
        "num_bytes": round(num_bytes.sum()),
        "num_unscored_bytes": num_text_bytes - round(num_bytes.sum()),
        "bits_per_byte": {name: estimate._asdict() for name, estimate in bits_per_byte.items()},
        "bits_saved": bits_saved._asdict(),
        "forgetting": None if model.run is None else measure_forgetting(model, evaluation.weights)._asdict(),
        "relative_weight_change": evaluation.relative_weight_change,
        "mixture": None if evaluation.mixture is None else _mixture_record(model, evaluation, evaluation.mixture),
    }


def _mixture_record(model: LanguageModel, evaluation: OnlineEvaluation, mixture: MixtureEvaluation) -> dict[str, Any]:
    """The weights of the mixture, the size of its memory, and its forgetting."""

    def forgetting(mixing: bool) -> dict[str, float] | None:
        if model.run is None:
            return None
        return measure_mixture_forgetting(model, evaluation.weights, mixture, mixing=mixing)._asdict()

    return mixtures.as_record(mixture) | {
        "forgetting": forgetting(True),
        "forgetting_at_last_weights": forgetting(False),
    }


def relative_weight_change(weights: TransformerWeights, origin: TransformerWeights) -> float:
    """The distance of weights from others, divided by the norm of the others."""
    leaves, origins = jax.tree.leaves(weights), jax.tree.leaves(origin)
    change = sum(float(jnp.sum(jnp.square(a - b))) for a, b in zip(leaves, origins, strict=True))
    return float(np.sqrt(change / sum(float(jnp.sum(jnp.square(b))) for b in origins)))


def training_tokens(model: LanguageModel) -> np.ndarray:
    """The tokens of the training text, from which rehearsal windows are drawn.

    Raises:
        BadInput: The model was not trained by ontogeny.
    """
    return corpus.load_corpus(training_run(model)).training


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _process_chunks(
    model_config: TransformerConfig,
    config: OnlineConfig,
    keep_activations: bool,
    online: bool,
    pretrained: PretrainedWeights,
    sorted_tokens: Int32[Array | np.ndarray, "V"] | None,
    state: Weights,
    batch: _ChunkBatch,
) -> tuple[Weights, tuple[Array, Array, Array]]:
    """Process chunks one after the other, each scored before the weights learn from it.

    Args:
        sorted_tokens: As in the table of decisions; None where no decisions are scored.

    Returns:
        The final state, two arrays of losses in nats, one row per chunk: as deployed, and after a reset, and the
        probabilities of the decisions. The losses after a reset are zero unless an online model keeps its activations.
    """
    learner = online_learner.build(model_config, config)

    def losses(weights: TransformerWeights, window: Array) -> Array:
        return transformer.token_losses(model_config, weights, window[None])[0]

    def decisions(weights: TransformerWeights, chunk: _ChunkBatch) -> Array:
        if sorted_tokens is None:
            return jnp.zeros((config.chunk_size, 0))
        logits = transformer.forward(model_config, weights, chunk.windows[None, :-1])[0]
        positions = jnp.maximum(chunk.num_read - config.chunk_size + jnp.arange(config.chunk_size), 0)
        log_probabilities = jax.nn.log_softmax(logits[positions])
        return byte_decisions.decision_probabilities(log_probabilities, jnp.asarray(sorted_tokens), chunk.intervals)

    def process(state: Weights, chunk: _ChunkBatch) -> tuple[Weights, tuple[Array, Array, Array]]:
        weights = learner.full_weights(pretrained, state.content)
        after_reset, probabilities = jnp.zeros(config.chunk_size), decisions(weights, chunk)
        if keep_activations and online:
            after_reset = losses(weights, chunk.short_windows)
        if not online:
            nats = losses(weights, chunk.windows if keep_activations else chunk.short_windows)
            return state, (nats, after_reset, probabilities)
        updated, nats = learner.update(pretrained, state, chunk.windows, chunk.num_read, chunk.rehearsal)
        state = jax.tree.map(lambda old, new: jnp.where(chunk.is_valid, new, old), state, updated)
        return state, (nats, after_reset, probabilities)

    return jax.lax.scan(process, state, batch)
