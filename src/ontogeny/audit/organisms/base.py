"""What organisms of a bandit share: counts of pulls held in weights, in activations, or in both."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import choose, needs_one_state, no_genome
from ontogeny.content import arm_counts
from ontogeny.content.arm_counts import Counts
from ontogeny.types import Agent, Genome, Key, Percept, Spec, State, Steering, Transition, Weights


class Memory(NamedTuple):
    """The activations."""

    counts: Counts
    mine: Array  # [] bool, whether the last action was chosen by what activations hold


def hybrid(
    name: str,
    spec: Spec,
    steering: Steering,
    by_activations: Callable[[Key, Counts, Counts], Array],
    shared: bool,
) -> Agent:
    """Thompson sampling from one of two memories; `by_activations(key, held, kept)` says whether from activations.

    `shared`: both memories take in every pull; otherwise each takes in only those that it chose.
    """
    needs_one_state(name, spec)
    arms = arm_counts.arms(spec, steering)

    def fresh() -> Memory:
        return Memory(arm_counts.nothing_seen(arms), jnp.bool_(False))

    def birth(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(arm_counts.nothing_seen(arms)), fresh())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        who_key, draw_key, tie_key = jax.random.split(key, 3)
        kept, memory = state.weights.content, state.activations
        counted = arm_counts.counted(arms, memory.counts, percept)
        takes = jnp.bool_(shared) | memory.mine
        held = jax.tree.map(lambda new, old: jnp.where(takes, new, old), counted, memory.counts)
        mine = by_activations(who_key, held, kept)
        source = jax.tree.map(lambda a, w: jnp.where(mine, a, w), held, kept)
        action = choose(tie_key, arm_counts.draw(draw_key, arms, source))
        return action, State(state.weights, Memory(held, mine))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        kept = state.weights.content
        counted = arm_counts.counted(arms, kept, transition.next)
        takes = jnp.bool_(shared) | ~state.activations.mine
        kept = jax.tree.map(lambda new, old: jnp.where(takes, new, old), counted, kept)
        return State(Weights(kept), state.activations), ()

    return Agent(no_genome, birth, lambda state: State(state.weights, fresh()), act, learn, learns=True)
