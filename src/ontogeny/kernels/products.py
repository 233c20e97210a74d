"""Products of the tokens of a step with one panel of packed weights, and what follows them.

Weights are packed in panels of 64 columns, [panels, K, 64]. Each element of an output is accumulated by one fused
multiply-add per k, in order of k, however many tokens there are.
"""

from ontogeny.kernels import layout
from ontogeny.kernels.compiling import HAS_WIDE_VECTORS, kernel
from ontogeny.kernels.elementwise import activate, gate, view
from ontogeny.kernels.layout import PAIR, PANEL
from ontogeny.kernels.primitives import LANES, make_microkernel

# The sums of a microkernel fill the registers: 6 x 4 sums in 32 registers of 512 bits, or 4 x 2 in 16 of 256 bits.
MICRO_TOKENS, MICRO_VECTORS = (6, 4) if HAS_WIDE_VECTORS else (4, 1)
MICRO_COLUMNS = MICRO_VECTORS * LANES
MAX_INPUTS = 1024  # of one pass over a panel, so that it stays in the second-level cache for all tokens
_micro_1, _micro_2, _micro_3, _micro_4, _micro_5, _micro_6 = (make_microkernel(n, MICRO_VECTORS) for n in range(1, 7))


@kernel
def multiply_small(
    count: int, inputs: int, input_stride: int, weights: int, num_inputs: int, outputs: int, continues: bool
) -> None:
    """Multiplies `count` tokens, at most `MICRO_TOKENS`, with `MICRO_COLUMNS` columns of a panel."""
    if count == 1:
        _micro_1(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 2:
        _micro_2(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 3:
        _micro_3(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 4:
        _micro_4(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    elif count == 5:
        _micro_5(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)
    else:
        _micro_6(inputs, input_stride, weights, PANEL, num_inputs, outputs, PANEL, continues)


@kernel
def multiply_panel(inputs: int, num_tokens: int, num_inputs: int, panels: int, panel: int, products: int) -> None:
    """products[t, n] = sum over k of inputs[t, k] * panels[panel, k, n]; arrays are given by address."""
    weights = panels + 4 * PANEL * num_inputs * panel
    for start in range(0, num_inputs, MAX_INPUTS):
        count = min(MAX_INPUTS, num_inputs - start)
        for token in range(0, num_tokens, MICRO_TOKENS):
            size = min(MICRO_TOKENS, num_tokens - token)
            first = inputs + 4 * (token * num_inputs + start)
            for column in range(0, PANEL, MICRO_COLUMNS):
                block = weights + 4 * (PANEL * start + column)
                outputs = products + 4 * (token * PANEL + column)
                multiply_small(size, first, num_inputs, block, count, outputs, start > 0)


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
