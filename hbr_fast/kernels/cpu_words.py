"""The random words of rows: for the native pass, and for backends whose kernels are other people's (numba)."""

from __future__ import annotations

import numba as nb
import numpy as np

from hbr_fast.seeding import philox4x32

_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@nb.njit(nogil=True, cache=True)
def words_of(places_b, epoch, use, key0, key1, words_4b):
    """Philox words of places in an epoch; `hbr_fast.kernels.reference.make_batch` says what they decide.

    Parameters
    ----------
    places_b : int64 [B]
        Positions, or sample ids.
    epoch, use : int
        The counter's other words; `use` tells apart what the words are for.
    key0, key1 : uint64
        Philox key of the stream.
    words_4b : uint64 [4, B]
        Written in full: numbers below 2**32. A word of all rows lies together, so that LLVM makes vectors of the loop.
    """
    epoch, use = np.uint64(epoch), np.uint64(use)
    for b in range(places_b.shape[0]):
        place = np.uint64(places_b[b])
        words_4b[0, b], words_4b[1, b], words_4b[2, b], words_4b[3, b] = philox4x32(
            place & _LOW, place >> _32, epoch, use, key0, key1
        )
