"""Weighted draws: the alias method with replacement, exponential keys without (numba).

Sources: Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS
1977; Vose, IEEE TSE 1991; Efraimidis & Spirakis, "Weighted random sampling with a reservoir", IPL 2006.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.seeding import philox4x32

MAX_WEIGHTS = 2**32 - 1

_LOW, _32, _0 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
_ALWAYS = np.uint64(0xFFFFFFFFFFFFFFFF)
_LARGEST = 1.7976931348623157e308
_BLOCK = 256  # draws worked on at once: their columns stay in the first-level cache


@nb.njit(nogil=True, cache=True)
def alias_table(weights, total, thresholds, packed):
    """Build an alias table: column i gives i with probability `thresholds[i]` / 2**64, else its alias.

    Parameters
    ----------
    weights : float64 [n]
        Finite, >= 0, at least one positive.
    total : float
        Their sum.
    thresholds : uint64 [n]
        Written in full.
    packed : uint64 [n]
        Written in full: the upper half of the threshold above the alias, so that a draw reads one word.
    """
    n = weights.shape[0]
    scale = n / total
    share = np.empty(n, np.float64)  # of what a column holds, still to be placed
    # One stack from either end of an array: columns to fill, and weights that fill them.
    stack = np.empty(n, np.int64)
    below, above = 0, n
    heaviest = 0
    for i in range(n):
        share[i] = weights[i] * scale
        if weights[i] > weights[heaviest]:
            heaviest = i
        if share[i] < 1.0:
            stack[below] = i
            below += 1
        else:
            above -= 1
            stack[above] = i
    while below > 0 and above < n:
        below -= 1
        column, donor = stack[below], stack[above]
        threshold = np.uint64(share[column] * 18446744073709551615.0) if share[column] > 0.0 else _0
        thresholds[column] = threshold
        packed[column] = ((threshold >> _32) << _32) | np.uint64(donor)
        share[donor] -= 1.0 - share[column]
        if share[donor] < 1.0:
            above += 1
            stack[below] = donor
            below += 1
    # What rounding left over is full to one part in 2**52, except that a weight of 0 must never be drawn.
    for k in range(n):
        if k < below or k >= above:
            column = stack[k]
            if weights[column] > 0.0:
                thresholds[column] = _ALWAYS
                packed[column] = ((_ALWAYS >> _32) << _32) | np.uint64(column)
            else:
                thresholds[column] = _0
                packed[column] = np.uint64(heaviest)


@nb.njit(nogil=True, cache=True)
def alias_draws(first_position, stride, epoch, key, thresholds, packed, out):
    """`out[i]` = the draw at position `first_position + i * stride` of an epoch.

    Parameters
    ----------
    first_position, stride, epoch : int
    key : uint64 [2]
        Philox key of the order stream.
    thresholds, packed : uint64 [n]
        From `alias_table`.
    out : int64 [count]
        Written in full.
    """
    n = np.uint64(packed.shape[0])
    columns, uniforms = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.uint64)
    for first in range(0, out.shape[0], _BLOCK):
        size = min(_BLOCK, out.shape[0] - first)
        for i in range(size):
            position = np.uint64(first_position + (first + i) * stride)
            w0, w1, w2, w3 = philox4x32(position & _LOW, position >> _32, np.uint64(epoch), _0, key[0], key[1])
            columns[i] = np.int64((w0 * n + ((w1 * n) >> _32)) >> _32)  # a 64-bit fraction times n
            uniforms[i] = (w2 << _32) | w3
        for i in range(size):
            column = columns[i]
            entry = packed[column]
            uniform = uniforms[i] >> _32
            coarse = entry >> _32
            # A branch would be guessed wrong half of the time: choose by mask.
            own = -np.int64(uniform < coarse)
            drawn = (column & own) | (np.int64(entry & _LOW) & ~own)
            if uniform == coarse:  # once in 2**32 draws: the lower half decides
                drawn = column if uniforms[i] < thresholds[column] else np.int64(entry & _LOW)
            out[first + i] = drawn


@nb.njit(nogil=True, cache=True)
def exponential_keys(weights, epoch, key, keys):
    """`keys[i]` = an exponential variate over `weights[i]`: the smallest k keys are a draw of k without replacement.

    Weights of 0 get infinity.
    """
    for i in range(weights.shape[0]):
        position = np.uint64(i)
        w0, w1, _, _ = philox4x32(position & _LOW, position >> _32, np.uint64(epoch), np.uint64(1), key[0], key[1])
        uniform = (np.float64((w0 << _32 | w1) >> np.uint64(12)) + 0.5) * 2.0**-52  # in (0, 1)
        # The largest number stands for an overflow, so that only a weight of 0 gets infinity.
        keys[i] = min(-math.log(uniform) / weights[i], _LARGEST) if weights[i] > 0.0 else np.inf
