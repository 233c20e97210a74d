"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): small additions to the matrices of a transformer's blocks.

Fine-tuning and online learning change them in place of the weights. They add the products of the factors to the weights
(`add_adapters`). The kernels instead generate text with weights and factors (`AdaptedWeights`), so that requests with
different adapters of the same weights share a step. Both are the same function up to rounding. Letters: I inputs, O
outputs of a matrix, r rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.content.transformer_block import BlockWeights, Linear
from ontogeny.errors import BadInput

AdapterTree = tuple[dict[str, "Adapter"], ...]  # one dictionary per block


class Adapter(NamedTuple):
    """A low-rank addition to one matrix, `down @ up`, zero at first."""

    down: Float[Array, "I r"]
    up: Float[Array, "r O"]


def check_rank(model_config: TransformerConfig, rank: int) -> None:
    """Raise `BadInput` where a rank is larger than a dimension of a matrix, whose changes could all have that rank."""
    dimension = min(model_config.width, model_config.num_heads * model_config.size_of_head, model_config.mlp_width)
    if rank > dimension:
        raise BadInput(
            f"an adapter of rank {rank:,} is larger than the smallest dimension of the model's matrices, {dimension:,}"
        )


class AdaptedWeights(NamedTuple):
    """The weights of a model and, apart from them, the adapter that belongs to them; None for weights alone."""

    weights: TransformerWeights
    adapter: AdapterTree | None = None

    def merge(self) -> TransformerWeights:
        """Returns weights that need no adapter, which are computed anew by each call."""
        return self.weights if self.adapter is None else merge_adapters(self.weights, self.adapter)


def init_adapters(model_config: TransformerConfig, weights: TransformerWeights, rank: int) -> AdapterTree:
    """Adapters of every matrix of every block that add nothing yet; sampled with a fixed key."""
    names = [name for name, part in weights.blocks[0]._asdict().items() if isinstance(part, Linear)]
    keys = iter(jax.random.split(jax.random.key(0), len(names) * model_config.num_layers))

    def init(linear: Linear) -> Adapter:
        inputs, outputs = linear.weight.shape
        down = jax.random.normal(next(keys), (inputs, rank)) / jnp.sqrt(inputs)
        return Adapter(down, jnp.zeros((rank, outputs)))

    return tuple({name: init(getattr(layer, name)) for name in names} for layer in weights.blocks)


def make_sample_adapters(weights: TransformerWeights) -> AdapterTree:
    """Adapters of rank 1 that change what any weights compute, for a test of the machine."""

    def fill(linear: Linear) -> Adapter:
        inputs, outputs = linear.weight.shape
        return Adapter(jnp.linspace(-1, 1, inputs)[:, None] / jnp.sqrt(inputs), jnp.full((1, outputs), 0.5))

    return tuple(
        {name: fill(part) for name, part in layer._asdict().items() if isinstance(part, Linear)}
        for layer in weights.blocks
    )


def add_adapters(weights: TransformerWeights, adapters: AdapterTree) -> TransformerWeights:
    """The weights with the products of their adapters added."""

    def add(layer: BlockWeights, parts: dict[str, Adapter]) -> BlockWeights:
        changed = {}
        for name, adapter in parts.items():
            linear = getattr(layer, name)
            changed[name] = linear._replace(weight=linear.weight + adapter.down @ adapter.up)
        return layer._replace(**changed)

    return weights._replace(
        blocks=tuple(add(layer, parts) for layer, parts in zip(weights.blocks, adapters, strict=True))
    )


merge_adapters = jax.jit(add_adapters)
