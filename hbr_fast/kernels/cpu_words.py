"""The random words of rows, for backends whose kernels are other people's (numba)."""

from __future__ import annotations

import numba as nb
import numpy as np

from hbr_fast.seeding import philox4x32

_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@nb.njit(nogil=True, cache=True)
def words_of(places_b, epoch, use, key, words_b4):
    """Philox words of places in an epoch; `hbr_fast.kernels.reference.make_batch` says what they decide.

    Parameters
    ----------
    places_b : int64 [B]
        Positions, or sample ids.
    epoch, use : int
        The counter's other words.
    key : uint64 [2]
        Philox key of the stream.
    words_b4 : uint64 [B, 4]
        Written in full: numbers below 2**32.
    """
    for b in range(places_b.shape[0]):
        place = np.uint64(places_b[b])
        words = philox4x32(place & _LOW, place >> _32, np.uint64(epoch), np.uint64(use), key[0], key[1])
        words_b4[b, 0], words_b4[b, 1], words_b4[b, 2], words_b4[b, 3] = words
