"""Pytrees as named arrays: digests, bitwise comparison, and replacement of all values."""

import hashlib
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.errors import BadInput
from ontogeny.types import Key, PyTree


def to_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every leaf by its path, e.g. `{"weights.content.bias": ...}`; random keys as their raw data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path_name(path): _as_array(leaf) for path, leaf in leaves}


def from_arrays(template: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The inverse of `to_arrays`.

    Args:
        template: A tree of the same structure, shapes and types; its leaves may be of `jax.ShapeDtypeStruct`.
        arrays: Arrays by path; others than those of the template are ignored.

    Raises:
        BadInput: An array is missing, or its shape or type differs from the template's.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    leaves = []
    for path, leaf in paths:
        name = _path_name(path)
        if name not in arrays:
            raise BadInput(f"the array '{name}' is missing")
        array, like = arrays[name], _array_type(leaf)
        if array.shape != like.shape or array.dtype != like.dtype:
            actual, required = (f"{a.dtype}{list(a.shape)}" for a in (array, like))
            raise BadInput(f"the array '{name}' is {actual}, expected {required}")
        on_device = jax.device_put(np.array(array))  # `jnp.asarray` compiles a program for every shape
        leaves.append(jax.random.wrap_key_data(on_device) if _is_key(leaf) else on_device)
    return jax.tree_util.tree_unflatten(structure, leaves)


def digest(tree: PyTree) -> str:
    """SHA-256 over the paths, types, shapes and bits of all leaves: equal digests mean equal weights."""
    sha256 = hashlib.sha256()
    leaves = {_path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for name in sorted(leaves):  # one array at a time, since a leaf may be in a file
        array = _as_array(leaves[name])
        sha256.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        sha256.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def bitwise_equal(first: PyTree, second: PyTree) -> bool:
    """Whether two trees agree in structure and in every bit (so NaN equals NaN, and -0.0 differs from 0.0)."""
    return jax.tree.structure(first) == jax.tree.structure(second) and digest(first) == digest(second)


def has_same_bits(first: PyTree, second: PyTree) -> jax.Array:
    """Whether two trees of the same structure agree in every bit, [] bool; for compiled functions."""

    def bits(leaf: PyTree) -> jax.Array:
        if _is_key(leaf):
            return jax.random.key_data(leaf)
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return leaf

    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return jnp.all(jnp.stack([jnp.bool_(True), *(jnp.all(bits(a) == bits(b)) for a, b in pairs)]))


def num_elements(tree: PyTree) -> int:
    """The number of elements of all arrays of a tree."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """The number of bytes of all arrays of a tree; its leaves may be of `jax.ShapeDtypeStruct`."""
    types = [_array_type(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in types)


def is_finite(tree: PyTree) -> bool:
    """Whether no floating-point number of a tree is infinite or NaN."""
    return all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in to_arrays(tree).values())


def finite_by_name(tree: PyTree) -> dict[str, jax.Array]:
    """Whether all numbers of each floating-point array are finite, by the path of the array; it can be traced."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    is_float = {_path_name(path): leaf for path, leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)}
    return {name: jnp.all(jnp.isfinite(leaf)) for name, leaf in is_float.items()}


def scramble(key: Key, tree: PyTree) -> PyTree:
    """A tree of the same shapes and types in which every value differs, to replace what must not be read."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [_scramble_leaf(k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


def _scramble_leaf(key: Key, leaf: PyTree) -> jax.Array:
    """One leaf with every value changed."""
    if _is_key(leaf):
        return jax.random.split(key, leaf.shape) if leaf.shape else jax.random.fold_in(key, 1)
    leaf = jnp.asarray(leaf)
    if leaf.dtype == jnp.bool_:
        return ~leaf
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return leaf + jax.random.randint(key, leaf.shape, 1, 100).astype(leaf.dtype)
    return leaf + 1 + jax.random.uniform(key, leaf.shape, leaf.dtype)


def _as_array(leaf: PyTree) -> np.ndarray:
    """A leaf as an array of NumPy; random keys as their raw data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _array_type(leaf: PyTree) -> np.ndarray | jax.ShapeDtypeStruct:
    """A record with shape and type of the array of a leaf."""
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf)


def _is_key(leaf: PyTree) -> bool:
    """Whether a leaf is an array of random keys."""
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _path_name(path: jax.tree_util.KeyPath) -> str:
    """The path of a leaf with dots; "value" for a tree that is one leaf."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"
