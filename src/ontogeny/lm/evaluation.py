"""Evaluation on text that a model was not trained on: perplexity per token and bits per byte, with intervals.

The text is scored in windows of the model's context that advance by a stride; each window scores its last `stride`
tokens, so every token is scored once and, except in the first window, after at least context length - stride tokens.
Bits per byte of UTF-8 are comparable between tokenizers (Gao et al. 2020, arXiv 2101.00027, section 3.1).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig
from ontogeny.errors import BadInput
from ontogeny.lm import corpus
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.overlap import TextOverlap, measure_overlap
from ontogeny.lm.weight_types import is_stored
from ontogeny.runs.formats import FORMATS, JSON_REPORT
from ontogeny.stats import RatioEstimate, ratio_of_sums

MAX_BATCH_SIZE = 16
MAX_BATCH_NUMBERS = 1 << 25  # of the largest array of a batch: 128 MiB
MAX_OVERLAP = 0.01  # the fraction of shared 13-grams above which a text counts as training text
TARGET_SEGMENTS = 100  # about as many segments for the interval: long ones, since nearby tokens are correlated
OnTokensProgress = Callable[[int, int], None]


class TextEvaluation(NamedTuple):
    """The losses of a model on a text, with 95 % intervals over segments of consecutive tokens.

    Attributes:
        perplexity: Per token.
        num_tokens: Tokens that were scored.
        num_bytes: Bytes of the text that these tokens stand for. The name of a special token in a text counts as text.
            Where the tokenizer normalizes the text, its bytes are divided in proportion to those that tokens encode.
        num_unscored_bytes: Further bytes of the text: those of a first token before which the model knows no other.
        segment_size: Tokens per segment.
        overlap: With the training text; None where that is unknown.
        losses: [N], nats of the scored tokens in their order.
    """

    perplexity: RatioEstimate
    bits_per_byte: RatioEstimate
    nats_per_token: RatioEstimate
    num_tokens: int
    num_bytes: int
    num_unscored_bytes: int
    num_segments: int
    segment_size: int
    context_length: int
    stride: int
    overlap: TextOverlap | None
    losses: np.ndarray


def read_text(path: Path) -> str:
    """Read a whole file of text; an absent, empty or binary one raises `BadInput`."""
    file = corpus.scan_files([path])[0]
    return "".join(corpus.read_passage(corpus.Passage(path, 0, file.num_bytes)))


def evaluate(
    model: LanguageModel,
    text: str,
    *,
    stride: int | None = None,
    batch_size: int | None = None,
    max_overlap: float = MAX_OVERLAP,
    allow_overlap: bool = False,
    on_progress: OnTokensProgress | None = None,
) -> TextEvaluation:
    """Score a text.

    Args:
        model: As `ontogeny.load` returns it.
        text: One of at least one token. A text shorter than the context is one window.
        stride: Tokens scored per window, 1 to the context length; by default half of it.
        batch_size: Windows that are computed together; by default chosen by the sizes of the model.
        max_overlap: The largest fraction of 13-grams of words that the training text may contain, 0 to 1.
        allow_overlap: Whether a text of larger overlap is scored all the same.
        on_progress: Called with the number of scored tokens and of all tokens.

    Returns:
        Perplexity, bits per byte and nats per token with their intervals.

    Raises:
        BadInput: The text has nothing to score, cannot be tokenized or overlaps the training text, or its losses are
            not finite.
    """
    tokens = model.tokenizer.encode(text)
    overlap = check_overlap(model, text, max_overlap=max_overlap, allow_overlap=allow_overlap)
    # A tokenizer that adds a space or normalizes the text encodes more or fewer bytes than the text has.
    encoded_bytes, text_bytes = token_bytes(model, tokens).sum(), len(text.encode())
    evaluation = _evaluate_tokens(
        model, tokens, np.ones(len(tokens), bool), stride, batch_size, on_progress, text_bytes / (encoded_bytes or 1)
    )
    num_unscored = text_bytes - evaluation.num_bytes
    return evaluation._replace(overlap=overlap, num_unscored_bytes=num_unscored)


def evaluate_held_out(
    model: LanguageModel,
    *,
    stride: int | None = None,
    batch_size: int | None = None,
    on_progress: OnTokensProgress | None = None,
) -> TextEvaluation:
    """Score the text that the model's own run has held out.

    Args:
        model: A model that was trained by ontogeny.
        stride: Tokens scored per window, 1 to the context length; by default half of it.
        batch_size: Windows that are computed together; by default chosen by the sizes of the model.
        on_progress: Called with the number of scored tokens and of all tokens.

    Raises:
        BadInput: The model was not trained by ontogeny.
    """
    if model.run is None:
        raise BadInput("this model was not trained by ontogeny, so no held-out text is known: name a --text")
    tokens = np.asarray(corpus.load_corpus(model.run).held_out)
    separators = [token for token in (model.tokenizer.start, model.tokenizer.end) if token is not None]
    # The tokens between documents are no text.
    return _evaluate_tokens(model, tokens, ~np.isin(tokens, separators), stride, batch_size, on_progress)


def check_overlap(
    model: LanguageModel, text: str, *, max_overlap: float = MAX_OVERLAP, allow_overlap: bool = False
) -> TextOverlap | None:
    """Measure the overlap of a text with the training text.

    Args:
        model: As `ontogeny.load` returns it.
        text: The text to be scored.
        max_overlap: The largest allowed fraction, 0 to 1.
        allow_overlap: Whether any overlap is allowed.

    Returns:
        The overlap; None where the training text is unknown.

    Raises:
        BadInput: The overlap is larger than allowed.
    """
    if model.run is None:
        return None
    overlap = measure_overlap(text, model.tokenizer, corpus.load_corpus(model.run).training)
    if overlap.fraction > max_overlap and not allow_overlap:
        raise BadInput(
            f"{overlap.fraction:.1%} of the text's {overlap.ngram_size}-grams of words ({overlap.num_shared:,} of "
            f"{overlap.num_ngrams:,}) are in the training text, more than {max_overlap:.1%}, such as "
            f"'{overlap.example}': the text is not held out; --allow-overlap scores it all the same"
        )
    return overlap


def token_losses(
    model: LanguageModel,
    tokens: Sequence[int] | np.ndarray,
    *,
    stride: int | None = None,
    batch_size: int | None = None,
    on_progress: OnTokensProgress | None = None,
) -> np.ndarray:
    """Compute the loss of each token but the first by sliding windows.

    Args:
        model: As `ontogeny.load` returns it.
        tokens: [T], at least 2.
        stride: Tokens scored per window, 1 to the context length; by default half of it.
        batch_size: Windows that are computed together; by default chosen by the sizes of the model.
        on_progress: Called with the number of scored tokens and of all tokens.

    Returns:
        [T - 1] float64, nats.
    """
    context_length, tokens = model.config.context_length, np.asarray(tokens, np.int32)
    stride = choose_stride(context_length, stride)
    batch_size = choose_batch_size(model.config, batch_size)
    last_token_losses: Callable[..., Any] = _last_token_losses
    if is_stored(model.weights):
        from ontogeny.lm.kernel_scoring import last_token_losses
    num_losses = len(tokens) - 1
    size = min(context_length, num_losses)
    # Window w scores the tokens up to its end; the last window ends with the text and overlaps the one before it more.
    ends = [min(size + w * stride, num_losses) for w in range(1 + -(-(num_losses - size) // stride))]
    losses, num_done = np.empty(num_losses), 0
    # The first window scores all of its tokens, the other ones the last `stride` at most.
    batches = [ends[:1], *(ends[first : first + batch_size] for first in range(1, len(ends), batch_size))]
    for batch in batches:
        windows = tokens[np.array(batch)[:, None] - size + np.arange(size + 1)]
        num_scored = min(stride, size) if num_done else size
        window_losses = np.asarray(last_token_losses(model.config, model.weights, windows, num_scored))
        for row, end in zip(window_losses, batch, strict=True):
            losses[num_done:end] = row[num_scored - (end - num_done) :]
            num_done = end
        if on_progress is not None:
            on_progress(num_done, num_losses)
    return losses


_last_token_losses = jax.jit(transformer.last_token_losses, static_argnums=(0, 3))


def choose_batch_size(config: TransformerConfig, batch_size: int | None) -> int:
    """Check a number of windows per batch; None becomes as many as fit into a fixed memory, at most 16."""
    if batch_size is None:
        numbers_per_window = config.context_length * max(config.num_heads * config.context_length, config.mlp_width)
        return min(max(MAX_BATCH_NUMBERS // numbers_per_window, 1), MAX_BATCH_SIZE)
    if batch_size < 1:
        raise BadInput(f"a batch has at least one window, not {batch_size}")
    return batch_size


def choose_stride(context_length: int, stride: int | None) -> int:
    """Check a stride, 1 to the context length; None becomes half of the context length."""
    stride = max(context_length // 2, 1) if stride is None else stride
    if not 1 <= stride <= context_length:
        raise BadInput(f"the stride must lie between 1 and the model's context of {context_length}, not {stride}")
    return stride


def summarize(losses: np.ndarray, num_bytes: np.ndarray, segment_size: int) -> tuple[RatioEstimate, RatioEstimate, int]:
    """Estimate nats per token and bits per byte with 95 % intervals over segments.

    Args:
        losses: [N], nats of the tokens.
        num_bytes: [N], bytes that the tokens encode.
        segment_size: Tokens per segment; the last segment may be shorter.

    Returns:
        Nats per token, bits per byte, and the number of segments. With one segment the intervals are NaN.
    """
    starts = np.arange(0, len(losses), segment_size)
    nats = np.add.reduceat(losses, starts)
    nats_per_token = ratio_of_sums(nats, np.add.reduceat(np.ones(len(losses)), starts))
    nats_per_byte = ratio_of_sums(nats, np.add.reduceat(num_bytes, starts))
    return nats_per_token, scale_estimate(nats_per_byte, 1 / math.log(2)), len(starts)


def scale_estimate(estimate: RatioEstimate, factor: float) -> RatioEstimate:
    """Multiply an estimate and its interval by a positive factor."""
    return RatioEstimate(*(factor * value for value in estimate))


def as_record(evaluation: TextEvaluation) -> dict[str, Any]:
    """Convert an evaluation to JSON values; an interval that one segment cannot give is null."""

    def plain(estimate: RatioEstimate) -> dict[str, Any]:
        interval = None if math.isnan(estimate.low) else [estimate.low, estimate.high]
        return {"mean": estimate.mean, "interval": interval}

    estimates = ("perplexity", "bits_per_byte", "nats_per_token")
    values = (
        "num_tokens",
        "num_bytes",
        "num_unscored_bytes",
        "num_segments",
        "segment_size",
        "context_length",
        "stride",
    )
    return {name: plain(getattr(evaluation, name)) for name in estimates} | {
        **{name: getattr(evaluation, name) for name in values},
        "overlap": None if evaluation.overlap is None else evaluation.overlap._asdict(),
        "device": jax.default_backend(),
        "format": FORMATS[JSON_REPORT],
    }


def token_bytes(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """Count the bytes of UTF-8 that each token encodes, [N] float64; those of a special token are its name."""
    distinct, index = np.unique(tokens, return_inverse=True)
    return np.array([len(model.tokenizer.source_of(int(token))) for token in distinct], np.float64)[index]


def _evaluate_tokens(
    model: LanguageModel,
    tokens: np.ndarray,
    is_text: np.ndarray,
    stride: int | None,
    batch_size: int | None,
    on_progress: OnTokensProgress | None,
    bytes_per_encoded_byte: float = 1.0,
) -> TextEvaluation:
    """Score tokens and estimate all quantities with their intervals over those that are text.

    Args:
        bytes_per_encoded_byte: Bytes of the text for each byte that its tokens encode.
    """
    context_length, tokenizer = model.config.context_length, model.tokenizer
    stride = choose_stride(context_length, stride)
    if tokenizer.start is not None and (not len(tokens) or tokens[0] != tokenizer.start):
        # So that the first token is scored too.
        tokens, is_text = np.concatenate([[tokenizer.start], tokens]), np.concatenate([[False], is_text])
    if not is_text[1:].any():
        raise BadInput("the text has no token that can be scored after another one")
    losses = token_losses(model, tokens, stride=stride, batch_size=batch_size, on_progress=on_progress)
    if not np.isfinite(losses).all():
        raise BadInput("the model's losses on this text are not finite numbers, so nothing is reported")
    losses, num_bytes = losses[is_text[1:]], token_bytes(model, np.asarray(tokens[1:])[is_text[1:]])
    num_bytes *= bytes_per_encoded_byte
    segment_size = max(context_length, -(-len(losses) // TARGET_SEGMENTS))
    nats_per_token, bits_per_byte, num_segments = summarize(losses, num_bytes, segment_size)
    with np.errstate(over="ignore"):
        perplexity = RatioEstimate(*(float(np.exp(value)) for value in nats_per_token))
    return TextEvaluation(
        perplexity,
        bits_per_byte,
        nats_per_token,
        len(losses),
        round(num_bytes.sum()),
        0,
        num_segments,
        segment_size,
        context_length,
        stride,
        None,
        losses,
    )
