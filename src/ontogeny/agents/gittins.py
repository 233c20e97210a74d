"""Pulls the arm of the highest Gittins index for the pulls that remain: nearly Bayes-optimal.

The finite-horizon index (`content.gittins_index`; Lattimore 2016), since lives are finite and undiscounted. Carries its
counts in activations.
"""

import jax.numpy as jnp

from ontogeny.agents.base import choose, needs_one_state, no_genome, unchanging
from ontogeny.content import arm_counts, gittins_index
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering

MOST_PULLS = 4000  # the table of indices takes 4 ms a pull to compute


def build(spec: EnvSpec, steering: Steering) -> Agent:
    needs_one_state("gittins", spec)
    if spec.num_steps > MOST_PULLS:
        raise BadInput(f"agent 'gittins' is for lives of at most {MOST_PULLS:,} pulls, not {spec.num_steps:,}")
    arms = arm_counts.arms(spec, steering)
    table = gittins_index.table(spec.num_steps, arms.a, arms.b)

    def act(key: Key, state: State, percept: Percept):
        counts = arm_counts.counted(arms, state.activations, percept)
        to_go = spec.num_steps - jnp.sum(counts.pulls)
        return choose(key, gittins_index.index(table, counts.pulls, counts.successes, to_go)), State(
            state.weights, counts
        )

    return unchanging(no_genome, lambda: arm_counts.nothing_seen(arms), act)
