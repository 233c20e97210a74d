"""Draws of whole tasks from the posterior over tabular tasks: Dirichlet successors, Normal or Beta facts.

Strens 2000 (ICML); Osband, Russo and Van Roy 2013 (NeurIPS 26), section 3. The evidence is that of
`content.tabular_model`. An end of the episode has no prior mass, so it is drawn only once it has been seen.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.base import log_gamma_draw
from ontogeny.types import FeaturePrior, Key, Prior


@runtime_checkable
class Evidence(Protocol):
    """What was seen: the weights of `content.tabular_model`."""

    @property
    def successors(self) -> Float[Array, "S A S"]: ...  # counts
    @property
    def ends(self) -> Float[Array, "S A"]: ...
    @property
    def visits(self) -> Float[Array, "S A"]: ...
    @property
    def totals(self) -> Float[Array, "S A F"]: ...


class Draw(NamedTuple):
    successors: Float[Array, "S A S"]  # probabilities; what they lack of one is the probability of an end
    outcome_features: Float[Array, "S A F"]  # expected facts


def draw(key: Key, prior: Prior, evidence: Evidence) -> Draw:
    """One task that may be the one at hand."""
    successor_key, end_key, fact_key = jax.random.split(key, 3)
    concentrations = prior.transitions + evidence.successors
    logs = log_gamma_draw(successor_key, concentrations)
    end_logs = log_gamma_draw(end_key, jnp.maximum(evidence.ends, 1e-3))
    end_logs = jnp.where(evidence.ends > 0, end_logs, -jnp.inf)
    probabilities = jax.nn.softmax(jnp.concatenate([logs, end_logs[..., None]], axis=-1), axis=-1)
    outcome_features = [
        _draw_feature(jax.random.fold_in(fact_key, f), feature, evidence.visits, evidence.totals[..., f])
        for f, feature in enumerate(prior.outcome_features)
    ]
    return Draw(probabilities[..., :-1], jnp.stack(outcome_features, axis=-1))


def _draw_feature(
    key: Key, feature: FeaturePrior, visits: Float[Array, "S A"], total: Float[Array, "S A"]
) -> Float[Array, "S A"]:
    """Expected facts, after `visits` observations that sum to `total`."""
    if feature.kind == "bernoulli":
        hits, misses = log_gamma_draw(key, jnp.stack([feature.a + total, feature.b + visits - total]))
        return jax.nn.sigmoid(hits - misses)
    precision = feature.b**-2 + visits * feature.noise**-2
    mean = (feature.a * feature.b**-2 + total * feature.noise**-2) / precision
    return mean + jax.random.normal(key, visits.shape) / jnp.sqrt(precision)
