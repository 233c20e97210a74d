"""The gated recurrent unit: its weights, their initial values and one step.

Gated recurrent unit of Cho et al. 2014 (arXiv 1406.1078), with the reset gate after the product as in cuDNN. The
predictor `gru`, the world model `latent_model` and the agent `recurrent` are made of this cell.

Letters: H hidden units, I inputs, K outputs.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import init_dense, init_orthogonal
from ontogeny.types import Key


class GRUWeights(NamedTuple):
    """Weights of a gated recurrent unit with a linear read-out.

    The parts for reset gate, update gate and candidate stand side by side on the last axis.
    """

    recurrent: Float[Array, "H 3*H"]
    input: Float[Array, "I 3*H"]
    bias: Float[Array, "3*H"]
    readout: Float[Array, "H K"]
    readout_bias: Float[Array, "K"]


def init_gru(
    key: Key, num_inputs: int, hidden_size: int, num_outputs: int, update_gate_bias: float, input_scale: float = 1.0
) -> GRUWeights:
    """Draws initial weights: orthogonal recurrent weights, Normal input weights, and a read-out of zero.

    Args:
        key: Random key.
        num_inputs: I.
        hidden_size: H.
        num_outputs: K.
        update_gate_bias: Bias of the update gates; above zero the units remember longer.
        input_scale: Factor on input weights that preserve the variance of the inputs.
    """
    recurrent_key, input_key = jax.random.split(key)
    gates = jax.vmap(partial(init_orthogonal, size=hidden_size))(jax.random.split(recurrent_key, 3))
    return GRUWeights(
        jnp.concatenate(list(gates), axis=1),
        init_dense(input_key, num_inputs, 3 * hidden_size, input_scale),
        jnp.zeros(3 * hidden_size).at[hidden_size : 2 * hidden_size].set(update_gate_bias),
        jnp.zeros((hidden_size, num_outputs)),
        jnp.zeros(num_outputs),
    )


def step_gru(
    weights: GRUWeights, hidden: Float[Array, "H"], inputs: Float[Array, "I"]
) -> tuple[Float[Array, "H"], Float[Array, "K"]]:
    """Computes one step of the unit.

    Returns:
        The new hidden units, and the outputs that are read from them.
    """
    hidden = update_hidden(weights, hidden, inputs @ weights.input + weights.bias)
    return hidden, hidden @ weights.readout + weights.readout_bias


def update_hidden(weights: GRUWeights, hidden: Float[Array, "H"], projected: Float[Array, "3*H"]) -> Float[Array, "H"]:
    """Computes the new hidden units from the old ones and the projected inputs."""
    H = hidden.shape[-1]
    from_hidden = hidden @ weights.recurrent
    gates = jax.nn.sigmoid(from_hidden[: 2 * H] + projected[: 2 * H])
    reset, update = gates[:H], gates[H:]
    candidate = jnp.tanh(projected[2 * H :] + reset * from_hidden[2 * H :])
    return candidate + update * (hidden - candidate)
