"""Forgetting: by how much online learning raised the loss of a network or a mixture on the original held-out text.

Letters: N windows, C context.
"""

import numpy as np
from jaxtyping import Int32

from ontogeny.content.transformer import TransformerWeights
from ontogeny.lm import corpus, optimization
from ontogeny.lm import mixture as mixtures
from ontogeny.lm.mixture import MixtureEvaluation
from ontogeny.lm.model import LanguageModel, training_run
from ontogeny.stats import RatioEstimate, ratio_of_sums

MAX_HELD_OUT_WINDOWS = 512
WINDOWS_PER_CALL = 32


def held_out_windows(model: LanguageModel) -> Int32[np.ndarray, "N C1"]:
    """Windows of the held-out text of a run, on which forgetting is measured."""
    text = corpus.load_corpus(training_run(model)).held_out
    return corpus.spaced_windows(text, model.config.context_length, MAX_HELD_OUT_WINDOWS)


def measure_forgetting(model: LanguageModel, weights: TransformerWeights) -> RatioEstimate:
    """Measure by how much the loss on the original held-out text rose.

    Args:
        model: A model that was trained by ontogeny.
        weights: The weights after online learning.

    Returns:
        The increase in nats per token, with an interval that reflects the variation between windows.
    """
    windows = held_out_windows(model)
    batches = np.array_split(windows, -(-len(windows) // WINDOWS_PER_CALL))

    def losses(weights: TransformerWeights) -> np.ndarray:
        parts = [optimization.window_losses(model.config, "float32", weights, batch) for batch in batches]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    return _mean_increase(losses(weights) - losses(model.weights))


def measure_mixture_forgetting(
    model: LanguageModel, weights: TransformerWeights, mixture: MixtureEvaluation, *, mixing: bool
) -> RatioEstimate:
    """Measure by how much the loss of the mixture on the original held-out text rose.

    Before the text, the memory is empty and the mixture is the network. Network and memory are frozen.

    Args:
        model: A model that was trained by ontogeny.
        weights: The weights of the network after online learning.
        mixture: Its memory after the text.
        mixing: Whether the two weights of the mixture, which are activations, adapt to the held-out text, beginning
            with those after the text; otherwise they stay fixed too.
    """
    windows = held_out_windows(model)
    after = mixtures.window_losses(model, weights, mixture.memory, windows, mixing=mixing)
    return _mean_increase(after - mixtures.window_losses(model, model.weights, None, windows))


def _mean_increase(increase: np.ndarray) -> RatioEstimate:
    """The mean of [N, C] differences with an interval over windows."""
    return ratio_of_sums(increase.sum(axis=1), np.full(len(increase), float(increase.shape[1])))
