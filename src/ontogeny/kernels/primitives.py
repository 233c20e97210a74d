"""Operations that numba does not offer: small products in vector registers, fused multiply-adds, atomic counters.

They are written as LLVM instructions, so that the order of every sum is fixed: the vectorizer of a compiler may choose
another order for the last elements of a loop than for the others. Memory is given by address, as an integer, and holds
float32 unless stated otherwise; the caller keeps it alive and within its bounds.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import types as numba_types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic as numba_intrinsic

carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]
intrinsic: Any = numba_intrinsic  # its type does not say that the typing context is no argument of a call
LANES = 16  # numbers of one vector
types: Any = numba_types
FLOAT, INT = ir.FloatType(), ir.IntType(64)
VECTOR, INTEGERS = ir.VectorType(FLOAT, LANES), ir.VectorType(ir.IntType(32), LANES)


def element_pointer(builder: Any, address: Any, index: Any, element: ir.Type = FLOAT) -> Any:
    """Returns the pointer, of the type of the element, to the float32 or int64 with this index."""
    size = INT(8 if element is INT else 4)
    return builder.inttoptr(builder.add(address, builder.mul(index, size)), element.as_pointer())


def load(builder: Any, address: Any, index: Any, element: ir.Type = FLOAT) -> Any:
    """Returns the float32 number, or the vector of them, with this index; no alignment is assumed."""
    return builder.load(element_pointer(builder, address, index, element), align=4)


def load_weights(builder: Any, address: Any, index: Any, weight_type: str) -> Any:
    """Returns the vector of weights that begins at this index, converted to float32 without rounding."""
    if weight_type == "float32":
        return load(builder, address, index, VECTOR)
    element = {"bfloat16": ir.IntType(16), "float16": ir.HalfType(), "int8": ir.IntType(8)}[weight_type]
    offset = builder.mul(index, INT(1 if weight_type == "int8" else 2))
    pointer = builder.inttoptr(builder.add(address, offset), ir.VectorType(element, LANES).as_pointer())
    narrow = builder.load(pointer, align=1)
    if weight_type == "int8":
        return builder.sitofp(builder.sext(narrow, INTEGERS), VECTOR)
    if weight_type == "float16":
        return builder.fpext(narrow, VECTOR)
    # A bfloat16 is the upper half of a float32.
    return builder.bitcast(builder.shl(builder.zext(narrow, INTEGERS), ir.Constant(INTEGERS, [16] * LANES)), VECTOR)


def splat(builder: Any, scalar: Any) -> Any:
    """Returns a vector all of whose numbers are the scalar."""
    single = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def fused_multiply_add(builder: Any, left: Any, right: Any, summand: Any) -> Any:
    """Returns left * right + summand, rounded once, of vectors; llvmlite has it for scalars only."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [left, right, summand])


def loop(
    builder: Any,
    count: Any,
    initial: list[Any],
    body: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Builds a loop over 0 to count - 1 that carries values from turn to turn, and returns the last of them."""
    before = builder.block
    head = builder.append_basic_block("head")
    inside = builder.append_basic_block("body")
    after = builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(INT)
    carried = [builder.phi(first.type) for first in initial]
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    updated = body(index, carried)
    following = builder.add(index, INT(1))
    end = builder.block
    builder.branch(head)
    for phi, first, later in zip([index, *carried], [INT(0), *initial], [following, *updated], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, end)
    builder.position_at_end(after)
    return list(carried)


def build_product(builder: Any, arguments: Any, num_tokens: int, num_vectors: int, weight_type: str) -> None:
    """Builds outputs[t, n] = sum over k of inputs[t, k] * weights[k, n] for some tokens and 16 * num_vectors columns.

    Weights are converted to float32 in registers. Each sum is accumulated by fused multiply-adds in order of k,
    whatever the size of the product, and added to what is there where `continues`.
    """
    inputs, input_stride, weights, weight_stride, num_inputs, outputs, output_stride, continues = arguments
    places = [(t, v) for t in range(num_tokens) for v in range(num_vectors)]

    def pointer(t: Any, v: Any) -> Any:
        index = builder.add(builder.mul(INT(t), output_stride), INT(LANES * v))
        return element_pointer(builder, outputs, index, VECTOR)

    def accumulate(k: Any, sums: Any) -> Any:
        first = builder.mul(k, weight_stride)
        indices = [builder.add(first, INT(LANES * v)) for v in range(num_vectors)]
        columns = [load_weights(builder, weights, index, weight_type) for index in indices]
        indices = [builder.add(builder.mul(INT(t), input_stride), k) for t in range(num_tokens)]
        factors = [splat(builder, load(builder, inputs, index)) for index in indices]
        pairs = zip(places, sums, strict=True)
        return [fused_multiply_add(builder, factors[t], columns[v], total) for (t, v), total in pairs]

    zero = ir.Constant(VECTOR, [0.0] * LANES)
    initial = [builder.select(continues, builder.load(pointer(t, v), align=4), zero) for t, v in places]
    for (t, v), total in zip(places, loop(builder, num_inputs, initial, accumulate), strict=True):
        builder.store(total, pointer(t, v), align=4)


def make_microkernels(max_tokens: int, num_vectors: int, weight_type: str) -> Any:
    """Makes the function that computes the product of `build_product` for 1 to `max_tokens` tokens."""

    @intrinsic
    def multiply(
        typing: Any,
        num_tokens: Any,
        inputs: Any,
        input_stride: Any,
        weights: Any,
        weight_stride: Any,
        num_inputs: Any,
        outputs: Any,
        output_stride: Any,
        continues: Any,
    ) -> Any:
        """outputs[t, n] = sum over k of inputs[t, k] * weights[k, n], added to what is there where `continues`."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            for number in range(1, max_tokens + 1):
                with builder.if_then(builder.icmp_signed("==", arguments[0], INT(number))):
                    build_product(builder, arguments[1:], number, num_vectors, weight_type)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8, types.boolean), generate

    return multiply


@intrinsic
def dot(typing: Any, left: Any, right: Any, count: Any) -> Any:
    """The sum of products of two arrays: 16 partial sums, added pairwise, then the elements that fill no vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, count = arguments

        def vectors(i: Any, sums: Any) -> Any:
            index = builder.mul(i, INT(LANES))
            factors = [load(builder, side, index, VECTOR) for side in (left, right)]
            return [fused_multiply_add(builder, factors[0], factors[1], sums[0])]

        num_vectors = builder.sdiv(count, INT(LANES))
        total = loop(builder, num_vectors, [ir.Constant(VECTOR, [0.0] * LANES)], vectors)[0]
        width = LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    total, total, ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(start, start + width)))
                )
                for start in (0, width)
            ]
            total = builder.fadd(*halves)
        total = builder.extract_element(total, ir.IntType(32)(0))
        done = builder.mul(num_vectors, INT(LANES))

        def rest(i: Any, sums: Any) -> Any:
            index = builder.add(done, i)
            factors = [load(builder, side, index) for side in (left, right)]
            return [builder.fma(factors[0], factors[1], sums[0])]

        return loop(builder, builder.sub(count, done), [total], rest)[0]

    return types.float32(types.int64, types.int64, types.int64), generate


@intrinsic
def fma(typing: Any, left: Any, right: Any, summand: Any) -> Any:
    """left * right + summand, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def float_from_half_bits(typing: Any, bits: Any) -> Any:
    """The float32 that equals the float16 with these 16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
def float_from_bits(typing: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), generate


def make_pointer_cast(element: Any) -> Any:
    """Makes the function that returns an address as a pointer to elements of this type, for `numba.carray`."""

    @intrinsic
    def as_pointer(typing: Any, address: Any) -> Any:
        """The address as a pointer."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), generate

    return as_pointer


as_float_pointer, as_int_pointer = make_pointer_cast(types.float32), make_pointer_cast(types.int64)
as_uint16_pointer, as_int8_pointer = make_pointer_cast(types.uint16), make_pointer_cast(types.int8)


@intrinsic
def fetch_add(typing: Any, address: Any, amount: Any) -> Any:
    """Adds to an int64 that threads share, and returns what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", element_pointer(builder, arguments[0], INT(0), INT), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_shared(typing: Any, address: Any) -> Any:
    """Reads an int64 that another thread may write."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(element_pointer(builder, arguments[0], INT(0), INT), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def store_shared(typing: Any, address: Any, number: Any) -> Any:
    """Writes an int64 that another thread may read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], element_pointer(builder, arguments[0], INT(0), INT), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def sleep_microseconds(typing: Any, duration: Any) -> Any:
    """Lets the operating system run another thread on this core for at least this time."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
        function = get_or_insert_function(builder.module, kind, "usleep")
        builder.call(function, [builder.trunc(arguments[0], ir.IntType(32))])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tells the processor that this thread waits for another one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if "x86_64" in context.codegen().magic_tuple()[0]:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate
