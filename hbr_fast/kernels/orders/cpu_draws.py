"""Weighted draws: the alias method with replacement, exponential keys without (numba).

Sources: Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS
1977; Hübschle-Schneider & Sanders, "Parallel weighted random sampling", ESA 2019 (section 3.1, the sweep that builds
the table); Efraimidis & Spirakis, "Weighted random sampling with a reservoir", IPL 2006.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.kernels.cache import CACHE
from hbr_fast.seeding import philox4x32

MAX_WEIGHTS = 2**32 - 1

_LOW, _32, _0 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
_ALWAYS = np.uint64(0xFFFFFFFFFFFFFFFF)
_TWO_64 = 18446744073709551616.0
_LARGEST = 1.7976931348623157e308
_BLOCK = 256  # draws worked on at once, an even number: their numbers stay in the first-level cache


@nb.njit(nogil=True, cache=CACHE)
def alias_table(weights, total, heaviest, packed, fine):
    """Build an alias table: column i gives i with probability `threshold` / 2**64, else its alias.

    Two fingers sweep over the weights, one over those below the mean and one over the others: each column below the
    mean is filled up from the heavy weight at hand, and what is left of that one, once it is below the mean, from the
    next. Memory is walked in order, so that tables far larger than the caches are built at the same speed.

    Parameters
    ----------
    weights : float64 [n]
        Finite, >= 0, at least one positive.
    total : float
        Their sum.
    heaviest : int
        Index of the largest.
    packed : uint64 [n]
        Written in full: the upper half of the threshold above the alias, so that a draw reads one word.
    fine : uint32 [n]
        Written in full: the lower half of the threshold.
    """
    n = weights.shape[0]
    scale = n / total
    light, heavy = 0, _next_heavy(weights, scale, 0)
    left = weights[heavy] * scale if heavy < n else 0.0  # of the heavy weight at hand, still to be placed
    while heavy < n:
        if left >= 1.0:
            share = 1.0
            while light < n:
                share = weights[light] * scale
                if share < 1.0:
                    break
                light += 1
            if light == n:
                break
            _set_column(packed, fine, light, np.uint64(share * _TWO_64), heavy)
            left -= 1.0 - share
            light += 1
        else:
            donor = _next_heavy(weights, scale, heavy + 1)
            if donor == n:
                break
            _set_column(packed, fine, heavy, np.uint64(left * _TWO_64), donor)
            left = weights[donor] * scale - (1.0 - left)
            heavy = donor
    # What rounding left over is full to one part in 2**52, except that a weight of 0 must never be drawn.
    for column in range(min(light, heavy), n):
        if column >= (light if weights[column] * scale < 1.0 else heavy):
            if weights[column] > 0.0:
                _set_column(packed, fine, column, _ALWAYS, column)
            else:
                _set_column(packed, fine, column, _0, heaviest)


@nb.njit(inline="always")
def _next_heavy(weights, scale, start):
    """Index of the first weight from `start` on that is the mean or more, or their number."""
    while start < weights.shape[0] and weights[start] * scale < 1.0:
        start += 1
    return start


@nb.njit(inline="always")
def _set_column(packed, fine, column, threshold, alias):
    packed[column] = ((threshold >> _32) << _32) | np.uint64(alias)
    fine[column] = np.uint32(threshold & _LOW)


@nb.njit(nogil=True, cache=CACHE)
def alias_draws(first_position, stride, epoch, key, packed, fine, out):
    """`out[i]` = the draw at position `first_position + i * stride` of an epoch.

    A draw takes 64 random bits, half a Philox block: times n they are the column, and the fraction that is left over is
    the uniform number within it. Each outcome so has its probability to 2**-64 for each column it stands in.

    Parameters
    ----------
    first_position, stride, epoch : int
    key : uint64 [2]
        Philox key of the order stream.
    packed : uint64 [n], fine : uint32 [n]
        From `alias_table`.
    out : int64 [count]
        Written in full.
    """
    n = np.uint64(packed.shape[0])
    numbers = np.empty(_BLOCK + 2, np.uint64)  # and one before the first, one behind the last of a block
    columns, entries = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.uint64)
    for first in range(0, out.shape[0], _BLOCK):
        size = min(_BLOCK, out.shape[0] - first)
        position = first_position + first * stride
        skipped = _random_numbers(position, stride, size, epoch, key, numbers)
        for i in range(size):
            number = numbers[skipped + i]
            low = (number & _LOW) * n
            high = (number >> _32) * n + (low >> _32)
            columns[i] = np.int64(high >> _32)
            numbers[i] = (high << _32) | (low & _LOW)
        for i in range(size):  # by itself: the shorter the loop, the more of these reads are under way at once
            entries[i] = packed[columns[i]]
        undecided = 0
        for i in range(size):
            uniform, coarse = numbers[i] >> _32, entries[i] >> _32
            out[first + i] = columns[i] if uniform < coarse else np.int64(entries[i] & _LOW)
            undecided += uniform == coarse
        if undecided:  # once in 2**32 draws: the lower half decides
            for i in range(size):
                if numbers[i] >> _32 == entries[i] >> _32 and (numbers[i] & _LOW) < np.uint64(fine[columns[i]]):
                    out[first + i] = columns[i]


@nb.njit(inline="always")
def _random_numbers(position, stride, size, epoch, key, numbers):
    """Write the 64-bit numbers of `size` positions from the returned index of `numbers` on.

    Positions 2 k and 2 k + 1 share a Philox block.
    """
    epoch, k0, k1 = np.uint64(epoch), key[0], key[1]
    if stride == 1:
        odd = position & 1
        for i in range((size + odd + 1) // 2):
            block = np.uint64((position >> 1) + i)
            w0, w1, w2, w3 = philox4x32(block & _LOW, block >> _32, epoch, _0, k0, k1)
            numbers[2 * i] = (w0 << _32) | w1
            numbers[2 * i + 1] = (w2 << _32) | w3
        return odd
    for i in range(size):
        at = position + i * stride
        block = np.uint64(at >> 1)
        w0, w1, w2, w3 = philox4x32(block & _LOW, block >> _32, epoch, _0, k0, k1)
        numbers[i] = (w2 << _32) | w3 if at & 1 else (w0 << _32) | w1
    return 0


@nb.njit(nogil=True, cache=CACHE)
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
