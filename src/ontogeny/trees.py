"""Pytrees as named arrays: digests, bit-for-bit comparison, scrambling."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.types import BadInput, Key, PyTree


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every leaf by its path, e.g. `{'weights.content.bias': ...}`; random keys as their raw data."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name or "value"] = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return named


def from_arrays(template: PyTree, named: Mapping[str, np.ndarray]) -> PyTree:
    """The inverse of `to_arrays`, given a tree of the same structure, shapes and types."""
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    leaves = []
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        expected = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        if name not in named:
            raise BadInput(f"the array '{name}' is missing")
        found = named[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise BadInput(
                f"the array '{name}' is {found.dtype}{list(found.shape)}, "
                f"expected {expected.dtype}{list(expected.shape)}"
            )
        leaves.append(jax.random.wrap_key_data(jnp.asarray(found)) if _is_key(leaf) else jnp.asarray(found))
    return jax.tree_util.tree_unflatten(structure, leaves)


def digest(tree: PyTree) -> str:
    """SHA-256 over the names, types, shapes and bits of all leaves: equal digests mean equal weights."""
    hashed = hashlib.sha256()
    for name, array in sorted(to_arrays(tree).items()):
        hashed.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def bitwise_equal(one: PyTree, other: PyTree) -> bool:
    """Whether two trees agree in structure and in every bit (so NaN equals NaN, and -0.0 is not 0.0)."""
    return jax.tree.structure(one) == jax.tree.structure(other) and digest(one) == digest(other)


def num_elements(tree: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def is_finite(tree: PyTree) -> bool:
    """Whether no real number of a tree is infinite or NaN."""
    return all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in to_arrays(tree).values())


def scramble(key: Key, tree: PyTree) -> PyTree:
    """A tree of the same shapes and types with other contents: what must not be read can be replaced by this."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))

    def other(key, leaf):
        if _is_key(leaf):
            return jax.random.split(key, leaf.shape) if leaf.shape else jax.random.fold_in(key, 1)
        leaf = jnp.asarray(leaf)
        if leaf.dtype == jnp.bool_:
            return ~leaf
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return leaf + jax.random.randint(key, leaf.shape, 1, 100).astype(leaf.dtype)
        return leaf + 1 + jax.random.uniform(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(structure, [other(k, leaf) for k, leaf in zip(keys, leaves, strict=False)])
