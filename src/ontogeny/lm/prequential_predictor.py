"""A saved model that reads online, as a function of tokens: what a certificate of first passes asks for.

Row t is the distribution of token t given the tokens before it, by the weights of `online.run_condition` with activations
kept: each block is scored, then learned from. The first token has nothing before it, and its row is uniform. That the
rows are the very scores that `ontogeny evaluate --online` reports is checked at every block, not assumed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, online, online_learner
from ontogeny.lm import model as models
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.types import Weights

SAME = 1e-3  # nats by which a row and the learner's own score may differ: two orders of adding up


def build(run: Path | str, learning: str = "", *, frozen: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """`of_model` for the model in a folder; `learning` is that of `ontogeny evaluate --learning`."""
    return of_model(models.load(run), online_learner.parse_config(learning), frozen=frozen)


def of_model(model: LanguageModel, plan: OnlineConfig, *, frozen: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Tokens [T] -> log-probabilities [T, V]; `frozen`: the weights stay. `BadInput` for what it cannot read by."""
    plan = online_learner.checked(plan, model.config.context_length)
    trained = online.pretrained_weights(model, plan)
    read = online_learner.build(model.config, plan)
    rehearses = bool(plan.rehearsal_batch_size) and not frozen
    again = online.rehearsed(model) if rehearses else np.zeros(0, np.int32)
    C, V = model.config.context_length, model.config.vocab_size

    def rows_of(tokens: np.ndarray) -> np.ndarray:
        T = len(tokens)
        rows = np.full((T, V), -np.log(V), np.float32)
        weights = read.init(trained)
        starts = np.arange(0, T - 1, plan.chunk_size)
        windows, sizes = online.context_windows(tokens, starts, plan.chunk_size, C, C)
        for number, start in enumerate(starts):
            stop, end = min(start + plan.chunk_size, T - 1), int(sizes[number])
            rehearsal = (
                corpus.sample_batches(again, 0, number, (1, 1, plan.rehearsal_batch_size), C)[0, 0]
                if rehearses
                else np.zeros((0 if frozen else plan.rehearsal_batch_size, C + 1), np.int32)
            )
            given = (windows[number], sizes[number], rehearsal)
            weights, found, nats = _block(model.config, plan, frozen, trained, weights, *given)
            found = np.asarray(found)[end - (stop - start) : end]
            rows[start + 1 : stop + 1] = found
            told = -found[np.arange(stop - start), tokens[start + 1 : stop + 1]]
            apart = float(np.abs(told - np.asarray(nats)[end - (stop - start) : end]).max())
            if apart > SAME:
                raise BadInput(f"rows and the scores that are reported differ by {apart:.2g} nats")
        return rows

    return rows_of


@partial(jax.jit, static_argnums=(0, 1, 2))
def _block(
    config: TransformerConfig,
    plan: OnlineConfig,
    frozen: bool,
    trained: PretrainedWeights,
    weights: Weights,
    window: Array,
    size: Array,
    again: Array,
) -> tuple[Weights, Float[Array, "C V"], Float[Array, "C"]]:
    """Rows of a window under the weights before it is learned from, the weights after, the learner's own scores."""
    read = online_learner.build(config, plan)
    whole = read.model(trained, weights.content)
    rows = jax.nn.log_softmax(transformer.forward(config, whole, window[None, :-1])[0])
    if frozen:
        return weights, rows, transformer.token_losses(config, whole, window[None])[0]
    new, nats = read.update(trained, weights, window, size, again)
    return new, rows, nats
