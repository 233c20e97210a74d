"""Predicts with a stack of causal transformer blocks, which remember keys and values of earlier inputs.

A block is `content.transformer_block` with RMSNorm without scale, ReLU and no biases. In place of positions the
attention scores of each block have a learned bias for how many steps ago a step was (Raffel et al. 2020, arXiv
1910.10683, section 2.1).

Letters: D width, N heads, E = D / N, M blocks, W steps of the attention window, I inputs, K outputs, L steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ontogeny.content import transformer_block
from ontogeny.content.base import Predictor, StreamEdit, gradient_predictor, init_dense, starts_sequence
from ontogeny.content.transformer_block import BlockConfig, BlockWeights, Linear, Norm
from ontogeny.errors import BadInput, require_at_least, require_one_of
from ontogeny.types import Key, PyTree

KEY_NUMBER = 4  # in the random keys of the mesa study, which trains contents in this order

NO_SCALE = Norm(None, None)
PREDICTOR_OPTIMIZERS = ("adam", "muon")


class CausalBlockWeights(NamedTuple):
    """Weights of one block."""

    attn_qkv: Float[Array, "D 3*D"]  # queries, keys and values side by side
    age_bias: Float[Array, "N W"]  # added to attention scores, by how many steps ago a step was
    out_proj: Float[Array, "D D"]
    up: Float[Array, "D 4*D"]
    down: Float[Array, "4*D D"]

    @property
    def linear_maps(self) -> BlockWeights:
        """The weights without the bias, as the transformer block takes them."""
        qkv, out, up, down = (Linear(weight, None) for weight in (self.attn_qkv, self.out_proj, self.up, self.down))
        return BlockWeights(NO_SCALE, qkv, out, NO_SCALE, up, down)


class CausalTransformerWeights(NamedTuple):
    """Weights of the predictor."""

    embedding: Float[Array, "I D"]
    embedding_bias: Float[Array, "D"]
    blocks: tuple[CausalBlockWeights, ...]  # from the inputs to the outputs
    readout: Float[Array, "D K"]
    readout_bias: Float[Array, "K"]


class AttentionWindow(NamedTuple):
    """Keys and values of the last W steps in each block, the latest step last."""

    keys: Float[Array, "M N W E"]
    values: Float[Array, "M N W E"]
    is_filled: Bool[Array, "W"]


def build(
    num_inputs: int,
    num_outputs: int = 1,
    *,
    width: int = 16,
    num_heads: int = 2,
    num_blocks: int = 1,
    window_length: int = 50,
    learning_rate: float = 0.005,
    outputs: str = "binary",
    optimizer: str = "adam",
) -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step, or classes of the one predicted quantity.
        width: Width of the residual stream; a multiple of `num_heads`.
        num_heads: Attention heads, at least 1.
        num_blocks: Transformer blocks, at least 1.
        window_length: Steps that the attention of a block may depend on, the present one included; at least 1.
        learning_rate: Initial step size of the optimizer; it falls to zero along a cosine until the last update.
        outputs: `binary` for K binary quantities, `categorical` for the K classes of one quantity.
        optimizer: `adam`, or `muon` for Muon on the matrices of the blocks and Adam on the other weights.

    Raises:
        BadInput: If the width is no multiple of the number of heads, or there are no outputs or optimizer of this name.
    """
    require_one_of(PREDICTOR_OPTIMIZERS, optimizer=optimizer)
    require_at_least(1, width=width, num_heads=num_heads, num_blocks=num_blocks, window_length=window_length)
    if width % num_heads:
        raise BadInput(f"the setting 'width' must be a multiple of the {num_heads} heads, not {width}")
    config = _block_config(num_heads)

    def init(key: Key) -> CausalTransformerWeights:
        return _init_weights(key, (num_inputs, width, num_outputs), num_blocks, (num_heads, window_length))

    def init_memory() -> AttentionWindow:
        zeros = jnp.zeros((num_blocks, num_heads, window_length, width // num_heads))
        return AttentionWindow(zeros, zeros, jnp.zeros(window_length, bool))

    def query(
        weights: CausalTransformerWeights, memory: AttentionWindow, inputs: Float[Array, "I"]
    ) -> tuple[Float[Array, "K"], AttentionWindow]:
        stream = _embed(weights, inputs[None, None])
        is_filled = jnp.append((memory.is_filled & ~starts_sequence(inputs))[1:], True)
        windows = []
        for block, *window in zip(weights.blocks, memory.keys, memory.values, strict=True):
            queries, *latest = transformer_block.project_qkv(config, block.linear_maps, stream, jnp.zeros((1, 1), int))
            windows.append(
                [jnp.concatenate([old[:, 1:], new[0]], axis=1) for old, new in zip(window, latest, strict=True)]
            )
            keys, values = windows[-1]
            score_bias = block.age_bias[:, None, ::-1]  # the latest step, of age 0, stands last in the window
            attended = transformer_block.attend(queries, keys[None], values[None], is_filled[None, None], score_bias)
            stream = transformer_block.finish_block(config, block.linear_maps, stream, attended)
        keys, values = (jnp.stack(parts) for parts in zip(*windows, strict=True))
        return _read_out(config, weights, stream[0])[0], AttentionWindow(keys, values, is_filled)

    def query_batch(weights: CausalTransformerWeights, inputs: Float[Array, "B L I"]) -> Float[Array, "B L K"]:
        return _read_out(config, weights, _residual_streams(config, weights, inputs, window_length)[-1])

    def query_sequence(weights: CausalTransformerWeights, inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        return query_batch(weights, inputs[None])[0]

    def query_edited(
        weights: CausalTransformerWeights, inputs: Float[Array, "L I"], edit: StreamEdit
    ) -> tuple[Float[Array, "L K"], Float[Array, "num_levels L D"]]:
        return stream_logits(weights, inputs, edit, num_heads=num_heads, window_length=window_length)

    return gradient_predictor(
        init,
        init_memory,
        query,
        query_sequence,
        learning_rate,
        outputs=outputs,
        query_edited=query_edited,
        query_batch=query_batch,
        largest_array=lambda num_steps: num_steps * max(num_heads * num_steps, 4 * width),
        uses_muon=_is_block_matrix if optimizer == "muon" else None,
    )


def stream_logits(
    weights: CausalTransformerWeights,
    inputs: Float[Array, "L I"],
    edit: StreamEdit | None = None,
    *,
    num_heads: int,
    window_length: int,
) -> tuple[Float[Array, "L K"], Float[Array, "num_levels L D"]]:
    """Computes the logits of a sequence and its residual streams.

    Args:
        weights: Weights of the predictor.
        inputs: Inputs of the sequence.
        edit: Changes the residual stream: `edit(0, stream)` is applied to the embedding, `edit(b, stream)` to the
            stream after block b, from 1 to M; None changes nothing.
        num_heads: As in `build`.
        window_length: As in `build`.

    Returns:
        The logits, and the residual streams, as edited: the embedding and the stream after each block.
    """
    config = _block_config(num_heads)

    def edit_one(level: int, stream: Float[Array, "1 L D"]) -> Float[Array, "1 L D"]:
        return stream if edit is None else edit(level, stream[0])[None]

    streams = _residual_streams(config, weights, inputs[None], window_length, edit_one)
    return _read_out(config, weights, streams[-1])[0], jnp.concatenate(streams)


def _residual_streams(
    config: BlockConfig,
    weights: CausalTransformerWeights,
    inputs: Float[Array, "B L I"],
    window_length: int,
    edit: Callable[[int, Array], Array] = lambda level, stream: stream,
) -> list[Float[Array, "B L D"]]:
    """The embedding of all sequences and their residual streams after each block, each as edited."""
    step = jnp.arange(inputs.shape[1])
    age = step[:, None] - step[None, :]
    sequence = jnp.cumsum(starts_sequence(inputs), axis=1)
    is_visible = (age >= 0) & (age < window_length) & (sequence[:, :, None] == sequence[:, None, :])
    mask_bias = jnp.where(is_visible, 0.0, transformer_block.MASKED_SCORE)[:, None]
    streams = [edit(0, _embed(weights, inputs))]
    for number, block in enumerate(weights.blocks, start=1):
        queries, keys, values = transformer_block.project_qkv(config, block.linear_maps, streams[-1], step[None])
        score_bias = _bias_by_age(block.age_bias, len(step)) + mask_bias
        attended = transformer_block.attend(queries, keys, values, None, score_bias)
        streams.append(edit(number, transformer_block.finish_block(config, block.linear_maps, streams[-1], attended)))
    return streams


def _bias_by_age(age_bias: Float[Array, "N W"], num_steps: int) -> Float[Array, "N L L"]:
    """The bias of the score of each step (columns) for each step that attends to it (rows); 0 beyond the window.

    Each row is that above it, shifted by one step: the rows are cut from repeated copies of one vector, so that the
    gradient is a sum over rows and not, as that of indexing by age, a sum of scattered numbers.
    """
    biases = age_bias[:, :num_steps]
    num_heads, longest = biases.shape
    reversed_ages = jnp.pad(biases[:, ::-1], ((0, 0), (num_steps - longest, num_steps)))  # ages L - 1 to 0, then zeros
    period = 2 * num_steps
    rows = jnp.broadcast_to(reversed_ages[:, None], (num_heads, num_steps + 1, period)).reshape(num_heads, -1)
    start = num_steps - 1  # of the first row, whose own step has age 0
    rows = rows[:, start : start + num_steps * (period - 1)].reshape(num_heads, num_steps, period - 1)
    return rows[:, :, :num_steps]


def _is_block_matrix(weights: CausalTransformerWeights) -> PyTree:
    """Marks the matrices of the blocks."""
    blocks = jax.tree.map(lambda leaf: True, weights.blocks)
    unmarked = jax.tree.map(lambda leaf: False, weights)
    biases = tuple(block._replace(age_bias=False) for block in blocks)
    return unmarked._replace(blocks=biases)


def _block_config(num_heads: int) -> BlockConfig:
    """The settings of the transformer block."""
    return BlockConfig(num_heads, norm="rms", norm_epsilon=1e-6, activation="relu")


def _init_weights(
    key: Key, sizes: tuple[int, int, int], num_blocks: int, bias_shape: tuple[int, int]
) -> CausalTransformerWeights:
    """Draws weights for inputs, width and outputs of these sizes; what M blocks add has the variance of one block."""
    num_inputs, width, num_outputs = sizes
    embedding_key, *block_keys = jax.random.split(key, 1 + 4 * num_blocks)
    output_scale = 1 / math.sqrt(num_blocks)  # as in GPT-2 (Radford et al. 2019, section 2.3)
    blocks = []
    for first in range(0, 4 * num_blocks, 4):
        qkv_key, out_key, up_key, down_key = block_keys[first : first + 4]
        qkv, up = init_dense(qkv_key, width, 3 * width), init_dense(up_key, width, 4 * width)
        out_proj = init_dense(out_key, width, width, output_scale)
        down = init_dense(down_key, 4 * width, width, output_scale)
        blocks.append(CausalBlockWeights(qkv, jnp.zeros(bias_shape), out_proj, up, down))
    embedding = init_dense(embedding_key, num_inputs, width)
    readout, readout_bias = jnp.zeros((width, num_outputs)), jnp.zeros(num_outputs)
    return CausalTransformerWeights(embedding, jnp.zeros(width), tuple(blocks), readout, readout_bias)


def _embed(weights: CausalTransformerWeights, inputs: Float[Array, "B L I"]) -> Float[Array, "B L D"]:
    """The residual stream before the first block."""
    return transformer_block.apply_linear(Linear(weights.embedding, weights.embedding_bias), inputs)


def _read_out(
    config: BlockConfig, weights: CausalTransformerWeights, stream: Float[Array, "*B L D"]
) -> Float[Array, "*B L K"]:
    """The logits of the residual stream after the last block."""
    readout = Linear(weights.readout, weights.readout_bias)
    return transformer_block.apply_linear(readout, transformer_block.normalize(config, NO_SCALE, stream))
