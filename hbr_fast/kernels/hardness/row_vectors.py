"""Vector operations on one row of logits, with one lane per class (see `vector.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from hbr_fast.kernels.vector import (
    F32,
    I32,
    I64,
    fused_multiply_add,
    lane_numbers,
    load,
    masked_load,
    masked_store,
    splat,
    store,
)

LOWEST = (
    -3.4028234663852886e38
)  # of float32: what a logit of -inf, a class that was masked, counts as where it is finite
NO_CLASS = -math.inf

_ROUND = 1.5 * 2.0**23  # added to a float32, it leaves no room for a fraction

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


@intrinsic(prefer_literal=True)
def add_doubles(typingctx: Any, dst: Any, src: Any, lanes: Any) -> Any:
    """Add `lanes` float64 (a literal) at address `src` to those at address `dst`."""
    vector = ir.VectorType(ir.DoubleType(), lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store(builder, builder.fadd(load(builder, args[0], vector), load(builder, args[1], vector)), args[0])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, lanes), codegen


@intrinsic(prefer_literal=True)
def row_rival(typingctx: Any, row: Any, classes: Any, label: Any, lanes: Any) -> Any:
    """The largest logit of a row except that of `label`, and 0, or NaN if any logit is NaN or +inf.

    The row is `classes` float32 at an address; `lanes` (a literal) is the number of lanes of a vector. The largest is
    -inf if all others are.
    """
    width = lanes.literal_value
    vector = ir.VectorType(F32, width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        best = cgutils.alloca_once_value(builder, ir.Constant(vector, [NO_CLASS] * width))
        finite = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * width))

        def chunk(value: Any, first: Any) -> None:
            builder.store(nan_unless_finite(builder, value, builder.load(finite)), finite)
            value = _without(builder, value, first, args[2], NO_CLASS)
            builder.store(_larger(builder, value, builder.load(best)), best)

        _for_chunks(builder, args[0], args[1], width, NO_CLASS, chunk)
        results = [
            _reduce(builder, builder.load(best), width, _larger),
            _reduce(builder, builder.load(finite), width, _sum),
        ]
        return context.make_tuple(builder, signature.return_type, results)

    return types.UniTuple(types.float32, 2)(types.uint64, types.int64, types.int64, lanes), codegen


@intrinsic(prefer_literal=True)
def row_exp_sums(
    typingctx: Any, row: Any, classes: Any, label: Any, top: Any, lanes: Any, kept_at: Any, keep: Any
) -> Any:
    """Sums of `e` and of `e * e`, with `e = exp(z - top)`, over the logits z of a row except that of `label`.

    The row is `classes` float32 at an address. With `keep` (a literal) every `e` is written to address `kept_at`, which
    may be that of the row. All these z are finite or -inf, and at most `top`, which is finite. A z more than 87 below
    `top` counts as 87 below (e = 1e-38).
    """
    width, kept = lanes.literal_value, bool(keep.literal_value)
    vector = ir.VectorType(F32, width)

    def constant(value: float) -> Any:
        return ir.Constant(vector, [value] * width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first_sum = cgutils.alloca_once_value(builder, constant(0.0))
        second_sum = cgutils.alloca_once_value(builder, constant(0.0))
        peak = splat(builder, args[3], width)

        def chunk(value: Any, first: Any) -> Any:
            exp = exponential(builder, value, peak)
            counted = _without(builder, exp, first, args[2], 0.0)
            builder.store(builder.fadd(builder.load(first_sum), counted), first_sum)
            builder.store(fused_multiply_add(builder, counted, counted, builder.load(second_sum)), second_sum)
            return exp

        _for_chunks(builder, args[0], args[1], width, LOWEST, chunk, args[5] if kept else None)
        sums = [_reduce(builder, builder.load(total), width, _sum) for total in (first_sum, second_sum)]
        return context.make_tuple(builder, signature.return_type, sums)

    arguments = (types.uint64, types.int64, types.int64, types.float32, lanes, types.uint64, keep)
    return types.UniTuple(types.float32, 2)(*arguments), codegen


@intrinsic(prefer_literal=True)
def scale_row(typingctx: Any, row: Any, count: Any, factor: Any, lanes: Any) -> Any:
    """Multiply `count` float32 at address `row` by a float32."""
    width = lanes.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, count, factor, _ = args
        factor = splat(builder, factor, width)
        _for_chunks(builder, row, count, width, 0.0, lambda value, _: builder.fmul(value, factor), row)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.float32, lanes), codegen


def nan_unless_finite(builder: Any, value: Any, so_far: Any) -> Any:
    """`so_far` (0 or NaN) of float32 vectors, made NaN where the value is NaN or +inf."""
    lowest = ir.Constant(value.type, [LOWEST] * value.type.count)
    # Of a NaN the comparison holds, so that it stays: one instruction.
    above = builder.select(builder.fcmp_unordered(">", value, lowest), value, lowest)
    return fused_multiply_add(builder, above, ir.Constant(value.type, [0.0] * value.type.count), so_far)


def finite_rival(builder: Any, rival: Any) -> Any:
    """`rival`, or `LOWEST` where it is -inf."""
    lowest = ir.Constant(rival.type, [LOWEST] * rival.type.count)
    return builder.select(builder.fcmp_ordered(">", rival, lowest), rival, lowest)


def exponential(builder: Any, value: Any, peak: Any) -> Any:
    """exp(value - peak) of float32 vectors, where that is at most 1; exp(-87) below that."""
    width = value.type.count
    integers = ir.VectorType(I32, width)

    def constant(number: float) -> Any:
        return ir.Constant(value.type, [number] * width)

    power = builder.fmul(builder.fsub(value, peak), constant(1.4426950408889634))
    low = constant(-126.0)
    power = builder.select(builder.fcmp_ordered(">", power, low), power, low)
    shifted = builder.fadd(power, constant(_ROUND))  # the nearest integer, in the lowest bits of the mantissa
    rest = builder.fsub(power, builder.fsub(shifted, constant(_ROUND)))
    exp = constant(EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        exp = fused_multiply_add(builder, exp, rest, constant(coefficient))
    whole = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * width))
    return builder.bitcast(builder.add(builder.bitcast(exp, integers), whole), value.type)  # times 2 to that integer


def _for_chunks(
    builder: Any, row: Any, count: Any, width: int, behind: float, body: Callable[[Any, Any], Any], out: Any = None
) -> None:
    """Call `body(value, first)` for each vector of a row of float32, and store what it gives at `out`, if given.

    `first` (int64) is the index of the vector's first number. The last vector has `behind` where the row has ended, and
    nothing is read or written there.
    """
    vector, lanes = ir.VectorType(F32, width), ir.Constant(I64, width)

    def at(address: Any, first: Any) -> Any:
        return builder.add(address, builder.mul(first, ir.Constant(I64, 4)))

    with cgutils.for_range(builder, builder.sdiv(count, lanes)) as loop:
        first = builder.mul(loop.index, lanes)
        value = body(load(builder, at(row, first), vector), first)
        if out is not None:
            store(builder, value, at(out, first))
    rest = builder.srem(count, lanes)
    with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(I64, 0))):
        first = builder.sub(count, rest)
        here = builder.trunc(rest, I32)
        value = body(masked_load(builder, at(row, first), vector, here, behind), first)
        if out is not None:
            masked_store(builder, value, at(out, first), here)


def _without(builder: Any, value: Any, first: Any, index: Any, instead: float) -> Any:
    """A vector of a row, with `instead` in place of the number of index `index`, if it has it."""
    width = value.type.count
    place = splat(builder, builder.trunc(builder.sub(index, first), I32), width)
    other = builder.icmp_signed("!=", place, lane_numbers(width))
    return builder.select(other, value, ir.Constant(value.type, [instead] * width))


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
