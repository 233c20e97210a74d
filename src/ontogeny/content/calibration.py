"""Are the predictive distributions of a world model calibrated: log-likelihoods, quantiles and calibration errors.

Expected calibration error: Naeini et al. 2015 (AAAI 29), Guo et al. 2017 (arXiv 1706.04599). Calibration of quantiles
of real numbers: Kuleshov et al. 2018 (arXiv 1807.00263).
Letters: N samples of a prediction, O observation, F outcome features, K bins of an outcome, M predictions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from ontogeny.content.latent_model import LatentPrediction
from ontogeny.content.two_hot import BIN_VALUES, two_hot_loss

NUM_GROUPS = 15  # of predictions that are compared with what was observed, as in Guo et al.
MIN_PROBABILITY = 1e-12


def observation_log_likelihood(prediction: LatentPrediction, observation: Shaped[Array, "*O"]) -> Float[Array, ""]:
    """The log-likelihood of an observation in nats: of a whole number, or the log density of an array."""
    N = prediction.observation.shape[0]
    if observation.shape == ():
        probabilities = jnp.mean(prediction.observation, axis=0)
        return jnp.log(jnp.maximum(probabilities[observation], MIN_PROBABILITY))
    densities = jax.scipy.stats.norm.logpdf(
        observation.reshape(1, -1), prediction.observation, prediction.observation_scale
    )
    return jax.nn.logsumexp(jnp.sum(densities, axis=-1)) - jnp.log(N)


def observation_quantiles(prediction: LatentPrediction, observation: Shaped[Array, "*O"]) -> Float[Array, "O"]:
    """The predicted probability that each number of an array is at most the observed one.

    Where predictions are calibrated, these are uniform over the interval from 0 to 1.
    """
    cumulative = jax.scipy.stats.norm.cdf(
        observation.reshape(1, -1), prediction.observation, prediction.observation_scale
    )
    return jnp.mean(cumulative, axis=0)


def outcome_log_likelihood(prediction: LatentPrediction, outcome: Float[Array, "F"]) -> Float[Array, ""]:
    """The log-likelihood of the outcome features in nats, whose numbers are mixtures of two bins each (two-hot)."""
    logits = jnp.log(jnp.maximum(prediction.outcome_probabilities, MIN_PROBABILITY))
    return -jnp.sum(two_hot_loss(logits, outcome))


def discount_log_likelihood(prediction: LatentPrediction, discount: Float[Array, ""]) -> Float[Array, ""]:
    """The log-likelihood of whether the episode goes on, in nats."""
    probability = jnp.clip(jnp.where(discount > 0, prediction.discount, 1 - prediction.discount), MIN_PROBABILITY, 1)
    return jnp.log(probability)


def expected_outcome(prediction: LatentPrediction) -> Float[Array, "F"]:
    """The means of the outcome features."""
    return prediction.outcome_probabilities @ jnp.asarray(BIN_VALUES, jnp.float32)


def expected_calibration_error(
    predicted: np.ndarray,
    observed: np.ndarray,
    *,
    num_groups: int = NUM_GROUPS,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> float:
    """The mean distance between what was predicted and what was observed, over groups of similar predictions.

    Args:
        predicted: Probabilities of events, or predicted means, [M].
        observed: 1 where the event occurred and 0 elsewhere, or the numbers of which the means were predicted, [M].
        num_groups: Intervals of equal width into which the predictions are divided.
        bounds: The smallest and the largest possible prediction; predictions outside belong to the outermost groups.

    Returns:
        The sum over groups of their share of the predictions times |mean prediction - mean observation|.
    """
    predicted, observed = np.asarray(predicted, np.float64).ravel(), np.asarray(observed, np.float64).ravel()
    low, high = bounds
    group = np.clip(((predicted - low) / (high - low) * num_groups).astype(int), 0, num_groups - 1)
    sums = np.bincount(group, predicted - observed, num_groups)
    return float(np.abs(sums).sum() / len(predicted))


def quantile_calibration_error(quantiles: np.ndarray, *, num_levels: int = NUM_GROUPS) -> float:
    """The mean distance between each level and the share of quantiles up to it; 0 if they are uniform.

    Args:
        quantiles: From `observation_quantiles`, of any shape.
        num_levels: Levels, spaced evenly inside of the interval from 0 to 1.
    """
    levels = np.arange(1, num_levels + 1) / (num_levels + 1)
    shares = np.searchsorted(np.sort(np.ravel(quantiles)), levels, side="right") / np.size(quantiles)
    return float(np.abs(shares - levels).mean())
