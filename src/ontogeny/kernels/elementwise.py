"""Norms, activations, the exponential function and rotary positions.

Each element is computed by the same operations in the same order wherever it stands in an array: fused multiply-adds
are explicit, and the compiler may not fuse or reorder others.
"""

import math

import numba
import numpy as np

from ontogeny.kernels import layout
from ontogeny.kernels.compiling import kernel
from ontogeny.kernels.primitives import as_float_pointer, carray, dot, float_from_bits, fma

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693145751953125), np.float32(1.428606765330187e-06)
_ROUNDING = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to an integer
_MIN_EXPONENT, _MAX_EXPONENT = np.float32(-87.0), np.float32(88.0)
_ZERO, _HALF, _UNIT = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_TAYLOR = tuple(np.float32(1 / math.factorial(n)) for n in (6, 5, 4, 3, 2))
_GELU_SCALE, _GELU_CUBE = np.float32(2 * math.sqrt(2 / math.pi)), np.float32(0.044715)
_SQRT_HALF = math.sqrt(0.5)


@kernel
def view(address: int, count: int) -> np.ndarray:
    """The float32 numbers at an address, as an array."""
    return carray(as_float_pointer(address), (count,))


@kernel
def exponential(x: np.float32) -> np.float32:
    """exp(x) in float32, of numbers between -87 and 88 and else of the nearest of these, to 2 units in the last place.

    exp(x) = 2^n exp(r) with an integer n and |r| <= ln(2) / 2, and exp(r) by its series.
    """
    x = min(max(x, _MIN_EXPONENT), _MAX_EXPONENT)
    n = fma(x, _LOG2_E, _ROUNDING) - _ROUNDING
    r = fma(-n, _LN2_LOW, fma(-n, _LN2_HIGH, x))
    series = fma(_TAYLOR[0], r, _TAYLOR[1])
    series = fma(series, r, _TAYLOR[2])
    series = fma(series, r, _TAYLOR[3])
    series = fma(series, r, _TAYLOR[4])
    series = fma(series, r, _UNIT)
    series = fma(series, r, _UNIT)
    power = float_from_bits(numba.int32((numba.int32(n) + numba.int32(127)) << numba.int32(23)))
    return series * power


@kernel
def logistic(x: np.float32) -> np.float32:
    """1 / (1 + exp(-x))."""
    return _UNIT / (_UNIT + exponential(-x))


@kernel
def activate(kind: int, numbers: np.ndarray, count: int) -> None:
    """Applies an activation to the first numbers of an array, in place; SwiGLU is in `gate`."""
    if kind == layout.GELU:
        for i in range(count):  # x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))
            x = numbers[i]
            numbers[i] = x * logistic(_GELU_SCALE * fma(_GELU_CUBE * x * x, x, x))
    elif kind == layout.EXACT_GELU:
        for i in range(count):
            x = numbers[i]
            numbers[i] = x * np.float32(0.5 * math.erfc(-x * _SQRT_HALF))
    else:
        for i in range(count):
            x = max(numbers[i], _ZERO)
            numbers[i] = x if kind == layout.RELU else x * x


@kernel
def gate(gates: np.ndarray, values: np.ndarray, outputs: np.ndarray, count: int) -> None:
    """outputs = silu(gates) * values."""
    for i in range(count):
        outputs[i] = gates[i] * logistic(gates[i]) * values[i]


@kernel
def normalize(
    source: int, target: int, count: int, scale: int, bias: int, is_layer_norm: int, epsilon: np.float32, ones: int
) -> None:
    """LayerNorm or RMSNorm of `count` numbers; all are addresses, and a scale or bias of 0 is absent."""
    inputs, outputs = view(source, count), view(target, count)
    width = np.float32(count)
    mean = dot(source, ones, count) / width if is_layer_norm else _ZERO
    for i in range(count):
        outputs[i] = inputs[i] - mean
    factor = _UNIT / np.float32(math.sqrt(dot(target, target, count) / width + epsilon))
    if scale:
        scales = view(scale, count)
        for i in range(count):
            outputs[i] = outputs[i] * factor * scales[i]
    else:
        for i in range(count):
            outputs[i] = outputs[i] * factor
    if bias:
        biases = view(bias, count)
        for i in range(count):
            outputs[i] = outputs[i] + biases[i]


@kernel
def rotate(vector: int, cosines: int, sines: int, half: int) -> None:
    """Rotates each pair (x_i, x_{i + D/2}) of a head in place; all are addresses."""
    left, right = view(vector, half), view(vector + 4 * half, half)
    cosine, sine = view(cosines, half), view(sines, half)
    for i in range(half):
        first, second = left[i], right[i]
        left[i] = fma(first, cosine[i], -(second * sine[i]))
        right[i] = fma(first, sine[i], second * cosine[i])
