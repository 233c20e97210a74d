"""Pulls the arm of the highest posterior mean, but with probability epsilon any arm.

Sutton and Barto 2018, section 2.2. Bandits only; in environments with states the same idea is `certainty_equivalence`
with its setting `epsilon`. Carries its counts in activations.
"""

import jax
import jax.numpy as jnp

from ontogeny.agents.base import choose, needs_one_state, no_genome, unchanging
from ontogeny.content import arm_counts
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering, *, epsilon: float = 0.01) -> Agent:
    needs_one_state("epsilon_greedy", spec)
    if not 0 <= epsilon <= 1:
        raise BadInput(f"the setting 'epsilon' is a probability, not {epsilon}")
    arms = arm_counts.arms(spec, steering)

    def act(key: Key, state: State, percept: Percept):
        whether, which, best = jax.random.split(key, 3)
        counts = arm_counts.counted(arms, state.activations, percept)
        action = jnp.where(
            jax.random.uniform(whether) < epsilon,
            jax.random.randint(which, (), 0, arms.num_arms),
            choose(best, arm_counts.mean(arms, counts)),
        )
        return action, State(state.weights, counts)

    return unchanging(no_genome, lambda: arm_counts.nothing_seen(arms), act)
