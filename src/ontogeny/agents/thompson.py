"""Pulls the arm that is best in one draw from the posterior (Thompson sampling).

Thompson 1933; Chapelle and Li 2011 (NeurIPS 24), Algorithm 2. With `optimistic` a draw below the posterior mean is
replaced by the mean (Chapelle and Li, section 5; May et al. 2012). Carries its counts in activations.
"""

import jax
import jax.numpy as jnp

from ontogeny.agents.base import choose, needs_one_state, no_genome, unchanging
from ontogeny.content import arm_counts
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering, *, optimistic: bool = False) -> Agent:
    needs_one_state("thompson", spec)
    arms = arm_counts.arms(spec, steering)

    def act(key: Key, state: State, percept: Percept):
        draw_key, tie_key = jax.random.split(key)
        counts = arm_counts.counted(arms, state.activations, percept)
        drawn = arm_counts.draw(draw_key, arms, counts)
        if optimistic:
            drawn = jnp.maximum(drawn, arm_counts.mean(arms, counts))
        return choose(tie_key, drawn), State(state.weights, counts)

    return unchanging(no_genome, lambda: arm_counts.nothing_seen(arms), act)
