"""The acceptance test of online learning: new weights may not lose more than a limit on held-out training text.

Weights become current only if their loss on held-out text exceeds the loss of the trained weights by at most
`max_forgetting` nats per token. The loss of single texts is measured here too. N windows of C context and 1 more token
(C1); T tokens.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.lm.online import context_windows
from ontogeny.lm.optimization import window_losses

NUM_WINDOWS = 64  # of held-out text
WINDOWS_PER_CALL = 8

Pause = Callable[[], None]  # called between compiled calls; it may block, so that requests are answered first


def do_not_pause() -> None:
    """A `Pause` that returns at once."""


def held_out_loss(
    config: TransformerConfig,
    weights: TransformerWeights,
    windows: Int32[np.ndarray, "N C1"],
    pause: Pause = do_not_pause,
) -> float:
    """Returns the mean loss of weights over windows of text, in nats per token.

    Args:
        config: The model's configuration.
        weights: The weights to test.
        windows: Windows of the text that the training of the model held out, as tokens.
        pause: Called after every `WINDOWS_PER_CALL` windows.
    """
    parts = []
    for start in range(0, len(windows), WINDOWS_PER_CALL):
        losses = window_losses(config, "float32", weights, windows[start : start + WINDOWS_PER_CALL])
        parts.append(np.asarray(losses, np.float64))
        pause()
    return float(np.concatenate(parts).mean())


def text_nats(
    config: TransformerConfig,
    weights: TransformerWeights,
    tokens: Int32[np.ndarray, "T"],
    chunk_size: int,
    pause: Pause = do_not_pause,
) -> float:
    """Returns the loss of all tokens of a text but the first, each chunk of them with a full context window before it.

    Args:
        config: The model's configuration.
        weights: The weights that score the text; they stay the same.
        tokens: [T], at least two.
        chunk_size: Tokens that are scored with the same beginning of the context.
        pause: Called after every `WINDOWS_PER_CALL` chunks.

    Returns:
        The sum, in nats.
    """
    starts, context_length = np.arange(0, len(tokens) - 1, chunk_size), config.context_length
    total = 0.0
    for first in range(0, len(starts), WINDOWS_PER_CALL):
        call_starts = starts[first : first + WINDOWS_PER_CALL]
        padded = np.concatenate([call_starts, np.repeat(starts[-1:], WINDOWS_PER_CALL - len(call_starts))])
        windows, num_read = context_windows(tokens, padded, chunk_size, context_length, context_length)
        losses = np.asarray(window_losses(config, "float32", weights, windows), np.float64)
        for nats, size, start in zip(losses, num_read, call_starts, strict=False):  # without the padding
            total += float(nats[size - min(chunk_size, len(tokens) - 1 - start) : size].sum())
        pause()
    return total


def rejection_reason(loss: float, trained_loss: float, max_forgetting: float) -> str | None:
    """Returns the reason why weights of this held-out loss are rejected, or None if they are accepted.

    Args:
        loss: Nats per token on held-out text.
        trained_loss: The same for the trained weights.
        max_forgetting: The largest accepted difference, at least 0.
    """
    increase = loss - trained_loss
    if not math.isfinite(loss):
        return "the weights are not finite"
    if increase > max_forgetting:
        return f"held-out text would cost {increase:.4f} nats per token more; the limit is {max_forgetting}"
    return None
