"""Signs of a loss of plasticity: inactive hidden units, features of low effective rank, and weights that grow.

Dohare et al. 2024 (Nature 632:768) find all three in networks that learn ever new tasks and learn worse each time.
Dormant units: Sokar et al. 2023 (arXiv 2302.12902, definition 3.1). Effective rank: Roy and Vetterli 2007 (EUSIPCO).
The functions work on NumPy arrays on the host: inside of a batched program, XLA would divide the singular value
decompositions among its threads and wait for them.

Letters: M examples, W hidden units.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from ontogeny.types import PyTree

DORMANT_SCORE = 0.025  # largest score of a dormant unit, in units of the mean activity of its layer


class LayerPlasticity(NamedTuple):
    """The state of a hidden layer over some examples.

    Attributes:
        num_units: W.
        num_dormant: Units whose activation is close to zero in all examples (`is_dormant`).
        num_constant: Units whose activation is about the same in all examples (`is_constant`).
        effective_rank: Of the activations, from 1 to the smaller of M and W; 0 where all of them are zero.
    """

    num_units: int
    num_dormant: int
    num_constant: int
    effective_rank: float


def measure_layer(activations: Float[np.ndarray, "M W"]) -> LayerPlasticity:
    """Returns the state of a hidden layer.

    Args:
        activations: Of its units, after the nonlinearity.
    """
    return LayerPlasticity(
        activations.shape[1],
        int(is_dormant(activations).sum()),
        int(is_constant(activations).sum()),
        effective_rank(activations),
    )


def is_dormant(activations: Float[np.ndarray, "M W"], max_score: float = DORMANT_SCORE) -> Bool[np.ndarray, "W"]:
    """Returns which units are dormant: their mean absolute activation is a small share of the mean over the layer.

    Args:
        activations: Of the units.
        max_score: Largest share, from 0 to 1.
    """
    activity = np.abs(np.asarray(activations, np.float64)).mean(axis=0)
    return activity <= max_score * activity.mean()


def is_constant(activations: Float[np.ndarray, "M W"], max_score: float = DORMANT_SCORE) -> Bool[np.ndarray, "W"]:
    """Returns which units carry no information: their standard deviation over the examples is small.

    A saturated unit is constant and not dormant; a dead unit is both.

    Args:
        activations: Of the units.
        max_score: Largest standard deviation, as a share of the mean absolute activation of the layer.
    """
    exact = np.asarray(activations, np.float64)
    # In place of zero, the rounding error of the standard deviation of a constant.
    rounding = 1e-12 * np.abs(exact).max(initial=0.0)
    return exact.std(axis=0) <= max_score * np.abs(exact).mean() + rounding


def effective_rank(features: Float[np.ndarray, "M W"]) -> float:
    """Returns the exponential of the entropy of the singular values, divided by their sum.

    It is k for k equal singular values, at most the rank, and depends neither on the scale of the features nor on the
    orthonormal basis that they are written in.

    Args:
        features: Of the examples, not centered.
    """
    singular_values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def weight_norm(weights: PyTree) -> float:
    """Returns the Euclidean norm of all weights together."""
    return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(weights))))


def weight_distance(weights: PyTree, initial_weights: PyTree) -> float:
    """Returns the Euclidean distance of weights from the initial ones."""
    change = jax.tree.map(
        lambda leaf, initial: np.asarray(leaf, np.float64) - np.asarray(initial, np.float64), weights, initial_weights
    )
    return weight_norm(change)
