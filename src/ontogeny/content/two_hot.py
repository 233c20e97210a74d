"""Distributions over real numbers of unknown scale: a softmax over bins, trained with two-hot targets.

Symlog and two-hot: Hafner et al. 2023 (arXiv 2301.04104, section "Robust predictions"). The bins are spaced evenly in
symlog, and the target of a number is the mixture of its two neighboring bins with the number as its mean, so that the
mean of the trained distribution is unbiased.

Letters: K bins.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

NUM_BINS = 61  # odd, so that one bin is zero
MAX_SYMLOG = 10.0  # numbers beyond symexp(10) = 22025 are clipped
BIN_VALUES = np.sign(np.linspace(-1, 1, NUM_BINS)) * np.expm1(np.abs(np.linspace(-MAX_SYMLOG, MAX_SYMLOG, NUM_BINS)))
# Logits of a Laplace distribution around zero: the initial mean is 0, and the tails, whose bins are large, are thin.
INITIAL_LOGITS = -1.5 * np.abs(np.linspace(-MAX_SYMLOG, MAX_SYMLOG, NUM_BINS))


def symlog(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compresses large numbers of both signs: sign(x) log(1 + |x|)."""
    return jnp.sign(values) * jnp.log1p(jnp.abs(values))


def two_hot_target(values: Float[Array, "*shape"]) -> Float[Array, "*shape K"]:
    """Returns the distribution over the bins next to each number whose mean is the number."""
    bins = jnp.asarray(BIN_VALUES, jnp.float32)
    gaps = jnp.diff(bins)
    clipped = jnp.clip(values, bins[0], bins[-1])[..., None]
    # The share of each gap that lies below the number: 1 up to the bin before it, 0 from the bin after it on.
    shares = jnp.clip((clipped - bins[:-1]) / gaps, 0.0, 1.0)
    ones, zeros = jnp.ones_like(clipped), jnp.zeros_like(clipped)
    return jnp.concatenate([ones, shares], axis=-1) - jnp.concatenate([shares, zeros], axis=-1)


def two_hot_mean(logits: Float[Array, "*shape K"]) -> Float[Array, "*shape"]:
    """Returns the mean of each distribution."""
    return jax.nn.softmax(logits) @ jnp.asarray(BIN_VALUES, jnp.float32)


def two_hot_loss(logits: Float[Array, "*shape K"], values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the cross-entropy between the target of each number and the predicted distribution, in nats."""
    return -jnp.sum(two_hot_target(values) * jax.nn.log_softmax(logits), axis=-1)
