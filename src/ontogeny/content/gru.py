"""Predicts with a gated recurrent unit, which remembers earlier inputs in its hidden units.

The cell is `content.gru_cell`. The agent `recurrent` is the same cell with the weights as its genome.

Letters: H hidden units, I inputs, K outputs, L steps.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import Predictor, StreamEdit, gradient_predictor, starts_sequence
from ontogeny.content.gru_cell import GRUWeights, init_gru, step_gru, update_hidden
from ontogeny.errors import require_at_least
from ontogeny.types import Key

KEY_NUMBER = 3  # in the random keys of the mesa study, which trains contents in this order


def build(
    num_inputs: int,
    num_outputs: int = 1,
    *,
    hidden_size: int = 12,
    update_gate_bias: float = 1.0,
    learning_rate: float = 0.01,
    outputs: str = "binary",
) -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step.
        hidden_size: Hidden units, at least 1.
        update_gate_bias: Initial bias of the update gates; the larger, the longer untrained units remember.
        learning_rate: Initial step size of Adam; it falls to zero along a cosine until the last update.
        outputs: `binary` for K binary quantities, `categorical` for the K classes of one quantity.
    """
    require_at_least(1, hidden_size=hidden_size)

    def init_memory() -> Float[Array, "H"]:
        return jnp.zeros(hidden_size)

    def query(
        weights: GRUWeights, hidden: Float[Array, "H"], inputs: Float[Array, "I"]
    ) -> tuple[Float[Array, "K"], Float[Array, "H"]]:
        hidden, logits = step_gru(weights, jnp.where(starts_sequence(inputs), 0.0, hidden), inputs)
        return logits, hidden

    def query_sequence(weights: GRUWeights, inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        return hidden_logits(weights, inputs)[0]

    def query_edited(
        weights: GRUWeights, inputs: Float[Array, "L I"], edit: StreamEdit
    ) -> tuple[Float[Array, "L K"], Float[Array, "1 L H"]]:
        logits, hidden = hidden_logits(weights, inputs, edit)
        return logits, hidden[None]

    def init(key: Key) -> GRUWeights:
        return init_gru(key, num_inputs, hidden_size, num_outputs, update_gate_bias)

    return gradient_predictor(
        init, init_memory, query, query_sequence, learning_rate, outputs=outputs, query_edited=query_edited
    )


def hidden_logits(
    weights: GRUWeights, inputs: Float[Array, "L I"], edit: StreamEdit | None = None
) -> tuple[Float[Array, "L K"], Float[Array, "L H"]]:
    """Computes the logits of a sequence and its hidden units after every step.

    Args:
        weights: Weights of the unit.
        inputs: Inputs of the sequence.
        edit: Changes the hidden units. It is called at every step, as `edit(0, hidden)`, with the hidden units of all
            steps [L, H], which are zero at later steps; the step goes on with the row of the result that is its own,
            and the other rows of the result are not used.

    Returns:
        The logits, and the hidden units after every step, as edited.
    """

    def step(hidden: Array, step_inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        is_start, projected = step_inputs
        hidden = update_hidden(weights, jnp.where(is_start, 0.0, hidden), projected)
        return hidden, hidden

    def edited_step(all_hidden: Array, numbered_inputs: tuple[Array, tuple[Array, Array]]) -> tuple[Array, None]:
        t, step_inputs = numbered_inputs
        hidden = jnp.where(t > 0, all_hidden[jnp.maximum(t - 1, 0)], 0.0)
        all_hidden = all_hidden.at[t].set(step(hidden, step_inputs)[0])
        return all_hidden if edit is None else all_hidden.at[t].set(edit(0, all_hidden)[t]), None

    L, H = inputs.shape[0], weights.recurrent.shape[0]
    sequence = starts_sequence(inputs), inputs @ weights.input + weights.bias
    if edit is None:
        _, hidden = jax.lax.scan(step, jnp.zeros(H), sequence)
    else:
        hidden, _ = jax.lax.scan(edited_step, jnp.zeros((L, H)), (jnp.arange(L), sequence))
    return hidden @ weights.readout + weights.readout_bias, hidden
