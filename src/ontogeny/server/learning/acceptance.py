"""The acceptance test of online learning: new weights may not lose more than a limit on held-out training text.

Weights become current only if their loss on held-out text exceeds the loss of the trained weights by at most
`max_forgetting` nats per token. N windows of C context and 1 more token (C1).
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
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
