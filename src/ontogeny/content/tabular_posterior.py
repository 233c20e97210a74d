"""The posterior over tabular tasks: Dirichlet successors, and Normal or Beta outcome features.

Conjugate updating as in Gelman et al., Bayesian Data Analysis (3rd ed.), sections 2.4, 2.5 and 3.4; sampling of whole
tasks as in Strens 2000 (ICML) and Osband, Russo and Van Roy 2013 (NeurIPS 26), section 3. The end of an episode has no
prior mass, so it is predicted only after it has been observed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.gamma import sample_log_gamma
from ontogeny.types import FeaturePrior, Key, Prior


class TabularEvidence(NamedTuple):
    """Sufficient statistics of all observed transitions."""

    successor_counts: Float[Array, "S A S"]
    end_counts: Float[Array, "S A"]  # how often the action terminated the episode
    visit_counts: Float[Array, "S A"]  # how often the outcome features were observed
    feature_sums: Float[Array, "S A F"]


class SampledTask(NamedTuple):
    """A task drawn from the posterior."""

    successors: Float[Array, "S A S"]  # probabilities; the remainder to one is the probability of an end
    outcome_features: Float[Array, "S A F"]  # expected outcome features


def sample_task(key: Key, prior: Prior, evidence: TabularEvidence) -> SampledTask:
    """Draws a task from the posterior.

    Args:
        key: Random key.
        prior: Prior over tasks.
        evidence: Observed transitions.
    """
    successor_key, end_key, feature_key = jax.random.split(key, 3)
    logs = sample_log_gamma(successor_key, prior.transitions + evidence.successor_counts)
    end_logs = sample_log_gamma(end_key, jnp.maximum(evidence.end_counts, 1e-3))
    end_logs = jnp.where(evidence.end_counts > 0, end_logs, -jnp.inf)
    probabilities = jax.nn.softmax(jnp.concatenate([logs, end_logs[..., None]], axis=-1), axis=-1)
    outcome_features = []
    for f, feature in enumerate(prior.outcome_features):
        key = jax.random.fold_in(feature_key, f)
        outcome_features.append(_sample_feature(key, feature, evidence.visit_counts, evidence.feature_sums[..., f]))
    return SampledTask(probabilities[..., :-1], jnp.stack(outcome_features, axis=-1))


def feature_posterior(
    feature: FeaturePrior, visit_counts: Float[Array, "*shape"], feature_sum: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Computes the posterior mean of one outcome feature, and the evidence for it.

    Evidence is counted in observations. Normal: the prior is worth (noise / b)^2 observations. Bernoulli: Beta(a, b) is
    worth a + b; the variance p (1 - p) of one observation is a + b + 1 times the variance of p.

    Args:
        visit_counts: Number of observations.
        feature_sum: Sum of the observations.

    Returns:
        The posterior mean, and the variance of one observation over the posterior variance of the mean.
    """
    if feature.kind == "bernoulli":
        strength = feature.a + feature.b
        return (feature.a + feature_sum) / (strength + visit_counts), strength + visit_counts + 1
    strength = (feature.noise / feature.b) ** 2
    return (strength * feature.a + feature_sum) / (strength + visit_counts), strength + visit_counts


def _sample_feature(
    key: Key, feature: FeaturePrior, visit_counts: Float[Array, "S A"], feature_sum: Float[Array, "S A"]
) -> Float[Array, "S A"]:
    """Draws the expected outcome feature of every observation and action."""
    if feature.kind == "bernoulli":
        pseudo_counts = jnp.stack([feature.a + feature_sum, feature.b + visit_counts - feature_sum])
        log_successes, log_failures = sample_log_gamma(key, pseudo_counts)
        return jax.nn.sigmoid(log_successes - log_failures)
    precision = feature.b**-2 + visit_counts * feature.noise**-2
    mean = (feature.a * feature.b**-2 + feature_sum * feature.noise**-2) / precision
    return mean + jax.random.normal(key, visit_counts.shape) / jnp.sqrt(precision)
