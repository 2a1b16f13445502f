"""Building blocks of the CPU kernels' vector operations, written as LLVM vector instructions.

LLVM does not vectorise the plain numba loops well (measured: 0.4 of the memory bound for pixels, a fifth of the speed
for exponentials), so the `*_vectors.py` modules emit the instructions themselves, with the helpers here: load a vector,
do a few operations on it, store it. Addresses are plain uint64 and nothing checks bounds: that is up to the callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()


@intrinsic
def from_bfloat16(typingctx: Any, bits: Any) -> Any:
    """The float32 equal to the bfloat16 of these bits (uint16)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), ir.Constant(I32, 16)), F32)

    return types.float32(types.uint16), codegen


@intrinsic
def from_float16(typingctx: Any, bits: Any) -> Any:
    """The float32 equal to the float16 of these bits (uint16)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), F32)

    return types.float32(types.uint16), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Prefetch the cache line at an address for writing. Any address is allowed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = I8.as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        call = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0i8")
        write, keep, data = ir.Constant(I32, 1), ir.Constant(I32, 3), ir.Constant(I32, 1)
        builder.call(call, [builder.inttoptr(args[0], pointer), write, keep, data])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


def load(builder: Any, address: Any, vector: Any) -> Any:
    value = builder.load(builder.inttoptr(address, vector.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def masked_load(builder: Any, address: Any, vector: Any, count: Any, behind: float) -> Any:
    """The first `count` (int32) float32 at an address; the other lanes are `behind`, and are not read."""
    pointer, mask = vector.as_pointer(), ir.VectorType(ir.IntType(1), vector.count)
    function = ir.FunctionType(vector, [pointer, I32, mask, vector])
    name = f"llvm.masked.load.v{vector.count}f32.p0v{vector.count}f32"
    masked = cgutils.get_or_insert_function(builder.module, function, name)
    empty = ir.Constant(vector, [behind] * vector.count)
    here = first_lanes(builder, count, vector.count)
    return builder.call(masked, [builder.inttoptr(address, pointer), ir.Constant(I32, 4), here, empty])


def masked_store(builder: Any, value: Any, address: Any, count: Any) -> None:
    """Write the first `count` (int32) numbers of a vector of float32 to an address."""
    pointer, mask = value.type.as_pointer(), ir.VectorType(ir.IntType(1), value.type.count)
    function = ir.FunctionType(ir.VoidType(), [value.type, pointer, I32, mask])
    name = f"llvm.masked.store.v{value.type.count}f32.p0v{value.type.count}f32"
    masked = cgutils.get_or_insert_function(builder.module, function, name)
    here = first_lanes(builder, count, value.type.count)
    builder.call(masked, [value, builder.inttoptr(address, pointer), ir.Constant(I32, 4), here])


def first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """Which lanes of a vector are below a count (int32)."""
    return builder.icmp_signed("<", lane_numbers(lanes), splat(builder, count, lanes))


def lane_numbers(lanes: int) -> Any:
    return ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))


def shuffle(builder: Any, a: Any, b: Any, places: Sequence[int]) -> Any:
    """The vector that takes its numbers from these places in `a` followed by `b`."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), list(places)))


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    empty = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def fused_multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.fma.v{a.type.count}f{32 if a.type.element == F32 else 64}"
    function = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [a, b, c])


def round_bf16(builder: Any, value: Any) -> Any:
    """float32 to bfloat16 bits, to nearest, ties to even; a NaN stays one if its low 16 bits are 0."""
    lanes = value.type.count
    wide, narrow = ir.VectorType(I32, lanes), ir.VectorType(I16, lanes)
    sixteen = ir.Constant(wide, [16] * lanes)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(wide, [1] * lanes))
    rounded = builder.add(builder.add(bits, ir.Constant(wide, [0x7FFF] * lanes)), odd)
    return builder.trunc(builder.lshr(rounded, sixteen), narrow)
