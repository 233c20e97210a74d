"""A transformer as a model of what comes next: GPT-2, or by settings its modern variant.

GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; learned positions, LayerNorm before
each part, GELU, biases, output weights tied to the embedding. Modern: rotary positions (Su et al. 2021, arXiv
2104.09864), RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), SwiGLU (Shazeer 2020, arXiv 2002.05202) or squared
ReLU (So et al. 2021, arXiv 2109.08668), no biases.

Letters: B batch, R rows of a cache, T tokens, K tokens of a chunk, C capacity of a cache, V vocabulary, W width,
H heads, D = W / H, M width of the feed-forward part. Weights are float32; `compute` names the type of products.
Knows nothing of text, tokenizers, training runs or what is sampled.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int32, Integer

from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Key, Weights, WorldModel

POSITIONS = ("learned", "rotary")
NORMS = ("layer", "rms")
FEEDS = ("gelu", "exact_gelu", "relu", "squared_relu", "swiglu")
MASKED = -1e30  # a score that weighs nothing; finite, so that a row without any token is not NaN


class Config(NamedTuple):
    """What a transformer is before it has weights; hashable, so that it can be a static argument."""

    vocabulary: int
    context: int  # the most tokens that it can look back on, the present one included
    layers: int = 4
    heads: int = 4
    width: int = 128
    hidden: int = 512  # M
    positions: str = "learned"
    norm: str = "layer"
    feed: str = "gelu"
    biases: bool = True
    tied: bool = True  # whether the output weights are the embedding
    epsilon: float = 1e-5  # of the norms
    base: float = 10000.0  # of rotary positions


class Linear(NamedTuple):
    weight: Float[Array, "I O"]
    bias: Float[Array, "O"] | None


class Norm(NamedTuple):
    scale: Float[Array, "W"]
    bias: Float[Array, "W"] | None


class Block(NamedTuple):
    norm_1: Norm
    attend: Linear  # [W, 3*W]: queries, keys, values side by side
    project: Linear  # [W, W]
    norm_2: Norm
    up: Linear  # [W, M]; for SwiGLU [W, 2*M]: gate and value side by side
    down: Linear  # [M, W]


class Transformer(NamedTuple):
    """Every weight."""

    embedding: Float[Array, "V W"]
    positions: Float[Array, "C W"] | None
    blocks: tuple[Block, ...]
    norm: Norm
    head: Float[Array, "V W"] | None  # None where it is the embedding


class Cache(NamedTuple):
    """Keys and values of the tokens that each row has read; what lies at or beyond `length` is never looked at."""

    keys: tuple[Float[Array, "R H C D"], ...]  # one array per layer; a head's lie together, as products read them
    values: tuple[Float[Array, "R H C D"], ...]
    length: Int32[Array, "R"]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]


def build(
    *,
    vocabulary: int = 256,
    context: int = 64,
    layers: int = 2,
    heads: int = 2,
    width: int = 64,
    architecture: str = "gpt2",
    learning_rate: float = 1e-3,
) -> WorldModel:
    """`query(content, tokens [T])` is log-probabilities [T, V] of what follows each token, `update(weights, tokens
    [B, T+1])` one step of Adam on all of them; recipes of training runs are in `ontogeny.lm.optimization`."""
    config = configure(architecture, vocabulary, context, layers=layers, heads=heads, width=width)
    optimizer = optax.adam(learning_rate)

    def init(key: Key) -> Weights:
        content: Any = initial(key, config)
        return Weights(content, optimizer.init(content))

    def query(content: Transformer, tokens: Integer[Array, "T"]) -> Float[Array, "T V"]:
        return jax.nn.log_softmax(forward(config, content, tokens[None])[0])

    def update(weights: Weights, tokens: Integer[Array, "B T"]) -> tuple[Weights, dict[str, Array]]:
        loss, gradient = jax.value_and_grad(lambda content: losses(config, content, tokens).mean())(weights.content)
        steps, scratch = optimizer.update(gradient, weights.scratch, weights.content)
        return Weights(optax.apply_updates(weights.content, steps), scratch), {"loss": loss}

    return WorldModel(init, query, update)


def configure(architecture: str, vocabulary: int, context: int, *, layers: int, heads: int, width: int) -> Config:
    """A whole config from the few numbers that matter; `modern` has SwiGLU's three matrices in GPT-2's two's room."""
    require_at_least(1, vocabulary=vocabulary, layers=layers, heads=heads, width=width)
    require_at_least(2, context=context)
    if architecture not in ("gpt2", "modern"):
        raise BadInput(f"the setting 'architecture' must be gpt2 or modern, not '{architecture}'")
    config = Config(vocabulary, context, layers, heads, width, 4 * width)
    if architecture == "modern":
        hidden = max(8, round(8 * width / 3 / 16) * 16)
        config = config._replace(hidden=hidden, positions="rotary", norm="rms", feed="swiglu", biases=False)
    return checked(config)


def checked(config: Config) -> Config:
    """The config itself; `BadInput` where no transformer could be made of it."""
    if config.width % config.heads:
        raise BadInput(f"{config.heads} heads do not divide a width of {config.width}")
    if config.positions == "rotary" and config.width // config.heads % 2:
        raise BadInput(f"rotary positions need heads of an even width, not {config.width // config.heads}")
    for name, known in (("positions", POSITIONS), ("norm", NORMS), ("feed", FEEDS)):
        if getattr(config, name) not in known:
            raise BadInput(f"the setting '{name}' must be one of {', '.join(known)}, not '{getattr(config, name)}'")
    return config


def initial(key: Key, config: Config) -> Transformer:
    """Normal weights of standard deviation 0.02, those that lead back into the stream by 1 / sqrt(2 layers) less."""
    keys = iter(jax.random.split(key, 3 + 4 * config.layers))
    back = 0.02 / math.sqrt(2 * config.layers)

    def linear(inputs: int, outputs: int, deviation: float = 0.02) -> Linear:
        weight = deviation * jax.random.normal(next(keys), (inputs, outputs))
        return Linear(weight, jnp.zeros(outputs) if config.biases else None)

    def norm() -> Norm:
        return Norm(jnp.ones(config.width), jnp.zeros(config.width) if config.biases else None)

    W, M = config.width, config.hidden
    fed = 2 * M if config.feed == "swiglu" else M
    embedding = 0.02 * jax.random.normal(next(keys), (config.vocabulary, W))
    learned = config.positions == "learned"
    positions = 0.02 * jax.random.normal(next(keys), (config.context, W)) if learned else None
    blocks = tuple(
        Block(norm(), linear(W, 3 * W), linear(W, W, back), norm(), linear(W, fed), linear(M, W, back))
        for _ in range(config.layers)
    )
    head = None if config.tied else 0.02 * jax.random.normal(next(keys), (config.vocabulary, W))
    return Transformer(embedding, positions, blocks, norm(), head)


def forward(
    config: Config, weights: Transformer, tokens: Integer[Array, "B T"], compute: Any = jnp.float32
) -> Float[Array, "B T V"]:
    """Logits, float32, of what follows each token; T at most `config.context`."""
    T = tokens.shape[1]
    if config.context < T:
        raise BadInput(f"{T} tokens are more than the model's context of {config.context}")
    places = jnp.arange(T, dtype=jnp.int32)[None]
    causal = places[0][:, None] >= places[0][None, :]
    stream = _embed(config, weights, tokens, places, compute)
    for block in weights.blocks:
        queries, keys, values = _projected(config, block, stream, places)
        mixed = _attention(queries, keys, values, causal[None])
        stream = _rest_of_block(config, block, stream, mixed)
    return _read_out(config, weights, stream)


def losses(
    config: Config, weights: Transformer, tokens: Integer[Array, "B T"], compute: Any = jnp.float32
) -> Float[Array, "B T-1"]:
    """Negative log-probability, in nats, of each token but the first."""
    logits = forward(config, weights, tokens[:, :-1], compute)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def empty_cache(config: Config, rows: int, capacity: int | None = None, compute: Any = jnp.float32) -> Cache:
    """A cache in which no row has read anything; `capacity` is at most, and by default, the model's context."""
    capacity = config.context if capacity is None else capacity
    if not 1 <= capacity <= config.context:
        raise BadInput(f"a cache of {capacity} tokens does not fit the model's context of {config.context}")
    shape = (rows, config.heads, capacity, config.width // config.heads)
    layers = range(config.layers)
    return Cache(
        tuple(jnp.zeros(shape, compute) for _ in layers),
        tuple(jnp.zeros(shape, compute) for _ in layers),
        jnp.zeros(rows, jnp.int32),
    )


def append(
    config: Config,
    weights: Transformer,
    cache: Cache,
    tokens: Integer[Array, "R K"],
    count: Integer[Array, "R"],
    *,
    every: bool = False,
    read_out: Float[Array, "W V"] | None = None,
) -> tuple[Cache, Float[Array, "R V"] | Float[Array, "R K V"]]:
    """Each row reads the first `count` of its tokens, 0 to K of them, and goes on from where it stood.

    Logits, float32, of what follows the last token that was read; with `every`, of what follows each. Where nothing
    was read they mean nothing. What a row reads does not touch another: with the same rows, capacity and K, its keys,
    values and logits have the same bits whatever the other rows hold. What would go beyond the capacity is dropped.
    `read_out` is the output weights as `laid_out` gives them, for who reads token by token.
    """
    R, K = tokens.shape
    capacity = cache.capacity
    compute = cache.keys[0].dtype
    offset = jnp.arange(K, dtype=jnp.int32)[None]
    places = cache.length[:, None] + offset
    slot = jnp.where(offset < count[:, None], places, capacity)  # beyond the capacity nothing is written
    row = jnp.arange(R, dtype=jnp.int32)[:, None]
    seen = jnp.arange(capacity, dtype=jnp.int32)[None, None] <= places[..., None]
    stream = _embed(config, weights, tokens, jnp.minimum(places, config.context - 1), compute)
    all_keys, all_values = [], []
    for block, keys, values in zip(weights.blocks, cache.keys, cache.values, strict=True):
        queries, new_keys, new_values = _projected(config, block, stream, places)
        keys = keys.at[row, :, slot].set(new_keys.swapaxes(1, 2), mode="drop", unique_indices=False)
        values = values.at[row, :, slot].set(new_values.swapaxes(1, 2), mode="drop", unique_indices=False)
        all_keys.append(keys)
        all_values.append(values)
        stream = _rest_of_block(config, block, stream, _attention(queries, keys, values, seen))
    if not every:
        stream = jnp.take_along_axis(stream, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    length = jnp.minimum(cache.length + count.astype(jnp.int32), capacity)
    return Cache(tuple(all_keys), tuple(all_values), length), _read_out(config, weights, stream, read_out)


def laid_out(weights: Transformer) -> Float[Array, "W V"]:
    """The output weights turned, as a product with few rows reads them fastest."""
    return (weights.embedding if weights.head is None else weights.head).T


def cleared(cache: Cache, rows: Bool[Array, "R"]) -> Cache:
    """The cache with these rows as if they had read nothing."""
    return cache._replace(length=jnp.where(rows, 0, cache.length))


def _embed(config: Config, weights: Transformer, tokens: Array, places: Array, compute: Any) -> Array:
    stream = weights.embedding[tokens]
    if weights.positions is not None:
        stream = stream + weights.positions[places]
    return stream.astype(compute)


def _projected(config: Config, block: Block, stream: Array, places: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values, [B, H, T, D] each, with rotary positions turned in."""
    B, T, W = stream.shape
    joined = _linear(block.attend, _normed(config, block.norm_1, stream))
    queries, keys, values = (
        part.reshape(B, T, config.heads, W // config.heads).swapaxes(1, 2) for part in jnp.split(joined, 3, axis=-1)
    )
    if config.positions == "rotary":
        queries, keys = _turned(config, queries, places), _turned(config, keys, places)
    return queries, keys, values


def _attention(queries: Array, keys: Array, values: Array, seen: Array) -> Array:
    """[B, H, T, D] queries on [B, H, S, D] keys and values, where `seen` [B, T, S] allows it -> [B, T, H * D]."""
    B, H, T, D = queries.shape
    scores = jnp.einsum("bhtd,bhsd->bhts", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None], scores * (1 / math.sqrt(D)), MASKED)
    shares = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", shares, values).swapaxes(1, 2).reshape(B, T, H * D)


def _rest_of_block(config: Config, block: Block, stream: Array, mixed: Array) -> Array:
    stream = stream + _linear(block.project, mixed)
    fed = _linear(block.up, _normed(config, block.norm_2, stream))
    if config.feed == "swiglu":
        gate, value = jnp.split(fed, 2, axis=-1)
        fed = jax.nn.silu(gate) * value
    elif config.feed == "squared_relu":
        fed = jnp.square(jax.nn.relu(fed))
    elif config.feed == "relu":
        fed = jax.nn.relu(fed)
    else:
        fed = jax.nn.gelu(fed, approximate=config.feed == "gelu")
    return stream + _linear(block.down, fed)


def _read_out(config: Config, weights: Transformer, stream: Array, turned: Array | None = None) -> Array:
    stream = _normed(config, weights.norm, stream)
    if turned is not None:
        return jnp.matmul(stream, turned.astype(stream.dtype), preferred_element_type=jnp.float32)
    head = weights.embedding if weights.head is None else weights.head
    return jnp.einsum("...w,vw->...v", stream, head.astype(stream.dtype), preferred_element_type=jnp.float32)


def _linear(linear: Linear, inputs: Array) -> Array:
    # As one matrix: with a single token per row a CPU takes the product three times as fast.
    outputs = inputs.reshape(-1, inputs.shape[-1]) @ linear.weight.astype(inputs.dtype)
    outputs = outputs.reshape(*inputs.shape[:-1], -1)
    return outputs if linear.bias is None else outputs + linear.bias.astype(inputs.dtype)


def _normed(config: Config, norm: Norm, stream: Array) -> Array:
    """In float32 whatever the type of the stream."""
    wide = stream.astype(jnp.float32)
    if config.norm == "layer":
        wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + config.epsilon) * norm.scale
    return (wide if norm.bias is None else wide + norm.bias).astype(stream.dtype)


def _turned(config: Config, vectors: Array, places: Array) -> Array:
    """Each pair (x_i, x_{i + D/2}) of [B, H, T, D] turned by its place times base^(-2 i / D)."""
    half = vectors.shape[-1] // 2
    speeds = config.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = places[:, None, :, None].astype(jnp.float32) * speeds
    cosine, sine = jnp.cos(angles).astype(vectors.dtype), jnp.sin(angles).astype(vectors.dtype)
    one, other = jnp.split(vectors, 2, axis=-1)
    return jnp.concatenate([one * cosine - other * sine, one * sine + other * cosine], axis=-1)
