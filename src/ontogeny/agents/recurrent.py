"""A dense gated recurrent network whose genome is every weight; what it learns in a life lives in its activations.

Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078; reset gate after the product, as in cuDNN) fed as in RL^2
(Duan et al. 2016, arXiv 1611.02779, section 2.2): last action, last reward, episode start, observation. Letters:
H hidden units, I inputs, A actions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import unchanging
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


class Network(NamedTuple):
    """Every weight. The gates stand side by side on the last axis: reset, update, candidate."""

    recurrent: Float[Array, "H 3*H"]
    input: Float[Array, "I 3*H"]
    bias: Float[Array, "3*H"]
    readout: Float[Array, "H A"]
    preference: Float[Array, "A"]  # bias of the read-out


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    units: int = 48,
    memory: float = 2.0,
    drive: float = 3.0,
    sampled: bool = False,
) -> Agent:
    """`memory` and `drive` are of the line's first genome: the bias of its update gates and the scale of its input
    weights. `sampled` draws actions by softmax instead of taking the highest logit."""
    require_at_least(1, units=units)

    def genome(key: Key) -> Network:
        return initial(key, spec, units, memory, drive)

    def activations() -> Float[Array, "H"]:
        return jnp.zeros(units)

    def act(key: Key, state: State, percept: Percept) -> tuple[Int32[Array, ""], State]:
        hidden, logits = advance(state.weights.content, state.activations, inputs(spec, percept))
        action = jax.random.categorical(key, logits) if sampled else jnp.argmax(logits)
        return action.astype(jnp.int32), State(state.weights, hidden)

    return unchanging(genome, activations, act)


def inputs(spec: EnvSpec, percept: Percept) -> Float[Array, "I"]:
    """What the network sees of a percept; at birth no action is marked."""
    seen = percept.observation
    if spec.num_observations:
        seen = jax.nn.one_hot(seen, spec.num_observations)
    return jnp.concatenate(
        [
            jax.nn.one_hot(percept.action, spec.num_actions),
            percept.reward[None],
            percept.first[None].astype(jnp.float32),
            jnp.ravel(seen),
        ]
    )


def advance(
    network: Network, hidden: Float[Array, "H"], inputs: Float[Array, "I"]
) -> tuple[Float[Array, "H"], Float[Array, "A"]]:
    """One step. Returns hidden, logits."""
    from_hidden = hidden @ network.recurrent
    from_input = inputs @ network.input + network.bias
    units = hidden.shape[-1]
    gates = jax.nn.sigmoid(from_hidden[: 2 * units] + from_input[: 2 * units])
    reset, update = gates[:units], gates[units:]
    candidate = jnp.tanh(from_input[2 * units :] + reset * from_hidden[2 * units :])
    hidden = candidate + update * (hidden - candidate)
    return hidden, hidden @ network.readout + network.preference


def initial(key: Key, spec: EnvSpec, units: int, memory: float, drive: float) -> Network:
    """Orthogonal recurrent weights, a bias towards remembering, a silent read-out, and inputs that are strong enough
    (`drive` times unit variance) to reach the bend of the gates, where action and reward are multiplied."""
    recurrent_key, input_key = jax.random.split(key)
    orthogonal = jax.nn.initializers.orthogonal()
    blocks = [orthogonal(k, (units, units)) for k in jax.random.split(recurrent_key, 3)]
    seen = spec.num_observations or math.prod(spec.observation_shape)
    num_inputs = spec.num_actions + 2 + seen
    return Network(
        jnp.concatenate(blocks, axis=1),
        drive * jax.random.normal(input_key, (num_inputs, 3 * units)) / jnp.sqrt(num_inputs),
        jnp.zeros(3 * units).at[units : 2 * units].set(memory),
        jnp.zeros((units, spec.num_actions)),
        jnp.zeros(spec.num_actions),
    )
