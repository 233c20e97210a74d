"""Counts the successors of each link and plans with their posterior means, almost without random choices.

Counts are Dirichlet evidence that expires with each visit, because single links may change. It has learned a chain
after a few trials and makes the best choice in nearly all of them.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms import base
from ontogeny.types import Agent, EnvSpec, Steering

FAMILY = "planner"
GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}
PRIOR = 0.1  # pseudo-counts per successor
RETENTION = 0.65  # share of the evidence on a link that remains after a visit


def build(spec: EnvSpec, steering: Steering, *, temperature: float = 0.02) -> Agent:
    """Builds the organism.

    Args:
        temperature: Of the softmax over values, greater than 0.
    """

    def update(evidence: base.LinkModel, step: base.TrialStep) -> base.LinkModel:
        successor = jax.nn.one_hot(step.next_position, base.num_positions(spec))
        successor = jnp.where(step.is_end | step.is_cut, 0.0, successor)
        retention = jnp.where(step.is_cut, 1.0, RETENTION)
        counts = evidence.transitions.at[step.position].multiply(retention).at[step.position].add(successor)
        rewards = evidence.rewards.at[step.position].multiply(retention)
        rewards = rewards.at[step.position].add(jnp.where(step.is_cut, 0.0, (1 - RETENTION) * step.reward))
        return base.LinkModel(counts, rewards)

    def values(evidence: base.LinkModel) -> Array:
        counts = evidence.transitions + PRIOR
        return base.plan_values(base.LinkModel(counts / counts.sum(axis=1, keepdims=True), evidence.rewards), spec)

    return base.build_chooser(
        "bayesian_planner", spec, base.initial_model(spec), update, values, temperature=temperature
    )
