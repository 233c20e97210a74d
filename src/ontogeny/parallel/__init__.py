"""Computation on several devices, processes and machines.

`devices` splits one compiled computation over the devices of this process. `drivers` runs deterministic tasks in this
process, in a pool of processes, or on a Ray cluster. A worker sets the number of XLA's threads before it imports JAX;
this module therefore imports `devices` only when one of its names is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ontogeny.parallel.devices import (
        AXIS,
        ReplicatedProgram,
        map_in_batches,
        map_shards,
        put_on_devices,
        shard_over_devices,
    )

__all__ = ["AXIS", "ReplicatedProgram", "map_in_batches", "map_shards", "put_on_devices", "shard_over_devices"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ontogeny.parallel' has no attribute '{name}'")
    from ontogeny.parallel import devices

    return getattr(devices, name)
