"""What has been seen of each arm of a Bernoulli bandit, and the Beta posterior that follows from it.

The posterior of an arm's payout probability is Beta(a + successes, b + pulls - successes), with a and b from
`Spec.prior`. A reward is a success by the share of the way it goes from the worst to the best that steering can give.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from ontogeny.content.base import log_gamma_draw
from ontogeny.errors import BadInput
from ontogeny.types import EnvSpec, Key, Percept, Steering


class Counts(NamedTuple):
    pulls: Float32[Array, "A"]
    successes: Float32[Array, "A"]


class Arms(NamedTuple):
    """What is known before the first pull: the prior, and the rewards of a miss and of a hit."""

    num_arms: int
    a: float  # of the Beta prior
    b: float
    worst: float
    best: float


def arms(spec: EnvSpec, steering: Steering) -> Arms:
    """The arms of a bandit with one Bernoulli fact; any other environment raises `BadInput`."""
    prior = spec.prior.outcome_features if spec.prior else ()
    if len(prior) != 1 or prior[0].kind != "bernoulli":
        raise BadInput(f"the arms of environment '{spec.name}' do not pay out one fact with a Beta prior")
    miss, hit = (float(steering(jnp.full(1, feature))) for feature in (0.0, 1.0))
    a, b = (prior[0].a, prior[0].b) if miss <= hit else (prior[0].b, prior[0].a)
    return Arms(spec.num_actions, a, b, min(miss, hit), max(miss, hit))


def nothing_seen(arms: Arms) -> Counts:
    return Counts(jnp.zeros(arms.num_arms), jnp.zeros(arms.num_arms))


def counted(arms: Arms, counts: Counts, percept: Percept) -> Counts:
    """Takes in the last pull; at birth (action -1) there was none."""
    pulled = jax.nn.one_hot(percept.action, arms.num_arms)  # all zeros for -1
    scale = (arms.best - arms.worst) or 1.0
    success = (percept.reward - arms.worst) / scale
    return Counts(counts.pulls + pulled, counts.successes + pulled * success)


def mean(arms: Arms, counts: Counts) -> Float[Array, "A"]:
    """The posterior mean of each arm's chance of success."""
    return (arms.a + counts.successes) / (arms.a + arms.b + counts.pulls)


def draw(key: Key, arms: Arms, counts: Counts) -> Float[Array, "A"]:
    """One draw from the posterior of each arm's chance of success."""
    successes = arms.a + counts.successes
    failures = arms.b + counts.pulls - counts.successes
    hits, misses = log_gamma_draw(key, jnp.stack([successes, failures]))
    return jax.nn.sigmoid(hits - misses)
