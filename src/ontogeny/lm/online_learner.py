"""Online learning of a language model: one gradient step per chunk of text, with measures against forgetting.

Dynamic evaluation: Mikolov et al. 2010; Krause et al. 2018 (arXiv 1709.07432), whose decay toward the trained weights
and division by the root mean square of the training gradient are here `decay_rate` and the optimizer `rms`;
Rannen-Triki et al. 2024 (arXiv 2403.01518) for Adam. Against forgetting: rehearsal, that is, windows of the training
text that are learned again beside each chunk (Robins 1995); a decay that is stronger for weights with larger gradients
on that text, the diagonal Fisher information (Kirkpatrick et al. 2017); low-rank adapters (Hu et al. 2021, arXiv
2106.09685).

A step is a function of weights and tokens alone: equal chunks in equal order give bitwise equal weights. Nothing here
knows streams, files or servers. Letters: C context length, B rehearsal windows, r rank of an adapter.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int32
from pydantic import Field, model_validator

from ontogeny import plugins
from ontogeny.content import transformer
from ontogeny.content.optimizers import apply_gradient, build_optimizer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm.adapters import add_adapters, check_rank, init_adapters
from ontogeny.types import PyTree, Weights
from ontogeny.validation import FrozenModel, validate

MAX_RELATIVE_FISHER = 100.0  # times the mean, beyond which the Fisher information strengthens the decay no further
RMS_DAMPING = 1e-3  # of a leaf's root mean square, added to the divisor of `rms`


class OnlineConfig(FrozenModel):
    """How weights change in deployment; the default values are those of the documentation.

    Attributes:
        chunk_size: Tokens that are scored and then learned from.
        optimizer: Adam, SGD, or `rms`: SGD on gradients divided by their root mean square on the training text.
        learning_rate: Step size.
        decay_rate: Share of the way back to the trained weights that each step takes.
        fisher_decay: Whether the decay is distributed over the weights by their Fisher information.
        rehearsal_batch_size: Windows of the training text that are learned again beside each chunk.
        rehearsal_weight: Of their mean loss; the weight of the chunk's loss is 1.
        adapter_rank: Rank of the adapters that change instead of the weights; 0 changes all weights.
        max_gradient_norm: Larger gradients are scaled down to this norm.
    """

    chunk_size: int = Field(default=32, ge=1)
    optimizer: Literal["adam", "rms", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    decay_rate: float = Field(default=0.0, ge=0, lt=1)
    fisher_decay: bool = False
    rehearsal_batch_size: int = Field(default=8, ge=0)
    rehearsal_weight: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    adapter_rank: int = Field(default=0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)

    @property
    def needs_squared_gradients(self) -> bool:
        """Whether a step reads the squared gradients on the training text."""
        return self.fisher_decay or self.optimizer == "rms"

    @model_validator(mode="after")
    def _check_adapter(self) -> "OnlineConfig":
        """Adapters exclude the settings that read squared gradients of the training."""
        if self.adapter_rank and self.needs_squared_gradients:
            raise ValueError(
                "must not combine adapter_rank with fisher_decay or rms: adapters have no training gradient"
            )
        return self


class PretrainedWeights(NamedTuple):
    """The trained weights, and the mean squared gradient of each on the training text (None where not needed)."""

    weights: TransformerWeights
    squared_gradients: TransformerWeights | None


class OnlineLearner(NamedTuple):
    """Pure functions of one model config and one online config.

    Attributes:
        init: Pretrained weights -> the initial state: content (weights or adapters) and the optimizer's scratch.
        full_weights: Pretrained weights and content -> the weights that score and generate text.
        update: Pretrained weights, state, window [C + 1], number of predictions in the window, and rehearsal windows
            [B, C + 1] -> the state after one step on the chunk that ends the window, and nats [C] before the step.
    """

    init: Callable[[PretrainedWeights], Weights]
    full_weights: Callable[[PretrainedWeights, PyTree], TransformerWeights]
    update: Callable[[PretrainedWeights, Weights, Array, Array, Array], tuple[Weights, Array]]


def parse_config(text: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> OnlineConfig:
    """Parse settings such as `chunk_size=32,decay_rate=0.01`.

    Args:
        text: The settings.
        defaults: Values of settings that the text does not name, where they differ from those of `OnlineConfig`.

    Raises:
        BadInput: A setting is unknown or out of its range.
    """
    return validate(OnlineConfig, dict(defaults) | plugins.parse(f":{text}")[1], "learning", "setting")


def check_config(config: OnlineConfig, model_config: TransformerConfig) -> None:
    """Raise `BadInput` where a chunk is longer than a model's context, or adapters have a rank that no matrix has."""
    context_length = model_config.context_length
    if config.chunk_size > context_length:
        raise BadInput(f"a chunk of {config.chunk_size} tokens is longer than the model's context of {context_length}")
    check_rank(model_config, config.adapter_rank)


def build(model_config: TransformerConfig, config: OnlineConfig) -> OnlineLearner:
    """Build the learner of all models of one config.

    Raises:
        BadInput: A chunk is longer than the model's context, or the rank of the adapters too large.
    """
    check_config(config, model_config)
    optimizer = _make_optimizer(config)
    initial_content = partial(_initial_content, model_config, config)

    def init(pretrained: PretrainedWeights) -> Weights:
        content = initial_content(pretrained)
        return Weights(content, optimizer.init(content))

    def full_weights(pretrained: PretrainedWeights, content: PyTree) -> TransformerWeights:
        return add_adapters(pretrained.weights, content) if config.adapter_rank else content

    def update(
        pretrained: PretrainedWeights,
        state: Weights,
        window: Int32[Array, "_"],
        num_read: Array,
        rehearsal: Int32[Array, "B _"],
    ) -> tuple[Weights, Float[Array, "C"]]:
        def loss(content: PyTree) -> tuple[Array, Array]:
            weights = full_weights(pretrained, content)
            windows = jnp.concatenate([window[None], rehearsal]) if config.rehearsal_batch_size else window[None]
            nats = transformer.token_losses(model_config, weights, windows)
            rehearsed = config.rehearsal_weight * nats[1:].mean() if config.rehearsal_batch_size else 0.0
            return chunk_loss(nats[0], num_read, config.chunk_size) + rehearsed, nats[0]

        gradient, nats = jax.grad(loss, has_aux=True)(state.content)
        if config.optimizer == "rms":
            gradient = jax.tree.map(_divide_by_rms, gradient, pretrained.squared_gradients)
        state = apply_gradient(optimizer, gradient, state)
        if config.decay_rate:
            origin = initial_content(pretrained)
            state = state._replace(content=_decay(config, state.content, origin, pretrained.squared_gradients))
        return state, nats

    return OnlineLearner(init, full_weights, update)


def chunk_loss(nats: Float[Array, "C"], num_read: Array, chunk_size: int) -> Array:
    """Average the last `chunk_size` of the first `num_read` losses, or all of them where there are fewer."""
    position = jnp.arange(nats.shape[0])
    chosen = (position < num_read) & (position >= num_read - chunk_size)
    return jnp.sum(jnp.where(chosen, nats, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)


def mean_squared_gradients(
    model_config: TransformerConfig, weights: TransformerWeights, windows: Int32[np.ndarray, "N C+1"]
) -> TransformerWeights:
    """Average the squared gradient of each weight over windows: the diagonal of the empirical Fisher information."""

    @jax.jit
    def average(windows: Array) -> TransformerWeights:
        def add(total: TransformerWeights, window: Array) -> tuple[TransformerWeights, None]:
            gradient = jax.grad(lambda w: transformer.token_losses(model_config, w, window[None]).mean())(weights)
            return jax.tree.map(lambda t, g: t + g * g, total, gradient), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), windows)
        return jax.tree.map(lambda leaf: leaf / len(windows), total)

    return average(jnp.asarray(windows))


def _make_optimizer(config: OnlineConfig) -> optax.GradientTransformation:
    """The optimizer of a config; `rms` is SGD on divided gradients."""
    name = "sgd" if config.optimizer == "rms" else config.optimizer
    return build_optimizer(config.learning_rate, name, max_gradient_norm=config.max_gradient_norm)


def _initial_content(model_config: TransformerConfig, config: OnlineConfig, pretrained: PretrainedWeights) -> Any:
    """The content before the first step: the pretrained weights, or adapters that add nothing."""
    if config.adapter_rank:
        return init_adapters(model_config, pretrained.weights, config.adapter_rank)
    return pretrained.weights


def _divide_by_rms(gradient: Array, squares: Array) -> Array:
    """A gradient divided by the root mean square of the training gradient."""
    return gradient / (jnp.sqrt(squares) + RMS_DAMPING * jnp.sqrt(jnp.mean(squares)))


def _decay(config: OnlineConfig, content: PyTree, origin: PyTree, squares: TransformerWeights | None) -> PyTree:
    """Move the content toward its origin."""
    if not config.fisher_decay:
        return jax.tree.map(lambda current, start: current + config.decay_rate * (start - current), content, origin)
    leaves = jax.tree.leaves(squares)
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)

    def decay(current: Array, start: Array, square: Array) -> Array:
        share = jnp.minimum(config.decay_rate * jnp.minimum(square / mean, MAX_RELATIVE_FISHER), 1.0)
        return current + share * (start - current)

    return jax.tree.map(decay, content, origin, squares)
