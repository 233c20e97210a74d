"""Splitting a computation over the local devices: the one wrapper around `jax.shard_map`."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ontogeny.types import PyTree

AXIS = "devices"  # the mesh axis, for `jax.lax.pmean(tree, AXIS)` inside a sharded function
Tree = TypeVar("Tree")


class ReplicatedProgram:
    """`jax.jit` of a function of which every local device receives all arguments.

    The results of such a function are on all devices. Passed to `jax.jit` as the arguments of the next call, they would
    make it compile a second program, because the arguments of the first call were elsewhere.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Compile nothing yet.

        Args:
            function: Takes and returns trees of arrays.
        """
        self._function = jax.jit(function)

    def __call__(self, *arguments: PyTree) -> Any:
        """The results for these arguments, wherever they are."""
        return self._function(*put_on_devices(arguments))

    def lower(self, *arguments: PyTree) -> Any:
        """The stage before compilation, as of `jax.jit`, of the program that a call with such arguments runs.

        Args:
            *arguments: The arguments, or their shapes.
        """
        sharding = NamedSharding(_local_mesh(None), _partition(None))

        def place(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return self._function.lower(*jax.tree.map(place, arguments))


def shard_over_devices(
    function: Callable[..., Any],
    split_axes: Sequence[int | None],
    *,
    output_axis: int | None = 0,
    num_devices: int | None = None,
) -> Callable[..., Any]:
    """A version of `function` that runs on several local devices, each with its part of the arguments.

    Args:
        function: Takes as many positional arguments as `split_axes` has entries.
        split_axes: For each argument the axis that is split over the devices, the same for every leaf, or None for an
            argument that every device receives whole. The length of a split axis is a multiple of `num_devices`.
        output_axis: The axis along which the devices' outputs are joined, or None where all devices return the same
            (as after `jax.lax.pmean(..., AXIS)`).
        num_devices: The first so many local devices; all by default.

    Returns:
        A function that may be called inside or outside `jax.jit`.
    """
    return jax.shard_map(
        function,
        mesh=_local_mesh(num_devices),
        in_specs=tuple(_partition(axis) for axis in split_axes),
        out_specs=_partition(output_axis),
        check_vma=False,
    )


def put_on_devices(tree: Tree, split_axis: int | None = None, *, num_devices: int | None = None) -> Tree:
    """Places a tree of arrays on the local devices: split along `split_axis`, or whole on every device where None."""
    return jax.device_put(tree, NamedSharding(_local_mesh(num_devices), _partition(split_axis)))


def map_in_batches(function: Callable[..., PyTree], trees: PyTree, batch_size: int) -> PyTree:
    """`function` of each entry along the leading axis, [N, ...] -> [N, ...], at most `batch_size` entries at a time."""
    length = jax.tree.leaves(trees)[0].shape[0]
    return jax.lax.map(function, trees, batch_size=min(batch_size, length))


def map_shards(function: Callable[..., PyTree], shared: Sequence[PyTree], num_shards: int) -> PyTree:
    """`function` of each shard, the shards divided over the local devices.

    Args:
        function: (*shared, index of the shard []) -> tree.
        shared: Arguments that all shards receive.
        num_shards: S.

    Returns:
        The results in the order of the shards, leading axis S, on every device. Where the number of devices does not
        divide S, some devices compute the last shard once more.
    """
    num_devices = jax.local_device_count()
    shards = jnp.minimum(jnp.arange(-(-num_shards // num_devices) * num_devices), num_shards - 1)

    def map_part(shared: Sequence[PyTree], shards: Array) -> PyTree:
        return jax.lax.map(lambda shard: function(*shared, shard), shards)

    mapped = shard_over_devices(map_part, (None, 0))(tuple(shared), shards)
    gathered = jax.lax.with_sharding_constraint(mapped, NamedSharding(_local_mesh(None), _partition(None)))
    # The barrier keeps the compiler from fusing the sums of a caller with this computation, on one device only.
    return jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf[:num_shards], gathered))


def _local_mesh(num_devices: int | None) -> Mesh:
    """The mesh of the first `num_devices` local devices, or of all."""
    return Mesh(np.array(jax.local_devices()[:num_devices]), (AXIS,))


def _partition(axis: int | None) -> PartitionSpec:
    """The partition of one argument along an axis, or of none."""
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
