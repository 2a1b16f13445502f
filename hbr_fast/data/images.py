"""Image stores hold a split's pixels. The rest of the package sees only sizes, rows and blocks of images.

`RawImages` is the only kind so far. A new kind implements `ImageStore` and teaches the loaders' first stage how to turn
one of its rows into a uint8 picture in memory.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BLOCK_BYTES = 1 << 20  # a block is summed, hashed and written while it is still in the processor's cache
_PIECE = 256  # squares of bytes summed at a time: all partial sums are whole numbers below 2**24, exact in float32
_CACHED = 1 << 16  # pixels converted to float32 at a time


class ImageStore(Protocol):
    """The pixels of a split, by row.

    Attributes
    ----------
    image_shape : (int, int, int) or None
        (C, H, W) of every image; None where they vary in size.
    nbytes : int
        Bytes that the stored images take.
    """

    @property
    def image_shape(self) -> tuple[int, int, int] | None: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def gather(self, index: np.ndarray | Sequence[int], *, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels of some rows: uint8 [n, C, H, W].

        Parameters
        ----------
        index : int64 [n]
            Rows, each in [0, N); any order, repeats allowed.
        out : uint8 [n, C, H, W], optional
            Written in full and returned; the rows must have been checked.

        Raises
        ------
        IndexError
            If a row is out of range and `out` is not given.
        """
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, uint8 [B, C, H, W] of about `BLOCK_BYTES` each: for one pass in bounded memory."""
        ...

    def release_memory(self) -> None:
        """Release memory used for reading: otherwise a pass over a mapped file counts as memory of the file's size."""
        ...


def in_words(shape: tuple[int, ...] | None) -> str:
    """What images of a shape are called.

    Examples
    --------
    >>> in_words((3, 32, 32)), in_words(None)
    ('images of 3x32x32', 'pictures of any size')
    """
    return "pictures of any size" if shape is None else f"images of {'x'.join(map(str, shape))}"


@dataclass(frozen=True, eq=False)
class RawImages:
    """Images of one size in one array, memory-mapped or in memory.

    Parameters
    ----------
    array : uint8 [N, C, H, W]
        C-contiguous. Not copied.

    Raises
    ------
    ValueError
        If its type or number of axes is wrong, or it is not contiguous.

    Examples
    --------
    >>> store = RawImages(np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3))
    >>> len(store), store.image_shape
    (4, (1, 2, 3))
    >>> store.gather([3, 0])[:, 0, 0]
    array([[18, 19, 20],
           [ 0,  1,  2]], dtype=uint8)
    """

    array: np.ndarray

    def __repr__(self) -> str:
        return f"<RawImages: {len(self.array):,} {in_words(self.array.shape[1:])}>"

    def __post_init__(self) -> None:
        array = self.array
        if array.dtype != np.uint8 or array.ndim != 4 or not array.flags.c_contiguous:
            raise ValueError(
                f"images must be uint8 [N, C, H, W] in one piece, got {array.dtype} {list(array.shape)}"
                f"{'' if array.flags.c_contiguous else ' with gaps'}: convert them with numpy.ascontiguousarray"
            )

    def __len__(self) -> int:
        return len(self.array)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: a mapped file by its path, anything else by its bytes."""
        array = self.array
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename is not None:
            return _mapped, (os.path.abspath(array.filename), array.shape, array.offset)
        return RawImages, (np.asarray(array),)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.array.shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.array.nbytes

    def gather(self, index: np.ndarray | Sequence[int], *, out: np.ndarray | None = None) -> np.ndarray:
        """See `ImageStore.gather`; without `out` the pixels are a copy."""
        rows = np.asarray(index, np.int64)
        if out is None:
            pixels: np.ndarray = self.array[rows]
            return pixels
        # "clip" writes into `out` directly; "raise" would fill a copy first.
        return np.take(self.array, rows, axis=0, out=out, mode="clip")

    def blocks(self) -> Iterator[np.ndarray]:
        """See `ImageStore.blocks`; the blocks are views."""
        return array_blocks(self.array)

    def release_memory(self) -> None:
        """See `ImageStore.release_memory`; does nothing if the array is not mapped."""
        release_pages(self.array)


def array_blocks(images_nchw: np.ndarray) -> Iterator[np.ndarray]:
    """Views of about `BLOCK_BYTES` each, in order."""
    rows = rows_per_block(images_nchw.shape[1:])
    for start in range(0, len(images_nchw), rows):
        yield images_nchw[start : start + rows]


def rows_per_block(shape: Sequence[int]) -> int:
    """Images of (C, H, W) uint8 in a block: at least one."""
    return max(1, BLOCK_BYTES // max(1, int(np.prod(shape))))


def channel_sums(block_nchw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact sum and sum of squares of each channel of a contiguous uint8 block: int64 [C] each."""
    count, channels, height, width = block_nchw.shape
    pixels = height * width
    planes = block_nchw.reshape(count * channels, pixels)
    whole = pixels // _PIECE * _PIECE
    sums, squares = np.zeros(len(planes), np.int64), np.zeros(len(planes), np.int64)
    rows = max(1, _CACHED // max(1, pixels))
    converted, ones = np.empty((min(rows, len(planes)), whole), np.float32), np.ones(_PIECE, np.float32)
    for start in range(0, len(planes), rows) if whole else ():
        some = planes[start : start + rows]
        converted[: len(some)] = some[:, :whole]
        pieces = converted[: len(some)].reshape(-1, _PIECE)
        for total, other in ((sums, ones), (squares, pieces)):
            total[start : start + rows] = np.vecdot(pieces, other).reshape(len(some), -1).sum(axis=1, dtype=np.float64)
    if whole < pixels:
        rest = planes[:, whole:].astype(np.uint16)
        sums += rest.sum(axis=1, dtype=np.int64)
        rest *= rest  # 255 squared fits into 16 bits
        squares += rest.sum(axis=1, dtype=np.int64)
    return sums.reshape(count, channels).sum(axis=0), squares.reshape(count, channels).sum(axis=0)


def channel_mean_std(
    pixels: int, sums_c: np.ndarray, squares_c: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, pixels scaled to [0, 1].

    Parameters
    ----------
    pixels : int
        Pixels per channel, over all images.
    sums_c, squares_c : int64 [C]
        Sums of the bytes and of their squares. All arithmetic before the last division is in integers.
    """
    mean = tuple(int(total) / (pixels * 255) for total in sums_c)
    std = tuple(
        math.sqrt(pixels * int(squares) - int(total) ** 2) / (pixels * 255)
        for total, squares in zip(sums_c, squares_c, strict=True)
    )
    return mean, std


def statistics_of(store: ImageStore) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of a store, as in `channel_mean_std`, in one pass over its blocks."""
    pixels = 0
    sums_c: np.ndarray | int = 0
    squares_c: np.ndarray | int = 0
    for block in store.blocks():
        sums, squares = channel_sums(block)
        sums_c, squares_c = sums_c + sums, squares_c + squares
        pixels += len(block) * block.shape[2] * block.shape[3]
    return channel_mean_std(pixels, np.asarray(sums_c), np.asarray(squares_c))


def _mapped(path: str, shape: tuple[int, ...], offset: int) -> RawImages:
    return RawImages(np.memmap(path, np.uint8, mode="r", offset=offset, shape=shape))


def release_pages(mapped: np.ndarray) -> None:
    """Release the pages of a memory-mapped array that were read; reading them again brings them back.

    The system does so itself when memory is short, but until then a pass over a file counts as memory of its size.
    Does nothing for other arrays, or where the system has no such call.
    """
    owner: Any = mapped
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
