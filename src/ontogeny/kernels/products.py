"""Products of the tokens of a step with one panel of packed weights, and what follows them.

Weights are packed in panels of 64 columns, [panels, K, 64], in float32, bfloat16, float16 or int8. Each element of an
output is accumulated by one fused multiply-add per k in float32, in order of k, however many tokens there are. A panel
of int8 begins with 64 float32 numbers, by which the sums of its columns are multiplied.
"""

import numba
import numpy as np

from ontogeny.kernels import layout
from ontogeny.kernels.compiling import HAS_WIDE_VECTORS, kernel
from ontogeny.kernels.elementwise import activate, gate, view
from ontogeny.kernels.layout import BFLOAT16, FLOAT16, FLOAT32, INT8, PAIR, PANEL
from ontogeny.kernels.primitives import (
    LANES,
    as_int8_pointer,
    as_uint16_pointer,
    carray,
    float_from_bits,
    float_from_half_bits,
    make_microkernels,
)

# The sums of a microkernel fill the registers: 6 x 4 sums in 32 registers of 512 bits, or 4 x 2 in 16 of 256 bits.
MICRO_TOKENS, MICRO_VECTORS = (6, 4) if HAS_WIDE_VECTORS else (4, 1)
MICRO_COLUMNS = MICRO_VECTORS * LANES
MAX_INPUTS = 1024  # of one pass over a panel, so that it stays in the second-level cache for all tokens
_multiply_float32 = make_microkernels(MICRO_TOKENS, MICRO_VECTORS, "float32")
_multiply_bfloat16 = make_microkernels(MICRO_TOKENS, MICRO_VECTORS, "bfloat16")
_multiply_float16 = make_microkernels(MICRO_TOKENS, MICRO_VECTORS, "float16")
_multiply_int8 = make_microkernels(MICRO_TOKENS, MICRO_VECTORS, "int8")


@kernel
def multiply_float32(
    count: int, inputs: int, input_stride: int, weights: int, num_inputs: int, outputs: int, continues: bool
) -> None:
    """Multiplies `count` tokens, at most `MICRO_TOKENS`, with `MICRO_COLUMNS` columns of a panel."""
    _multiply_float32(count, inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)


@kernel
def multiply_bfloat16(
    count: int, inputs: int, input_stride: int, weights: int, num_inputs: int, outputs: int, continues: bool
) -> None:
    """As `multiply_float32`, for weights of this type."""
    _multiply_bfloat16(count, inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)


@kernel
def multiply_float16(
    count: int, inputs: int, input_stride: int, weights: int, num_inputs: int, outputs: int, continues: bool
) -> None:
    """As `multiply_float32`, for weights of this type."""
    _multiply_float16(count, inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)


@kernel
def multiply_int8(
    count: int, inputs: int, input_stride: int, weights: int, num_inputs: int, outputs: int, continues: bool
) -> None:
    """As `multiply_float32`, for weights of this type without their scales."""
    _multiply_int8(count, inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)


@kernel
def scale_columns(products: int, num_tokens: int, scales: int) -> None:
    """Multiplies each of the 64 columns of products [tokens, 64] by its scale."""
    factors = view(scales, PANEL)
    for token in range(num_tokens):
        sums = view(products + 4 * token * PANEL, PANEL)
        for i in range(PANEL):
            sums[i] = sums[i] * factors[i]


@kernel
def multiply_panel(
    inputs: int, num_tokens: int, num_inputs: int, panels: int, weight_type: int, panel: int, products: int
) -> None:
    """products[t, n] = sum over k of inputs[t, k] * panels[panel, k, n]; arrays are given by address."""
    size = 4 if weight_type == FLOAT32 else 1 if weight_type == INT8 else 2
    size_of_scales = 4 * PANEL if size == 1 else 0
    scales = panels + (size * PANEL * num_inputs + size_of_scales) * panel
    weights = scales + size_of_scales
    for start in range(0, num_inputs, MAX_INPUTS):
        count = min(MAX_INPUTS, num_inputs - start)
        for token in range(0, num_tokens, MICRO_TOKENS):
            num_rows = min(MICRO_TOKENS, num_tokens - token)
            first = inputs + 4 * (token * num_inputs + start)
            for column in range(0, PANEL, MICRO_COLUMNS):
                block = weights + size * (PANEL * start + column)
                outputs = products + 4 * (token * PANEL + column)
                if size == 4:
                    multiply_float32(num_rows, first, num_inputs, block, count, outputs, start > 0)
                elif weight_type == FLOAT16:
                    multiply_float16(num_rows, first, num_inputs, block, count, outputs, start > 0)
                elif size == 2:
                    multiply_bfloat16(num_rows, first, num_inputs, block, count, outputs, start > 0)
                else:
                    multiply_int8(num_rows, first, num_inputs, block, count, outputs, start > 0)
    if size == 1:
        scale_columns(products, num_tokens, scales)


@kernel
def embed(d: np.ndarray, tokens: np.ndarray, stream: int) -> None:
    """Writes the embeddings of tokens, columns of the panels of the embedding, to the residual stream [tokens, W]."""
    width, weight_type = d[layout.WIDTH], d[layout.WEIGHT_TYPE]
    for i in range(len(tokens)):
        panel, column = tokens[i] // PANEL, tokens[i] % PANEL
        outputs = view(stream + 4 * i * width, width)
        if weight_type == FLOAT32:
            wide = view(d[layout.EMBEDDING] + 4 * PANEL * width * panel, PANEL * width)
            for k in range(width):
                outputs[k] = wide[PANEL * k + column]
        elif weight_type == FLOAT16:
            halves = carray(as_uint16_pointer(d[layout.EMBEDDING] + 2 * PANEL * width * panel), (PANEL * width,))
            for k in range(width):
                outputs[k] = float_from_half_bits(halves[PANEL * k + column])
        elif weight_type == BFLOAT16:
            halves = carray(as_uint16_pointer(d[layout.EMBEDDING] + 2 * PANEL * width * panel), (PANEL * width,))
            for k in range(width):
                outputs[k] = float_from_bits(numba.int32(halves[PANEL * k + column]) << numba.int32(16))
        else:
            first = d[layout.EMBEDDING] + PANEL * (width + 4) * panel
            scale = view(first, PANEL)[column]
            bytes_of_panel = carray(as_int8_pointer(first + 4 * PANEL), (PANEL * width,))
            for k in range(width):
                outputs[k] = scale * np.float32(bytes_of_panel[PANEL * k + column])


@kernel
def store(products: int, num_tokens: int, panel: int, bias: int, outputs: int, num_outputs: int) -> None:
    """Writes a panel of outputs [tokens, num_outputs], with their bias where there is one."""
    first = panel * PANEL
    count = min(PANEL, num_outputs - first)
    for token in range(num_tokens):
        source, target = (
            view(products + 4 * token * PANEL, count),
            view(outputs + 4 * (token * num_outputs + first), count),
        )
        if bias:
            biases = view(bias + 4 * first, count)
            for i in range(count):
                target[i] = source[i] + biases[i]
        else:
            for i in range(count):
                target[i] = source[i]


@kernel
def add_to_stream(products: int, num_tokens: int, panel: int, bias: int, stream: int, width: int) -> None:
    """Adds a panel of outputs, with their bias, to the residual stream [tokens, width]."""
    first = panel * PANEL
    count = min(PANEL, width - first)
    for token in range(num_tokens):
        source, target = view(products + 4 * token * PANEL, count), view(stream + 4 * (token * width + first), count)
        if bias:
            biases = view(bias + 4 * first, count)
            for i in range(count):
                target[i] = target[i] + (source[i] + biases[i])
        else:
            for i in range(count):
                target[i] = target[i] + source[i]


@kernel
def store_activated(
    products: int, num_tokens: int, panel: int, bias: int, hidden: int, mlp_width: int, activation: int
) -> None:
    """Writes a panel of the feed-forward network's hidden layer [tokens, mlp_width]."""
    if activation != layout.SWIGLU:
        store(products, num_tokens, panel, bias, hidden, mlp_width)
        first = panel * PANEL
        count = min(PANEL, mlp_width - first)
        for token in range(num_tokens):
            activate(activation, view(hidden + 4 * (token * mlp_width + first), count), count)
        return
    first = panel * PAIR  # a panel has PAIR columns of the gate, then those of the value
    count = min(PAIR, mlp_width - first)
    for token in range(num_tokens):
        gates = view(products + 4 * token * PANEL, PANEL)
        if bias:
            biases = view(bias + 4 * panel * PANEL, PANEL)
            for i in range(PANEL):
                gates[i] = gates[i] + biases[i]
        values = view(products + 4 * (token * PANEL + PAIR), PAIR)
        gate(gates, values, view(hidden + 4 * (token * mlp_width + first), count), count)
