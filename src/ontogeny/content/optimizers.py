"""The one set-up of gradient-based optimizers: clipping, then a first-order method, with a constant rate or a schedule.

Adam: Kingma and Ba 2015 (arXiv 1412.6980). AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101). Muon: Jordan et al.
2024, with its step scaled to that of AdamW (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.
"""

from collections.abc import Callable

import jax
import optax

from ontogeny.errors import require_at_least, require_one_of
from ontogeny.types import PyTree, Weights

OPTIMIZERS = ("adam", "adamw", "muon", "sgd")


def build_optimizer(
    learning_rate: float | optax.Schedule,
    name: str = "adam",
    *,
    max_gradient_norm: float | None = 1.0,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    decays: Callable[[PyTree], PyTree] | None = None,
    uses_muon: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer.

    Args:
        learning_rate: Step size, at least 0, or a schedule from the number of steps taken to a step size.
        name: One of `OPTIMIZERS`.
        max_gradient_norm: Global norm to which larger gradients are scaled down; None for no clipping.
        beta2: Decay of the second moment of Adam and AdamW.
        weight_decay: Decay of AdamW and Muon, as a share of the learning rate.
        decays: Maps weights to a tree of Booleans: which of them AdamW decays; None for all.
        uses_muon: Maps weights to a tree of Booleans: which of them Muon trains; AdamW trains the others.

    Raises:
        BadInput: If there is no optimizer of this name, or the learning rate is negative.
    """
    require_one_of(OPTIMIZERS, optimizer=name)
    if not callable(learning_rate):
        require_at_least(0, learning_rate=learning_rate)
    if name == "adam":
        method = optax.adam(learning_rate, b2=beta2)
    elif name == "sgd":
        method = optax.sgd(learning_rate)
    else:
        method = optax.adamw(learning_rate, b2=beta2, weight_decay=weight_decay, mask=decays)
    if name == "muon" and uses_muon is not None:

        def labels(weights: PyTree) -> PyTree:
            return jax.tree.map(lambda muon: "muon" if muon else "adam", uses_muon(weights))

        muon = optax.contrib.muon(learning_rate, weight_decay=weight_decay, consistent_rms=0.2)
        method = optax.partition({"muon": muon, "adam": method}, labels)
    return method if max_gradient_norm is None else optax.chain(optax.clip_by_global_norm(max_gradient_norm), method)


def build_flat_optimizer() -> optax.GradientTransformation:
    """Builds Adam of learning rate 1 over all weights as one vector, which is faster for many small arrays."""
    return optax.flatten(build_optimizer(1.0))


def with_optimizer_state(optimizer: optax.GradientTransformation, content: PyTree) -> Weights:
    """Returns new weights: the content, and the initial state of its optimizer as scratch."""
    return Weights(content, optimizer.init(content))


def apply_gradient(optimizer: optax.GradientTransformation, gradient: PyTree, weights: Weights) -> Weights:
    """Takes one step: content moves along the gradient, scratch is the state of the optimizer."""
    change, scratch = optimizer.update(gradient, weights.scratch, weights.content)
    return Weights(optax.apply_updates(weights.content, change), scratch)


def cosine_decay(learning_rate: float, num_steps: int = 1) -> optax.Schedule:
    """Returns a schedule that falls from `learning_rate` to zero along half a cosine.

    Args:
        learning_rate: Step size at the start, at least 0.
        num_steps: Steps until zero; with 1 the argument of the schedule is the share of the training that is done.

    Raises:
        BadInput: If the learning rate is negative.
    """
    require_at_least(0, learning_rate=learning_rate)
    return optax.cosine_decay_schedule(learning_rate, num_steps)


def apply_scaled_gradient(
    optimizer: optax.GradientTransformation, gradient: PyTree, weights: Weights, learning_rate: jax.Array
) -> Weights:
    """As `apply_gradient`, for an optimizer of learning rate 1 whose step is multiplied by a traced learning rate."""
    change, scratch = optimizer.update(gradient, weights.scratch, weights.content)
    change = jax.tree.map(lambda leaf: learning_rate * leaf, change)
    return Weights(optax.apply_updates(weights.content, change), scratch)
