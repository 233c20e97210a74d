"""The mixture of a network with a memory of the text, whose score `ontogeny lm evaluate --online` reports first.

Both parts are learned content: the network's weights, and the contexts and counts of the memory. The log-odds that they
give to each binary decision about the text (`byte_decisions`) are added with two weights, which learn from each
decision after it is predicted (logistic mixing; see `text_memory`). Where the memory has met no context of a bit, the
mixture is the network. The two weights belong to the activations: they adapt to each text, whether or not the network
and the memory learn.

Letters: T tokens, D decisions, V vocabulary, L decisions of the longest token, C context length, N windows.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.lm import byte_decisions, text_memory
from ontogeny.lm.byte_decisions import DecisionTable
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.text_memory import TextMemory

WINDOWS_PER_CALL = 8


class MixtureEvaluation(NamedTuple):
    """The losses of all tokens but the first, and the parts after the text.

    Attributes:
        losses: [T - 1] nats, of the mixture.
        memory_losses: [T - 1] nats, of the memory alone, which predicts the bytes of each token.
        mean_weights: Of network and memory, averaged over the decisions.
        memory: After the text, with the weights of the mixture.
    """

    losses: np.ndarray
    memory_losses: np.ndarray
    mean_weights: tuple[float, float]
    memory: TextMemory


def mix(table: DecisionTable, tokens: np.ndarray, network: Float[np.ndarray, "D"]) -> MixtureEvaluation:
    """Reads a text with an empty memory and mixes its predictions with those of a network.

    Args:
        table: Decisions of the tokens.
        tokens: [T], the text.
        network: The network's probability of outcome 1 at each decision of all tokens but the first.
    """
    rows = table.row_of[tokens]
    num_first = int(table.lengths[rows[0]])  # no network predicts the first token
    memory = text_memory.init_memory(1 + int(np.sum(table.is_byte_bit.sum(axis=1)[rows])) // 8)
    predictions = _read(memory, table, tokens, np.concatenate([np.full(num_first, 0.5), network]), learning=True)
    nats = -np.log(predictions[num_first:, :2])
    lengths = table.lengths[rows[1:]]
    memory_losses, losses = (_sum_by_token(column, lengths) for column in (nats[:, 0], nats[:, 1]))
    mean_network, mean_memory = predictions[num_first:, 2:4].mean(axis=0).tolist()
    return MixtureEvaluation(losses, memory_losses, (mean_network, mean_memory), memory)


def as_record(evaluation: MixtureEvaluation) -> dict[str, Any]:
    """Converts what the mixture learned to JSON values."""
    num_bytes, num_nodes = evaluation.memory.sizes.tolist()
    mean_weights = dict(zip(("network", "memory"), evaluation.mean_weights, strict=True))
    last_weights = dict(zip(("network", "memory"), evaluation.memory.mixing_weights.tolist(), strict=True))
    num_contexts = int(np.count_nonzero(evaluation.memory.root_keys >= 0))
    memory = {"num_bytes": num_bytes, "num_contexts": num_contexts, "num_nodes": num_nodes}
    return {"mean_weights": mean_weights, "last_weights": last_weights, "memory": memory}


def window_losses(
    model: LanguageModel,
    weights: TransformerWeights,
    memory: TextMemory | None,
    windows: Int32[np.ndarray, "N C1"],
    *,
    mixing: bool = True,
) -> Float[np.ndarray, "N C"]:
    """Computes the losses of windows, before each of which the context is empty, with frozen network and memory.

    Args:
        model: Its config and tokenizer are used.
        weights: Of the network.
        memory: Contexts and counts, which stay as they are; None for the network alone.
        windows: Tokens; the first one of each is not scored.
        mixing: Whether the weights of the mixture adapt from window to window, beginning with those of the memory.
    """
    table = byte_decisions.tabulate(model.tokenizer, model.config.vocab_size, windows)
    memory, losses = None if memory is None else text_memory.copy_memory(memory), np.empty(windows[:, 1:].shape)
    for first in range(0, len(windows), WINDOWS_PER_CALL):
        batch = windows[first : first + WINDOWS_PER_CALL]
        intervals = table.intervals[table.row_of[batch[:, 1:]]]
        padded = _window_probabilities(model.config, weights, batch, table.sorted_tokens, intervals)
        for row, (window, probabilities) in enumerate(zip(batch, np.asarray(padded, np.float64), strict=True)):
            network = byte_decisions.select(table, window[1:], probabilities)
            lengths = table.lengths[table.row_of[window[1:]]]
            if memory is None:
                bits = byte_decisions.select(table, window[1:], table.bits[table.row_of[window[1:]]])
                nats = -np.log(np.where(bits == 1, network, 1.0 - network))
            else:
                num_first = int(table.lengths[table.row_of[window[0]]])
                network = np.concatenate([np.full(num_first, 0.5), network])
                predictions = _read(memory, table, window, network, learning=False, mixing=mixing)
                nats = -np.log(predictions[num_first:, 1])
            losses[first + row] = _sum_by_token(nats, lengths)
    return losses


def _read(
    memory: TextMemory,
    table: DecisionTable,
    tokens: np.ndarray,
    network: np.ndarray,
    *,
    learning: bool,
    mixing: bool = True,
) -> np.ndarray:
    """Reads tokens after an empty context; returns [D, 4] as `text_memory.read` does."""
    rows = table.row_of[tokens]
    bits, is_byte_bit, prefix_of = (
        byte_decisions.select(table, tokens, part[rows]) for part in (table.bits, table.is_byte_bit, table.prefixes)
    )
    prefixes = text_memory.Prefixes(table.first_extension, table.extensions, table.prefix_ranks)
    predictions = np.empty((len(bits), 4))
    reader = text_memory.new_reader()
    text_memory.read(
        memory,
        reader,
        bits,
        is_byte_bit,
        prefix_of,
        prefixes,
        network.astype(np.float64),
        learning,
        mixing,
        predictions,
    )
    return predictions


def _sum_by_token(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums the values of each token's decisions; a token without decisions has 0."""
    return np.diff(np.concatenate([[0.0], np.cumsum(values)])[np.concatenate([[0], np.cumsum(lengths)])])


@partial(jax.jit, static_argnums=0)
def _window_probabilities(
    config: TransformerConfig,
    weights: TransformerWeights,
    windows: Int32[Array | np.ndarray, "N C1"],
    sorted_tokens: Int32[Array | np.ndarray, "V"],
    intervals: Int32[Array | np.ndarray, "N C L 3"],
) -> Float[Array, "N C L"]:
    """The network's probability of outcome 1 at each decision of all tokens of windows but the first."""

    def probabilities(window: tuple[Array, Array]) -> Array:
        logits = transformer.forward(config, weights, window[0][None, :-1])[0]
        return byte_decisions.decision_probabilities(jax.nn.log_softmax(logits), sorted_tokens, window[1])

    return jax.lax.map(probabilities, (jnp.asarray(windows), intervals))
