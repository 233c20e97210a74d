"""Reductions over arrays whose result does not depend on the order of their elements."""

from typing import Any

from llvmlite import ir

from ontogeny.kernels.primitives import INT, LANES, VECTOR, intrinsic, load, loop, types

_LOWEST = -3.0e38


@intrinsic
def maximum(typing: Any, address: Any, count: Any) -> Any:
    """The largest of an array of float32 numbers; -3e38 if there is none, and NaN counts as nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, count = arguments

        def larger(left: Any, right: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", left, right), left, right)

        def vectors(i: Any, highest: Any) -> Any:
            return [larger(load(builder, address, builder.mul(i, INT(LANES)), VECTOR), highest[0])]

        num_vectors = builder.sdiv(count, INT(LANES))
        lanes = loop(builder, num_vectors, [ir.Constant(VECTOR, [_LOWEST] * LANES)], vectors)[0]
        highest = builder.extract_element(lanes, ir.IntType(32)(0))
        for lane in range(1, LANES):
            highest = larger(builder.extract_element(lanes, ir.IntType(32)(lane)), highest)
        done = builder.mul(num_vectors, INT(LANES))

        def rest(i: Any, highest: Any) -> Any:
            return [larger(load(builder, address, builder.add(done, i)), highest[0])]

        return loop(builder, builder.sub(count, done), [highest], rest)[0]

    return types.float32(types.int64, types.int64), generate
