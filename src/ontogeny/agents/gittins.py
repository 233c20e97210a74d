"""Pulls the arm with the highest Gittins index for the remaining pulls, which is nearly Bayes-optimal; for bandits.

The finite-horizon index (`content.gittins_index`; Lattimore 2016), since lifetimes are finite and undiscounted.
"""

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import bandit_agent
from ontogeny.content import gittins_index
from ontogeny.content.beta_bernoulli import ArmCounts, BanditPrior
from ontogeny.errors import BadInput
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Steering

MAX_PULLS = 4000  # computing the table of indices takes 4 ms for each pull


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the agent; it has no settings. Raises `BadInput` for lifetimes of more than `MAX_PULLS` pulls."""
    if spec.num_steps > MAX_PULLS:
        raise BadInput(f"agent 'gittins' is for lifetimes of at most {MAX_PULLS:,} pulls, not {spec.num_steps:,}")

    def choose(key: Key, prior: BanditPrior, counts: ArmCounts) -> Array:
        table = gittins_index.compute_table(spec.num_steps, prior.a, prior.b)
        to_go = spec.num_steps - jnp.sum(counts.pulls)
        return random_argmax(key, gittins_index.gittins_indices(table, counts.pulls, counts.successes, to_go))

    return bandit_agent("gittins", spec, steering, choose)
