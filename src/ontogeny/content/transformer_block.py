"""The transformer block: attention, then a feed-forward network, each after a norm and added to its input.

Vaswani et al. 2017 (arXiv 1706.03762), with the norm in front as in GPT-2. Every transformer of the package is made of
this block: `content.transformer` stacks it into a language model, `content.causal_transformer` is one of it. Several
heads of queries may share one head of keys and values (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245).

Letters: B sequences, T tokens, S tokens to attend to, W width, H heads of queries, G heads of keys and values, D size
of a head, P = D / 2 pairs of numbers that are rotated together, M width of the feed-forward network.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Int32, Key

NORMS = ("layer", "rms")
ROPE_SCALINGS = ("linear", "llama3")
ACTIVATIONS = ("gelu", "exact_gelu", "relu", "squared_relu", "swiglu")
MASKED_SCORE = -1e30  # finite, so that a token that may attend to nothing does not become NaN


class Linear(NamedTuple):
    """An affine map, or a linear one where it has no bias."""

    weight: Float[Array, "I O"]
    bias: Float[Array, "O"] | None


class Norm(NamedTuple):
    """Scale and bias after a normalization; None for those that the norm does not have."""

    scale: Float[Array, "W"] | None
    bias: Float[Array, "W"] | None


class BlockWeights(NamedTuple):
    """The weights of one block."""

    norm_1: Norm
    attn_qkv: Linear  # [W, (H + 2*G) * D]: queries, keys and values side by side
    out_proj: Linear  # [H*D, W]
    norm_2: Norm
    up: Linear  # [W, M]; for SwiGLU [W, 2*M]: gate and value side by side
    down: Linear  # [M, W]
    query_norm: Norm | None = None  # of each head of queries, before it is rotated
    key_norm: Norm | None = None


class RopeScaling(NamedTuple):
    """How rotary positions are slowed down, so that a model reads longer texts than those of its first training.

    Attributes:
        kind: One of `ROPE_SCALINGS`. `linear` divides every speed by `factor` (Chen et al. 2023, arXiv 2306.15595);
            `llama3` divides those of long wavelengths only, and those in between in part (Llama 3.1, 2024).
        factor: By how much the slowest pairs are slowed down.
        low_frequency_factor: Wavelengths above `original_context_length` divided by this are slowed down entirely.
        high_frequency_factor: Wavelengths below `original_context_length` divided by this stay as they are.
        original_context_length: Context length of the first training.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192


class BlockConfig(NamedTuple):
    """The settings of a block that its weights do not show."""

    num_heads: int
    norm: str  # one of NORMS
    norm_epsilon: float
    activation: str  # one of ACTIVATIONS
    rope_base: float | None = None  # of rotary positions; None where positions are not rotary
    rope_scaling: RopeScaling | None = None
    num_kv_heads: int | None = None  # heads of keys and values; None for as many as of queries


class Dropout(NamedTuple):
    """Random zeros in training (Srivastava et al. 2014), at the places of GPT-2; the default drops nothing.

    Attributes:
        rate: Share of the numbers that become zero, below 1; the others are divided by 1 - `rate`.
        keys: One random key per sequence, so that a sequence has the same zeros in every batch.
    """

    rate: float = 0.0
    keys: Key[Array, "B"] | None = None

    def fold(self, number: int) -> "Dropout":
        """Returns the dropout of one place, or of one layer, whose zeros are independent of those of other numbers."""
        if self.keys is None:
            return self
        return Dropout(self.rate, jax.vmap(jax.random.fold_in, (0, None))(self.keys, number))

    def apply(self, inputs: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
        """Returns the inputs with random zeros."""
        if self.keys is None:
            return inputs
        is_retained = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, inputs.shape[1:]))(self.keys)
        return jnp.where(is_retained, inputs / (1 - self.rate), 0).astype(inputs.dtype)


NO_DROPOUT = Dropout()


def project_qkv(
    config: BlockConfig, block: BlockWeights, stream: Float[Array, "B T W"], positions: Int32[Array, "_ T"]
) -> tuple[Float[Array, "B H T D"], Float[Array, "B G T D"], Float[Array, "B G T D"]]:
    """Computes queries, keys and values of the first half of a block.

    Args:
        config: Settings of the block.
        stream: Residual stream.
        positions: Position of each token in its sequence, for rotary positions.

    Returns:
        Queries, keys and values by head; queries and keys are rotated where positions are rotary.
    """
    B, T, _ = stream.shape
    joined = apply_linear(block.attn_qkv, normalize(config, block.norm_1, stream))
    H = config.num_heads
    G = config.num_kv_heads or H
    D = joined.shape[-1] // (H + 2 * G)
    queries, keys, values = (
        part.reshape(B, T, -1, D).swapaxes(1, 2) for part in jnp.split(joined, (H * D, (H + G) * D), axis=-1)
    )
    if block.query_norm is not None and block.key_norm is not None:
        queries, keys = normalize(config, block.query_norm, queries), normalize(config, block.key_norm, keys)
    if config.rope_base is not None:
        speeds = rotation_speeds(config.rope_base, D, config.rope_scaling)
        queries, keys = (rotate(speeds, part, positions) for part in (queries, keys))
    return queries, keys, values


def attend(
    queries: Float[Array, "B H T D"],
    keys: Float[Array, "B G S D"],
    values: Float[Array, "B G S D"],
    mask: Bool[Array, "_ T S"] | None,
    score_bias: Float[Array, "*#B H T S"] | None = None,
    dropout: Dropout = NO_DROPOUT,
) -> Float[Array, "B T H*D"]:
    """Computes scaled dot-product attention.

    Args:
        queries: Queries of the tokens that attend.
        keys: Keys of the tokens that are attended to; head g serves the heads g H / G to (g + 1) H / G - 1 of queries.
        values: Values of the same tokens.
        mask: True where a token may attend to another; None where it may attend to all, or where `score_bias` is
            `MASKED_SCORE` for those that it may not attend to, which is faster to differentiate.
        score_bias: Added to the scaled scores, such as a bias for the distance between two tokens.
        dropout: Of the attention weights.

    Returns:
        The values that each token attends to, averaged by head and joined.
    """
    B, H, T, D = queries.shape
    G, S = keys.shape[1:3]
    # The queries of a group are further rows of one product, so that keys and values are not copied.
    grouped = queries.reshape(B, G, H // G * T, D)
    scores = jnp.einsum("bgtd,bgsd->bgts", grouped, keys, preferred_element_type=jnp.float32) * (1 / math.sqrt(D))
    scores = scores.reshape(B, H, T, S)
    if score_bias is not None:
        scores = scores + score_bias
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, MASKED_SCORE)
    shares = dropout.apply(jax.nn.softmax(scores, axis=-1).astype(values.dtype)).reshape(B, G, H // G * T, S)
    attended = jnp.einsum("bgts,bgsd->bgtd", shares, values).reshape(B, H, T, D)
    return attended.swapaxes(1, 2).reshape(B, T, H * D)


def finish_block(
    config: BlockConfig,
    block: BlockWeights,
    stream: Float[Array, "B T W"],
    attended: Float[Array, "B T _"],
    dropout: Dropout = NO_DROPOUT,
) -> Float[Array, "B T W"]:
    """Adds attention and the feed-forward network to the residual stream.

    Args:
        config: Settings of the block.
        stream: Residual stream before the block.
        attended: The output of `attend`.
        dropout: Of both additions to the residual stream.

    Returns:
        The residual stream after the block.
    """
    stream = stream + dropout.fold(0).apply(apply_linear(block.out_proj, attended))
    hidden = apply_linear(block.up, normalize(config, block.norm_2, stream))
    if config.activation == "swiglu":
        gate, value = jnp.split(hidden, 2, axis=-1)
        hidden = jax.nn.silu(gate) * value
    elif config.activation == "squared_relu":
        hidden = jnp.square(jax.nn.relu(hidden))
    elif config.activation == "relu":
        hidden = jax.nn.relu(hidden)
    else:
        hidden = jax.nn.gelu(hidden, approximate=config.activation == "gelu")
    return stream + dropout.fold(1).apply(apply_linear(block.down, hidden))


def apply_linear(linear: Linear, inputs: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
    """Applies an affine map in the type of its inputs."""
    # As one matrix: with a single token per sequence a CPU computes the product three times as fast.
    flat = inputs.reshape(-1, inputs.shape[-1]) @ linear.weight.astype(inputs.dtype)
    mapped = flat.reshape(*inputs.shape[:-1], -1)
    return mapped if linear.bias is None else mapped + linear.bias.astype(inputs.dtype)


def normalize(config: BlockConfig, norm: Norm, stream: Float[Array, "*batch W"]) -> Float[Array, "*batch W"]:
    """Applies LayerNorm (Ba et al. 2016, arXiv 1607.06450) or RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467).

    The computation is in float32, whatever the type of the stream.
    """
    wide = stream.astype(jnp.float32)
    if config.norm == "layer":
        wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + config.norm_epsilon)
    wide = wide if norm.scale is None else wide * norm.scale
    return (wide if norm.bias is None else wide + norm.bias).astype(stream.dtype)


def rotation_speeds(base: float, head_size: int, scaling: RopeScaling | None = None) -> Float[np.ndarray, "P"]:
    """Computes by how many radians each pair of a head turns per position: base^(-2 i / D), scaled.

    Args:
        base: Base of the geometric series of speeds.
        head_size: D, even.
        scaling: For models that were trained further on longer texts; None for speeds as they are.
    """
    half = head_size // 2
    speeds = np.float32(base) ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    if scaling is None:
        return speeds
    if scaling.kind == "linear":
        return speeds / np.float32(scaling.factor)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = speeds * np.float32(scaling.original_context_length / (2 * math.pi))  # over the original context
    unscaled_share = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return speeds * (unscaled_share + (1 - unscaled_share) / np.float32(scaling.factor))


def rotate(
    speeds: Float[np.ndarray, "P"], vectors: Float[Array, "B H T D"], positions: Int[Array, "_ T"]
) -> Float[Array, "B H T D"]:
    """Applies rotary positions: rotates each pair (x_i, x_{i + D/2}) by its position times its speed."""
    angles = positions[:, None, :, None].astype(jnp.float32) * speeds
    cosine, sine = jnp.cos(angles).astype(vectors.dtype), jnp.sin(angles).astype(vectors.dtype)
    left, right = jnp.split(vectors, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, left * sine + right * cosine], axis=-1)
