"""Chooses by what its learned content predicts of the payout: a value-like prediction, queried by code.

For the environment `chain`. At the start the content says, from all that it was shown and remembers, how likely each action
is to end in a payout; the code takes the likelier one, or with probability `wander` any. What is learned is learned by
prediction alone: after each life `learn` takes `updates` steps of the content's own update on that life and `replayed`
older ones, where each start that ended in a payout is one example. The agent lives many chains one after the other,
with links drawn anew in each; weights go on, activations do not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import no_genome
from ontogeny.content.base import Sequences, of_size
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, PyTree, State, Steering, Transition, Weights

KEPT = 256  # lives


class Memory(NamedTuple):
    """The activations."""

    content: PyTree  # as the content has it
    inputs: Float[Array, "I"]  # what the content was shown last, for `learn`


class Lived(NamedTuple):
    """Of the latest lives, one row each."""

    inputs: Float[Array, "R T I"]
    action: Int32[Array, "R T"]
    payout: Float[Array, "R T"]  # that came of the choice of that step, -1 or 1; 0 where none was made or seen


class Scratch(NamedTuple):
    own: PyTree  # the content's moments or counts
    steps: Int32[Array, ""]
    start: Int32[Array, ""]  # the step of this life at which the latest choice was made
    lived: Lived
    key: Key


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    content: str = "gru",
    size: int = 0,
    wander: float = 0.1,
    num_lifetimes: int = 1,
    updates: int = 1,
    replayed: int = 15,
) -> Agent:
    """`lives` are those to come, along which the content's step size falls; `size` as in `predictor`."""
    del steering
    if spec.name != "chain":
        raise BadInput(f"agent 'payout_predictor' lives in the environment 'chain', not in '{spec.name}'")
    require_at_least(0, size=size, replayed=replayed, wander=wander)
    require_at_least(1, num_lifetimes=num_lifetimes, updates=updates)
    A, T = spec.num_actions, spec.num_steps
    inputs = spec.num_observations + A + 4
    held = of_size(content, inputs, A, size, column=inputs - 2)

    def fresh() -> Memory:
        return Memory(held.fresh(), jnp.zeros(inputs))

    def init(key: Key, genome: Genome) -> State:
        del genome
        init_key, replay_key = jax.random.split(key)
        weights = held.init(init_key)
        rows = Lived(jnp.zeros((KEPT, T, inputs)), jnp.zeros((KEPT, T), jnp.int32), jnp.zeros((KEPT, T)))
        scratch = Scratch(held.scratch(weights), jnp.int32(0), jnp.int32(0), rows, replay_key)
        return State(Weights(weights, scratch), fresh())

    def reset(state: State) -> State:
        return State(state.weights, fresh())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        x = seen(spec, percept)
        logits, memory = held.query(state.weights.content, state.activations.content, x)
        whether, which = jax.random.split(key)
        random = jax.random.randint(which, (), 0, A)
        action = jnp.where(jax.random.uniform(whether) < wander, random, jnp.argmax(logits)).astype(jnp.int32)
        return jnp.where(percept.observation == 0, action, 0), State(state.weights, Memory(memory, x))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        weights, scratch = state.weights
        percept, action, then = transition
        trajectory, t = scratch.steps // T, scratch.steps % T
        row = trajectory % KEPT
        chosen = (percept.observation == 0) & percept.first
        start = jnp.where(chosen, t, scratch.start)
        paid = then.first & (then.discount == 0)
        lived = scratch.lived
        lived = Lived(
            lived.inputs.at[row, t].set(state.activations.inputs),
            lived.action.at[row, t].set(action),
            lived.payout.at[row, t].set(0.0).at[row, start].add(jnp.where(paid, then.outcome[0], 0.0)),
        )
        scratch = scratch._replace(steps=scratch.steps + 1, start=start, lived=lived)
        # How long it has lived is the same in all lives that are lived side by side, so that this stays a branch.
        trained = jax.lax.cond(t == T - 1, train, lambda w, s, _: (w, s.own), weights, scratch, trajectory)
        return State(Weights(trained[0], scratch._replace(own=trained[1])), state.activations), ()

    def train(weights: PyTree, scratch: Scratch, trajectory: Array) -> tuple:
        progress = jnp.minimum(scratch.steps / (num_lifetimes * T), 1.0)

        def once(so_far: tuple, number: Array) -> tuple:
            key = jax.random.fold_in(jax.random.fold_in(scratch.key, scratch.steps), number)
            older = jax.random.randint(key, (replayed,), 0, jnp.minimum(trajectory + 1, KEPT))
            inputs, action, payout = jax.tree.map(
                lambda part: part[jnp.append(trajectory % KEPT, older)], scratch.lived
            )
            examples = Sequences(inputs, action, (payout > 0).astype(jnp.float32), jnp.abs(payout))
            return held.update(so_far[0], so_far[1], examples, progress), None

        return jax.lax.scan(once, (weights, scratch.own), jnp.arange(updates))[0]

    return Agent(no_genome, init, reset, act, learn, learning=True)


def seen(spec: EnvSpec, percept: Percept) -> Float[Array, "I"]:
    """What content is shown of a step: the place, the last action carried out, whether an episode begins, whether the
    one before was cut off, the payout, and whether a life begins."""
    began = percept.action < 0
    cut = percept.first & (percept.discount > 0) & ~began
    flags = jnp.stack([percept.first, cut]).astype(jnp.float32)
    payout = percept.outcome[:1]
    return jnp.concatenate(
        [
            jax.nn.one_hot(percept.observation, spec.num_observations),
            jax.nn.one_hot(percept.action, spec.num_actions),
            flags,
            payout,
            began[None].astype(jnp.float32),
        ]
    )
