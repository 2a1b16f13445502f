"""Vector operations on the logits of a tile of rows with few classes, with one lane per row (see `vector.py`).

With few classes this is far faster than one row at a time (`row_vectors`), where most lanes are empty and every sum is
reduced over lanes. Rows are transposed into columns, one per class, and back, in blocks of 8 x 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from hbr_fast.kernels.hardness.row_vectors import NO_CLASS, exponential, finite_rival, nan_unless_finite
from hbr_fast.kernels.hardness.tile_vectors import FOUND_FINITE, FOUND_RIGHT, OWN, OWN_SLOPE, SLOPE, TILE
from hbr_fast.kernels.vector import F32, I32, I64, fused_multiply_add, load, masked_load, shuffle, splat, store

NARROW = 16  # at most this many classes

_SIDE = 8  # of a block
_BLOCK_ROW = ir.VectorType(F32, _SIDE)
_FLOATS, _DOUBLES = ir.VectorType(F32, TILE), ir.VectorType(ir.DoubleType(), TILE)
_INTEGERS = ir.VectorType(I32, TILE)


@intrinsic(prefer_literal=True)
def read_narrow_tile(
    typingctx: Any, rows: Any, classes: Any, columns: Any, labels: Any, tile: Any, found: Any, exponentials: Any
) -> Any:
    """Write what `observe_tile` needs of the logits of a tile's rows.

    Parameters
    ----------
    rows : address
        Of int64 [TILE], the addresses of the rows' logits, float32 [classes].
    classes : int64
        At most `NARROW`.
    columns : address
        Of float32 [NARROW, TILE], written: the logits of each class or, with `exponentials`, `exp(z - rival)`, which
        may exceed 1 for the own class only.
    labels : address
        Of int32 [TILE].
    tile : address
        Written; without meaning in rows with a logit that is not finite.
    found : address
        Of float32 [FOUND_ROWS, TILE], written.
    exponentials : literal bool
        If false, SCALED and SQUARES are not written.
    """
    full = bool(exponentials.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, classes, columns, labels, tile, found, _ = args
        zeros = ir.Constant(_FLOATS, [0.0] * TILE)
        labels = load(builder, labels, _INTEGERS)

        def variable(number: float) -> Any:
            return cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [number] * TILE))

        def column(c: Any) -> Any:
            return builder.add(columns, builder.mul(c, ir.Constant(I64, 4 * TILE)))

        def is_own(c: Any) -> Any:
            return builder.icmp_signed("==", labels, splat(builder, builder.trunc(c, I32), TILE))

        _turn_rows(builder, rows, classes, columns)
        rival, own, right, finite = variable(NO_CLASS), variable(0.0), variable(1.0), variable(0.0)
        with cgutils.for_range(builder, classes) as loop:
            z, mine = load(builder, column(loop.index), _FLOATS), is_own(loop.index)
            builder.store(nan_unless_finite(builder, z, builder.load(finite)), finite)
            builder.store(builder.select(mine, z, builder.load(own)), own)
            # At the own class `rival` is the largest earlier logit: a tie with it is wrong, one with a later class not.
            before = builder.load(rival)
            wrong = builder.and_(mine, builder.fcmp_ordered(">=", before, z))
            builder.store(builder.select(wrong, zeros, builder.load(right)), right)
            larger = builder.select(builder.fcmp_ordered(">", z, before), z, before)
            builder.store(builder.select(mine, before, larger), rival)
        own, rival, right, finite = (builder.load(each) for each in (own, rival, right, finite))
        right = builder.select(builder.fcmp_ordered(">", rival, own), zeros, right)
        finite = fused_multiply_add(builder, own, zeros, finite)  # the own class is not to be masked
        alone = builder.fcmp_ordered("==", rival, ir.Constant(_FLOATS, [NO_CLASS] * TILE))
        right = builder.select(alone, ir.Constant(_FLOATS, [math.nan] * TILE), right)
        rival = finite_rival(builder, rival)
        for number, value in ((FOUND_RIGHT, right), (FOUND_FINITE, finite)):
            store(builder, value, builder.add(found, ir.Constant(I64, 4 * TILE * number)))
        known = [own, rival]
        if full:
            scaled, squares = variable(0.0), variable(0.0)
            with cgutils.for_range(builder, classes) as loop:
                at = column(loop.index)
                e = exponential(builder, load(builder, at, _FLOATS), rival)
                store(builder, e, at)
                counted = builder.select(is_own(loop.index), zeros, e)
                builder.store(builder.fadd(builder.load(scaled), counted), scaled)
                builder.store(fused_multiply_add(builder, counted, counted, builder.load(squares)), squares)
            known += [builder.load(scaled), builder.load(squares)]
        for number, value in enumerate(known, OWN):  # SCALED and SQUARES come next
            store(builder, builder.fpext(value, _DOUBLES), builder.add(tile, ir.Constant(I64, 8 * TILE * number)))
        return context.get_dummy_value()

    address = types.uint64
    return types.void(address, types.int64, address, address, address, address, exponentials), codegen


@intrinsic
def narrow_gradient(
    typingctx: Any,
    columns: Any,
    classes: Any,
    labels: Any,
    shares: Any,
    tile: Any,
    aside: Any,
    gradient: Any,
    size: Any,
) -> Any:
    """Write the gradients of a tile's rows: `slope * e - share` at the other classes, and the own slope.

    Parameters
    ----------
    columns : address
        Of float32 [NARROW, TILE], as `read_narrow_tile` left them; overwritten.
    classes : int64
    labels : address
        Of int32 [TILE]; -1 for rows whose gradient is 0.
    shares : address
        Of float32 [classes].
    tile : address
        After `losses_of_tile`.
    aside : address
        Of float32 [(TILE + 1) * NARROW], overwritten: all rows of the tile, of which `size` are copied to `gradient`.
    gradient : address
        Of float32 [size, classes], written.
    size : int64
        Number of rows, at most TILE.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns, classes, labels, shares, tile, aside, gradient, size = args
        zeros = ir.Constant(_FLOATS, [0.0] * TILE)
        labels = load(builder, labels, _INTEGERS)
        counted = builder.icmp_signed(">=", labels, ir.Constant(_INTEGERS, [0] * TILE))

        def known(number: int) -> Any:
            row = builder.add(tile, ir.Constant(I64, 8 * TILE * number))
            return builder.fptrunc(load(builder, row, _DOUBLES), _FLOATS)

        own_slope, slope = known(OWN_SLOPE), known(SLOPE)
        with cgutils.for_range(builder, classes) as loop:
            at = builder.add(columns, builder.mul(loop.index, ir.Constant(I64, 4 * TILE)))
            share = load(builder, builder.add(shares, builder.mul(loop.index, ir.Constant(I64, 4))), F32)
            minus = splat(builder, builder.fneg(share), TILE)
            value = fused_multiply_add(builder, load(builder, at, _FLOATS), slope, minus)
            own = builder.icmp_signed("==", labels, splat(builder, builder.trunc(loop.index, I32), TILE))
            value = builder.select(own, own_slope, builder.select(counted, value, zeros))
            store(builder, value, at)
        several = builder.icmp_signed(">", classes, ir.Constant(I64, _SIDE))
        with builder.if_else(several) as (then, otherwise):
            with then:
                _turn_columns(builder, columns, classes, aside, 2)
            with otherwise:
                _turn_columns(builder, columns, classes, aside, 1)
        pointers = [builder.inttoptr(at, ir.IntType(8).as_pointer()) for at in (gradient, aside)]
        cgutils.raw_memcpy(builder, pointers[0], pointers[1], builder.mul(size, classes), 4)
        return context.get_dummy_value()

    address = types.uint64
    return types.void(address, types.int64, address, address, address, address, address, types.int64), codegen


def _turn_rows(builder: Any, rows: Any, classes: Any, columns: Any) -> None:
    """Transpose rows of logits, given by their addresses, into columns, one per class."""

    def half(first: int) -> None:
        left = builder.trunc(builder.sub(classes, ir.Constant(I64, first)), I32)
        for above in range(0, TILE, _SIDE):
            block = []
            for i in range(above, above + _SIDE):
                row = load(builder, builder.add(rows, ir.Constant(I64, 8 * i)), I64)
                block.append(masked_load(builder, builder.add(row, ir.Constant(I64, 4 * first)), _BLOCK_ROW, left, 0.0))
            for c, column in enumerate(_transposed(builder, block), first):
                store(builder, column, builder.add(columns, ir.Constant(I64, 4 * (TILE * c + above))))

    half(0)
    with builder.if_then(builder.icmp_signed(">", classes, ir.Constant(I64, _SIDE))):
        half(_SIDE)


def _turn_columns(builder: Any, columns: Any, classes: Any, rows: Any, halves: int) -> None:
    """Transpose columns, one per class, into contiguous rows, in order: the next overwrites the surplus of each."""
    for above in range(0, TILE, _SIDE):
        blocks = [
            _transposed(
                builder,
                [
                    load(builder, builder.add(columns, ir.Constant(I64, 4 * (TILE * c + above))), _BLOCK_ROW)
                    for c in range(_SIDE * half, _SIDE * (half + 1))
                ],
            )
            for half in range(halves)
        ]
        for i in range(_SIDE):
            at = builder.add(rows, builder.mul(classes, ir.Constant(I64, 4 * (above + i))))
            for half in range(halves):
                store(builder, blocks[half][i], builder.add(at, ir.Constant(I64, 4 * _SIDE * half)))


def _transposed(builder: Any, block: Sequence[Any]) -> list[Any]:
    """The transpose of a block of 8 vectors of 8 float32."""

    def pairs(vectors: Sequence[Any], low: Sequence[int], high: Sequence[int]) -> list[Any]:
        return [
            shuffle(builder, *two, places)
            for two in zip(vectors[::2], vectors[1::2], strict=True)
            for places in (low, high)
        ]

    # Bring numbers of one column together: of two rows, of four, of eight. Each pattern is one AVX instruction.
    twos = pairs(block, (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
    order = (0, 2, 1, 3, 4, 6, 5, 7)
    fours = pairs([twos[i] for i in order], (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
    columns = [shuffle(builder, fours[c], fours[c + 4], (0, 1, 2, 3, 8, 9, 10, 11)) for c in range(4)]
    return columns + [shuffle(builder, fours[c], fours[c + 4], (4, 5, 6, 7, 12, 13, 14, 15)) for c in range(4)]
