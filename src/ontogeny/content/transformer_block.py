"""The transformer block: attention, then a feed-forward network, each after a norm and added to its input.

Vaswani et al. 2017 (arXiv 1706.03762), with the norm in front as in GPT-2. Every transformer of the package is made of
this block: `content.transformer` stacks it into a language model, `content.causal_transformer` is one of it.

Letters: B sequences, T tokens, S tokens to attend to, W width, H heads, D = W / H, M width of the feed-forward network.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Int32

NORMS = ("layer", "rms")
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
    attn_qkv: Linear  # [W, 3*W]: queries, keys and values side by side
    out_proj: Linear  # [W, W]
    norm_2: Norm
    up: Linear  # [W, M]; for SwiGLU [W, 2*M]: gate and value side by side
    down: Linear  # [M, W]


class BlockConfig(NamedTuple):
    """The settings of a block that its weights do not show."""

    num_heads: int
    norm: str  # one of NORMS
    norm_epsilon: float
    activation: str  # one of ACTIVATIONS
    rope_base: float | None = None  # of rotary positions; None where positions are not rotary


def project_qkv(
    config: BlockConfig, block: BlockWeights, stream: Float[Array, "B T W"], positions: Int32[Array, "_ T"]
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T D"], Float[Array, "B H T D"]]:
    """Computes queries, keys and values of the first half of a block.

    Args:
        config: Settings of the block.
        stream: Residual stream.
        positions: Position of each token in its sequence, for rotary positions.

    Returns:
        Queries, keys and values by head; queries and keys are rotated where positions are rotary.
    """
    B, T, W = stream.shape
    joined = apply_linear(block.attn_qkv, normalize(config, block.norm_1, stream))
    queries, keys, values = (
        part.reshape(B, T, config.num_heads, W // config.num_heads).swapaxes(1, 2)
        for part in jnp.split(joined, 3, axis=-1)
    )
    if config.rope_base is not None:
        queries, keys = (rotate(config.rope_base, part, positions) for part in (queries, keys))
    return queries, keys, values


def attend(
    queries: Float[Array, "B H T D"],
    keys: Float[Array, "B H S D"],
    values: Float[Array, "B H S D"],
    mask: Bool[Array, "_ T S"] | None,
    score_bias: Float[Array, "*#B H T S"] | None = None,
) -> Float[Array, "B T H*D"]:
    """Computes scaled dot-product attention.

    Args:
        queries: Queries of the tokens that attend.
        keys: Keys of the tokens that are attended to.
        values: Values of the same tokens.
        mask: True where a token may attend to another; None where it may attend to all, or where `score_bias` is
            `MASKED_SCORE` for those that it may not attend to, which is faster to differentiate.
        score_bias: Added to the scaled scores, such as a bias for the distance between two tokens.

    Returns:
        The values that each token attends to, averaged by head and joined.
    """
    B, H, T, D = queries.shape
    scores = jnp.einsum("bhtd,bhsd->bhts", queries, keys, preferred_element_type=jnp.float32) * (1 / math.sqrt(D))
    if score_bias is not None:
        scores = scores + score_bias
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, MASKED_SCORE)
    shares = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", shares, values).swapaxes(1, 2).reshape(B, T, H * D)


def finish_block(
    config: BlockConfig, block: BlockWeights, stream: Float[Array, "B T W"], attended: Float[Array, "B T W"]
) -> Float[Array, "B T W"]:
    """Adds attention and the feed-forward network to the residual stream.

    Args:
        config: Settings of the block.
        stream: Residual stream before the block.
        attended: The output of `attend`.

    Returns:
        The residual stream after the block.
    """
    stream = stream + apply_linear(block.out_proj, attended)
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
    return stream + apply_linear(block.down, hidden)


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


def rotate(base: float, vectors: Float[Array, "B H T D"], positions: Int[Array, "_ T"]) -> Float[Array, "B H T D"]:
    """Applies rotary positions: rotates each pair (x_i, x_{i + D/2}) by its position times base^(-2 i / D)."""
    half = vectors.shape[-1] // 2
    speeds = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, None, :, None].astype(jnp.float32) * speeds
    cosine, sine = jnp.cos(angles).astype(vectors.dtype), jnp.sin(angles).astype(vectors.dtype)
    left, right = jnp.split(vectors, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, left * sine + right * cosine], axis=-1)
