"""Orders of an epoch computed on demand: a bijection of [0, length) in O(1) memory (numba).

A position x is written as two digits, x = left * b + right, in a grid of a columns and b values with a * b just
above `length`; each round adds a keyed hash of one digit to the other, modulo its range. That is a Feistel network
on a grid instead of on bits (Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), so the domain
is at most sqrt(length) too large and walking out of it ("cycle-walking": apply again until inside) is rare.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.kernels.cache import CACHE

MAX_LENGTH = 2**48

_BLOCK = 512  # positions worked on at once: two arrays of them stay in the first-level cache
_15, _16, _32 = np.uint32(15), np.uint32(16), np.uint64(32)
_FACTOR, _NEXT_FACTOR = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


def rounds(length: int) -> int:
    """Rounds for a length: 12, and 24 where the digits are so small that 12 leave the permutations uneven.

    With 8 rounds the first and last elements of 5 positions fail a chi-square test over 40,000 seeds.
    """
    return 24 if length < 256 else 12


def grid(length: int) -> tuple[int, int]:
    """The two digit ranges (a, b) for a length: a * b >= length, with less than sqrt(length) + 1 too many."""
    a = max(math.isqrt(length - 1) + 1, 1) if length > 1 else 1
    return a, -(-length // a)


@nb.njit(inline="always")
def _shift(digit, key, size):
    """A number below `size` from a 32-bit mix of a digit and a key: uint32, so that eight fit a vector of AVX2."""
    h = np.uint32(digit ^ key)
    h = np.uint32((h ^ (h >> _16)) * _FACTOR)
    h = np.uint32((h ^ (h >> _15)) * _NEXT_FACTOR)
    h = np.uint32(h ^ (h >> _16))
    return np.uint32((np.uint64(h) * np.uint64(size)) >> _32)


@nb.njit(inline="always")
def _add(digit, shift, size):
    """(digit + shift) modulo size, for both below size: uint32, below 2**31."""
    total = np.uint32(digit + shift)
    return min(total, np.uint32(total - size))  # which wraps round to a large number where total is below size


@nb.njit(inline="always")
def _split(x, b, inverse):
    """The digits of x on a grid with b values a column; `inverse` is 1 / b. Exact for x < 2**48."""
    left = np.int64(np.float64(x) * inverse)  # right, or one too few: x < 2**48 leaves no room for more
    right = x - left * b
    left += np.int64(right >= b)
    return left, x - left * b


@nb.njit(inline="always")
def _walk(x, length, a, b, keys, salt):
    """Permute x, which lies outside of `length`, until it is inside."""
    columns, values, salt = np.uint32(a), np.uint32(b), np.uint32(salt)
    while x >= length:
        high = x // b
        left, right = np.uint32(high), np.uint32(x - high * b)
        for j in range(0, keys.shape[0], 2):
            left = _add(left, _shift(right, np.uint32(keys[j]) ^ salt, columns), columns)
            right = _add(right, _shift(left, np.uint32(keys[j + 1]) ^ salt, values), values)
        x = np.int64(left) * b + np.int64(right)
    return x


@nb.njit(nogil=True, cache=CACHE)
def bijection(start, stride, length, a, b, keys, out):
    """`out[i]` = the element at position `start + i * stride` of the permutation of [0, length) that `keys` names.

    Parameters
    ----------
    start, stride : int
        Positions, all below `length`.
    length : int
        In [1, 2**48].
    a, b : int
        `grid(length)`.
    keys : int64 [rounds(length)]
        32-bit round keys; their number is even.
    out : int64 [count]
        Written in full.
    """
    lefts, rights = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    inverse, columns, values = 1.0 / b, np.uint32(a), np.uint32(b)
    for first in range(0, out.shape[0], _BLOCK):
        size = min(_BLOCK, out.shape[0] - first)
        for i in range(size):
            lefts[i], rights[i] = _split(start + (first + i) * stride, b, inverse)
        # Round after round over the block, so that each is a plain loop over vector lanes.
        for j in range(0, keys.shape[0], 2):
            key, next_key = np.uint32(keys[j]), np.uint32(keys[j + 1])
            for i in range(size):
                left = _add(lefts[i], _shift(rights[i], key, columns), columns)
                lefts[i] = left
                rights[i] = _add(rights[i], _shift(left, next_key, values), values)
        for i in range(size):
            out[first + i] = np.int64(lefts[i]) * b + np.int64(rights[i])
        for i in range(size):
            if out[first + i] >= length:
                out[first + i] = _walk(out[first + i], length, a, b, keys, 0)


def guide_shift(length: int, num_classes: int) -> int:
    """The power of two of slots for which the guide of `quota_rows` has one entry: 8 to 16 entries a class."""
    return max((length // (8 * num_classes)).bit_length() - 1, 0)


@nb.njit(nogil=True, cache=CACHE)
def quota_rows(start, stride, length, a, b, keys, shift, guide, classes, member_keys, members, out):
    """`out[i]` = the sample at position `start + i * stride` of an epoch with a quota a class.

    A position becomes a slot by one bijection; each class owns a run of slots. Its k-th slot takes the member that a
    second bijection, of the class, puts at k modulo the class's size: every run of as many slots as members visits each
    member once, and which members a last, shorter run visits is as good as random.

    Parameters
    ----------
    start, stride, length, a, b, keys
        As in `bijection`, of the slots.
    shift : int
        `guide_shift(length, C)`, or any other.
    guide : int32 [((length - 1) >> shift) + 1]
        Class of slot `g << shift`: where to look first.
    classes : int64 [C + 1, 6]
        Of each class its first slot, its size (at least 1), the two numbers of `grid(size)`, a 32-bit number of its
        own, and where its members start. The last row has nothing but a first slot, `length`.
    member_keys : int64 [even number]
        Round keys of the second bijections; empty takes the members in the order they are listed in.
    members : integer [N]
        Samples listed class after class.
    out : int64 [count]
        Written in full.
    """
    bijection(start, stride, length, a, b, keys, out)
    members_of_slots(shift, guide, classes, member_keys, members, out)


@nb.njit(nogil=True, cache=CACHE)
def members_of_slots(shift, guide, classes, member_keys, members, out):
    """`out[i]` = the sample at slot `out[i]`; the arguments are those of `quota_rows`."""
    places, sizes, firsts = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    lefts, rights = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    tops, bottoms, salts = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    for first in range(0, out.shape[0], _BLOCK):
        size = min(_BLOCK, out.shape[0] - first)
        for i in range(size):
            slot = out[first + i]
            c = np.int64(guide[slot >> shift])
            while slot >= classes[c + 1, 0]:
                c += 1
            places[i] = slot - classes[c, 0]
            sizes[i], tops[i], bottoms[i] = classes[c, 1], classes[c, 2], classes[c, 3]
            salts[i], firsts[i] = classes[c, 4], classes[c, 5]
        for i in range(size):
            # Quotients of numbers below 2**48 are far enough from the next whole number to be right in float64.
            place = places[i] - np.int64(places[i] / sizes[i]) * sizes[i]
            left = np.int64(place / bottoms[i])
            lefts[i], rights[i] = left, place - left * np.int64(bottoms[i])
        for j in range(0, member_keys.shape[0], 2):
            key, next_key = np.uint32(member_keys[j]), np.uint32(member_keys[j + 1])
            for i in range(size):
                left = _add(lefts[i], _shift(rights[i], key ^ salts[i], tops[i]), tops[i])
                lefts[i] = left
                rights[i] = _add(rights[i], _shift(left, next_key ^ salts[i], bottoms[i]), bottoms[i])
        outside = 0
        for i in range(size):
            places[i] = np.int64(lefts[i]) * np.int64(bottoms[i]) + np.int64(rights[i])
            outside += places[i] >= sizes[i]
        if outside:
            for i in range(size):
                places[i] = _walk(places[i], sizes[i], np.int64(tops[i]), np.int64(bottoms[i]), member_keys, salts[i])
        for i in range(size):  # by itself: the shorter the loop, the more of these reads are under way at once
            out[first + i] = members[firsts[i] + places[i]]
