"""Gated recurrent cells, one per (observation, action), that share their weights; what is learned lives in them.

The weights say how any cell learns, not which observation or action it belongs to: relabelling observations or actions
relabels the values in the same way (equivariance by sharing, Zaheer et al. 2017, arXiv 1703.06114), and one genome
fits environments of every size. The gate is that of Cho et al. 2014 (arXiv 1406.1078) without the reset gate, the inputs are
those of RL^2 (Duan et al. 2016, arXiv 1611.02779, section 2.2) and the steps that remain. Only the cell of the last
observation and action changes in a step; the strongest hidden units of the present observation flow back to it, as
the value of a successor flows back in temporal-difference learning.

Letters: O observations, A actions, H hidden units of a cell, R units of the read-out, C inputs that describe the clock.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.agents.base import needs_discrete, unchanging
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering

CLOCK = 4


class Rule(NamedTuple):
    """Every weight, whatever O and A are. Gate and candidate stand side by side on the last axis."""

    update: Float[Array, "2*H+2+C 2*H"]
    update_bias: Float[Array, "2*H"]
    own: Float[Array, "H R"]  # from a cell's hidden units to its read-out
    context: Float[Array, "2*H+C R"]  # from the cells beside it
    context_bias: Float[Array, "R"]
    value: Float[Array, "H+R"]


class Cells(NamedTuple):
    """The activations. `row` is the part of `hidden` that belongs to the last observation."""

    hidden: Float[Array, "O A H"]
    row: Float[Array, "A H"]
    last: Float[Array, "O"]  # one-hot, the last observation; all zero at birth
    age: Int32[Array, ""]  # steps lived
    episode: Int32[Array, ""]  # steps since the episode began


def build(spec: EnvSpec, steering: Steering, *, units: int = 8, readout: int = 8, clock: bool = True) -> Agent:
    """`units` hidden units in each cell, `readout` units between them and the value of an action. `clock` false hides
    what is left of the life and of the episode, so that nothing is told that the dense network is not told."""
    needs_discrete("recurrent_cells", spec)
    require_at_least(1, units=units, readout=readout)

    def genome(key: Key) -> Rule:
        return initial(key, units, readout)

    def activations() -> Cells:
        observations, actions = spec.num_observations, spec.num_actions
        return Cells(
            hidden=jnp.zeros((observations, actions, units)),
            row=jnp.zeros((actions, units)),
            last=jnp.zeros(observations),
            age=jnp.int32(0),
            episode=jnp.int32(0),
        )

    def act(key: Key, state: State, percept: Percept) -> tuple[Int32[Array, ""], State]:
        del key
        cells, values = advance(state.weights.content, state.activations, percept, spec, clock)
        return jnp.argmax(values).astype(jnp.int32), State(state.weights, cells)

    return unchanging(genome, activations, act)


def advance(
    rule: Rule, cells: Cells, percept: Percept, spec: EnvSpec, clock: bool = True
) -> tuple[Cells, Float[Array, "A"]]:
    """One step: the last cell takes in what came of it, then the present row is read. Returns cells, values."""
    here = jax.nn.one_hot(percept.observation, spec.num_observations)
    chosen = jax.nn.one_hot(percept.action, spec.num_actions)  # all zero at birth
    episode = jnp.where(percept.first, 0, cells.episode)
    time = remaining(cells.age, episode, percept.first, spec) * jnp.array([clock, clock, clock, True])

    # Products with one-hot vectors, not gathers: over many lives at once they are several times as fast.
    row = jnp.tensordot(here, cells.hidden, 1)
    follows = 1 - percept.first.astype(jnp.float32)  # where an episode begins, the last successor was not observed
    received = [chosen @ cells.row, follows * jnp.max(row, axis=0), jnp.stack([percept.reward, follows]), time]
    learned = updated(rule, received)
    written = jnp.where(chosen[:, None] > 0, learned, cells.row)
    hidden = jnp.where(cells.last[:, None, None] > 0, written, cells.hidden)
    row = jnp.where(here @ cells.last > 0, written, row)
    return Cells(hidden, row, here, cells.age + 1, episode + 1), values(rule, row, time)


def updated(rule: Rule, received: list[Array]) -> Float[Array, "H"]:
    """The hidden units of one cell after a step; `received` begins with those before it."""
    before = received[0]
    gate, candidate = jnp.split(jnp.concatenate(received) @ rule.update + rule.update_bias, 2)
    return before + jax.nn.sigmoid(gate) * (jnp.tanh(candidate) - before)


def values(rule: Rule, row: Float[Array, "A H"], time: Float[Array, "C"]) -> Float[Array, "A"]:
    """The cells of one observation and the clock to the values of its actions."""
    beside = jnp.concatenate([jnp.mean(row, axis=0), jnp.max(row, axis=0), time])
    units = jnp.tanh(row @ rule.own + (beside @ rule.context + rule.context_bias))
    return jnp.concatenate([row, units], axis=1) @ rule.value


def remaining(
    age: Int32[Array, ""], episode: Int32[Array, ""], first: Bool[Array, ""], spec: EnvSpec
) -> Float[Array, "C"]:
    """What is left of the life (as a share, as visits to each observation) and of the episode; whether it begins."""
    left = jnp.maximum(spec.num_steps - age, 0).astype(jnp.float32)
    return jnp.stack(
        [
            left / spec.num_steps,
            jnp.log1p(left / spec.num_observations) / 4,  # 4 is about log(1 + 50): of the order of one
            1 - episode / spec.horizon,
            first.astype(jnp.float32),
        ]
    )


def initial(key: Key, units: int, readout: int) -> Rule:
    """Normal weights that pass unit variance on, gates nearer to shut than open, and values of zero.

    Zero, because a line that begins with a firm taste, say for the arm it has tried, can have a whole first population
    that never tries another: all fitness is then equal and the search stands still.
    """
    inputs, beside = 2 * units + 2 + CLOCK, 2 * units + CLOCK
    update, own, context = jax.random.split(key, 3)
    return Rule(
        jax.random.normal(update, (inputs, 2 * units)) / jnp.sqrt(inputs),
        jnp.zeros(2 * units).at[:units].set(-1.0),
        jax.random.normal(own, (units, readout)) / jnp.sqrt(units + beside),
        jax.random.normal(context, (beside, readout)) / jnp.sqrt(units + beside),
        jnp.zeros(readout),
        jnp.zeros(units + readout),
    )
