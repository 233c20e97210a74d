"""Pulls the arm of the highest posterior mean; never explores on purpose.

Bandits only; in environments with states the same idea is `certainty_equivalence`. Carries its counts in activations.
"""

from ontogeny.agents.base import choose, needs_one_state, no_genome, unchanging
from ontogeny.content import arm_counts
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering) -> Agent:
    needs_one_state("greedy", spec)
    arms = arm_counts.arms(spec, steering)

    def act(key: Key, state: State, percept: Percept):
        counts = arm_counts.counted(arms, state.activations, percept)
        return choose(key, arm_counts.mean(arms, counts)), State(state.weights, counts)

    return unchanging(no_genome, lambda: arm_counts.nothing_seen(arms), act)
