"""What learned content shares: draws from posteriors, exact and fast in large batches."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.types import Key


def log_gamma_draw(key: Key, a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The logarithm of a draw from Gamma(a, 1), elementwise, for any a > 0; a difference of two is a Beta's logit.

    Marsaglia and Tsang 2000 (ACM TOMS 26:363): all elements not yet accepted are proposed again together, which on
    a CPU is several times faster than `jax.random.loggamma`. Gamma(a) = Gamma(a + 1) * U^(1/a) covers small `a`.
    """
    boost_key, key = jax.random.split(key)
    d = a + 2 / 3
    c = jax.lax.rsqrt(9 * d)

    def propose(carry):
        key, drawn, accepted = carry
        key, normal_key, uniform_key = jax.random.split(key, 3)
        x = jax.random.normal(normal_key, a.shape)
        log_v = 3 * jnp.log(jnp.maximum(1 + c * x, 1e-12))
        log_u = jnp.log(jax.random.uniform(uniform_key, a.shape, minval=1e-38))
        accept = (1 + c * x > 0) & (log_u < 0.5 * x * x + d * (1 - jnp.exp(log_v) + log_v))
        return key, jnp.where(accepted, drawn, jnp.log(d) + log_v), accepted | accept

    start = (key, jnp.zeros(a.shape), jnp.zeros(a.shape, bool))
    drawn = jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), propose, start)[1]
    return drawn - jax.random.exponential(boost_key, a.shape) / a
