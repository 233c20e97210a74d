"""Pulls the arm that is best in one draw from the posterior (Thompson sampling); for bandits.

Thompson 1933; Chapelle and Li 2011 (NeurIPS 24), Algorithm 2.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import bandit_agent
from ontogeny.content.beta_bernoulli import ArmCounts, BanditPrior, posterior_mean, sample_posterior
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Steering


def build(spec: EnvSpec, steering: Steering, *, optimistic: bool = False) -> Agent:
    """Builds the agent.

    Args:
        steering: Reward function.
        optimistic: Whether a draw below the posterior mean is replaced by the mean (Chapelle and Li, section 5; May et
            al. 2012).
    """

    def choose(key: Key, prior: BanditPrior, counts: ArmCounts) -> Array:
        sample_key, tie_key = jax.random.split(key)
        probabilities = sample_posterior(sample_key, prior, counts)
        if optimistic:
            probabilities = jnp.maximum(probabilities, posterior_mean(prior, counts))
        return random_argmax(tie_key, probabilities)

    return bandit_agent("thompson", spec, steering, choose)
