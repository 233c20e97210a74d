"""Random perturbations of a genome, at full rank or, for large matrices, at low rank.

A perturbation of low rank is the outer product of two thin matrices. A whole population then shares the product with
the unperturbed matrix, and each member adds two thin products (EGGROLL: Sarkar et al. 2025, arXiv 2511.16652). Every
number of a perturbation has mean 0 and variance 1, at any rank. M, N sides of a matrix, R rank, L leading axes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.types import Genome, Key, PyTree

MIN_SIDE = 8  # by the rank: a matrix with a shorter side is perturbed at full rank, which costs little there


class LowRankNoise(NamedTuple):
    """The random matrix left @ right; any leading axes."""

    left: Float[Array, "*L M R"]
    right: Float[Array, "*L R N"]


class PerturbedMatrix(NamedTuple):
    """The matrix base + left @ right, for agents that use it as the right factor of products only: x @ matrix."""

    base: Array
    left: Array
    right: Array

    def __rmatmul__(self, vectors: Array) -> Array:
        """Returns vectors @ (base + left @ right) without forming the sum."""
        return vectors @ self.base + (vectors @ self.left) @ self.right


def draw_noise(key: Key, genome: Genome, rank: int) -> PyTree:
    """Draws a perturbation of standard deviation 1.

    Args:
        key: A single random key; every array of the genome has a key of its own, derived from it.
        genome: The genome, or its shapes.
        rank: R; 0 for full rank everywhere.

    Returns:
        The structure of the genome, with an array or a `LowRankNoise` in the place of each array.
    """
    leaves, structure = jax.tree.flatten(genome)
    keys = [jax.random.fold_in(key, number) for number in range(len(leaves))]
    noise = [_draw_leaf(key, leaf.shape, rank) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def perturb(genome: Genome, noise: PyTree, scale: Array) -> PyTree:
    """The genome plus `scale` times the noise; a matrix with noise of low rank becomes a `PerturbedMatrix`.

    Args:
        genome: Without a leading axis.
        noise: As `draw_noise`, with any leading axes.
        scale: One factor per perturbation; its axes are the leading axes of the noise.
    """

    def add(leaf: Array, noise: Array | LowRankNoise) -> Array | PerturbedMatrix:
        first = noise.left if isinstance(noise, LowRankNoise) else noise
        factor = jnp.expand_dims(scale, tuple(range(scale.ndim, first.ndim)))
        if isinstance(noise, LowRankNoise):
            return PerturbedMatrix(leaf, factor * noise.left, noise.right)
        return leaf + factor * noise

    return jax.tree.map(add, genome, noise)


def member_axes(genome: Genome, rank: int) -> PyTree:
    """The axes of `jax.vmap` over the members that `perturb` returns: all share the base of a `PerturbedMatrix`."""
    return jax.tree.map(lambda leaf: PerturbedMatrix(None, 0, 0) if _is_low_rank(leaf.shape, rank) else 0, genome)  # pyright: ignore[reportArgumentType]


def form_matrices(members: PyTree) -> PyTree:
    """The members with an array in the place of each `PerturbedMatrix`."""

    def form(leaf: Array | PerturbedMatrix) -> Array:
        return leaf.base + leaf.left @ leaf.right if isinstance(leaf, PerturbedMatrix) else leaf

    return jax.tree.map(form, members, is_leaf=lambda leaf: isinstance(leaf, PerturbedMatrix))


def weighted_sum(weights: Float[Array, "L"], noise: PyTree) -> Genome:
    """The sum over the leading axis of `weights` times the noise, with the shapes of the genome."""

    def add_up(noise: Array | LowRankNoise) -> Array:
        if isinstance(noise, LowRankNoise):
            return jnp.einsum("l,lmr,lrn->mn", weights, noise.left, noise.right)
        return jnp.tensordot(weights, noise, axes=1)

    return jax.tree.map(add_up, noise, is_leaf=lambda leaf: isinstance(leaf, LowRankNoise))


def _is_low_rank(shape: tuple[int, ...], rank: int) -> bool:
    """Whether an array of this shape is a matrix that is perturbed at low rank."""
    return rank > 0 and len(shape) == 2 and min(shape) >= MIN_SIDE * rank


def _draw_leaf(key: Key, shape: tuple[int, ...], rank: int) -> Array | LowRankNoise:
    """The noise of one array of the genome."""
    if not _is_low_rank(shape, rank):
        return jax.random.normal(key, shape)
    left_key, right_key = jax.random.split(key)
    left = jax.random.normal(left_key, (shape[0], rank)) / jnp.sqrt(rank)
    return LowRankNoise(left, jax.random.normal(right_key, (rank, shape[1])))
