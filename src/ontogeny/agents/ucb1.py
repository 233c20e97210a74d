"""Pulls the arm with the highest upper confidence bound; for bandits.

Auer, Cesa-Bianchi and Fischer 2002 (Machine Learning 47:235), UCB1: mean + exploration sqrt(2 ln t / pulls). Mean and
pulls begin with those of the prior, as Duan et al. 2016 give it to every method, so no arm must be tried first. That
and an `exploration` below the 1 of the theorem suit short lifetimes.
"""

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import bandit_agent
from ontogeny.content.beta_bernoulli import ArmCounts, BanditPrior, posterior_mean
from ontogeny.errors import require_at_least
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Steering


def build(spec: EnvSpec, steering: Steering, *, exploration: float = 0.2) -> Agent:
    """Builds the agent.

    Args:
        exploration: Factor on the width of the confidence bound, at least 0.
    """
    require_at_least(0, exploration=exploration)

    def choose(key: Key, prior: BanditPrior, counts: ArmCounts) -> Array:
        t = 1 + jnp.sum(counts.pulls)
        width = jnp.sqrt(2 * jnp.log(t) / (prior.a + prior.b + counts.pulls))
        return random_argmax(key, posterior_mean(prior, counts) + exploration * width)

    return bandit_agent("ucb1", spec, steering, choose)
