"""Losses of tokens by the kernels of `ontogeny.kernels`, for weights that are in files; see `weight_types`.

The loss of a token depends bit for bit on the tokens of its window up to it alone.
"""

import numpy as np

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.kernels import transformer
from ontogeny.kernels.cache import SequenceCache
from ontogeny.kernels.packing import pack

MAX_TOKENS = 512  # of one step
MAX_LOGITS = 1 << 23  # of one step: 32 MiB


def last_token_losses(
    config: TransformerConfig, weights: TransformerWeights, windows: np.ndarray, num_scored: int
) -> np.ndarray:
    """Compute the losses of the last tokens of windows; see `content.transformer.last_token_losses`.

    Args:
        config: Config of the weights.
        weights: The model.
        windows: Tokens [B, T + 1], each after those before it in its window.
        num_scored: Tokens at the end of each window whose losses are returned, 1 to T.

    Returns:
        [B, num_scored] float32, nats.
    """
    packed, num_inputs = pack(config, weights), windows.shape[1] - 1
    losses = np.empty((len(windows), num_scored), np.float32)
    first_scored = num_inputs - num_scored
    num_together = max(MAX_TOKENS // num_inputs, 1)  # short windows share steps
    max_scored = max(min(MAX_TOKENS, MAX_LOGITS // config.vocab_size) // num_together, 1)
    steps = _divide(0, first_scored, max(MAX_TOKENS // num_together, 1))
    scored_steps = _divide(first_scored, num_inputs, max_scored)
    for first in range(0, len(windows), num_together):
        group = windows[first : first + num_together]
        caches = [SequenceCache(config) for _ in group]
        for start, end in steps:
            transformer.extend(packed, caches, group[:, start:end], "none")
        for start, end in scored_steps:
            logits = transformer.extend(packed, caches, group[:, start:end], "all")
            targets = group[:, start + 1 : end + 1]
            of_step = _losses(logits, targets.reshape(-1)).reshape(targets.shape)
            losses[first : first + num_together, start - first_scored : end - first_scored] = of_step
    return losses


def _divide(start: int, end: int, size: int) -> list[tuple[int, int]]:
    """The bounds of parts of at most this size."""
    return [(first, min(first + size, end)) for first in range(start, end, size)]


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The negative log-probabilities of the targets; the logits change in place."""
    chosen = logits[np.arange(len(targets)), targets] - logits.max(axis=-1)
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    return np.log(logits.sum(axis=-1, dtype=np.float64)) - chosen
