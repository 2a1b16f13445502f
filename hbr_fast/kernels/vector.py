"""The few vector operations that the CPU kernels are made of, written as LLVM vector instructions.

LLVM does not find these in plain numba loops (measured: 0.4 of the memory bound for pixels, a fifth of the speed
for exponentials), so each is spelled out once here: one call is one vector load, a few vector operations and a store.
Addresses are plain uint64, so that a kernel walks memory without bounds checks: the callers own the bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
F32 = ir.FloatType()

LOWEST = -3.4028234663852886e38  # the lowest float32 stands for "no class here": no finite logit is below it

# 2**f for f in [-0.5, 0.5]: interpolation at the 7 Chebyshev nodes, relative error 2.6e-9 before rounding.
EXP2_COEFFICIENTS = (
    1.0,
    0.6931472067028326,
    0.24022650922288757,
    0.05550327226670302,
    0.009618056678524637,
    0.0013400428177615838,
    0.0001546144469856913,
)


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
def bits_of(typingctx: Any, number: Any) -> Any:
    """The bits of a float64 as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def float_of(typingctx: Any, bits: Any) -> Any:
    """The float64 of these bits (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to write to it soon. Any address will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = I8.as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        call = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0i8")
        write, keep, data = ir.Constant(I32, 1), ir.Constant(I32, 3), ir.Constant(I32, 1)
        builder.call(call, [builder.inttoptr(args[0], pointer), write, keep, data])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@intrinsic(prefer_literal=True)
def add_doubles(typingctx: Any, dst: Any, src: Any, lanes: Any) -> Any:
    """Add `lanes` float64 (a literal) at address `src` to those at address `dst`."""
    vector = ir.VectorType(ir.DoubleType(), lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store(builder, builder.fadd(load(builder, args[0], vector), load(builder, args[1], vector)), args[0])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, lanes), codegen


@intrinsic(prefer_literal=True)
def row_max(typingctx: Any, row: Any, chunks: Any, lanes: Any) -> Any:
    """Maximum of `chunks * lanes` finite float32 at address `row`; `lanes` is a literal."""
    width = lanes.literal_value
    vector = ir.VectorType(F32, width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        best = cgutils.alloca_once_value(builder, ir.Constant(vector, [LOWEST] * width))
        with _chunks(builder, args[0], args[1], vector) as value:
            old = builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", value, old), value, old), best)
        return _reduce(builder, builder.load(best), width, _larger)

    return types.float32(types.uint64, types.int64, lanes), codegen


@intrinsic(prefer_literal=True)
def row_exp_sums(typingctx: Any, row: Any, chunks: Any, top: Any, lanes: Any, keep: Any) -> Any:
    """Sums of `e` and of `e * e`, `e = exp(z - top)`, over `chunks * lanes` float32 at address `row`.

    With `keep` (a literal) each `e` takes the place of its `z`. Every `z` must be finite and at most `top`; `z` more
    than 87 below `top` counts as 87 below (1e-38).
    """
    width, kept = lanes.literal_value, bool(keep.literal_value)
    vector, integers = ir.VectorType(F32, width), ir.VectorType(I32, width)

    def constant(value: float) -> Any:
        return ir.Constant(vector, [value] * width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = cgutils.alloca_once_value(builder, constant(0.0))
        second = cgutils.alloca_once_value(builder, constant(0.0))
        peak = splat(builder, args[2], width)
        chunks = _chunks(builder, args[0], args[1], vector)
        with chunks as value:
            power = builder.fmul(builder.fsub(value, peak), constant(1.4426950408889634))
            low = constant(-126.0)
            power = builder.select(builder.fcmp_ordered(">", power, low), power, low)
            # Truncation rounds towards zero and power <= 0: subtracting a half first rounds to the nearest.
            whole = builder.fptosi(builder.fsub(power, constant(0.5)), integers)
            rest = builder.fsub(power, builder.sitofp(whole, vector))
            exp = constant(EXP2_COEFFICIENTS[-1])
            for coefficient in EXP2_COEFFICIENTS[-2::-1]:
                exp = fused_multiply_add(builder, exp, rest, constant(coefficient))
            exponent = builder.add(whole, ir.Constant(integers, [127] * width))
            two = builder.bitcast(builder.shl(exponent, ir.Constant(integers, [23] * width)), vector)
            exp = builder.fmul(exp, two)
            if kept:
                chunks.replace(exp)
            builder.store(builder.fadd(builder.load(first), exp), first)
            builder.store(fused_multiply_add(builder, exp, exp, builder.load(second)), second)
        return context.make_tuple(
            builder,
            signature.return_type,
            [_reduce(builder, builder.load(total), width, _sum) for total in (first, second)],
        )

    result = types.UniTuple(types.float32, 2)
    return result(types.uint64, types.int64, types.float32, lanes, keep), codegen


def load(builder: Any, address: Any, vector: Any) -> Any:
    value = builder.load(builder.inttoptr(address, vector.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    empty = ir.Constant(ir.VectorType(F32, lanes), ir.Undefined)
    one = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def fused_multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.fma.v{a.type.count}f32"
    function = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [a, b, c])


def round_bf16(builder: Any, value: Any) -> Any:
    """float32 to bfloat16 bits, to the nearest, ties to even; NaN stays NaN where its low 16 bits are 0."""
    lanes = value.type.count
    wide, narrow = ir.VectorType(I32, lanes), ir.VectorType(I16, lanes)
    sixteen = ir.Constant(wide, [16] * lanes)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(wide, [1] * lanes))
    rounded = builder.add(builder.add(bits, ir.Constant(wide, [0x7FFF] * lanes)), odd)
    return builder.trunc(builder.lshr(rounded, sixteen), narrow)


class _chunks:
    """A loop over the chunks of a row of float32; the block sees one chunk as a vector."""

    def __init__(self, builder: Any, row: Any, count: Any, vector: Any) -> None:
        self.builder, self.vector = builder, vector
        self.start = builder.inttoptr(row, vector.as_pointer())
        self.loop = cgutils.for_range(builder, count)

    def __enter__(self) -> Any:
        self.chunk = self.builder.gep(self.start, [self.loop.__enter__().index])
        value = self.builder.load(self.chunk)
        value.align = 4
        return value

    def replace(self, value: Any) -> None:
        """Store a vector where the chunk was read."""
        self.builder.store(value, self.chunk).align = 4

    def __exit__(self, *exception: Any) -> Any:
        return self.loop.__exit__(*exception)


def _reduce(builder: Any, value: Any, lanes: int, combine: Any) -> Any:
    """Fold a vector to one number by halves: pairwise, so that a sum loses little."""
    while lanes > 1:
        lanes //= 2
        undefined = ir.Constant(value.type, ir.Undefined)

        def half(start: int, value: Any = value, undefined: Any = undefined, lanes: int = lanes) -> Any:
            picked = ir.Constant(ir.VectorType(I32, lanes), list(range(start, start + lanes)))
            return builder.shuffle_vector(value, undefined, picked)

        value = combine(builder, half(0), half(lanes))
    return builder.extract_element(value, ir.Constant(I32, 0))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _sum(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)
