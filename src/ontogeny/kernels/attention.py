"""Attention of the new tokens of one sequence, for one head of keys and values and the heads of queries that share it.

Keys and values are in pages of 64 tokens. A page of one head has the keys [D, 64], transposed so that 64 scores are one
small product, and then the values [64, P], whose head size is padded with zeros to a multiple of 16. The sums over keys
run in order of the positions, in lanes that follow from the positions, and tokens that are not visible add exact
zeros, so that a result depends on the visible tokens alone. D head size, P padded head size.
"""

import numpy as np

from ontogeny.kernels import layout as at
from ontogeny.kernels.compiling import HAS_WIDE_VECTORS, kernel
from ontogeny.kernels.elementwise import exponential, normalize, rotate, view
from ontogeny.kernels.layout import PAGE
from ontogeny.kernels.primitives import LANES, dot, make_microkernels
from ontogeny.kernels.reductions import maximum

MAX_QUERIES = 6 if HAS_WIDE_VECTORS else 4  # that are compared with the same keys at a time
WIDE = 4 if HAS_WIDE_VECTORS else 1  # vectors of a wide microkernel
_multiply_wide, _multiply_narrow = (make_microkernels(MAX_QUERIES, n, "float32") for n in (WIDE, 1))
_ZERO, _UNIT = np.float32(0.0), np.float32(1.0)


@kernel
def multiply_columns(
    num: int, left: int, left_stride: int, right: int, columns: int, count: int, out: int, stride: int, more: bool
) -> None:
    """out[i, n] = sum over k < count of left[i, k] * right[k, n], for any multiple of 16 columns."""
    column = 0
    while column + WIDE * LANES <= columns:
        _multiply_wide(num, left, left_stride, right + 4 * column, columns, count, out + 4 * column, stride, more)
        column += WIDE * LANES
    while column < columns:
        _multiply_narrow(num, left, left_stride, right + 4 * column, columns, count, out + 4 * column, stride, more)
        column += LANES


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
def append_keys(
    d: np.ndarray, layer: np.ndarray, pages: np.ndarray, offset: int, head: int, first: int, count: int, length: int
) -> None:
    """Writes the keys and values of new tokens of one head into the pages of the sequence."""
    size, padded, num_heads, num_kv_heads = d[at.HEAD_SIZE], d[at.PADDED_SIZE], d[at.NUM_HEADS], d[at.NUM_KV_HEADS]
    stride = (num_heads + 2 * num_kv_heads) * size
    for token in range(count):
        position = length + token
        page, place = pages[position // PAGE] + offset, position % PAGE
        joined = d[at.QKV] + 4 * (first + token) * stride
        key_head = joined + 4 * (num_heads + head) * size
        prepare_head(d, layer, key_head, position, layer[at.KEY_SCALE], layer[at.KEY_BIAS])
        new_key, new_value = view(key_head, size), view(joined + 4 * (num_heads + num_kv_heads + head) * size, size)
        keys, values = view(page, size * PAGE), view(page + 4 * (size * PAGE + place * padded), padded)
        for i in range(size):
            keys[i * PAGE + place] = new_key[i]
            values[i] = new_value[i]
        for i in range(size, padded):
            values[i] = _ZERO


@kernel
def weigh_scores(scores: int, first: int, last: int, count: int, scale: np.float32) -> None:
    """Replaces the scores from `first` to before `last` by exponentials of their scaled values, and all others by 0."""
    numbers = view(scores, count)
    for i in range(first, last):
        numbers[i] = numbers[i] * scale
    highest = maximum(scores + 4 * first, last - first)
    for i in range(first, last):
        numbers[i] = exponential(numbers[i] - highest)
    for i in range(first):
        numbers[i] = _ZERO
    for i in range(last, count):
        numbers[i] = _ZERO


@kernel
def gather_queries(
    d: np.ndarray, layer: np.ndarray, head: int, first: int, length: int, query: int, num: int, queries: int
) -> None:
    """Copies some queries that share a head of keys, normalized and rotated where the layer does."""
    size, num_heads, num_kv_heads = d[at.HEAD_SIZE], d[at.NUM_HEADS], d[at.NUM_KV_HEADS]
    group = num_heads // num_kv_heads
    for i in range(num):
        token, query_head = (query + i) // group, head * group + (query + i) % group
        source = view(d[at.QKV] + 4 * ((first + token) * (num_heads + 2 * num_kv_heads) + query_head) * size, size)
        target = view(queries + 4 * i * size, size)
        for k in range(size):
            target[k] = source[k]
        prepare_head(d, layer, queries + 4 * i * size, length + token, layer[at.QUERY_SCALE], layer[at.QUERY_BIAS])


@kernel
def attend_queries(
    d: np.ndarray,
    layer: np.ndarray,
    pages: np.ndarray,
    offset: int,
    head: int,
    first: int,
    length: int,
    query: int,
    num: int,
    scratch: int,
) -> None:
    """Averages values for up to `MAX_QUERIES` queries, which are numbered token by token and head by head."""
    size, padded, num_heads = d[at.HEAD_SIZE], d[at.PADDED_SIZE], d[at.NUM_HEADS]
    group, window = num_heads // d[at.NUM_KV_HEADS], layer[at.WINDOW]
    averages = scratch + 4 * MAX_QUERIES * size
    scores = averages + 4 * MAX_QUERIES * padded
    gather_queries(d, layer, head, first, length, query, num, scratch)
    position, last = length + query // group, length + (query + num - 1) // group
    first_page = max(0, position + 1 - window) // PAGE if window else 0
    num_pages = last // PAGE + 1 - first_page
    stride = num_pages * PAGE
    for number in range(num_pages):
        page = pages[first_page + number] + offset
        multiply_columns(num, scratch, size, page, PAGE, size, scores + 4 * PAGE * number, stride, False)
    for i in range(num):
        position = length + (query + i) // group
        begin = max(0, position + 1 - window) - first_page * PAGE if window else 0
        end, scale = position + 1 - first_page * PAGE, view(d[at.CONSTANTS], 2)[1]
        weigh_scores(scores + 4 * stride * i, begin, end, stride, scale)
    for number in range(num_pages):
        page = pages[first_page + number] + offset + 4 * size * PAGE
        count = min(PAGE, last + 1 - (first_page + number) * PAGE)
        shares = scores + 4 * PAGE * number
        multiply_columns(num, shares, stride, page, padded, count, averages, padded, number > 0)
    for i in range(num):
        factor = _UNIT / dot(scores + 4 * stride * i, d[at.ONES], stride)
        token, query_head = first + (query + i) // group, head * group + (query + i) % group
        average = view(averages + 4 * padded * i, size)
        attended = view(d[at.ATTENDED] + 4 * (token * num_heads + query_head) * size, size)
        for k in range(size):
            attended[k] = average[k] * factor


@kernel
def attend_sequence(
    d: np.ndarray,
    layer: np.ndarray,
    number: int,
    pages: np.ndarray,
    head: int,
    first: int,
    count: int,
    length: int,
    scratch: int,
) -> None:
    """Extends the cache by the new tokens of a sequence, and lets each attend to the tokens before it and itself.

    Args:
        number: Of the layer.
        pages: The addresses of the sequence's pages.
        head: Of keys and values.
        first: The first of the new tokens, among all tokens of the step.
        count: How many new tokens the sequence has.
        length: The tokens before them.
        scratch: Memory for queries, averages and scores.
    """
    num_kv_heads = d[at.NUM_KV_HEADS]
    offset = 4 * (number * num_kv_heads + head) * PAGE * (d[at.HEAD_SIZE] + d[at.PADDED_SIZE])
    append_keys(d, layer, pages, offset, head, first, count, length)
    num_queries = count * (d[at.NUM_HEADS] // num_kv_heads)
    for query in range(0, num_queries, MAX_QUERIES):
        num = min(MAX_QUERIES, num_queries - query)
        attend_queries(d, layer, pages, offset, head, first, length, query, num, scratch)
