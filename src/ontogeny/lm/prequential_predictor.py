"""A language model that learns online as a predictor for `ontogeny audit prequential`.

The predictor maps tokens to the distribution of each token given those before it. Weights and activations are those of
`online.run_condition` with activations carried over: each chunk is scored and then learned from. The first token has
nothing before it, and its distribution is uniform. Every chunk is checked: the distributions must be those from which
`ontogeny lm evaluate --online` computes its losses.

Letters: T tokens, C context, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig
from ontogeny.errors import BadInput
from ontogeny.lm import model as models
from ontogeny.lm import online, online_learner
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.types import Weights

TOLERANCE = 1e-3  # nats by which two orders of summation may differ; a hundred times what they do

Predict = Callable[[np.ndarray], np.ndarray]


def build(run: Path | str, learning: str = "", *, frozen: bool = False) -> Predict:
    """Build the predictor of the model in a folder.

    Args:
        run: A language-model run or a Hugging Face folder.
        learning: Settings as of `ontogeny lm evaluate --learning`.
        frozen: Whether the weights stay as they are.

    Raises:
        BadInput: The folder holds no language model, or a setting is unknown or out of its range.
    """
    return make_predictor(
        models.load(run), online_learner.parse_config(learning, online.EVALUATION_DEFAULTS), frozen=frozen
    )


def make_predictor(model: LanguageModel, config: OnlineConfig, *, frozen: bool = False) -> Predict:
    """Build the predictor of a model.

    Args:
        model: As `ontogeny.load` returns it.
        config: How weights change.
        frozen: Whether the weights stay as they are.

    Returns:
        A function of tokens [T] that returns log-probabilities [T, V].

    Raises:
        BadInput: The config does not suit the model.
    """
    pretrained = online.pretrained_weights(model, config)
    learner = online_learner.build(model.config, config)
    text = None if frozen or not config.rehearsal_batch_size else online.training_tokens(model)
    C, V = model.config.context_length, model.config.vocab_size

    def predict(tokens: np.ndarray) -> np.ndarray:
        num_losses = len(tokens) - 1
        log_probabilities = np.full((len(tokens), V), -np.log(V), np.float32)  # the first token stays uniform
        state = learner.init(pretrained)
        starts = np.arange(0, num_losses, config.chunk_size)
        for number, start in enumerate(starts):
            chunk = online.read_chunk(tokens, int(start), config, C, text, (0, number))
            state, distributions, chunk_losses = _process_chunk(model.config, config, frozen, pretrained, state, *chunk)
            stop, num_read = min(start + config.chunk_size, num_losses), int(chunk.num_read)
            in_chunk = slice(num_read - (stop - start), num_read)  # the window also holds tokens before the chunk
            chunk_log_probs, reported_losses = np.asarray(distributions)[in_chunk], np.asarray(chunk_losses)[in_chunk]
            log_probabilities[start + 1 : stop + 1] = chunk_log_probs
            losses = -chunk_log_probs[np.arange(stop - start), tokens[start + 1 : stop + 1]]
            if not (np.isfinite(losses).all() and np.isfinite(reported_losses).all()):
                raise BadInput(online.NON_FINITE_LOSSES if frozen else online.explain_divergence(int(start)))
            difference = float(np.abs(losses - reported_losses).max())
            if difference > TOLERANCE:
                raise BadInput(f"the distributions and the losses that are reported differ by {difference:.2g} nats")
        return log_probabilities

    return predict


@partial(jax.jit, static_argnums=(0, 1, 2))
def _process_chunk(
    model_config: TransformerConfig,
    config: OnlineConfig,
    frozen: bool,
    pretrained: PretrainedWeights,
    state: Weights,
    window: Int32[Array, "C1"],
    num_read: Int32[Array, ""],
    rehearsal: Int32[Array, "B C1"],
) -> tuple[Weights, Float[Array, "C V"], Float[Array, "C"]]:
    """The new state, the log-probabilities of a window before the step, and the losses that the learner reports."""
    learner = online_learner.build(model_config, config)
    weights = learner.full_weights(pretrained, state.content)
    distributions = jax.nn.log_softmax(transformer.forward(model_config, weights, window[None, :-1])[0])
    if frozen:
        return state, distributions, transformer.token_losses(model_config, weights, window[None])[0]
    state, losses = learner.update(pretrained, state, window, num_read, rehearsal)
    return state, distributions, losses
