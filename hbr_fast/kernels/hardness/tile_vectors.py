"""Vector operations on a tile, `TILE` rows of logits at once, with one lane per row (see `vector.py`).

What is known of the rows is kept in a float64 array [TILE_ROWS, TILE], called the tile: one row of it per quantity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from hbr_fast.kernels.hardness import layout
from hbr_fast.kernels.vector import F32, F64, I32, I64, fused_multiply_add, load, shuffle, splat, store

TILE = 16

# Quantities of a tile. The reading functions write
#   OWN, RIVAL       the logit of the own class, and the largest of the other classes
#   SCALED, SQUARES  sums over the other classes of `e` and of `e * e`, with `e = exp(z - rival)`
# `observe_tile` reads these and writes
#   LOG_LOSS         -log p of the own class
#   RIVAL_SHARE, OTHERS_SHARE  the probability of the rival, and of all other classes together
# `losses_of_tile` reads these and WEIGHT, the weight of the own class, and writes
#   LOSS, OWN_SLOPE  the loss, and its derivative by the own logit
#   SLOPE            the factor that makes `e` the derivative by each other logit
# Sums are relative to the largest of the other classes, so that squares do not underflow however confident the model
# is, and exclude the own class, so that 1 - p keeps its digits when p is near 1.
OWN, RIVAL, SCALED, SQUARES, LOG_LOSS, RIVAL_SHARE, OTHERS_SHARE, WEIGHT, LOSS, OWN_SLOPE, SLOPE = range(11)
TILE_ROWS = 11
# What else is found of a tile's rows, float32 [FOUND_ROWS, TILE]:
#   FOUND_RIGHT   1 if the own class is the first of the largest logits, else 0; NaN if all others are masked (-inf), so
#                 that there is a loss but no margin
#   FOUND_FINITE  0, or NaN if a logit is NaN or +inf, or the own one is -inf
FOUND_RIGHT, FOUND_FINITE = range(2)
FOUND_ROWS = 2

_DOUBLES, _LONGS = ir.VectorType(F64, TILE), ir.VectorType(I64, TILE)
_FLOATS, _INTEGERS = ir.VectorType(F32, TILE), ir.VectorType(I32, TILE)

_ROUND = 1.5 * 2.0**52  # x + _ROUND has no bits for a fraction: x is rounded to an integer
_SQRT_HALF = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2)


@intrinsic(prefer_literal=True)
def observe_tile(typingctx: Any, tile: Any, kept: Any, observed: Any, exponentials: Any) -> Any:
    """Write the observations of a tile's rows; `reference.observation` is the definition.

    Parameters
    ----------
    tile : address
    kept : address
        Of int64 [8]: -1 for requested columns, 0 for the others, which are written as 0.
    observed : address
        Of float64 [TILE, 8], the columns of `layout`.
    exponentials : literal bool
        If false, columns that need exponentials are 0.
    """
    full = bool(exponentials.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile, kept, observed, _ = args

        def row(number: int) -> Any:
            return builder.add(tile, ir.Constant(I64, 8 * TILE * number))

        def known(number: int) -> _Numbers:
            return _Numbers(builder, load(builder, row(number), _DOUBLES))

        own, rival = known(OWN), known(RIVAL)
        margin, zero = own - rival, _constant(builder, 0.0)
        columns = [zero] * layout.SUM_COLUMNS
        columns[layout.AUM], columns[layout.CONFIDENCE_LOGIT] = margin, own
        if full:
            scaled, squares = known(SCALED), known(SQUARES)
            led = margin.at_least(0.0)
            # Relative to exp of the larger of own and rival, exp of the smaller is `ratio`, and the sum 1 + `excess`.
            ratio = _exponential(led.choose(-margin, margin))
            excess = led.choose(ratio * scaled, ratio + (scaled - 1.0))
            total = excess + 1.0
            inverse = 1.0 / total
            smaller = ratio * inverse
            confidence, rival_share = led.choose(inverse, smaller), led.choose(smaller, inverse)
            log_loss = _log(total, (excess - (total - 1.0)) * inverse) - led.choose(zero, margin)
            columns[layout.AUM_SOFTMAX] = confidence - rival_share
            columns[layout.CONFIDENCE], columns[layout.CONFIDENCE_SQUARED] = confidence, confidence * confidence
            columns[layout.LOSS] = log_loss
            columns[layout.EL2N] = rival_share * scaled.times_plus(scaled, squares).root()
            shares = {LOG_LOSS: log_loss, RIVAL_SHARE: rival_share, OTHERS_SHARE: rival_share * scaled}
            for number, value in shares.items():
                store(builder, value.value, row(number))
        kept = load(builder, kept, ir.VectorType(I64, layout.SUM_COLUMNS))
        for i, observation in enumerate(_transposed(builder, [column.value for column in columns])):
            bits = builder.and_(builder.bitcast(observation, kept.type), kept)
            store(builder, bits, builder.add(observed, ir.Constant(I64, 8 * layout.SUM_COLUMNS * i)))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64, exponentials), codegen


@intrinsic
def losses_of_tile(
    typingctx: Any, tile: Any, labels: Any, found: Any, smoothing: Any, share: Any, all_shares: Any, inverse: Any
) -> Any:
    """Write the cross-entropy of a tile's rows and the factors of their gradients; see `cpu_cross_entropy`.

    Parameters
    ----------
    tile : address
        After `observe_tile`, with WEIGHT written.
    labels : address
        Of int32 [TILE]; -1 for rows to leave out, for which 0 is written.
    found : address
        Of float32 [FOUND_ROWS, TILE]. For rows that are not finite NaN is written.
    smoothing, share, all_shares, inverse : float64
        Label smoothing s; s / C; s / C times the sum of the class weights; 1 / divisor of the loss.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile, labels, found, smoothing, share, all_shares, inverse = args

        def row(number: int) -> Any:
            return builder.add(tile, ir.Constant(I64, 8 * TILE * number))

        def known(number: int) -> _Numbers:
            return _Numbers(builder, load(builder, row(number), _DOUBLES))

        def all_rows(number: Any) -> _Numbers:
            return _Numbers(builder, splat(builder, number, TILE))

        zero, divided = _constant(builder, 0.0), all_rows(inverse)
        counted = _Condition(
            builder, builder.icmp_signed(">=", load(builder, labels, _INTEGERS), ir.Constant(_INTEGERS, [0] * TILE))
        )
        at_finite = builder.add(found, ir.Constant(I64, 4 * TILE * FOUND_FINITE))
        finite = _Numbers(builder, builder.fpext(load(builder, at_finite, _FLOATS), _DOUBLES))  # 0 or NaN
        weight = known(WEIGHT)
        own_scale = weight * (1.0 - all_rows(smoothing))
        scale = own_scale + all_rows(all_shares)
        own_slope = all_rows(all_shares) - all_rows(share) * weight - scale * known(OTHERS_SHARE)
        results = {
            LOSS: own_scale * known(LOG_LOSS),
            OWN_SLOPE: own_slope * divided,
            SLOPE: scale * known(RIVAL_SHARE) * divided,
        }
        for number, value in results.items():
            store(builder, (counted.choose(value, zero) + finite).value, row(number))
        return context.get_dummy_value()

    address, number = types.uint64, types.float64
    return types.void(address, address, address, number, number, number, number), codegen


@dataclass(frozen=True)
class _Numbers:
    """A number of each row, float64, that computes as one number does."""

    builder: Any
    value: Any

    def _vector(self, other: _Numbers | float) -> Any:
        return other.value if isinstance(other, _Numbers) else ir.Constant(_DOUBLES, [other] * TILE)

    def __add__(self, other: _Numbers | float) -> _Numbers:
        return _Numbers(self.builder, self.builder.fadd(self.value, self._vector(other)))

    def __sub__(self, other: _Numbers | float) -> _Numbers:
        return _Numbers(self.builder, self.builder.fsub(self.value, self._vector(other)))

    def __mul__(self, other: _Numbers | float) -> _Numbers:
        return _Numbers(self.builder, self.builder.fmul(self.value, self._vector(other)))

    def __truediv__(self, other: _Numbers) -> _Numbers:
        return _Numbers(self.builder, self.builder.fdiv(self.value, other.value))

    def __rtruediv__(self, other: float) -> _Numbers:
        return _Numbers(self.builder, self.builder.fdiv(self._vector(other), self.value))

    def __rsub__(self, other: float) -> _Numbers:
        return _Numbers(self.builder, self.builder.fsub(self._vector(other), self.value))

    def __neg__(self) -> _Numbers:
        return _Numbers(self.builder, self.builder.fneg(self.value))

    def times_plus(self, factor: _Numbers | float, summand: _Numbers | float) -> _Numbers:
        """self * factor + summand, rounded once."""
        both = self._vector(factor), self._vector(summand)
        return _Numbers(self.builder, fused_multiply_add(self.builder, self.value, *both))

    def root(self) -> _Numbers:
        function = ir.FunctionType(_DOUBLES, [_DOUBLES])
        call = cgutils.get_or_insert_function(self.builder.module, function, f"llvm.sqrt.v{TILE}f64")
        return _Numbers(self.builder, self.builder.call(call, [self.value]))

    def at_least(self, bound: float) -> _Condition:
        return _Condition(self.builder, self.builder.fcmp_ordered(">=", self.value, self._vector(bound)))


@dataclass(frozen=True)
class _Condition:
    """Yes or no of each row."""

    builder: Any
    value: Any

    def choose(self, then: _Numbers, otherwise: _Numbers) -> _Numbers:
        return _Numbers(self.builder, self.builder.select(self.value, then.value, otherwise.value))


def _constant(builder: Any, number: float) -> _Numbers:
    return _Numbers(builder, ir.Constant(_DOUBLES, [number] * TILE))


def _exponential(x: _Numbers) -> _Numbers:
    """exp(x) for x <= 0, to 1e-14; 0 below -708."""
    builder = x.builder
    representable, zero = x.at_least(-708.0), _constant(builder, 0.0)
    x = representable.choose(x, zero)
    shifted = x.times_plus(1.4426950408889634, _ROUND)  # the nearest integer, in the lowest bits of the mantissa
    power = shifted - _ROUND
    r = power.times_plus(-5.497923018708371e-14, power.times_plus(-0.6931471805598903, x))
    e = r * (1 / math.factorial(11)) + 1 / math.factorial(10)
    for k in range(9, -1, -1):
        e = e.times_plus(r, 1 / math.factorial(k))
    exponent = builder.add(builder.bitcast(shifted.value, _LONGS), _long(1023))
    e = e * _Numbers(builder, builder.bitcast(builder.shl(exponent, _long(52)), _DOUBLES))
    return representable.choose(e, zero)


def _log(total: _Numbers, lost: _Numbers) -> _Numbers:
    """log(total) + lost for 1 <= total, to 1e-13 relative."""
    builder = total.builder
    bits = builder.bitcast(total.value, _LONGS)
    power = builder.lshr(builder.sub(bits, _long(_SQRT_HALF)), _long(52))
    mantissa = builder.bitcast(builder.sub(bits, builder.shl(power, _long(52))), _DOUBLES)
    f = _Numbers(builder, mantissa) - 1.0  # in [sqrt(1/2), sqrt(2)] - 1
    q = f / (f + 2.0)  # log((1 + q) / (1 - q)) is 2 (q + q^3 / 3 + ...)
    z = q * q
    tail = z * (1 / 17) + 1 / 15
    for k in (13, 11, 9, 7, 5, 3):
        tail = tail.times_plus(z, 1 / k)
    # 2**52 with a whole number below it in its lowest bits is the sum of both.
    large = builder.bitcast(_constant(builder, 2.0**52).value, _LONGS)
    power = _Numbers(builder, builder.bitcast(builder.or_(power, large), _DOUBLES)) - 2.0**52
    return power.times_plus(0.6931471805599453, (q * 2.0).times_plus(z * tail, q * 2.0) + lost)


def _long(number: int) -> Any:
    return ir.Constant(_LONGS, [number] * TILE)


def _transposed(builder: Any, columns: Sequence[Any]) -> list[Any]:
    """The rows of eight columns of TILE numbers."""
    rows = []
    for first in range(0, TILE, 8):
        block = [shuffle(builder, column, column, range(first, first + 8)) for column in columns]
        # Pairs, fours and then all of what belongs to a row; block[i] has it of rows i, i + step, ... of all.
        pairs = [
            shuffle(builder, a, b, [place for i in range(odd, 8, 2) for place in (i, 8 + i)])
            for a, b in zip(block[::2], block[1::2], strict=True)
            for odd in (0, 1)
        ]
        fours = {}
        for side in (0, 1):
            for odd in (0, 1):
                a, b = pairs[4 * side + odd], pairs[4 * side + 2 + odd]
                fours[side, odd] = shuffle(builder, a, b, (0, 1, 8, 9, 4, 5, 12, 13))  # rows odd and odd + 4
                fours[side, odd + 2] = shuffle(builder, a, b, (2, 3, 10, 11, 6, 7, 14, 15))
        for lower in (0, 4):
            halves = [*range(lower, lower + 4), *range(8 + lower, 12 + lower)]
            rows += [shuffle(builder, fours[0, i], fours[1, i], halves) for i in range(4)]
    return rows
