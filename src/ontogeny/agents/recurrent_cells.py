"""Gated recurrent cells, one for each observation and action, that share weights; the genome fits every environment.

The weights define how any cell learns, not which observation or action it belongs to: relabeling observations or
actions relabels the values in the same way (equivariance by sharing, Zaheer et al. 2017, arXiv 1703.06114). The update
is that of Cho et al. 2014 (arXiv 1406.1078) without reset gate; the inputs are those of RL^2 (Duan et al. 2016, arXiv
1611.02779, section 2.2) and the steps that remain. Only the cell of the last observation and action changes in a step;
its inputs include the maximal hidden units of the present observation, as the value of a successor is an input of
temporal-difference learning. What the agent learns within a lifetime is in its activations.

Letters: O observations, A actions, H hidden units of a cell, R units of the read-out, C inputs about time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.agents.base import fixed_weights_agent, require_discrete_observations
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering

NUM_TIME_INPUTS = 4


class CellWeights(NamedTuple):
    """Every weight, for any O and A; those of gate and candidate stand side by side on the last axis."""

    update: Float[Array, "2*H+2+C 2*H"]
    update_bias: Float[Array, "2*H"]
    cell_readout: Float[Array, "H R"]  # from the hidden units of a cell
    context_readout: Float[Array, "2*H+C R"]  # from the mean and maximum over all cells of the observation, and time
    readout_bias: Float[Array, "R"]
    value: Float[Array, "H+R"]


class CellActivations(NamedTuple):
    """The activations."""

    hidden: Float[Array, "O A H"]
    row: Float[Array, "A H"]  # of `hidden`, for the last observation
    last: Float[Array, "O"]  # one-hot, the last observation; all zeros at the start of a lifetime
    num_steps: Int32[Array, ""]  # of the lifetime
    episode_step: Int32[Array, ""]  # since the episode began


def build(
    spec: EnvSpec, steering: Steering, *, hidden_size: int = 8, readout_size: int = 8, observe_time: bool = True
) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of an environment with numbered observations.
        steering: Reward function.
        hidden_size: Hidden units of each cell, at least 1.
        readout_size: Units between a cell and the value of its action, at least 1.
        observe_time: Whether the inputs include the steps that remain of lifetime and episode, which the agent
            `recurrent` does not receive.
    """
    del steering
    require_discrete_observations("recurrent_cells", spec)
    require_at_least(1, hidden_size=hidden_size, readout_size=readout_size)

    def genome(key: Key) -> CellWeights:
        return init_weights(key, hidden_size, readout_size)

    def init_activations() -> CellActivations:
        row = jnp.zeros((spec.num_actions, hidden_size))
        last = jnp.zeros(spec.num_observations)
        return CellActivations(jnp.zeros((*last.shape, *row.shape)), row, last, jnp.int32(0), jnp.int32(0))

    def act(key: Key, state: State, percept: Percept) -> tuple[Int32[Array, ""], State]:
        del key
        cells, values = step_cells(state.weights.content, state.activations, percept, spec, observe_time)
        return jnp.argmax(values).astype(jnp.int32), State(state.weights, cells)

    return fixed_weights_agent(genome, init_activations, act)


def init_weights(key: Key, hidden_size: int, readout_size: int) -> CellWeights:
    """Draws Normal weights that preserve unit variance, gates that are nearly closed, and values of zero.

    Values start at zero because a genome with strong initial preferences, for instance for the arm tried last, can have
    a whole first population that never tries another arm: all fitness is then equal and the search stands still.
    """
    num_inputs, num_context = 2 * hidden_size + 2 + NUM_TIME_INPUTS, 2 * hidden_size + NUM_TIME_INPUTS
    update_key, cell_key, context_key = jax.random.split(key, 3)
    readout_deviation = jnp.sqrt(hidden_size + num_context)
    return CellWeights(
        jax.random.normal(update_key, (num_inputs, 2 * hidden_size)) / jnp.sqrt(num_inputs),
        jnp.zeros(2 * hidden_size).at[:hidden_size].set(-1.0),
        jax.random.normal(cell_key, (hidden_size, readout_size)) / readout_deviation,
        jax.random.normal(context_key, (num_context, readout_size)) / readout_deviation,
        jnp.zeros(readout_size),
        jnp.zeros(hidden_size + readout_size),
    )


def step_cells(
    weights: CellWeights, cells: CellActivations, percept: Percept, spec: EnvSpec, observe_time: bool = True
) -> tuple[CellActivations, Float[Array, "A"]]:
    """Computes one step: updates the last cell, then reads the cells of the present observation.

    Args:
        weights: Weights of the cells.
        cells: Activations before the step.
        percept: The present percept.
        observe_time: As in `build`.

    Returns:
        The new activations, and the values of the actions.
    """
    observation = jax.nn.one_hot(percept.observation, spec.num_observations)
    action = jax.nn.one_hot(percept.action, spec.num_actions)  # all zeros at the start of a lifetime
    episode_step = jnp.where(percept.first, 0, cells.episode_step)
    mask = jnp.array([observe_time, observe_time, observe_time, True])
    time = encode_time(cells.num_steps, episode_step, percept.first, spec) * mask

    # Products with one-hot vectors, not gathers: over many lifetimes at once they are several times as fast.
    row = jnp.tensordot(observation, cells.hidden, 1)
    is_successor = 1 - percept.first.astype(jnp.float32)  # where an episode begins, no successor was observed
    inputs = [is_successor * jnp.max(row, axis=0), jnp.stack([percept.reward, is_successor]), time]
    updated_cell = _update_cell(weights, action @ cells.row, inputs)
    updated_row = jnp.where(action[:, None] > 0, updated_cell, cells.row)
    hidden = jnp.where(cells.last[:, None, None] > 0, updated_row, cells.hidden)
    row = jnp.where(observation @ cells.last > 0, updated_row, row)
    new_cells = CellActivations(hidden, row, observation, cells.num_steps + 1, episode_step + 1)
    return new_cells, _action_values(weights, row, time)


def encode_time(
    num_steps: Int32[Array, ""], episode_step: Int32[Array, ""], first: Bool[Array, ""], spec: EnvSpec
) -> Float[Array, "C"]:
    """Returns the four inputs about time.

    They are the remaining share of the lifetime, the logarithm of its remaining steps divided by the number of possible
    observations, the remaining share of the episode, and whether an episode begins.

    Args:
        num_steps: Steps of the lifetime before the present one.
        episode_step: Steps of the episode before the present one.
        first: Whether an episode begins.
    """
    remaining = jnp.maximum(spec.num_steps - num_steps, 0).astype(jnp.float32)
    # 4 is about log(1 + 50): with up to some 50 remaining steps per observation, the input is at most about one.
    log_remaining = jnp.log1p(remaining / spec.num_observations) / 4
    lifetime_share, episode_share = remaining / spec.num_steps, 1 - episode_step / spec.horizon
    return jnp.stack([lifetime_share, log_remaining, episode_share, first.astype(jnp.float32)])


def _update_cell(weights: CellWeights, hidden: Float[Array, "H"], inputs: list[Array]) -> Float[Array, "H"]:
    """The hidden units of one cell after a step."""
    joined = jnp.concatenate([hidden, *inputs])
    gate, candidate = jnp.split(joined @ weights.update + weights.update_bias, 2)
    return hidden + jax.nn.sigmoid(gate) * (jnp.tanh(candidate) - hidden)


def _action_values(weights: CellWeights, row: Float[Array, "A H"], time: Float[Array, "C"]) -> Float[Array, "A"]:
    """The values of all actions from the cells of one observation and time."""
    context = jnp.concatenate([jnp.mean(row, axis=0), jnp.max(row, axis=0), time])
    units = jnp.tanh(row @ weights.cell_readout + (context @ weights.context_readout + weights.readout_bias))
    return jnp.concatenate([row, units], axis=1) @ weights.value
