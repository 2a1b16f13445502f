"""Counter-based random numbers (Philox 4x32-10): a pure function of where they are used.

A draw is identified by (seed, stream, epoch, position), so it is the same for any batch size, thread count, world size
and device. Streams never share numbers: each has its own key, derived from the seed by Philox itself.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from enum import IntEnum

import numba as nb
import numpy as np

from hbr_fast.arguments import whole_number

# Multipliers and key increments of the paper (section 4.3), in the kernel's word type, so that the compiled code
# uses unsigned 64-bit arithmetic throughout.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


class Stream(IntEnum):
    """The purpose of random numbers. The values are part of the format: never renumber."""

    ORDER = 1
    AUGMENTATION = 2
    INITIALISATION = 3
    RESAMPLING = 4
    MEMBER = 5
    VARIANT = 6
    OVERSAMPLING = 7
    INTERPOLATION = 8
    HOLDOUT = 9
    POOL = 10
    PRUNING = 11
    VALIDATION = 12
    NOISE = 13
    THRESHOLD = 14
    BOOTSTRAP = 16
    MEMBER_ORDER = 20
    SECOND_SPLIT = 21
    SIGN_FLIP = 30
    PLANNING = 31
    TEST_SET = 32
    MIXING = 40
    NETWORK = 41
    TRANSFORMS = 42
    OTHER_CLASS = 43


@nb.njit(inline="always")
def philox4x32(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox 4x32-10 of a counter and a key, compiled.

    Parameters
    ----------
    c0, c1, c2, c3, k0, k1 : uint64
        32-bit words (below 2**32) of the counter and of the key.

    Returns
    -------
    tuple of four uint64
        32-bit words of the result.
    """
    for _ in range(10):
        product0 = _M0 * c0
        product1 = _M1 * c2
        c0 = (product1 >> _32) ^ c1 ^ k0
        c1 = product1 & _LOW
        c2 = (product0 >> _32) ^ c3 ^ k1
        c3 = product0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10 of one counter and key (32-bit words), in plain Python: the reference definition."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = int(_M0) * c0, int(_M1) * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + int(_W0)) & 0xFFFFFFFF, (k1 + int(_W1)) & 0xFFFFFFFF
    return c0, c1, c2, c3


def stream_key(seed: int, stream: Stream) -> tuple[int, int]:
    """The Philox key (two 32-bit words) of one stream of a seed.

    Parameters
    ----------
    seed : int
        In [0, 2**63).
    stream : Stream
        What the numbers are for.

    Raises
    ------
    ValueError
        If the seed is out of range.
    """
    words = philox((int(stream), 0, 0, 0), _seed_words(seed))
    return words[0], words[1]


def spread_seed(seed: int, stream: Stream, index: int) -> int:
    """An independent seed for item `index`: 63 well-mixed bits.

    Members seeded 0, 1, 2 would be correlated in any scheme that adds; these are not.
    """
    index = whole_number("index", index)
    high, low, _, _ = philox((index & 0xFFFFFFFF, index >> 32, 0, 1), stream_key(seed, stream))
    return (high << 32 | low) >> 1


def member_seed(seed: int, member: int) -> int:
    """The seed of ensemble member `member` (0, 1, ...): everything random in its training follows from it."""
    return spread_seed(seed, Stream.MEMBER, member)


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """A numpy generator for random choices on the host, keyed by (seed, stream, index).

    Parameters
    ----------
    seed : int
        In [0, 2**63).
    stream : Stream
        What the numbers are for.
    index : int
        Which of the stream's independent generators, e.g. the class.
    """
    return np.random.Generator(np.random.Philox(key=spread_seed(seed, stream, index)))


def checked_seed(seed: int) -> int:
    """A seed as Python's int.

    Raises
    ------
    ValueError
        If it is not a whole number in [0, 2**63).
    """
    seed = whole_number("seed", seed)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    return seed


def _seed_words(seed: int) -> tuple[int, int]:
    seed = checked_seed(seed)
    return seed & 0xFFFFFFFF, seed >> 32
