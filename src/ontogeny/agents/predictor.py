"""Reports what its learned content predicts of the next item, and no more: the code around it wants nothing.

For the environment `stream`. Genome = ML code: content is empty at birth and is trained by prediction within one life. `act`
shows it the step, takes its probability and reports the nearest level; `learn` keeps what was lived, in rows of `row`
steps, and after each row takes `updates` steps of the content's own update on the newest row and `replayed` older ones
(experience replay: Lin 1992, Machine Learning 8:293). Nothing that it learns from says what is scored or steered.

`evolved=true` is the same content by the other model: the genome is every weight, and `learn` changes nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import no_genome, unchanging
from ontogeny.content.base import Sequences, of_size
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, PyTree, State, Steering, Transition, Weights

INPUTS, LAST = 4, 2  # ease, direction, last item, whether a segment begins
KEPT = 64  # rows


class Memory(NamedTuple):
    """The activations."""

    content: PyTree  # as the content has it
    inputs: Float[Array, "I"]  # what the content was shown last, for `learn`


class Scratch(NamedTuple):
    own: PyTree  # the content's moments or counts
    lived: Int32[Array, ""]  # steps
    inputs: Float[Array, "R L I"]
    came: Float[Array, "R L"]
    key: Key


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    content: str = "gru",
    size: int = 0,
    evolved: bool = False,
    row: int = 50,
    updates: int = 1,
    replayed: int = 15,
) -> Agent:
    """`size` are the units or the width of the content, 0 for its own default."""
    del steering
    if spec.name != "stream":
        raise BadInput(
            f"agent 'predictor' reports on items of the environment 'stream', there are none in '{spec.name}'"
        )
    require_at_least(0, size=size, replayed=replayed)
    require_at_least(1, row=row, updates=updates)
    held = of_size(content, INPUTS, 1, size, column=LAST)

    def fresh() -> Memory:
        return Memory(held.fresh(), jnp.zeros(INPUTS))

    def reset(state: State) -> State:
        return State(state.weights, fresh())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        del key
        x = seen(percept)
        logits, memory = held.query(state.weights.content, state.activations.content, x)
        report = jax.nn.sigmoid(logits[0])
        action = jnp.round(report * (spec.num_actions - 1)).astype(jnp.int32)
        return action, State(state.weights, Memory(memory, x))

    if evolved:
        return unchanging(held.init, fresh, act)._replace(reset=reset)

    def init(key: Key, genome: Genome) -> State:
        del genome
        init_key, replay_key = jax.random.split(key)
        weights = held.init(init_key)
        rows = jnp.zeros((KEPT, row, INPUTS)), jnp.zeros((KEPT, row))
        scratch = Scratch(held.scratch(weights), jnp.int32(0), *rows, replay_key)
        return State(Weights(weights, scratch), fresh())

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        weights, scratch = state.weights
        which, place = scratch.lived // row, scratch.lived % row
        scratch = scratch._replace(
            lived=scratch.lived + 1,
            inputs=scratch.inputs.at[which % KEPT, place].set(state.activations.inputs),
            came=scratch.came.at[which % KEPT, place].set(transition.next.outcome[0]),
        )
        # How long it has lived is the same in all lives that are lived side by side, so that this stays a branch.
        trained = jax.lax.cond(place == row - 1, train, lambda w, s, _: (w, s.own), weights, scratch, which)
        return State(Weights(trained[0], scratch._replace(own=trained[1])), state.activations), ()

    def train(weights: PyTree, scratch: Scratch, which: Array) -> tuple:
        progress = jnp.minimum(scratch.lived / spec.num_steps, 1.0)

        def once(so_far: tuple, number: Array) -> tuple:
            key = jax.random.fold_in(jax.random.fold_in(scratch.key, scratch.lived), number)
            older = jax.random.randint(key, (replayed,), 0, jnp.minimum(which + 1, KEPT))
            rows = jnp.concatenate([which[None] % KEPT, older])
            came = scratch.came[rows]
            lived = Sequences(scratch.inputs[rows], jnp.zeros(came.shape, jnp.int32), came, jnp.ones(came.shape))
            return held.update(so_far[0], so_far[1], lived, progress), None

        return jax.lax.scan(once, (weights, scratch.own), jnp.arange(updates))[0]

    return Agent(no_genome, init, reset, act, learn, learning=True)


def seen(percept: Percept) -> Float[Array, "I"]:
    """What content is shown of a step. Where a segment begins, the last item belonged to another one."""
    ease, direction, begins = percept.observation
    last = jnp.where(begins > 0.5, 0.0, 2 * percept.outcome[0] - 1)
    return jnp.stack([ease - 1, direction, last, begins])
