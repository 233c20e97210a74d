"""Products of the tokens of a step with one panel of packed weights, and what follows them.

Weights are packed in panels of 64 columns, [panels, K, 64]. Each element of an output is accumulated by one fused
multiply-add per k, in order of k, however many tokens there are.
"""

from ontogeny.kernels import layout
from ontogeny.kernels.compiling import HAS_WIDE_VECTORS, kernel
from ontogeny.kernels.elementwise import activate, gate, view
from ontogeny.kernels.layout import PAIR, PANEL
from ontogeny.kernels.primitives import LANES, make_tile

# A tile fills the registers: 6 x 4 sums in 32 registers of 512 bits, or 4 x 2 in 16 of 256 bits.
TILE_TOKENS, TILE_VECTORS = (6, 4) if HAS_WIDE_VECTORS else (4, 1)
TILE_COLUMNS = TILE_VECTORS * LANES
MAX_INPUTS = 1024  # of one pass over a panel, so that it stays in the second-level cache for all tokens
_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (make_tile(n, TILE_VECTORS) for n in range(1, 7))


@kernel
def multiply_tile(count, inputs, input_stride, weights, num_inputs, outputs, continues):
    """Multiplies `count` tokens, at most `TILE_TOKENS`, with `TILE_COLUMNS` columns of a panel."""
    if count == 1:
        _tile_1(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 2:
        _tile_2(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 3:
        _tile_3(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 4:
        _tile_4(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 5:
        _tile_5(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    else:
        _tile_6(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)


@kernel
def multiply_panel(inputs, num_tokens, num_inputs, panels, panel, tile):
    """tile[t, n] = sum over k of inputs[t, k] * panels[panel, k, n]; arrays are given by address."""
    weights = panels + 4 * PANEL * num_inputs * panel
    for start in range(0, num_inputs, MAX_INPUTS):
        count = min(MAX_INPUTS, num_inputs - start)
        for token in range(0, num_tokens, TILE_TOKENS):
            num_rows = min(TILE_TOKENS, num_tokens - token)
            first = inputs + 4 * (token * num_inputs + start)
            for column in range(0, PANEL, TILE_COLUMNS):
                block = weights + 4 * (PANEL * start + column)
                outputs = tile + 4 * (token * PANEL + column)
                multiply_tile(num_rows, first, num_inputs, block, count, outputs, start > 0)


@kernel
def store(tile, num_tokens, panel, bias, outputs, num_outputs):
    """Writes a panel of outputs [tokens, num_outputs], with their bias where there is one."""
    first = panel * PANEL
    count = min(PANEL, num_outputs - first)
    for token in range(num_tokens):
        source, target = view(tile + 4 * token * PANEL, count), view(outputs + 4 * (token * num_outputs + first), count)
        if bias:
            biases = view(bias + 4 * first, count)
            for i in range(count):
                target[i] = source[i] + biases[i]
        else:
            for i in range(count):
                target[i] = source[i]


@kernel
def add_to_stream(tile, num_tokens, panel, bias, stream, width):
    """Adds a panel of outputs, with their bias, to the residual stream [tokens, width]."""
    first = panel * PANEL
    count = min(PANEL, width - first)
    for token in range(num_tokens):
        source, target = view(tile + 4 * token * PANEL, count), view(stream + 4 * (token * width + first), count)
        if bias:
            biases = view(bias + 4 * first, count)
            for i in range(count):
                target[i] = target[i] + (source[i] + biases[i])
        else:
            for i in range(count):
                target[i] = target[i] + source[i]


@kernel
def store_activated(tile, num_tokens, panel, bias, hidden, mlp_width, activation):
    """Writes a panel of the feed-forward network's hidden layer [tokens, mlp_width]."""
    if activation != layout.SWIGLU:
        store(tile, num_tokens, panel, bias, hidden, mlp_width)
        first = panel * PANEL
        count = min(PANEL, mlp_width - first)
        for token in range(num_tokens):
            activate(activation, view(hidden + 4 * (token * mlp_width + first), count), count)
        return
    first = panel * PAIR  # a panel has PAIR columns of the gate, then those of the value
    count = min(PAIR, mlp_width - first)
    for token in range(num_tokens):
        gates = view(tile + 4 * token * PANEL, PANEL)
        if bias:
            biases = view(bias + 4 * panel * PANEL, PANEL)
            for i in range(PANEL):
                gates[i] = gates[i] + biases[i]
        values = view(tile + 4 * (token * PANEL + PAIR), PAIR)
        gate(gates, values, view(hidden + 4 * (token * mlp_width + first), count), count)
