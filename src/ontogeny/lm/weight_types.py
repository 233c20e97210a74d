"""The type in which the weights of a loaded model are kept in memory, and whether they fit into it.

Where the kernels of `ontogeny.kernels` compute, the weights of a model that only generates and scores text stay in
their files, and the packed copy of the kernels is the only one in memory. Everything else needs float32 arrays of JAX.
"""

import hashlib
import json

import jax
import numpy as np

from ontogeny import kernels, memory, trees
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput, require_one_of
from ontogeny.kernels import packing
from ontogeny.kernels.layout import WEIGHT_TYPES
from ontogeny.runs.stored_arrays import StoredArray

AS_IN_FILE = "auto"  # the choice of the type that the file has
CHOICES = (AS_IN_FILE, *WEIGHT_TYPES)
LOADING_SHARE = 1.1  # of the memory of the weights, for the array that is being read


def choose(choice: str | None) -> str | None:
    """Check a choice of the type.

    Args:
        choice: One of `CHOICES`, or None for float32 arrays of JAX.

    Returns:
        The choice; None where the kernels do not compute, so that arrays of JAX are needed.

    Raises:
        BadInput: There is no such type, or only the kernels have it and they do not compute.
    """
    if choice is None:
        return None
    require_one_of(CHOICES, weights=choice)
    if kernels.is_active():
        return choice
    if choice in (AS_IN_FILE, "float32"):
        return None
    raise BadInput(
        f"weights in {choice} need the kernels of a processor, which are not active: install the extra `fast`, compute "
        f"on the processor, and do not set {kernels.ENVIRONMENT_VARIABLE}=0"
    )


def is_stored(weights: TransformerWeights) -> bool:
    """Whether weights are in files, so that only the kernels can compute with them."""
    return isinstance(weights.embedding, StoredArray)


def load_packed(name: str, config: TransformerConfig, weights: TransformerWeights) -> TransformerWeights:
    """Pack stored weights for the kernels, and return them.

    Args:
        name: Of the folder, for messages.
        config: Config of the weights.
        weights: Stored ones.

    Raises:
        BadInput: The packed weights do not fit into the memory, or a file is damaged.
    """
    weight_type = packing.weight_type_of(weights)
    _require_memory(name, packing.predict_num_bytes(config, weights, weight_type), weight_type)
    packing.pack(config, weights)
    return weights


def load_arrays(name: str, weights: TransformerWeights) -> TransformerWeights:
    """Read stored weights into float32 arrays of JAX.

    Args:
        name: Of the folder, for messages.
        weights: Stored ones.

    Raises:
        BadInput: The arrays do not fit into the memory, or a file is damaged.
    """
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(weights)]
    _require_memory(name, 4 * sum(sizes), "float32")
    return jax.tree.map(lambda leaf: jax.device_put(np.ascontiguousarray(leaf, np.float32)), weights)


def digest(weights: TransformerWeights) -> str:
    """SHA-256 of weights; of stored ones also of the type in which they are kept, unless it is that of the file."""
    of_arrays, weight_type = trees.digest(weights), packing.weight_type_of(weights)
    if not is_stored(weights) or weight_type == str(weights.embedding.dtype):
        return of_arrays
    return hashlib.sha256(json.dumps([of_arrays, weight_type]).encode()).hexdigest()


def checksum(config: TransformerConfig, weights: TransformerWeights) -> str:
    """SHA-256 of the weights that are in memory: of stored ones, those that the kernels have packed."""
    return packing.pack(config, weights).checksum() if is_stored(weights) else trees.digest(weights)


def _require_memory(name: str, num_bytes: int, weight_type: str) -> None:
    """Refuses weights that need more memory than is available."""
    needed, available = int(LOADING_SHARE * num_bytes), memory.available_bytes()
    if available is not None and needed > available:
        raise BadInput(
            f"the model in '{name}' needs {memory.format_bytes(needed)} of memory with weights in {weight_type}, and "
            f"only {memory.format_bytes(available)} are available"
        )
