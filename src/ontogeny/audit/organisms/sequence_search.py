"""Searches for a good sequence of actions: varies the best one so far, and adopts the variation if it paid more.

Random local search over whole episodes, blind to observations. All in activations. In `random_mdp`, where chance
determines the next state, only the first action of a sequence can be repeated in the same state: earlier outcomes raise
its score by 0.019 standard deviations, about the smallest effect that counts, so it is a control of neither kind there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "yes"}
GROUND_TRUTH_BY_ENV = {"random_mdp": {"learns": None}}
HELD_OUT = True


class SearchMemory(NamedTuple):
    """The best sequence, its payout, and this episode; -1 where there is no action yet."""

    best: Array  # [horizon] int32
    best_payout: Array  # []
    actions: Array  # [horizon] int32
    payout: Array  # []
    num_steps: Array  # [] int32


def build(spec: EnvSpec, steering: Steering, *, variation: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        variation: Probability that an action of the best sequence is replaced by a random one, 0 to 1.
    """
    horizon = spec.horizon

    def update(memory: SearchMemory, step: StepMemoryInput) -> SearchMemory:
        t = jnp.minimum(memory.num_steps, horizon - 1)
        actions = memory.actions.at[t].set(step.percept.action)
        payout = memory.payout + step.percept.reward
        is_end = step.percept.first
        is_better = is_end & (payout > memory.best_payout)
        return SearchMemory(
            jnp.where(is_better, actions, memory.best),
            jnp.where(is_better, payout, memory.best_payout),
            jnp.where(is_end, -1, actions),
            jnp.where(is_end, 0.0, payout),
            jnp.where(is_end, 0, memory.num_steps + 1),
        )

    def choose(key: Key, memory: SearchMemory, percept: Percept) -> Array:
        vary_key, action_key = jax.random.split(key)
        best = memory.best[jnp.minimum(memory.num_steps, horizon - 1)]
        varies = (best < 0) | jax.random.bernoulli(vary_key, variation)
        return jnp.where(varies, jax.random.randint(action_key, (), 0, spec.num_actions), best)

    nothing = jnp.full(horizon, -1, jnp.int32)
    memory = SearchMemory(nothing, jnp.float32(-jnp.inf), nothing, jnp.float32(0), jnp.int32(0))
    return build_stepwise("sequence_search", spec, ("random_mdp", "foraging"), memory, update, choose)
