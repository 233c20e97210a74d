"""Exact Bayesian model of a tabular environment: Dirichlet successors, conjugate Normal or Beta facts.

Conjugate updating as in Gelman et al., Bayesian Data Analysis (3rd ed.), sections 2.4, 2.5 and 3.4; as the belief over
tabular decision problems in Duff 2002 and Strens 2000. Weights are counts and sums of what was seen, so the order of
the evidence does not matter; the prior comes from the environment's `Spec` and is put in by `query`.

Where an environment says that facts drift within a life, a share of their evidence is lost at every step (discounting:
West & Harrison 1997, Bayesian Forecasting and Dynamic Models, section 6.3); where it says that single links change, a
share of what is known of an (observation, action) is lost at every visit to it. The posterior is then approximate.

A true end of an episode is a successor without prior mass: an end that was never seen is not expected.
Knows nothing of reward, value, or the length of a life.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ontogeny.types import BadInput, EnvSpec, FeaturePrior, WorldModel


class Evidence(NamedTuple):
    """The weights: sufficient statistics of all that was seen, empty at birth."""

    successors: Float[Array, "S A S"]  # how often each was observed
    ends: Float[Array, "S A"]  # how often the action truly ended the episode
    visits: Float[Array, "S A"]  # how often its facts were observed
    totals: Float[Array, "S A F"]  # the facts, summed


class Prediction(NamedTuple):
    """The predictive distribution, and how much evidence stands behind it, in observations of equal worth."""

    successors: Float[Array, "S A S"]  # probabilities; what they lack of one is the probability of an end
    successor_evidence: Float[Array, "S A"]  # prior concentration plus observations
    outcome_features: Float[Array, "S A F"]  # expected facts
    feature_evidence: Float[Array, "S A F"]  # variance of one observation / variance of the expected fact


def build(spec: EnvSpec) -> WorldModel:
    if spec.prior is None or spec.num_observations < 1:
        raise BadInput(f"content 'tabular_model' needs a tabular environment, '{spec.name}' is none")
    S, A, F = spec.num_observations, spec.num_actions, len(spec.outcome_features)
    prior = spec.prior

    def init() -> Evidence:
        return Evidence(jnp.zeros((S, A, S)), jnp.zeros((S, A)), jnp.zeros((S, A)), jnp.zeros((S, A, F)))

    def query(weights: Evidence) -> Prediction:
        observed = jnp.sum(weights.successors, axis=-1) + weights.ends
        concentration = prior.transitions * S + observed
        successors = (prior.transitions + weights.successors) / concentration[..., None]
        outcome_features = [
            posterior_of(feature, weights.visits, weights.totals[..., f])
            for f, feature in enumerate(prior.outcome_features)
        ]
        means, evidence = (jnp.stack(part, axis=-1) for part in zip(*outcome_features, strict=True))
        return Prediction(successors, concentration, means, evidence)

    def update(
        weights: Evidence,
        observation: Int[ArrayLike, ""],
        action: Int[ArrayLike, ""],
        outcome: Float[Array, "F"],
        successor: Int[ArrayLike, ""],
        ended: Bool[Array, ""],
        seen: Bool[Array, ""],
    ) -> Evidence:
        """One step of evidence. `seen` false: what came after the action was not observed."""
        went_on = (seen & ~ended).astype(jnp.float32)
        kept = 1 - prior.lost
        if prior.renewed:
            share = jnp.where(seen, 1 - prior.renewed, 1.0)
            successors, ends = (part.at[observation, action].multiply(share) for part in weights[:2])
            visits, totals = (part.at[observation, action].multiply(1 - prior.renewed) for part in weights[2:])
            weights = Evidence(successors, ends, visits, totals)
        return Evidence(
            weights.successors.at[observation, action, successor].add(went_on),
            weights.ends.at[observation, action].add((seen & ended).astype(jnp.float32)),
            (kept * weights.visits).at[observation, action].add(1),
            (kept * weights.totals).at[observation, action].add(outcome),
        )

    return WorldModel(init, query, update)


def posterior_of(
    feature: FeaturePrior, visits: Float[Array, "*shape"], total: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Posterior mean and evidence of one fact after `visits` observations that sum to `total`.

    Normal: the prior is worth (noise / b)^2 observations of its mean. Bernoulli: Beta(a, b) is worth a + b, and the
    variance p (1 - p) of one payout is a + b + 1 times the variance of p.
    """
    if feature.kind == "bernoulli":
        strength = feature.a + feature.b
        return (feature.a + total) / (strength + visits), strength + visits + 1
    strength = (feature.noise / feature.b) ** 2
    return (strength * feature.a + total) / (strength + visits), strength + visits
