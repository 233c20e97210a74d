"""How weights are trained: AdamW or Muon, warm-up and decay, clipping; many steps in one dispatch.

AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101. Muon: Jordan et al. 2024, for the matrices of the blocks, with the
step scaled to AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Weights

OPTIMIZERS = ("adamw", "muon")
ROWS = "rows"  # of a batch
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # in XLA_FLAGS: a host device's products stay on its own thread
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class OptimizerConfig(NamedTuple):
    """All that decides about a training but text, model and seed."""

    steps: int
    batch: int = 12  # windows in one product
    accumulate: int = 1  # such products before the weights change
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    floor: float = 0.1  # of the learning rate, at the end
    warmup: float = 0.05  # share of the steps
    decay: str = "cosine"
    weight_decay: float = 0.1
    beta: float = 0.99  # of the second moment
    clip: float = 1.0  # of the gradient's norm
    precision: str = "float32"  # of products; weights and moments are float32


Step = Callable[[Weights, Array], tuple[Weights, dict[str, Array]]]


def checked(recipe: OptimizerConfig) -> OptimizerConfig:
    """The recipe itself; `BadInput` where nothing could be trained by it."""
    require_at_least(1, steps=recipe.steps, batch=recipe.batch, accumulate=recipe.accumulate)
    require_at_least(0, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    if not recipe.clip > 0:
        raise BadInput(f"the setting 'clip' must be above 0, not {recipe.clip}")
    for name in ("floor", "warmup", "beta"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise BadInput(f"the setting '{name}' lies between 0 and 1, not {getattr(recipe, name)}")
    for name, known in (
        ("optimizer", OPTIMIZERS),
        ("decay", ("cosine", "linear")),
        ("precision", tuple(PRECISIONS)),
    ):
        if getattr(recipe, name) not in known:
            raise BadInput(f"the setting '{name}' must be one of {', '.join(known)}, not '{getattr(recipe, name)}'")
    return recipe


def schedule(recipe: OptimizerConfig) -> optax.Schedule:
    """The learning rate by step: a line up from 0, then a cosine's half or a line down to `floor` of it."""
    warm = round(recipe.warmup * recipe.steps)
    rest = max(recipe.steps - warm, 1)
    if recipe.decay == "cosine":
        down = optax.cosine_decay_schedule(recipe.learning_rate, rest, recipe.floor)
    else:
        down = optax.linear_schedule(recipe.learning_rate, recipe.floor * recipe.learning_rate, rest)
    up = optax.linear_schedule(recipe.learning_rate / max(warm, 1), recipe.learning_rate, max(warm - 1, 1))
    return optax.join_schedules([up, down], [warm]) if warm else down


def optimizer(recipe: OptimizerConfig) -> optax.GradientTransformation:
    """Weight decay is for matrices alone; embeddings, positions, norms and biases are AdamW's under Muon too."""
    rate = schedule(recipe)
    adam = optax.adamw(rate, b2=recipe.beta, weight_decay=recipe.weight_decay, mask=_is_matrix)
    if recipe.optimizer == "muon":
        muon = optax.contrib.muon(rate, weight_decay=recipe.weight_decay, consistent_rms=0.2)
        adam = optax.partition({"muon": muon, "adam": adam}, _of_blocks)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), adam)


def shards(recipe: OptimizerConfig) -> int:
    """How many host devices share a batch: more than one only where each has a thread of its own (`ONE_THREAD`).

    Devices that share the processor's threads can wait for each other without end. Muon multiplies weights, which
    every device would compute anew: with it one device has all threads.
    """
    if (
        recipe.optimizer != "adamw"
        or jax.default_backend() != "cpu"
        or ONE_THREAD not in os.environ.get("XLA_FLAGS", "")
    ):
        return 1
    return max(n for n in range(1, jax.local_device_count() + 1) if recipe.batch % n == 0)


def step(config: TransformerConfig, recipe: OptimizerConfig, shards: int = 1) -> Step:
    """One step, (weights, tokens [accumulate, batch, T + 1]) -> weights, {loss, norm}: the world model's `update`.

    Each of the `shards` host devices takes a part of the batch; their gradients are averaged.
    """
    transformation, compute = optimizer(recipe), PRECISIONS[recipe.precision]

    def loss(content: TransformerWeights, tokens: Array) -> Array:
        return transformer.token_losses(config, content, tokens, compute).mean()

    def gradient_of(content: TransformerWeights, tokens: Array) -> tuple[Array, Any]:
        if recipe.accumulate == 1:
            return jax.value_and_grad(loss)(content, tokens[0])
        return _accumulated(loss, content, tokens)

    def averaged(content: TransformerWeights, tokens: Array) -> tuple[Array, Any]:
        return jax.lax.pmean(gradient_of(content, tokens), ROWS)

    whole, part = PartitionSpec(), PartitionSpec(None, ROWS)
    divided = (
        gradient_of
        if shards == 1
        else jax.shard_map(averaged, mesh=_mesh(shards), in_specs=(whole, part), out_specs=whole, check_vma=False)
    )

    def take(weights: Weights, tokens: Array) -> tuple[Weights, dict[str, Array]]:
        value, gradient = divided(weights.content, tokens)
        content: Any = weights.content
        change, scratch = transformation.update(gradient, weights.scratch, content)
        return Weights(optax.apply_updates(content, change), scratch), {
            "loss": value,
            "norm": optax.tree.norm(gradient),
        }

    return take


def born(key: Array, config: TransformerConfig, recipe: OptimizerConfig) -> Weights:
    """New weights with the optimizer's moments as scratch."""
    content: Any = transformer.init_weights(key, config)
    return Weights(content, optimizer(recipe).init(content))


@partial(jax.jit, static_argnums=(0, 1), static_argnames="shards", donate_argnums=2)
def take_steps(
    config: TransformerConfig, recipe: OptimizerConfig, weights: Weights, tokens: Array, *, shards: int = 1
) -> tuple[Weights, dict[str, Array]]:
    """As many steps as `tokens` [S, accumulate, batch, T + 1] has, in one dispatch; info [S] each."""
    return jax.lax.scan(step(config, recipe, shards), weights, tokens)


@partial(jax.jit, static_argnums=(0, 1), static_argnames="shards")
def losses(config: TransformerConfig, precision: str, content: TransformerWeights, tokens: Array, *, shards: int = 1) -> Array:
    """Nats per token, [N, T], of windows [N, T + 1]; N is a multiple of `shards`."""

    def part(content: TransformerWeights, tokens: Array) -> Array:
        return transformer.token_losses(config, content, tokens, PRECISIONS[precision])

    if shards == 1:
        return part(content, tokens)
    rows = PartitionSpec(ROWS)
    divided = jax.shard_map(part, mesh=_mesh(shards), in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False)
    return divided(content, tokens)


def placed(weights: Weights, shards: int) -> Weights:
    """The weights on every device that shares a batch, where `take_steps` leaves them as well."""
    return weights if shards == 1 else jax.device_put(weights, NamedSharding(_mesh(shards), PartitionSpec()))


def _mesh(shards: int) -> Mesh:
    return Mesh(np.array(jax.local_devices()[:shards]), (ROWS,))


def _accumulated(loss: Callable[[TransformerWeights, Array], Array], content: TransformerWeights, tokens: Array) -> tuple[Any, Any]:
    """The mean loss and gradient over the first axis, one product at a time."""

    def add(total: Any, each: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(content, each)), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, content))
    total, _ = jax.lax.scan(add, zero, tokens)
    return jax.tree.map(lambda leaf: leaf / len(tokens), total)


def _is_matrix(weights: TransformerWeights) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim == 2, weights)


def _of_blocks(weights: TransformerWeights) -> Any:
    """Which optimizer each weight is trained by."""
    labels = jax.tree.map(lambda leaf: "adam", weights)
    return labels._replace(blocks=jax.tree.map(lambda leaf: "muon" if leaf.ndim == 2 else "adam", weights.blocks))
