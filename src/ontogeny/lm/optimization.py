"""Training steps of a language model: AdamW or Muon, warm-up and decay, gradient accumulation, sharding over devices.

The optimizers are those of `content.optimizers`. Weight decay is for matrices alone. Muon trains the matrices of the
blocks; embeddings, positions, norms and biases are trained by AdamW under Muon too. Letters: S steps, A accumulated
batches, B windows of a batch, T predicted tokens of a window.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int32
from jaxtyping import Key as KeyArray
from pydantic import Field

from ontogeny import parallel
from ontogeny.content import transformer
from ontogeny.content.optimizers import apply_gradient, build_optimizer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.content.transformer_block import Dropout
from ontogeny.lm.adapters import add_adapters, init_adapters
from ontogeny.parallel import AXIS, shard_over_devices
from ontogeny.types import Key, PyTree, Weights
from ontogeny.validation import FrozenModel

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # in XLA_FLAGS: a host device's products stay on its own thread
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

DROPOUT_STREAM = 0x64726F70  # folded into the seed's key, so that dropout and initial weights share no number

Batches = tuple[Array, Array | None]  # tokens and, with dropout, one key per window
LossAndGradient = Callable[[PyTree, Batches], tuple[Array, PyTree]]
TrainStep = Callable[[Weights, Batches], tuple[Weights, dict[str, Array]]]


class OptimizerConfig(FrozenModel):
    """Everything that determines the training of given weights on given tokens.

    Attributes:
        num_steps: Steps of the whole training.
        batch_size: Windows whose gradients are computed together.
        gradient_accumulation: Batches whose gradients are averaged before the weights change.
        optimizer: The update rule.
        learning_rate: The highest one, after warm-up.
        final_learning_rate_ratio: The last learning rate divided by the highest one.
        warmup_fraction: Share of the steps in which the learning rate rises linearly.
        decay_schedule: How it falls afterwards.
        weight_decay: Of matrices, as a share of the learning rate.
        beta2: Decay of the second moment.
        max_gradient_norm: Larger gradients are scaled down to this norm.
        precision: Type of matrix products; weights and moments are float32.
        dropout: Share of the embeddings, attention weights and additions to the residual stream that is zero.
        adapter_rank: Rank of the adapters that are trained in place of the weights; 0 trains the weights.
    """

    num_steps: int = Field(ge=1)
    batch_size: int = Field(default=12, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    final_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    decay_schedule: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    beta2: float = Field(default=0.99, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    adapter_rank: int = Field(default=0, ge=0)


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """The learning rate by step: linear warm-up, then half a cosine or a line down to the final learning rate."""
    num_warmup = round(config.warmup_fraction * config.num_steps)
    num_decay = max(config.num_steps - num_warmup, 1)
    rate, ratio = config.learning_rate, config.final_learning_rate_ratio
    if config.decay_schedule == "cosine":
        decay = optax.cosine_decay_schedule(rate, num_decay, ratio)
    else:
        decay = optax.linear_schedule(rate, ratio * rate, num_decay)
    warmup = optax.linear_schedule(rate / max(num_warmup, 1), rate, max(num_warmup - 1, 1))
    return optax.join_schedules([warmup, decay], [num_warmup]) if num_warmup else decay


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer of a training."""
    return build_optimizer(
        make_schedule(config),
        config.optimizer,
        max_gradient_norm=config.max_gradient_norm,
        beta2=config.beta2,
        weight_decay=config.weight_decay,
        decays=_is_matrix,
        uses_muon=_is_layer_matrix,
    )


def count_shards(config: OptimizerConfig) -> int:
    """How many host devices share a batch: several only where each has a thread of its own (`ONE_THREAD`).

    Devices that share the CPU's threads may wait for each other forever. Muon multiplies weights, which every device
    would compute anew; with Muon one device uses all threads.
    """
    has_own_threads = jax.default_backend() == "cpu" and ONE_THREAD in os.environ.get("XLA_FLAGS", "")
    if config.optimizer != "adamw" or not has_own_threads:
        return 1
    return max(n for n in range(1, jax.local_device_count() + 1) if config.batch_size % n == 0)


def init_training(
    key: Key, model_config: TransformerConfig, config: OptimizerConfig, base: TransformerWeights | None = None
) -> Weights:
    """Choose the content before the first step; the optimizer's state is its scratch.

    Args:
        key: Of random weights, or of random adapters.
        config: Of the training.
        base: The weights to begin with, or to which adapters are added; None for random ones.
    """
    content: PyTree
    if config.adapter_rank:
        assert base is not None
        content = init_adapters(model_config, base, config.adapter_rank)
    else:
        content = transformer.init_weights(key, model_config) if base is None else base
    return Weights(content, make_optimizer(config).init(content))


def full_weights(config: OptimizerConfig, base: TransformerWeights | None, content: PyTree) -> TransformerWeights:
    """The weights of the model that is trained: the content, or its adapters added to the base."""
    return content if base is None or not config.adapter_rank else add_adapters(base, content)


def sample_dropout_keys(
    config: OptimizerConfig, key: Key, first_step: int, num_steps: int
) -> KeyArray[Array, "S A B"] | None:
    """Sample the keys of the windows of consecutive steps; None without dropout.

    Args:
        config: Of the training.
        key: Of the seed. A step's keys depend on it and on the number of the step alone.
        first_step: The number of the first step.
        num_steps: S.
    """
    if not config.dropout:
        return None
    stream = jax.random.fold_in(key, DROPOUT_STREAM)
    steps = jax.vmap(jax.random.fold_in, (None, 0))(stream, np.arange(first_step, first_step + num_steps))
    shape = config.gradient_accumulation, config.batch_size
    return jax.vmap(lambda step: jax.random.split(step, shape))(steps)


def make_train_step(
    model_config: TransformerConfig,
    config: OptimizerConfig,
    num_shards: int = 1,
    base: TransformerWeights | None = None,
) -> TrainStep:
    """Build one training step.

    Args:
        config: Of the training.
        num_shards: Host devices, each of which takes a part of the batch; their gradients are averaged.
        base: The weights to which adapters are added; None where the weights are trained.

    Returns:
        A function of weights and batches, tokens [A, B, T + 1] with keys [A, B] or None, that returns the new weights
        and `loss` (nats per token) and `gradient_norm`.
    """
    optimizer, dtype = make_optimizer(config), DTYPES[config.precision]

    def loss_and_gradient(content: PyTree, batches: Batches, base: TransformerWeights | None) -> tuple[Array, PyTree]:
        def loss(content: PyTree, batch: Batches) -> Array:
            weights, dropout = full_weights(config, base, content), Dropout(config.dropout, batch[1])
            return transformer.token_losses(model_config, weights, batch[0], dtype, dropout).mean()

        if config.gradient_accumulation == 1:
            return jax.value_and_grad(loss)(content, _batch(batches, 0))
        return _accumulate(jax.value_and_grad(loss), content, batches)

    def sharded(content: PyTree, batches: Batches, base: TransformerWeights | None) -> tuple[Array, PyTree]:
        return jax.lax.pmean(loss_and_gradient(content, batches, base), AXIS)

    compute: Any = loss_and_gradient
    if num_shards > 1:
        compute = shard_over_devices(sharded, (None, 1, None), output_axis=None, num_devices=num_shards)

    def step(weights: Weights, batches: Batches) -> tuple[Weights, dict[str, Array]]:
        value, gradient = compute(weights.content, batches, base)
        info = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
        return apply_gradient(optimizer, gradient, weights), info

    return step


@partial(jax.jit, static_argnums=(0, 1), static_argnames="num_shards", donate_argnums=2)
def take_steps(
    model_config: TransformerConfig,
    config: OptimizerConfig,
    weights: Weights,
    tokens: Int32[Array, "S A B T"],
    *,
    keys: KeyArray[Array, "S A B"] | None = None,
    base: TransformerWeights | None = None,
    num_shards: int = 1,
) -> tuple[Weights, dict[str, Float[Array, "S"]]]:
    """Take S training steps in one compiled call; see `make_train_step` and `sample_dropout_keys`."""
    return jax.lax.scan(make_train_step(model_config, config, num_shards, base), weights, (tokens, keys))


@partial(jax.jit, static_argnums=(0, 1), static_argnames="num_shards")
def window_losses(
    model_config: TransformerConfig,
    precision: str,
    content: TransformerWeights,
    windows: Int32[Array, "N T1"],
    *,
    num_shards: int = 1,
) -> Float[Array, "N T"]:
    """Compute the loss of every token of windows but the first, in nats.

    Args:
        precision: A key of `DTYPES`.
        content: The weights of the model.
        windows: [N, T + 1]; N is a multiple of `num_shards`.
        num_shards: Host devices that share the windows.
    """

    def losses(content: TransformerWeights, windows: Array) -> Array:
        return transformer.token_losses(model_config, content, windows, DTYPES[precision])

    if num_shards > 1:
        losses = shard_over_devices(losses, (None, 0), num_devices=num_shards)
    return losses(content, windows)


def put_on_shards(weights: PyTree, num_shards: int) -> PyTree:
    """Copy a tree to every device that shares a batch, where `take_steps` returns them as well."""
    return weights if num_shards == 1 else parallel.put_on_devices(weights, num_devices=num_shards)


def _batch(batches: Batches, index: int) -> Batches:
    """One of the accumulated batches."""
    tokens, keys = batches
    return tokens[index], None if keys is None else keys[index]


def _accumulate(compute: LossAndGradient, content: PyTree, batches: Batches) -> tuple[Array, PyTree]:
    """The mean loss and gradient over the first axis of the batches, one batch at a time."""

    def add(total: PyTree, batch: Batches) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, compute(content, batch)), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, content))
    total, _ = jax.lax.scan(add, zero, batches)
    return jax.tree.map(lambda leaf: leaf / len(batches[0]), total)


def _is_matrix(weights: PyTree) -> PyTree:
    """Which leaves are matrices, as a tree of truth values."""
    return jax.tree.map(lambda leaf: leaf.ndim == 2, weights)


def _is_layer_matrix(weights: TransformerWeights) -> PyTree:
    """Which leaves are matrices of blocks, as a tree of truth values."""
    no_weights = jax.tree.map(lambda leaf: False, weights)
    return no_weights._replace(blocks=_is_matrix(weights.blocks))
