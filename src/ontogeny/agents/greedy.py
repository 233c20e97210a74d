"""Pulls the arm with the highest posterior mean and never explores on purpose; for bandits.

In environments with states `certainty_equivalence` is the same idea.
"""

from jax import Array

from ontogeny.agents.base import bandit_agent
from ontogeny.content.beta_bernoulli import ArmCounts, BanditPrior, posterior_mean
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Steering


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the agent; it has no settings."""

    def choose(key: Key, prior: BanditPrior, counts: ArmCounts) -> Array:
        return random_argmax(key, posterior_mean(prior, counts))

    return bandit_agent("greedy", spec, steering, choose)
