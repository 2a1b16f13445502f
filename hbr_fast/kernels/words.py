"""The random words of the rows of a batch, from which augmentation is decided (numba)."""

from __future__ import annotations

import numba as nb
import numpy as np

from hbr_fast.kernels.cache import CACHE
from hbr_fast.seeding import philox4x32

_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@nb.njit(nogil=True, cache=CACHE)
def words_of(keys_b, epoch, use, key0, key1, words_4b):
    """Write four Philox words for each row of a batch; `kernels.reference.make_batch` defines their use.

    Parameters
    ----------
    keys_b : int64 [B]
        Positions, sample ids, or `reference.draw_key`.
    epoch, use : int
        The other words of Philox's counter; `use` separates words that serve different purposes.
    key0, key1 : uint64
        Philox key of the stream.
    words_4b : uint64 [4, B]
        Output: numbers below 2**32. The words of all rows lie side by side, so that LLVM vectorises the loop.
    """
    epoch, use = np.uint64(epoch), np.uint64(use)
    for b in range(keys_b.shape[0]):
        key = np.uint64(keys_b[b])
        words_4b[0, b], words_4b[1, b], words_4b[2, b], words_4b[3, b] = philox4x32(
            key & _LOW, key >> _32, epoch, use, key0, key1
        )
