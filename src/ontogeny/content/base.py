"""What learned content shares: draws from posteriors, exact and fast in large batches; predictors, how they learn."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.types import Key, PyTree


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


class Sequences(NamedTuple):
    """What was lived, in the order it was lived; row 0 is the newest. B sequences, L steps, I inputs."""

    inputs: Float[Array, "B L I"]
    asked: Int32[Array, "B L"]  # which output said what was to come
    came: Float[Array, "B L"]  # what came, 0 or 1
    counts: Float[Array, "B L"]  # 1 where something was to be predicted, 0 elsewhere


class Predictor(NamedTuple):
    """Learned content that says, from all that it was shown, how likely each of K things is; logits throughout.

    `query` goes on step by step and holds what it remembers in `memory`, which is activations. `sequence` says the same
    of a whole sequence at once, and is what `update` descends on.
    """

    init: Callable[[Key], PyTree]  # -> weights
    scratch: Callable[[PyTree], PyTree]  # weights -> moments or counts, for `update` alone
    fresh: Callable[[], PyTree]  # -> memory
    query: Callable[[PyTree, PyTree, Float[Array, "I"]], tuple[Float[Array, "K"], PyTree]]
    sequence: Callable[[PyTree, Float[Array, "L I"]], Float[Array, "L K"]]
    update: Callable[[PyTree, PyTree, Sequences, Array], tuple[PyTree, PyTree]]  # (weights, scratch, lived, progress)


def begins(inputs: Float[Array, "*L I"]) -> Array:
    """Whether a memory begins anew at a step: the last input of each says so."""
    return inputs[..., -1] > 0.5


def by_gradient(
    init: Callable[[Key], PyTree],
    fresh: Callable[[], PyTree],
    query: Callable[..., Any],
    sequence: Callable[..., Any],
    step_size: float,
) -> Predictor:
    """A predictor whose update is one step of Adam (Kingma & Ba 2015, arXiv 1412.6980) down the mean log loss of what
    was lived. The step falls to nothing along a cosine as `progress` goes from 0 to 1."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())

    def loss(weights: PyTree, lived: Sequences) -> Array:
        logits = jax.vmap(partial(sequence, weights))(lived.inputs)
        said = jnp.take_along_axis(logits, lived.asked[..., None], axis=-1)[..., 0]
        losses = optax.sigmoid_binary_cross_entropy(said, lived.came)
        return jnp.sum(lived.counts * losses) / jnp.maximum(jnp.sum(lived.counts), 1)

    def update(weights: PyTree, scratch: PyTree, lived: Sequences, progress: Array) -> tuple[PyTree, PyTree]:
        change, moments = optimizer.update(jax.grad(loss)(weights, lived), scratch)
        rate = step_size * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jax.tree.map(lambda weight, part: weight - rate * part, weights, change), moments

    return Predictor(init, optimizer.init, fresh, query, sequence, update)


def memoryless(
    init: Callable[[Key], PyTree], outputs: Callable[[PyTree, Float[Array, "I"]], Array], step_size: float
) -> Predictor:
    """A predictor that remembers nothing: each step says all that it is told."""

    def query(weights: PyTree, memory: PyTree, inputs: Float[Array, "I"]) -> tuple[Float[Array, "K"], PyTree]:
        return outputs(weights, inputs), memory

    def sequence(weights: PyTree, inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        return jax.vmap(partial(outputs, weights))(inputs)

    return by_gradient(init, tuple, query, sequence, step_size)


def dense(key: Key, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """First weights of a layer, of a variance that keeps that of its inputs."""
    return jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows)


def of_size(content: str, inputs: int, outputs: int, size: int, column: int) -> Predictor:
    """A predictor by name, with its units or width set where it has them and `size` is not 0; `column` is the input
    that a table looks at."""
    known = plugins.settings("content", content)
    given = {name: size for name in ("units", "width") if size and name in known}
    if "inputs" not in inspect.signature(plugins.attribute("content", content, "build")).parameters:
        raise BadInput(f"content '{content}' is no predictor")
    if "column" in known:
        given["column"] = column
    return plugins.build("content", content, inputs, outputs, **given)
