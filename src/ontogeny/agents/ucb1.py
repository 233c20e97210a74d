"""Pulls the arm of the highest upper confidence bound.

Auer, Cesa-Bianchi and Fischer 2002 (Machine Learning 47:235), UCB1: mean + exploration * sqrt(2 ln t / pulls). Mean and
pulls begin with those of the prior, as Duan et al. 2016 give it to every method, so no arm must be tried first; that
and an `exploration` below the 1 of the theorem are what short lives need. Carries its counts in activations.
"""

import jax.numpy as jnp

from ontogeny.agents.base import choose, needs_one_state, no_genome, unchanging
from ontogeny.content import arm_counts
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering, *, exploration: float = 0.2) -> Agent:
    needs_one_state("ucb1", spec)
    if exploration < 0:
        raise BadInput(f"the setting 'exploration' must be at least 0, not {exploration}")
    arms = arm_counts.arms(spec, steering)

    def act(key: Key, state: State, percept: Percept):
        counts = arm_counts.counted(arms, state.activations, percept)
        t = 1 + jnp.sum(counts.pulls)
        width = jnp.sqrt(2 * jnp.log(t) / (arms.a + arms.b + counts.pulls))
        return choose(key, arm_counts.mean(arms, counts) + exploration * width), State(state.weights, counts)

    return unchanging(no_genome, lambda: arm_counts.nothing_seen(arms), act)
