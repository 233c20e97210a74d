"""Learns an exact Bayesian model of a tabular environment: successors and outcome features.

The belief over tabular decision problems of Duff 2002 and Strens 2000; see `content.tabular_posterior`. The weights are
counts and sums of observations, so the order of the evidence does not matter; `query` adds the prior of the
environment.

Where outcome features drift within a lifetime, a fraction of the evidence on them is discarded at every step
(discounting: West and Harrison 1997, Bayesian Forecasting and Dynamic Models, section 6.3); where single links change,
a fraction of the evidence on an (observation, action) is discarded at every visit. The posterior is then approximate.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ontogeny.content.tabular_posterior import TabularEvidence, feature_posterior
from ontogeny.errors import BadInput
from ontogeny.types import EnvSpec, WorldModel


class TabularPrediction(NamedTuple):
    """The predictive distribution, and the evidence for it in observations of equal weight."""

    successors: Float[Array, "S A S"]  # probabilities; the remainder to one is the probability of an end
    successor_evidence: Float[Array, "S A"]  # prior concentration plus observations
    outcome_features: Float[Array, "S A F"]  # expected outcome features
    feature_evidence: Float[Array, "S A F"]  # variance of one observation / variance of the expected feature


def build(spec: EnvSpec) -> WorldModel:
    """Builds the model of an environment with numbered observations and a prior; others raise `BadInput`."""
    if spec.prior is None or spec.num_observations < 1:
        raise BadInput(f"content 'tabular_model' needs a tabular environment, '{spec.name}' is none")
    S, A, F = spec.num_observations, spec.num_actions, len(spec.outcome_features)
    prior = spec.prior

    def init() -> TabularEvidence:
        return TabularEvidence(jnp.zeros((S, A, S)), jnp.zeros((S, A)), jnp.zeros((S, A)), jnp.zeros((S, A, F)))

    def query(weights: TabularEvidence) -> TabularPrediction:
        observed = jnp.sum(weights.successor_counts, axis=-1) + weights.end_counts
        concentration = prior.transitions * S + observed
        successors = (prior.transitions + weights.successor_counts) / concentration[..., None]
        posteriors = [
            feature_posterior(feature, weights.visit_counts, weights.feature_sums[..., f])
            for f, feature in enumerate(prior.outcome_features)
        ]
        means, evidence = (jnp.stack(part, axis=-1) for part in zip(*posteriors, strict=True))
        return TabularPrediction(successors, concentration, means, evidence)

    def update(
        weights: TabularEvidence,
        observation: Int[ArrayLike, ""],
        action: Int[ArrayLike, ""],
        outcome: Float[Array, "F"],
        successor: Int[ArrayLike, ""],
        is_end: Bool[Array, ""],
        is_observed: Bool[Array, ""],
    ) -> TabularEvidence:
        """Adds one transition; `is_observed` is False where the successor of the action was not observed."""
        is_continued = (is_observed & ~is_end).astype(jnp.float32)
        retention = 1 - prior.outcome_forgetting_rate  # of all outcomes at every step
        if prior.visit_forgetting_rate:
            visit_retention = 1 - prior.visit_forgetting_rate  # of the evidence on this observation and action
            successor_retention = jnp.where(is_observed, visit_retention, 1.0)
            factors = (successor_retention, successor_retention, visit_retention, visit_retention)
            parts = zip(weights, factors, strict=True)
            weights = TabularEvidence(*(part.at[observation, action].multiply(factor) for part, factor in parts))
        return TabularEvidence(
            weights.successor_counts.at[observation, action, successor].add(is_continued),
            weights.end_counts.at[observation, action].add((is_observed & is_end).astype(jnp.float32)),
            (retention * weights.visit_counts).at[observation, action].add(1),
            (retention * weights.feature_sums).at[observation, action].add(outcome),
        )

    return WorldModel(init, query, update)
