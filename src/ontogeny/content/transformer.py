"""A transformer language model: GPT-2, or by its settings the modern variant.

GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; learned positions, LayerNorm before
each part, GELU, biases, output weights tied to the embedding. Modern: rotary positions (Su et al. 2021, arXiv
2104.09864), RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), SwiGLU (Shazeer 2020, arXiv 2002.05202) or squared
ReLU (So et al. 2021, arXiv 2109.08668), no biases.

The module holds the model and its key-value cache only: tokenizers, training and sampling are elsewhere. Weights are
float32; products are computed in `compute_dtype`.

Letters: B sequences, T tokens, K tokens of one call, C capacity of a cache, V vocabulary, W width, H heads, D = W / H,
M width of the feed-forward network.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int32, Integer

from ontogeny.content import transformer_block
from ontogeny.content.optimizers import apply_gradient, build_optimizer
from ontogeny.content.transformer_block import BlockConfig, BlockWeights, Linear, Norm
from ontogeny.errors import BadInput, require_at_least, require_one_of
from ontogeny.types import Key, Weights, WorldModel

ARCHITECTURES = ("gpt2", "modern")
POSITION_ENCODINGS = ("learned", "rotary")


class TransformerConfig(NamedTuple):
    """The settings that determine the shapes and the program of a transformer; hashable, hence a static argument."""

    vocab_size: int
    context_length: int  # tokens that the model can attend to, the present one included
    num_layers: int = 4
    num_heads: int = 4
    width: int = 128
    mlp_width: int = 512
    positions: str = "learned"  # one of POSITION_ENCODINGS
    norm: str = "layer"
    activation: str = "gelu"
    use_biases: bool = True
    tie_embeddings: bool = True  # whether the output weights are the token embedding
    norm_epsilon: float = 1e-5
    rope_base: float = 10000.0

    @property
    def block(self) -> BlockConfig:
        """The settings that every block of the transformer has."""
        rope_base = self.rope_base if self.positions == "rotary" else None
        return BlockConfig(self.num_heads, self.norm, self.norm_epsilon, self.activation, rope_base)


class TransformerWeights(NamedTuple):
    """All weights of a transformer."""

    embedding: Float[Array, "V W"]
    positions: Float[Array, "C W"] | None  # None where positions are rotary
    blocks: tuple[BlockWeights, ...]
    norm: Norm
    lm_head: Float[Array, "V W"] | None  # None where the output weights are the embedding


class KVCache(NamedTuple):
    """Keys and values of the tokens that each sequence has processed.

    Entries at or beyond `length` are never read.
    """

    keys: tuple[Float[Array, "B H C D"], ...]  # one array per layer
    values: tuple[Float[Array, "B H C D"], ...]
    length: Int32[Array, "B"]  # tokens processed

    @property
    def capacity(self) -> int:
        """The number of tokens per sequence that the cache has room for."""
        return self.keys[0].shape[2]


def build(
    *,
    vocab_size: int = 256,
    context_length: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    width: int = 64,
    architecture: str = "gpt2",
    learning_rate: float = 1e-3,
) -> WorldModel:
    """Builds a transformer that predicts each token from those before it and learns with Adam.

    `query(content, tokens [T])` returns the log-probabilities [T, V] of each next token; `update(weights, tokens
    [B, T+1])` takes one step of Adam on the mean loss of all next tokens. `ontogeny.lm` trains language models with
    schedules and checkpoints.

    Args:
        vocab_size: Number of different tokens, at least 1.
        context_length: Tokens that a prediction may depend on, at least 2.
        num_layers: Transformer blocks, at least 1.
        num_heads: Attention heads; must divide `width`.
        width: Width of the residual stream.
        architecture: `gpt2` or `modern`, see `make_config`.
        learning_rate: Step size of Adam.

    Returns:
        The world model; the scratch of its weights are the moments of Adam.
    """
    config = make_config(
        architecture, vocab_size, context_length, num_layers=num_layers, num_heads=num_heads, width=width
    )
    optimizer = build_optimizer(learning_rate, max_gradient_norm=None)

    def init(key: Key) -> Weights:
        content: Any = init_weights(key, config)
        return Weights(content, optimizer.init(content))

    def query(content: TransformerWeights, tokens: Integer[Array, "T"]) -> Float[Array, "T V"]:
        return jax.nn.log_softmax(forward(config, content, tokens[None])[0])

    def update(weights: Weights, tokens: Integer[Array, "B T"]) -> tuple[Weights, dict[str, Array]]:
        def mean_loss(content: TransformerWeights) -> Array:
            return token_losses(config, content, tokens).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(weights.content)
        return apply_gradient(optimizer, gradient, weights), {"loss": loss}

    return WorldModel(init, query, update)


def make_config(
    architecture: str, vocab_size: int, context_length: int, *, num_layers: int, num_heads: int, width: int
) -> TransformerConfig:
    """Derives a whole config from the settings that determine the size of a model.

    Args:
        architecture: `gpt2`, or `modern`, whose SwiGLU network has three matrices with as many weights in all as the
            two of GPT-2.
        vocab_size: Number of different tokens, at least 1.
        context_length: Tokens that a prediction may depend on, at least 2.
        num_layers: Transformer blocks, at least 1.
        num_heads: Attention heads, at least 1; must divide `width`.
        width: Width of the residual stream, at least 1.

    Raises:
        BadInput: If no transformer has these settings.
    """
    require_at_least(1, vocab_size=vocab_size, num_layers=num_layers, num_heads=num_heads, width=width)
    require_at_least(2, context_length=context_length)
    require_one_of(ARCHITECTURES, architecture=architecture)
    config = TransformerConfig(vocab_size, context_length, num_layers, num_heads, width, 4 * width)
    if architecture == "modern":
        mlp_width = max(8, round(8 * width / 3 / 16) * 16)
        config = config._replace(
            mlp_width=mlp_width, positions="rotary", norm="rms", activation="swiglu", use_biases=False
        )
    return validate_config(config)


def validate_config(config: TransformerConfig) -> TransformerConfig:
    """Returns the config; raises `BadInput` where no transformer has these settings."""
    if config.width % config.num_heads:
        raise BadInput(f"{config.num_heads} heads do not divide a width of {config.width}")
    if config.positions == "rotary" and config.width // config.num_heads % 2:
        raise BadInput(f"rotary positions need heads of an even width, not {config.width // config.num_heads}")
    require_one_of(POSITION_ENCODINGS, positions=config.positions)
    require_one_of(transformer_block.NORMS, norm=config.norm)
    require_one_of(transformer_block.ACTIVATIONS, activation=config.activation)
    return config


def init_weights(key: Key, config: TransformerConfig) -> TransformerWeights:
    """Draws initial weights as GPT-2 does.

    They are Normal with standard deviation 0.02; those of the two projections that write into the residual stream are
    smaller by a factor of sqrt(2 num_layers), which keeps the variance of the stream independent of the depth.
    """
    keys = iter(jax.random.split(key, 3 + 4 * config.num_layers))
    residual_deviation = 0.02 / math.sqrt(2 * config.num_layers)

    def linear(num_inputs: int, num_outputs: int, deviation: float = 0.02) -> Linear:
        weight = deviation * jax.random.normal(next(keys), (num_inputs, num_outputs))
        return Linear(weight, jnp.zeros(num_outputs) if config.use_biases else None)

    def norm() -> Norm:
        return Norm(jnp.ones(config.width), jnp.zeros(config.width) if config.use_biases else None)

    W, M = config.width, config.mlp_width
    up_width = 2 * M if config.activation == "swiglu" else M
    embedding = 0.02 * jax.random.normal(next(keys), (config.vocab_size, W))
    is_learned = config.positions == "learned"
    positions = 0.02 * jax.random.normal(next(keys), (config.context_length, W)) if is_learned else None
    blocks = []
    for _ in range(config.num_layers):
        qkv, out_proj = linear(W, 3 * W), linear(W, W, residual_deviation)
        up, down = linear(W, up_width), linear(M, W, residual_deviation)
        blocks.append(BlockWeights(norm(), qkv, out_proj, norm(), up, down))
    lm_head = None if config.tie_embeddings else 0.02 * jax.random.normal(next(keys), (config.vocab_size, W))
    return TransformerWeights(embedding, positions, tuple(blocks), norm(), lm_head)


def forward(
    config: TransformerConfig,
    weights: TransformerWeights,
    tokens: Integer[Array, "B T"],
    compute_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T V"]:
    """Computes the logits of each next token of whole sequences.

    Args:
        config: Config of the weights.
        tokens: Sequences of at most `context_length` tokens.
        compute_dtype: Type in which products are computed.

    Returns:
        Logits in float32.

    Raises:
        BadInput: If the sequences are longer than the context length.
    """
    T = tokens.shape[1]
    if config.context_length < T:
        raise BadInput(f"{T} tokens are more than the model's context of {config.context_length}")
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    is_causal = positions[0][:, None] >= positions[0][None, :]
    stream = _embed(weights, tokens, positions, compute_dtype)
    for block in weights.blocks:
        queries, keys, values = transformer_block.project_qkv(config.block, block, stream, positions)
        attended = transformer_block.attend(queries, keys, values, is_causal[None])
        stream = transformer_block.finish_block(config.block, block, stream, attended)
    return _project_logits(config, weights, stream)


def token_losses(
    config: TransformerConfig,
    weights: TransformerWeights,
    tokens: Integer[Array, "B T"],
    compute_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T-1"]:
    """Computes the negative log-probability, in nats, of each token but the first; arguments as in `forward`."""
    logits = forward(config, weights, tokens[:, :-1], compute_dtype)
    target_logits = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def init_cache(
    config: TransformerConfig, num_sequences: int, capacity: int | None = None, compute_dtype: DTypeLike = jnp.float32
) -> KVCache:
    """Returns an empty cache.

    Args:
        config: Config of the model.
        num_sequences: Sequences that the cache has room for.
        capacity: Tokens per sequence, from 1 to the context of the model, which is the default.
        compute_dtype: Type of keys and values, and of the products of all calls that use the cache.

    Raises:
        BadInput: If the capacity does not fit the context of the model.
    """
    capacity = config.context_length if capacity is None else capacity
    if not 1 <= capacity <= config.context_length:
        raise BadInput(f"a cache of {capacity} tokens does not fit the model's context of {config.context_length}")
    shape = (num_sequences, config.num_heads, capacity, config.width // config.num_heads)
    keys, values = (tuple(jnp.zeros(shape, compute_dtype) for _ in range(config.num_layers)) for _ in range(2))
    return KVCache(keys, values, jnp.zeros(num_sequences, jnp.int32))


def extend_cache(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    tokens: Integer[Array, "B K"],
    num_tokens: Integer[Array, "B"],
    *,
    all_logits: bool = False,
    lm_head: Float[Array, "W V"] | None = None,
) -> tuple[KVCache, Float[Array, "B V"] | Float[Array, "B K V"]]:
    """Processes further tokens of each sequence: prefill for many tokens, a decode step for one.

    Sequences do not influence each other: for the same number of sequences, capacity and K, the keys, values and
    logits of a sequence are bitwise independent of the other sequences. Tokens beyond the capacity are dropped.

    Args:
        config: Config of the weights.
        cache: Cache of the sequences so far.
        tokens: The next tokens; those from `num_tokens` on are padding.
        num_tokens: Number of tokens to process of each sequence, 0 to K.
        all_logits: Whether to return the logits after each of the K tokens instead of those after the last one.
        lm_head: Output weights from `transposed_lm_head`, which decode steps multiply faster.

    Returns:
        The extended cache, and float32 logits of the next token; they have no meaning where `num_tokens` is 0.
    """
    B, K = tokens.shape
    capacity = cache.capacity
    offset = jnp.arange(K, dtype=jnp.int32)[None]
    positions = cache.length[:, None] + offset
    slot = jnp.where(offset < num_tokens[:, None], positions, capacity)  # writes at the capacity are dropped
    sequence = jnp.arange(B, dtype=jnp.int32)[:, None]
    mask = jnp.arange(capacity, dtype=jnp.int32)[None, None] <= positions[..., None]
    embedded_positions = jnp.minimum(positions, config.context_length - 1)
    stream = _embed(weights, tokens, embedded_positions, cache.keys[0].dtype)
    all_keys, all_values = [], []
    for block, keys, values in zip(weights.blocks, cache.keys, cache.values, strict=True):
        queries, new_keys, new_values = transformer_block.project_qkv(config.block, block, stream, positions)
        keys = keys.at[sequence, :, slot].set(new_keys.swapaxes(1, 2), mode="drop", unique_indices=False)
        values = values.at[sequence, :, slot].set(new_values.swapaxes(1, 2), mode="drop", unique_indices=False)
        all_keys.append(keys)
        all_values.append(values)
        attended = transformer_block.attend(queries, keys, values, mask)
        stream = transformer_block.finish_block(config.block, block, stream, attended)
    if not all_logits:
        stream = jnp.take_along_axis(stream, jnp.maximum(num_tokens - 1, 0)[:, None, None], axis=1)[:, 0]
    length = jnp.minimum(cache.length + num_tokens.astype(jnp.int32), capacity)
    return KVCache(tuple(all_keys), tuple(all_values), length), _project_logits(config, weights, stream, lm_head)


def transposed_lm_head(weights: TransformerWeights) -> Float[Array, "W V"]:
    """Returns the output weights transposed, the layout in which a product with few tokens is fastest."""
    return (weights.embedding if weights.lm_head is None else weights.lm_head).T


def clear_sequences(cache: KVCache, selected: Bool[Array, "B"]) -> KVCache:
    """Empties the cache of the selected sequences."""
    return cache._replace(length=jnp.where(selected, 0, cache.length))


def _embed(weights: TransformerWeights, tokens: Array, positions: Array, compute_dtype: DTypeLike) -> Array:
    """Token embedding, plus learned positions where the model has them: [B, T, W]."""
    stream = weights.embedding[tokens]
    if weights.positions is not None:
        stream = stream + weights.positions[positions]
    return stream.astype(compute_dtype)


def _project_logits(
    config: TransformerConfig, weights: TransformerWeights, stream: Array, lm_head: Array | None = None
) -> Array:
    """Logits [..., V] in float32 of a residual stream [..., W]."""
    stream = transformer_block.normalize(config.block, weights.norm, stream)
    if lm_head is not None:
        return jnp.matmul(stream, lm_head.astype(stream.dtype), preferred_element_type=jnp.float32)
    head = weights.embedding if weights.lm_head is None else weights.lm_head
    return jnp.einsum("...w,vw->...v", stream, head.astype(stream.dtype), preferred_element_type=jnp.float32)
