"""A dense gated recurrent network whose genome is every weight; it adapts within a lifetime by its activations.

The cell is `content.gru_cell`; its inputs are those of RL^2 (Duan et al. 2016, arXiv 1611.02779, section 2.2): last
action, last reward, start of an episode, observation.

Letters: H hidden units, I inputs, A actions.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import fixed_weights_agent
from ontogeny.content.gru_cell import GRUWeights, init_gru, step_gru
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    hidden_size: int = 48,
    update_gate_bias: float = 2.0,
    input_scale: float = 3.0,
    stochastic: bool = False,
) -> Agent:
    """Builds the agent.

    Args:
        steering: Reward function.
        hidden_size: Hidden units, at least 1.
        update_gate_bias: Bias of the update gates in the initial genome; the larger, the longer the units remember.
        input_scale: Factor on the input weights of the initial genome. Above 1 the gates reach their nonlinear range,
            where action and reward are multiplied.
        stochastic: Whether actions are sampled from the softmax of the logits; otherwise the highest logit is taken.
    """
    del steering
    require_at_least(1, hidden_size=hidden_size)
    # The last action, the reward, whether an episode begins, and the observation; see `encode_percept`.
    num_inputs = spec.num_actions + 2 + (spec.num_observations or math.prod(spec.observation_shape))

    def genome(key: Key) -> GRUWeights:
        return init_gru(key, num_inputs, hidden_size, spec.num_actions, update_gate_bias, input_scale)

    def init_activations() -> Float[Array, "H"]:
        return jnp.zeros(hidden_size)

    def act(key: Key, state: State, percept: Percept) -> tuple[Int32[Array, ""], State]:
        hidden, logits = step_gru(state.weights.content, state.activations, encode_percept(spec, percept))
        action = jax.random.categorical(key, logits) if stochastic else jnp.argmax(logits)
        return action.astype(jnp.int32), State(state.weights, hidden)

    return fixed_weights_agent(genome, init_activations, act)


def encode_percept(spec: EnvSpec, percept: Percept) -> Float[Array, "I"]:
    """Returns the inputs of the network; at the start of a lifetime no action is marked."""
    observation = percept.observation
    if spec.num_observations:
        observation = jax.nn.one_hot(observation, spec.num_observations)
    action, first = jax.nn.one_hot(percept.action, spec.num_actions), percept.first[None].astype(jnp.float32)
    return jnp.concatenate([action, percept.reward[None], first, jnp.ravel(observation)])
