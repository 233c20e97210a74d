"""Products of the tokens of a step with the low-rank adapters of their sequences (as in S-LoRA, arXiv 2311.03285).

A linear map with an adapter of rank r has the output x W + (x A) B, with factors A [I, r] and B [r, O] in float32. Each
of the r numbers of x A is a sum of products in the order of `primitives.dot`. The products with B are added to the
finished sum of x W, whatever the type of W, by one fused multiply-add per number of x A, in their order. So the output
of a token depends neither on the adapters nor on the number of the other tokens, and tokens without an adapter have the
bits of x W.

Tokens with the same adapter that stand side by side form a group, which has at most `products.MICRO_TOKENS` tokens.
"""

import numpy as np

from ontogeny.kernels import layout
from ontogeny.kernels.compiling import kernel
from ontogeny.kernels.elementwise import view
from ontogeny.kernels.layout import PANEL
from ontogeny.kernels.primitives import as_int_pointer, carray, dot
from ontogeny.kernels.products import MICRO_COLUMNS, multiply_float32


@kernel
def read_group(d: np.ndarray, group: int) -> np.ndarray:
    """The fields of a group."""
    address = d[layout.GROUPS] + 8 * layout.NUM_GROUP_FIELDS * group
    return carray(as_int_pointer(address), (layout.NUM_GROUP_FIELDS,))


@kernel
def read_factors(fields: np.ndarray, number: int, matrix: int) -> np.ndarray:
    """The addresses of the two factors of a linear map in the layer with this number."""
    index = layout.NUM_FACTORS * (layout.NUM_ADAPTED * number + matrix)
    return carray(as_int_pointer(fields[layout.GROUP_ADAPTER] + 8 * index), (layout.NUM_FACTORS,))


@kernel
def reduce_group(d: np.ndarray, number: int, matrix: int, group: int, inputs: int, num_inputs: int) -> None:
    """Multiplies the inputs [tokens, num_inputs] of a group with the first factor, which is stored transposed."""
    fields = read_group(d, group)
    factor, rank = read_factors(fields, number, matrix)[layout.FIRST_FACTOR], fields[layout.GROUP_RANK]
    for i in range(fields[layout.GROUP_SIZE]):
        token = fields[layout.GROUP_TOKEN] + i
        outputs = view(d[layout.REDUCED] + 4 * d[layout.MAX_RANK] * token, rank)
        for j in range(rank):
            outputs[j] = dot(inputs + 4 * num_inputs * token, factor + 4 * num_inputs * j, num_inputs)


@kernel
def add_products(d: np.ndarray, number: int, matrix: int, panel: int, products: int) -> None:
    """Adds to products [tokens, 64] of a panel those with the second factors, which are packed as weights are."""
    stride = d[layout.MAX_RANK]
    for group in range(d[layout.NUM_GROUPS]):
        fields = read_group(d, group)
        token, count, rank = fields[layout.GROUP_TOKEN], fields[layout.GROUP_SIZE], fields[layout.GROUP_RANK]
        factor = read_factors(fields, number, matrix)[layout.SECOND_FACTOR] + 4 * PANEL * rank * panel
        reduced = d[layout.REDUCED] + 4 * stride * token
        for column in range(0, PANEL, MICRO_COLUMNS):
            outputs = products + 4 * (PANEL * token + column)
            multiply_float32(count, reduced, stride, factor + 4 * column, rank, outputs, True)
