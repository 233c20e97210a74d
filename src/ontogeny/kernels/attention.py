"""Attention of the new tokens of one sequence, for one head of keys and values and the heads of queries that share it.

The sums over keys run from the first visible token to the present one, so that a result depends on these tokens alone.
"""

import numpy as np

from ontogeny.kernels import layout as at
from ontogeny.kernels.compiling import kernel
from ontogeny.kernels.elementwise import exponential, normalize, rotate, view
from ontogeny.kernels.primitives import LANES, dot, fma, make_microkernel

_sum_16, _sum_64 = make_microkernel(1, 1), make_microkernel(1, 4)
_ZERO, _UNIT = np.float32(0.0), np.float32(1.0)
_LOWEST = np.float32(-3.0e38)


@kernel
def prepare_head(d: np.ndarray, layer: np.ndarray, vector: int, position: int, scale: int, bias: int) -> None:
    """Normalizes and rotates one head of queries or keys in place, where the layer does."""
    size = d[at.HEAD_SIZE]
    if layer[at.HAS_HEAD_NORMS]:
        epsilon = view(d[at.CONSTANTS], 2)[0]
        normalize(vector, vector, size, scale, bias, d[at.IS_LAYER_NORM], epsilon, d[at.ONES])
    if layer[at.IS_ROTARY]:
        offset = 4 * position * (size // 2)
        rotate(vector, d[at.COSINES] + offset, d[at.SINES] + offset, size // 2)


@kernel
def extend_keys(
    d: np.ndarray, layer: np.ndarray, keys: int, values: int, first: int, count: int, length: int, head: int
) -> None:
    """Appends the keys and values of new tokens to the cache of one head."""
    size, num_heads, num_kv_heads = d[at.HEAD_SIZE], d[at.NUM_HEADS], d[at.NUM_KV_HEADS]
    stride = (num_heads + 2 * num_kv_heads) * size
    for token in range(count):
        joined = d[at.QKV] + 4 * (first + token) * stride
        key_head = joined + 4 * (num_heads + head) * size
        prepare_head(d, layer, key_head, length + token, layer[at.KEY_SCALE], layer[at.KEY_BIAS])
        value_head = joined + 4 * (num_heads + num_kv_heads + head) * size
        offset = 4 * (length + token) * size
        new_key, new_value = view(keys + offset, size), view(values + offset, size)
        old_key, old_value = view(key_head, size), view(value_head, size)
        for i in range(size):
            new_key[i], new_value[i] = old_key[i], old_value[i]


@kernel
def average_values(shares: int, values: int, count: int, size: int, averaged: int) -> None:
    """averaged[i] = sum over the tokens of shares[token] * values[token, i], in order of the tokens."""
    column = 0
    while column + 4 * LANES <= size:
        _sum_64(shares, 0, values + 4 * column, size, count, averaged + 4 * column, 0, False)
        column += 4 * LANES
    while column + LANES <= size:
        _sum_16(shares, 0, values + 4 * column, size, count, averaged + 4 * column, 0, False)
        column += LANES
    outputs, all_shares, all_values = view(averaged, size), view(shares, count), view(values, count * size)
    for i in range(column, size):
        total = _ZERO
        for token in range(count):
            total = fma(all_shares[token], all_values[token * size + i], total)
        outputs[i] = total


@kernel
def attend_head(d: np.ndarray, query: int, keys: int, values: int, count: int, scratch: int, averaged: int) -> None:
    """Averages `count` values for one query; all arrays are given by address."""
    size = d[at.HEAD_SIZE]
    scale = view(d[at.CONSTANTS], 2)[1]
    scores = view(scratch, count)
    highest = _LOWEST
    for token in range(count):
        score = dot(query, keys + 4 * token * size, size) * scale
        scores[token] = score
        highest = max(highest, score)
    for token in range(count):
        scores[token] = exponential(scores[token] - highest)
    average_values(scratch, values, count, size, averaged)
    factor = _UNIT / dot(scratch, d[at.ONES], count)
    outputs = view(averaged, size)
    for i in range(size):
        outputs[i] = outputs[i] * factor


@kernel
def attend_sequence(
    d: np.ndarray,
    layer: np.ndarray,
    keys: int,
    values: int,
    sequence: int,
    head: int,
    first: int,
    count: int,
    length: int,
    scratch: int,
) -> None:
    """Extends the cache by the new tokens of a sequence, and lets each attend to the tokens before it and itself."""
    size, num_heads, num_kv_heads = d[at.HEAD_SIZE], d[at.NUM_HEADS], d[at.NUM_KV_HEADS]
    offset = 4 * (sequence * num_kv_heads + head) * d[at.CAPACITY] * size
    keys, values = keys + offset, values + offset
    extend_keys(d, layer, keys, values, first, count, length, head)
    group = num_heads // num_kv_heads
    for token in range(first, first + count):
        position = length + token - first
        window = layer[at.WINDOW]
        start = max(0, position + 1 - window) if window else 0
        skipped = 4 * start * size
        for query_head in range(head * group, (head + 1) * group):
            query = d[at.QKV] + 4 * (token * (num_heads + 2 * num_kv_heads) + query_head) * size
            prepare_head(d, layer, query, position, layer[at.QUERY_SCALE], layer[at.QUERY_BIAS])
            averaged = d[at.ATTENDED] + 4 * (token * num_heads + query_head) * size
            attend_head(d, query, keys + skipped, values + skipped, position + 1 - start, scratch, averaged)
