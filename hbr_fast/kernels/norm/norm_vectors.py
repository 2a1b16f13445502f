"""Vector operations of batch norm, ReLU and max-pool, written as LLVM vector instructions (see `vector.py`).

Each is a loop over the pixels of a stretch of a channels-last image, for `LANES` channels at once: what belongs to a
channel stays in registers meanwhile. Addresses point to those channels of the first pixel; `step` is the distance of
two pixels in bytes. With the literal `bf16` images are bfloat16, else float32; arithmetic is float32.

Numbers of a channel are a column of `constants` (float32 [6, C]), sums of one a column of `totals` (float64 [2, C]),
both given by the address of these channels in the first row and by `row`, the bytes of a row of `constants`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from hbr_fast.kernels.vector import F32, I16, I32, fused_multiply_add, load, round_bf16, store

LANES = 16

# What follows the normalisation: nothing, ReLU, or adding a residual and then ReLU.
NOTHING, RELU, RESIDUAL = range(3)
# A mode of `differentiate_pixels`: pixels that no window of the pool covers.
UNCOVERED = 3

# Rows of `constants`: the normalisation is `x * scale + shift`, and its gradient
# `factor * g + slope * (x - centre) + level`.
SCALE, SHIFT, CENTRE, FACTOR, SLOPE, LEVEL = range(6)

_VECTOR, _DOUBLES = ir.VectorType(F32, LANES), ir.VectorType(ir.DoubleType(), LANES)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)
_ADDRESS, _LENGTH = types.uint64, types.int64


@intrinsic(prefer_literal=True)
def add_moments(typingctx: Any, x: Any, count: Any, step: Any, constants: Any, row: Any, totals: Any, bf16: Any) -> Any:
    """Add the sums of `d = x - centre` and of `d * d` to the totals."""
    narrow = bool(bf16.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, count, step, constants, row, totals, _ = args
        (centre,) = _constants(builder, constants, row, CENTRE)
        sums = _accumulators(builder)
        with _pixels(builder, count, step) as offset:
            value = builder.fsub(_read(builder, x, offset, narrow), centre)
            _accumulate(builder, sums, value, value)
        _add_to(builder, sums, totals, row)
        return context.get_dummy_value()

    return types.void(_ADDRESS, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, _ADDRESS, bf16), codegen


@intrinsic(prefer_literal=True)
def normalise_pixels(
    typingctx: Any, x: Any, other: Any, y: Any, count: Any, step: Any, constants: Any, row: Any, mode: Any, bf16: Any
) -> Any:
    """Write `y = x * scale + shift`, plus `other` if `mode` (a literal) is RESIDUAL, then ReLU unless it is NOTHING."""
    narrow, kind = bool(bf16.literal_value), mode.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, other, y, count, step, constants, row, *_ = args
        scale, shift = _constants(builder, constants, row, SCALE, SHIFT)
        with _pixels(builder, count, step) as offset:
            value = fused_multiply_add(builder, _read(builder, x, offset, narrow), scale, shift)
            if kind == RESIDUAL:
                value = builder.fadd(value, _read(builder, other, offset, narrow))
            if kind != NOTHING:
                value = _where_positive(builder, value, value)
            _write(builder, value, y, offset, narrow)
        return context.get_dummy_value()

    addresses = (_ADDRESS,) * 3
    return types.void(*addresses, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, mode, bf16), codegen


@intrinsic(prefer_literal=True)
def pool_pixels(
    typingctx: Any, x: Any, below: Any, y: Any, count: Any, step: Any, constants: Any, row: Any, bf16: Any
) -> Any:
    """Write `count` pixels of `y`: the largest of 2x2 `max(x * scale + shift, 0)`; `below` is the row under `x`."""
    narrow = bool(bf16.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, below, y, count, step, constants, row, _ = args
        scale, shift = _constants(builder, constants, row, SCALE, SHIFT)
        with _pixels(builder, count, step) as offset:
            window = [_read(builder, at, place, narrow) for at, place in _window(builder, x, below, offset, step)]
            best, _, _ = _first_largest(builder, window, scale, shift)
            _write(builder, _where_positive(builder, best, best), y, offset, narrow)
        return context.get_dummy_value()

    addresses = (_ADDRESS,) * 3
    return types.void(*addresses, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, bf16), codegen


@intrinsic(prefer_literal=True)
def add_gradients(
    typingctx: Any,
    x: Any,
    y: Any,
    g: Any,
    count: Any,
    step: Any,
    constants: Any,
    row: Any,
    totals: Any,
    mode: Any,
    bf16: Any,
) -> Any:
    """Add the sums of the gradient `g` before the ReLU, and of `g * (x - centre)`, to the totals.

    The ReLU passed where `x * scale + shift > 0`, or where its output `y > 0` if the literal `mode` is RESIDUAL.
    """
    narrow, kind = bool(bf16.literal_value), mode.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y, g, count, step, constants, row, totals, *_ = args
        scale, shift, centre = _constants(builder, constants, row, SCALE, SHIFT, CENTRE)
        sums = _accumulators(builder)
        with _pixels(builder, count, step) as offset:
            value = _read(builder, x, offset, narrow)
            passed = _passed(builder, value, y, g, offset, scale, shift, kind, narrow)
            _accumulate(builder, sums, passed, builder.fsub(value, centre))
        _add_to(builder, sums, totals, row)
        return context.get_dummy_value()

    addresses = (_ADDRESS,) * 3
    return types.void(*addresses, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, _ADDRESS, mode, bf16), codegen


@intrinsic(prefer_literal=True)
def add_pooled_gradients(
    typingctx: Any, x: Any, below: Any, g: Any, count: Any, step: Any, constants: Any, row: Any, totals: Any, bf16: Any
) -> Any:
    """Like `add_gradients` for the gradient `g` of `count` pooled pixels: each goes to the first largest of four."""
    narrow = bool(bf16.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, below, g, count, step, constants, row, totals, _ = args
        scale, shift, centre = _constants(builder, constants, row, SCALE, SHIFT, CENTRE)
        sums = _accumulators(builder)
        with _pixels(builder, count, step) as offset:
            window = [_read(builder, at, place, narrow) for at, place in _window(builder, x, below, offset, step)]
            best, source, _ = _first_largest(builder, window, scale, shift)
            passed = _where_positive(builder, best, _read(builder, g, offset, narrow))
            _accumulate(builder, sums, passed, builder.fsub(source, centre))
        _add_to(builder, sums, totals, row)
        return context.get_dummy_value()

    addresses = (_ADDRESS,) * 3
    return types.void(*addresses, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, _ADDRESS, bf16), codegen


@intrinsic(prefer_literal=True)
def differentiate_pixels(
    typingctx: Any,
    x: Any,
    y: Any,
    g: Any,
    dx: Any,
    dother: Any,
    count: Any,
    step: Any,
    constants: Any,
    row: Any,
    mode: Any,
    bf16: Any,
) -> Any:
    """Write `dx = factor * g + slope * (x - centre) + level`, with `g` as in `add_gradients`.

    With the literal `mode` RESIDUAL that `g` goes to `dother`; with UNCOVERED it is 0.
    """
    narrow, kind = bool(bf16.literal_value), mode.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y, g, dx, dother, count, step, constants, row, *_ = args
        scale, shift, centre, factor, slope, level = _constants(builder, constants, row, *range(6))
        with _pixels(builder, count, step) as offset:
            value = _read(builder, x, offset, narrow)
            result = fused_multiply_add(builder, builder.fsub(value, centre), slope, level)
            if kind != UNCOVERED:
                passed = _passed(builder, value, y, g, offset, scale, shift, kind, narrow)
                result = fused_multiply_add(builder, passed, factor, result)
                if kind == RESIDUAL:
                    _write(builder, passed, dother, offset, narrow)
            _write(builder, result, dx, offset, narrow)
        return context.get_dummy_value()

    addresses = (_ADDRESS,) * 5
    return types.void(*addresses, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, mode, bf16), codegen


@intrinsic(prefer_literal=True)
def differentiate_pooled_pixels(
    typingctx: Any,
    x: Any,
    below: Any,
    g: Any,
    dx: Any,
    dbelow: Any,
    count: Any,
    step: Any,
    constants: Any,
    row: Any,
    bf16: Any,
) -> Any:
    """Like `differentiate_pixels` for `count` windows of 2x2 pixels, with `g` as in `add_pooled_gradients`."""
    narrow = bool(bf16.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, below, g, dx, dbelow, count, step, constants, row, _ = args
        scale, shift, centre, factor, slope, level = _constants(builder, constants, row, *range(6))
        with _pixels(builder, count, step) as offset:
            window = [_read(builder, at, place, narrow) for at, place in _window(builder, x, below, offset, step)]
            best, _, larger = _first_largest(builder, window, scale, shift)
            left = builder.fmul(_where_positive(builder, best, _read(builder, g, offset, narrow)), factor)
            places = _window(builder, dx, dbelow, offset, step)
            # Starting with the last pixel: it takes the gradient if it is larger than all before it.
            for i in (3, 2, 1, 0):
                share = left if i == 0 else builder.select(larger[i - 1], left, _ZERO)
                left = left if i == 0 else builder.select(larger[i - 1], _ZERO, left)
                result = fused_multiply_add(builder, builder.fsub(window[i], centre), slope, level)
                _write(builder, builder.fadd(result, share), *places[i], narrow)
        return context.get_dummy_value()

    addresses = (_ADDRESS,) * 5
    return types.void(*addresses, _LENGTH, _LENGTH, _ADDRESS, _LENGTH, bf16), codegen


@contextmanager
def _pixels(builder: Any, count: Any, step: Any) -> Iterator[Any]:
    """A loop over pixels, whose block gets the offset of each in bytes."""
    with cgutils.for_range(builder, count) as loop:
        yield builder.mul(loop.index, step)


def _read(builder: Any, address: Any, offset: Any, narrow: bool) -> Any:
    place = builder.add(address, offset)
    if not narrow:
        return load(builder, place, _VECTOR)
    bits = builder.zext(load(builder, place, ir.VectorType(I16, LANES)), ir.VectorType(I32, LANES))
    return builder.bitcast(builder.shl(bits, ir.Constant(bits.type, [16] * LANES)), _VECTOR)


def _write(builder: Any, value: Any, address: Any, offset: Any, narrow: bool) -> None:
    store(builder, round_bf16(builder, value) if narrow else value, builder.add(address, offset))


def _window(builder: Any, upper: Any, lower: Any, offset: Any, step: Any) -> list[tuple[Any, Any]]:
    """Row and offset of the four pixels of a window, in memory order; `offset` is that of the window's output."""
    left = builder.shl(offset, ir.Constant(offset.type, 1))
    right = builder.add(left, step)
    return [(row, place) for row in (upper, lower) for place in (left, right)]


def _first_largest(builder: Any, window: list[Any], scale: Any, shift: Any) -> tuple[Any, Any, list[Any]]:
    """The largest normalised pixel, its value of x, and for each but the first whether it exceeds all before it."""
    best, source = fused_multiply_add(builder, window[0], scale, shift), window[0]
    larger = []
    for value in window[1:]:
        normal = fused_multiply_add(builder, value, scale, shift)
        larger.append(builder.fcmp_ordered(">", normal, best))
        best, source = builder.select(larger[-1], normal, best), builder.select(larger[-1], value, source)
    return best, source, larger


def _where_positive(builder: Any, value: Any, taken: Any) -> Any:
    """`taken` where ReLU lets the value through, else 0; NaN goes through, as in torch."""
    return builder.select(builder.fcmp_ordered("<=", value, _ZERO), _ZERO, taken)


def _passed(builder: Any, x: Any, y: Any, g: Any, offset: Any, scale: Any, shift: Any, kind: int, narrow: bool) -> Any:
    """The gradient of one pixel before the ReLU."""
    gradient = _read(builder, g, offset, narrow)
    if kind == NOTHING:
        return gradient
    after = _read(builder, y, offset, narrow) if kind == RESIDUAL else fused_multiply_add(builder, x, scale, shift)
    return _where_positive(builder, after, gradient)


def _constants(builder: Any, address: Any, row: Any, *rows: int) -> list[Any]:
    return [
        load(builder, builder.add(address, builder.mul(row, ir.Constant(row.type, number))), _VECTOR) for number in rows
    ]


def _accumulators(builder: Any) -> tuple[Any, Any]:
    return cgutils.alloca_once_value(builder, _ZERO), cgutils.alloca_once_value(builder, _ZERO)


def _accumulate(builder: Any, sums: tuple[Any, Any], value: Any, factor: Any) -> None:
    """Add a value to the first sum, and its product with a factor to the second."""
    builder.store(builder.fadd(builder.load(sums[0]), value), sums[0])
    builder.store(fused_multiply_add(builder, value, factor, builder.load(sums[1])), sums[1])


def _add_to(builder: Any, sums: tuple[Any, Any], totals: Any, row: Any) -> None:
    """Add two float32 sums to the two rows of float64 totals."""
    second = builder.add(totals, builder.shl(row, ir.Constant(row.type, 1)))
    for total, address in zip(sums, (totals, second), strict=True):
        wide = builder.fpext(builder.load(total), _DOUBLES)
        store(builder, builder.fadd(load(builder, address, _DOUBLES), wide), address)
