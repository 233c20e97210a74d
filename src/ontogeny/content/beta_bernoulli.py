"""The Beta posterior over the payout probabilities of a Bernoulli bandit.

The posterior of an arm is Beta(a + successes, b + pulls - successes), with a and b from the prior of the environment.
A reward counts as a fraction of a success: its position between the lowest and the highest reward of steering.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int32

from ontogeny.content.gamma import sample_log_gamma
from ontogeny.errors import BadInput
from ontogeny.types import EnvSpec, Key, Percept, Steering


class ArmCounts(NamedTuple):
    """Sufficient statistics of the posterior."""

    pulls: Float32[Array, "A"]
    successes: Float32[Array, "A"]


class BanditPrior(NamedTuple):
    """The prior of every arm, and the range of rewards."""

    num_arms: int
    a: float
    b: float
    min_reward: float
    max_reward: float


def bandit_prior(spec: EnvSpec, steering: Steering) -> BanditPrior:
    """Returns the prior of a bandit with one Bernoulli outcome feature.

    Args:
        steering: Reward function; where it prefers a feature of 0, the roles of a and b are exchanged.

    Raises:
        BadInput: If the environment is no such bandit.
    """
    features = spec.prior.outcome_features if spec.prior else ()
    if len(features) != 1 or features[0].kind != "bernoulli":
        raise BadInput(f"the arms of environment '{spec.name}' do not pay out one outcome feature with a Beta prior")
    failure, success = (float(steering(jnp.full(1, feature))) for feature in (0.0, 1.0))
    a, b = (features[0].a, features[0].b) if failure <= success else (features[0].b, features[0].a)
    return BanditPrior(spec.num_actions, a, b, min(failure, success), max(failure, success))


def init_counts(prior: BanditPrior) -> ArmCounts:
    """Returns the counts before the first pull."""
    return ArmCounts(jnp.zeros(prior.num_arms), jnp.zeros(prior.num_arms))


def update_counts(prior: BanditPrior, counts: ArmCounts, percept: Percept) -> ArmCounts:
    """Adds the last pull; the first percept of a lifetime, with action -1, adds nothing."""
    pulled = jax.nn.one_hot(percept.action, prior.num_arms)  # all zeros for -1
    scale = (prior.max_reward - prior.min_reward) or 1.0
    success = (percept.reward - prior.min_reward) / scale
    return ArmCounts(counts.pulls + pulled, counts.successes + pulled * success)


def counts_along(prior: BanditPrior, actions: Int32[Array, "T"], rewards: Float[Array, "T"]) -> ArmCounts:
    """Returns the counts before each pull of a lifetime, [T, A] each."""
    pulled = jax.nn.one_hot(actions, prior.num_arms)
    successes = (rewards - prior.min_reward) / ((prior.max_reward - prior.min_reward) or 1.0)
    return ArmCounts(*(jnp.cumsum(x, axis=0) - x for x in (pulled, pulled * successes[:, None])))


def posterior_mean(prior: BanditPrior, counts: ArmCounts) -> Float[Array, "*T A"]:
    """Returns the posterior mean of each arm's probability of success."""
    return (prior.a + counts.successes) / (prior.a + prior.b + counts.pulls)


def sample_posterior(key: Key, prior: BanditPrior, counts: ArmCounts) -> Float[Array, "A"]:
    """Draws each arm's probability of success from its posterior."""
    successes = prior.a + counts.successes
    failures = prior.b + counts.pulls - counts.successes
    log_successes, log_failures = sample_log_gamma(key, jnp.stack([successes, failures]))
    return jax.nn.sigmoid(log_successes - log_failures)  # x / (x + y) of two Gamma variates has the Beta distribution
