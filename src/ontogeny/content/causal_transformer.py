"""Predicts with one causal transformer block, which remembers keys and values of earlier inputs.

The block is `content.transformer_block` with RMSNorm without scale, ReLU and no biases. In place of positions the
attention scores have a learned bias for how many steps ago a step was (Raffel et al. 2020, arXiv 1910.10683, section
2.1).

Letters: D width, N heads, E = D / N, W steps of the attention window, I inputs, K outputs, L steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ontogeny.content import transformer_block
from ontogeny.content.base import Predictor, gradient_predictor, init_dense, starts_sequence
from ontogeny.content.transformer_block import BlockConfig, BlockWeights, Linear, Norm
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Key

KEY_NUMBER = 4  # in the random keys of the mesa study, which trains contents in this order

NO_SCALE = Norm(None, None)


class CausalTransformerWeights(NamedTuple):
    """Weights of the predictor."""

    embedding: Float[Array, "I D"]
    embedding_bias: Float[Array, "D"]
    attn_qkv: Float[Array, "D 3*D"]  # queries, keys and values side by side
    age_bias: Float[Array, "N W"]  # added to attention scores, by how many steps ago a step was
    out_proj: Float[Array, "D D"]
    up: Float[Array, "D 4*D"]
    down: Float[Array, "4*D D"]
    readout: Float[Array, "D K"]
    readout_bias: Float[Array, "K"]

    @property
    def block(self) -> BlockWeights:
        """The weights of the transformer block."""
        qkv, out, up, down = (Linear(weight, None) for weight in (self.attn_qkv, self.out_proj, self.up, self.down))
        return BlockWeights(NO_SCALE, qkv, out, NO_SCALE, up, down)


class AttentionWindow(NamedTuple):
    """Keys and values of the last W steps, the latest step last."""

    keys: Float[Array, "N W E"]
    values: Float[Array, "N W E"]
    is_filled: Bool[Array, "W"]


def build(
    num_inputs: int,
    num_outputs: int = 1,
    *,
    width: int = 16,
    num_heads: int = 2,
    window_length: int = 50,
    learning_rate: float = 0.005,
) -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step.
        width: Width of the residual stream; a multiple of `num_heads`.
        num_heads: Attention heads, at least 1.
        window_length: Steps that a prediction may depend on, the present one included; at least 1.
        learning_rate: Initial step size of Adam; it falls to zero along a cosine until the last update.

    Raises:
        BadInput: If the width is no multiple of the number of heads.
    """
    require_at_least(1, width=width, num_heads=num_heads, window_length=window_length)
    if width % num_heads:
        raise BadInput(f"the setting 'width' must be a multiple of the {num_heads} heads, not {width}")
    config = BlockConfig(num_heads, norm="rms", norm_epsilon=1e-6, activation="relu")

    def init(key: Key) -> CausalTransformerWeights:
        sizes = ((num_inputs, width), (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        keys = jax.random.split(key, len(sizes))
        embedding, qkv, out_proj, up, down = (init_dense(k, *size) for k, size in zip(keys, sizes, strict=True))
        embedding_bias, age_bias = jnp.zeros(width), jnp.zeros((num_heads, window_length))
        readout, readout_bias = jnp.zeros((width, num_outputs)), jnp.zeros(num_outputs)
        return CausalTransformerWeights(
            embedding, embedding_bias, qkv, age_bias, out_proj, up, down, readout, readout_bias
        )

    def init_memory() -> AttentionWindow:
        zeros = jnp.zeros((num_heads, window_length, width // num_heads))
        return AttentionWindow(zeros, zeros, jnp.zeros(window_length, bool))

    def query(
        weights: CausalTransformerWeights, memory: AttentionWindow, inputs: Float[Array, "I"]
    ) -> tuple[Float[Array, "K"], AttentionWindow]:
        stream, queries, keys, values = _embed(config, weights, inputs[None])
        is_filled = jnp.append((memory.is_filled & ~starts_sequence(inputs))[1:], True)
        memory = AttentionWindow(_shift_in(memory.keys, keys), _shift_in(memory.values, values), is_filled)
        score_bias = weights.age_bias[:, None, ::-1]  # the latest step, of age 0, stands last in the window
        keys, values, mask = memory.keys[None], memory.values[None], is_filled[None, None]
        attended = transformer_block.attend(queries, keys, values, mask, score_bias)
        return _read_out(config, weights, stream, attended)[0], memory

    def query_sequence(weights: CausalTransformerWeights, inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        stream, queries, keys, values = _embed(config, weights, inputs)
        step = jnp.arange(inputs.shape[0])
        age = step[:, None] - step[None, :]
        sequence = jnp.cumsum(starts_sequence(inputs))
        mask = (age >= 0) & (age < window_length) & (sequence[:, None] == sequence[None, :])
        score_bias = weights.age_bias[:, jnp.clip(age, 0, window_length - 1)]
        attended = transformer_block.attend(queries, keys, values, mask[None], score_bias)
        return _read_out(config, weights, stream, attended)

    return gradient_predictor(init, init_memory, query, query_sequence, learning_rate)


def _embed(
    config: BlockConfig, weights: CausalTransformerWeights, inputs: Float[Array, "L I"]
) -> tuple[Array, Array, Array, Array]:
    """The residual stream [1, L, D], and queries, keys and values [1, N, L, D/N]."""
    stream = (inputs @ weights.embedding + weights.embedding_bias)[None]
    positions = jnp.arange(inputs.shape[0], dtype=jnp.int32)[None]
    return stream, *transformer_block.project_qkv(config, weights.block, stream, positions)


def _read_out(
    config: BlockConfig, weights: CausalTransformerWeights, stream: Float[Array, "1 L D"], attended: Array
) -> Float[Array, "L K"]:
    """The logits of the residual stream after the block."""
    stream = transformer_block.finish_block(config, weights.block, stream, attended)
    return transformer_block.normalize(config, NO_SCALE, stream)[0] @ weights.readout + weights.readout_bias


def _shift_in(window: Float[Array, "N W E"], latest: Float[Array, "1 N 1 E"]) -> Float[Array, "N W E"]:
    """The window without its oldest step and with the latest one."""
    return jnp.concatenate([window[:, 1:], latest[0]], axis=1)
