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
from ontogeny.types import FactPrior, Key, Prior


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
    facts: Float[Array, "S A F"]  # expected facts


def draw(key: Key, prior: Prior, evidence: Evidence) -> Draw:
    """One task that may be the one at hand."""
    successor_key, end_key, fact_key = jax.random.split(key, 3)
    concentrations = prior.transitions + evidence.successors
    logs = log_gamma_draw(successor_key, concentrations)
    end_logs = log_gamma_draw(end_key, jnp.maximum(evidence.ends, 1e-3))
    end_logs = jnp.where(evidence.ends > 0, end_logs, -jnp.inf)
    probabilities = jax.nn.softmax(jnp.concatenate([logs, end_logs[..., None]], axis=-1), axis=-1)
    facts = [
        _draw_fact(jax.random.fold_in(fact_key, f), fact, evidence.visits, evidence.totals[..., f])
        for f, fact in enumerate(prior.facts)
    ]
    return Draw(probabilities[..., :-1], jnp.stack(facts, axis=-1))


def _draw_fact(
    key: Key, fact: FactPrior, visits: Float[Array, "S A"], total: Float[Array, "S A"]
) -> Float[Array, "S A"]:
    """Expected facts, after `visits` observations that sum to `total`."""
    if fact.kind == "bernoulli":
        hits, misses = log_gamma_draw(key, jnp.stack([fact.a + total, fact.b + visits - total]))
        return jax.nn.sigmoid(hits - misses)
    precision = fact.b**-2 + visits * fact.noise**-2
    mean = (fact.a * fact.b**-2 + total * fact.noise**-2) / precision
    return mean + jax.random.normal(key, visits.shape) / jnp.sqrt(precision)
