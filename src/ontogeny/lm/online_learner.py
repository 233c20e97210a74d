"""How a trained model goes on learning from what it reads: one gradient step per block, without leaving what it was.

Dynamic evaluation: Mikolov et al. 2010; Krause et al. 2018 (arXiv 1709.07432), whose decay towards the trained weights
and division by the training gradient's root mean square are here as `decay` and `rms`; Rannen-Triki et al. 2024 (arXiv
2403.01518), from which Adam is. Against forgetting besides: windows of the training text learned again beside each
block (rehearsal; Robins 1995), anchors that hold a weight the more the larger its gradients were on that text (the
diagonal Fisher information of Kirkpatrick et al. 2017), low-rank adapters (Hu et al. 2021, arXiv 2106.09685).

A step is a function of weights and tokens alone: the same blocks in the same order end in the same bits. C context,
K tokens of a block, B windows of rehearsal. Knows nothing of streams, files or servers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import plugins
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.content.transformer_block import BlockWeights, Linear
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Weights

OPTIMIZERS = ("adam", "rms", "sgd")
ADAPTED = ("attn_qkv", "out_proj", "up", "down")
STIFFEST = 100.0  # times the mean, the most that an anchor holds a weight


class OnlineConfig(NamedTuple):
    """How weights change in use; the defaults are those of `docs/language.md`."""

    chunk_size: int = 32  # tokens that are scored, and then learned from
    optimizer: str = "adam"
    learning_rate: float = 1e-4
    decay: float = 0.0  # of the way back to the trained weights, at each step
    fisher_anchor: bool = False  # whether that way back is divided up by the Fisher information
    rehearsal_batch_size: int = 8  # windows of the training text beside each block
    rehearsal_weight: float = 4.0  # of their mean loss, where the block's has 1
    adapter_rank: int = 0  # rank of what may change; 0: all weights
    max_gradient_norm: float = 1.0  # of the gradient's norm


class Adapter(NamedTuple):
    """What is added to one matrix: `down @ up`, nothing at first."""

    down: Float[Array, "I r"]
    up: Float[Array, "r O"]


class PretrainedWeights(NamedTuple):
    """What a learner starts from and may look back to."""

    weights: TransformerWeights
    squared_gradients: TransformerWeights | None  # mean squared gradient of each weight on the training text


class Learner(NamedTuple):
    """Pure functions; `content` is all that changes and that scoring reads, `scratch` the optimizer's moments."""

    init: Callable[[PretrainedWeights], Weights]
    model: Callable[
        [PretrainedWeights, Any], TransformerWeights
    ]  # (trained, content) -> the weights to score and continue with
    update: Callable[[PretrainedWeights, Weights, Array, Array, Array], tuple[Weights, Array]]


def parse_config(text: str) -> OnlineConfig:
    """`'block=32,decay=0.01'` -> a plan; unknown settings and foreign values raise `BadInput`."""
    given = plugins.parse(f":{text}")[1]
    for name, value in given.items():
        if name not in OnlineConfig._fields:
            raise plugins.unknown_name_error("setting of a learner", name, list(OnlineConfig._fields))
        kind = type(OnlineConfig._field_defaults[name])
        whole = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if not whole and type(value) is not kind:
            raise BadInput(
                f"the setting '{name}' must be of the kind of {OnlineConfig._field_defaults[name]!r}, not {value!r}"
            )
        if kind is float:
            given[name] = plugins.finite_float(value, f"the setting '{name}'")
    return OnlineConfig(**given)


def checked(plan: OnlineConfig, context: int) -> OnlineConfig:
    """The plan itself; `BadInput` where nothing can be read by it."""
    require_at_least(1, chunk_size=plan.chunk_size)
    require_at_least(
        0,
        learning_rate=plan.learning_rate,
        rehearsal_batch_size=plan.rehearsal_batch_size,
        adapter_rank=plan.adapter_rank,
    )
    require_at_least(0, rehearsal_weight=plan.rehearsal_weight)
    if plan.chunk_size > context:
        raise BadInput(f"a block of {plan.chunk_size} tokens is longer than the model's context of {context}")
    if plan.optimizer not in OPTIMIZERS:
        raise BadInput(f"the setting 'optimizer' must be one of {', '.join(OPTIMIZERS)}, not '{plan.optimizer}'")
    if not 0 <= plan.decay < 1:
        raise BadInput(f"the setting 'decay' lies between 0 and 1, not {plan.decay}")
    if not plan.max_gradient_norm > 0:
        raise BadInput(f"the setting 'max_gradient_norm' must be above 0, not {plan.max_gradient_norm}")
    if plan.adapter_rank and (plan.fisher_anchor or plan.optimizer == "rms"):
        raise BadInput(
            "an adapter has no training gradient: neither 'fisher_anchor' nor the optimizer 'rms' goes with it"
        )
    return plan


def needs_squares(plan: OnlineConfig) -> bool:
    return plan.fisher_anchor or plan.optimizer == "rms"


def build(config: TransformerConfig, plan: OnlineConfig) -> Learner:
    """A learner for models of this config."""
    plan = checked(plan, config.context_length)
    rate = plan.learning_rate
    steps = {"adam": lambda: optax.adam(rate), "sgd": lambda: optax.sgd(rate), "rms": lambda: optax.sgd(rate)}
    chain = optax.chain(optax.clip_by_global_norm(plan.max_gradient_norm), steps[plan.optimizer]())

    def content_of(trained: PretrainedWeights) -> Any:
        return no_adapter(config, trained.weights, plan.adapter_rank) if plan.adapter_rank else trained.weights

    def init(trained: PretrainedWeights) -> Weights:
        content = content_of(trained)
        return Weights(content, chain.init(content))

    def model(trained: PretrainedWeights, content: Any) -> TransformerWeights:
        return adapted(trained.weights, content) if plan.adapter_rank else content

    def update(
        trained: PretrainedWeights, weights: Weights, window: Int32[Array, "_"], read: Array, again: Int32[Array, "B _"]
    ) -> tuple[Weights, Float[Array, "C"]]:
        """One step on the block that ends a window of `read` tokens -> new weights, nats [C] under the OLD ones.

        Only the last `block` of the window's predictions are learned from; what lies beyond `read` is not looked at.
        """

        def loss(content: Any) -> tuple[Array, Array]:
            whole = model(trained, content)
            tokens = jnp.concatenate([window[None], again]) if plan.rehearsal_batch_size else window[None]
            nats = transformer.token_losses(config, whole, tokens)
            new = of_block(nats[0], read, plan.chunk_size)
            rest = plan.rehearsal_weight * nats[1:].mean() if plan.rehearsal_batch_size else 0.0
            return new + rest, nats[0]

        gradient, nats = jax.grad(loss, has_aux=True)(weights.content)
        if plan.optimizer == "rms":
            gradient = jax.tree.map(
                lambda g, s: g / (jnp.sqrt(s) + 1e-3 * _typical(s)), gradient, trained.squared_gradients
            )
        change, scratch = chain.update(gradient, weights.scratch, weights.content)
        content = optax.apply_updates(weights.content, change)
        if plan.decay:
            content = _towards(content, content_of(trained), trained.squared_gradients)
        return Weights(content, scratch), nats

    def _towards(content: Any, origin: Any, squared_gradients: TransformerWeights | None) -> Any:
        if not plan.fisher_anchor:
            return jax.tree.map(lambda now, was: now + plan.decay * (was - now), content, origin)
        mean = sum(jnp.sum(s) for s in jax.tree.leaves(squared_gradients)) / sum(
            s.size for s in jax.tree.leaves(squared_gradients)
        )

        def held(now: Array, was: Array, square: Array) -> Array:
            share = jnp.minimum(plan.decay * jnp.minimum(square / mean, STIFFEST), 1.0)
            return now + share * (was - now)

        return jax.tree.map(held, content, origin, squared_gradients)

    return Learner(init, model, update)


def of_block(nats: Float[Array, "C"], read: Array, block: int) -> Array:
    """The mean over the last `block` of the first `read` predictions; over all of them where there are fewer."""
    place = jnp.arange(nats.shape[0])
    chosen = (place < read) & (place >= read - block)
    return jnp.sum(jnp.where(chosen, nats, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)


def squares_of(config: TransformerConfig, weights: TransformerWeights, windows: Int32[np.ndarray, "N C+1"]) -> TransformerWeights:
    """The mean over windows of the training text of each weight's squared gradient: the diagonal of the empirical
    Fisher information, and what `rms` divides by."""

    @jax.jit
    def measured(windows: Array) -> TransformerWeights:
        def add(total: TransformerWeights, window: Array) -> tuple[TransformerWeights, None]:
            gradient = jax.grad(lambda w: transformer.token_losses(config, w, window[None]).mean())(weights)
            return jax.tree.map(lambda t, g: t + g * g, total, gradient), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), windows)
        return jax.tree.map(lambda leaf: leaf / len(windows), total)

    return measured(jnp.asarray(windows))


def no_adapter(config: TransformerConfig, weights: TransformerWeights, rank: int) -> tuple[dict[str, Adapter], ...]:
    """An adapter for every matrix of every block that adds nothing yet. Drawn from a key that is always the same."""
    keys = iter(jax.random.split(jax.random.key(0), len(ADAPTED) * config.num_layers))

    def none(linear: Linear) -> Adapter:
        inputs, outputs = linear.weight.shape
        down = jax.random.normal(next(keys), (inputs, rank)) / jnp.sqrt(inputs)
        return Adapter(down, jnp.zeros((rank, outputs)))

    return tuple({name: none(getattr(block, name)) for name in ADAPTED} for block in weights.blocks)


def adapted(weights: TransformerWeights, adapters: tuple[dict[str, Adapter], ...]) -> TransformerWeights:
    """Weights with what the adapters add."""

    def one(block: BlockWeights, parts: dict[str, Adapter]) -> BlockWeights:
        changed = {}
        for name, part in parts.items():
            linear = getattr(block, name)
            changed[name] = linear._replace(weight=linear.weight + part.down @ part.up)
        return block._replace(**changed)

    blocks = tuple(one(block, parts) for block, parts in zip(weights.blocks, adapters, strict=True))
    return weights._replace(blocks=blocks)


def _typical(square: Array) -> Array:
    return jnp.sqrt(jnp.mean(square))
