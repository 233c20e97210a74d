"""How well a model predicts a text that it was not trained on: perplexity per token, bits per byte, with intervals.

The text is read in windows of the model's context that move on by a stride; each window scores its last `stride`
tokens, so that every token is scored once and, but for those of the first window, with at least context - stride tokens
before it. Bits per byte of UTF-8 are comparable between tokenizers (Gao et al. 2020, arXiv 2101.00027, section 3.1).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import stats
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, optimization, overlap
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.overlap import Overlap

BATCH = 16  # windows in one product
THRESHOLD = 0.01  # the share of overlapping runs of words beyond which a text is not held out
BLOCKS = 100  # about so many for the interval: long ones, since what is near in a text is alike
LEAST_BLOCKS = 2  # of which an interval can be had
Progress = Callable[[int, int], None]


class Score(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Evaluation(NamedTuple):
    """What a text costs a model. `losses` are nats, [N], of the tokens scored, in their order."""

    perplexity: Score  # per token
    bits_per_byte: Score
    nats_per_token: Score
    tokens: int  # that were scored
    bytes: int  # of the text that they are
    blocks: int  # over which the interval is taken
    block: int  # tokens in each
    context: int
    stride: int
    overlap: Overlap | None  # with the training text; None where it is not known
    losses: np.ndarray


def read_text(path: Path) -> str:
    """A whole file of text; absent, empty and binary ones raise `BadInput`."""
    source = corpus.look_at([path])[0]
    return "".join(corpus.read(corpus.Passage(path, 0, source.bytes)))


def evaluate(
    model: LanguageModel,
    text: str,
    *,
    stride: int | None = None,
    threshold: float = THRESHOLD,
    despite_overlap: bool = False,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Scores a text; one that overlaps what the model was trained on raises `BadInput` unless told to go on.

    `stride` is by default half of the context. A text of fewer tokens than one block of `context` raises `BadInput`.
    """
    tokens = model.tokenizer.encode(text)
    shared = refuse_overlap(model, text, threshold=threshold, despite_overlap=despite_overlap)
    return _measured(model, tokens, stride, shared, on_progress)


def refuse_overlap(
    model: LanguageModel, text: str, *, threshold: float = THRESHOLD, despite_overlap: bool = False
) -> Overlap | None:
    """How much of a text the training text holds; more than `threshold` raises `BadInput` unless told to go on. None
    where it is not known what the model was trained on."""
    if model.run is None:
        return None
    shared = overlap.measure(text, model.tokenizer, corpus.load(model.run).training)
    if shared.share > threshold and not despite_overlap:
        raise BadInput(
            f"{shared.share:.1%} of the text's runs of {shared.words} words ({shared.shared:,} of {shared.runs:,}) "
            f"are in the training text, more than {threshold:.1%}, such as '{shared.example}': it is not held out; "
            "--despite-overlap scores it all the same"
        )
    return shared


def evaluate_held_out(
    model: LanguageModel, *, stride: int | None = None, on_progress: Progress | None = None
) -> Evaluation:
    """Scores the text that the model's own run has held out."""
    if model.run is None:
        raise BadInput("this model was not trained here, so nothing is held out: name a --text")
    return _measured(model, np.asarray(corpus.load(model.run).held_out), stride, None, on_progress)


def losses(
    model: LanguageModel,
    tokens: Sequence[int] | np.ndarray,
    *,
    stride: int | None = None,
    on_progress: Progress | None = None,
) -> np.ndarray:
    """Nats of each token but the first, [T - 1] float64, by the sliding window; T >= 2."""
    context, tokens = model.config.context_length, np.asarray(tokens, np.int32)
    stride = checked_stride(context, stride)
    count = len(tokens) - 1
    block = min(context, count)
    # Window w scores up to its end; the last one ends with the text, and looks further back instead.
    ends = [min(block + w * stride, count) for w in range(1 + -(-(count - block) // stride))]
    found = np.empty(count)
    done = 0
    for at in range(0, len(ends), BATCH):
        some = ends[at : at + BATCH]
        filled = np.array(some + some[:1] * (BATCH - len(some)))
        windows = tokens[filled[:, None] - block + np.arange(block + 1)]
        scored = np.asarray(optimization.losses(model.config, "float32", model.weights, windows), np.float64)
        for row, end in zip(scored, some, strict=False):
            found[done:end] = row[block - (end - done) :]
            done = end
        if on_progress is not None:
            on_progress(done, count)
    return found


def checked_stride(context: int, stride: int | None) -> int:
    """By default half of the context."""
    stride = max(context // 2, 1) if stride is None else stride
    if not 1 <= stride <= context:
        raise BadInput(f"the stride must lie between 1 and the model's context of {context}, not {stride}")
    return stride


def summary(nats: np.ndarray, lengths: np.ndarray, block: int) -> tuple[Score, Score, int]:
    """Nats per token and bits per byte with 95 % intervals over blocks of `block` tokens, and how many blocks.

    Both are ratios of sums; the interval is of the block's residuals from the ratio (Cochran 1977, chapter 6), by
    Student's t. `nats` and `lengths` (bytes), [N], are those of the tokens; the last block may be shorter.
    """
    starts = np.arange(0, len(nats), block)
    sums = np.add.reduceat(nats, starts)

    def ratio(sizes: np.ndarray, scale: float) -> Score:
        mean = float(sums.sum() / sizes.sum())
        if len(sums) < LEAST_BLOCKS:
            return Score(scale * mean, math.nan, math.nan)
        errors = (sums - mean * sizes) / sizes.mean()
        error = float(errors.std(ddof=1)) / math.sqrt(len(sums))
        reach = error * stats.critical_value(stats.Z95, len(sums) - 1)
        return Score(scale * mean, scale * (mean - reach), scale * (mean + reach))

    counts = np.add.reduceat(np.ones(len(nats)), starts)
    return ratio(counts, 1.0), ratio(np.add.reduceat(lengths, starts), 1 / math.log(2)), len(starts)


def as_record(found: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON; an interval that one block cannot give is null."""

    def plain(score: Score) -> dict[str, Any]:
        known = not math.isnan(score.low)
        return {"mean": score.mean, "interval": [score.low, score.high] if known else None}

    return {
        "perplexity": plain(found.perplexity),
        "bits_per_byte": plain(found.bits_per_byte),
        "nats_per_token": plain(found.nats_per_token),
        "tokens": found.tokens,
        "bytes": found.bytes,
        "blocks": found.blocks,
        "block": found.block,
        "context": found.context,
        "stride": found.stride,
        "overlap": None if found.overlap is None else found.overlap._asdict(),
        "device": jax.default_backend(),
        "format": 1,
    }


def _measured(
    model: LanguageModel, tokens: np.ndarray, stride: int | None, shared: Overlap | None, on_progress: Progress | None
) -> Evaluation:
    context, end = model.config.context_length, model.tokenizer.end
    stride = checked_stride(context, stride)
    if len(tokens) < context:
        raise BadInput(f"the text has {len(tokens):,} tokens, less than one block of the model's {context}")
    if end is not None and (not len(tokens) or tokens[0] != end):
        tokens = np.concatenate([[end], tokens])  # so that the first token is scored too
    found = losses(model, tokens, stride=stride, on_progress=on_progress)
    targets = np.asarray(tokens[1:])
    of_text = targets != end if end is not None else np.ones(len(targets), bool)  # what separates documents is no text
    found, targets = found[of_text], targets[of_text]
    names, places = np.unique(targets, return_inverse=True)
    lengths = np.array([len(model.tokenizer.bytes_of(int(token))) for token in names], np.float64)[places]
    block = max(context, -(-len(found) // BLOCKS))
    nats, bits, blocks = summary(found, lengths, block)
    with np.errstate(over="ignore"):
        perplexity = Score(*(float(np.exp(value)) for value in nats))
    size = int(lengths.sum())
    return Evaluation(perplexity, bits, nats, len(found), size, blocks, block, context, stride, shared, found)
