"""Pulls the arm with the highest posterior mean, but with probability epsilon a random arm; for bandits.

Sutton and Barto 2018, section 2.2. In environments with states `certainty_equivalence` with its setting `epsilon` is
the same idea.
"""

import jax
from jax import Array

from ontogeny.agents.base import bandit_agent, explore
from ontogeny.content.beta_bernoulli import ArmCounts, BanditPrior, posterior_mean
from ontogeny.errors import require_probability
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Steering


def build(spec: EnvSpec, steering: Steering, *, epsilon: float = 0.01) -> Agent:
    """Builds the agent.

    Args:
        epsilon: Probability of a random arm, from 0 to 1.
    """
    require_probability(epsilon=epsilon)

    def choose(key: Key, prior: BanditPrior, counts: ArmCounts) -> Array:
        explore_key, action_key, tie_key = jax.random.split(key, 3)
        greedy_action = random_argmax(tie_key, posterior_mean(prior, counts))
        return explore(explore_key, action_key, epsilon, prior.num_arms, greedy_action)

    return bandit_agent("epsilon_greedy", spec, steering, choose)
