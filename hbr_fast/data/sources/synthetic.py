"""Generated images with known hardness, per class and per sample, to evaluate estimators.

All arithmetic is on integers (floating-point sums are of integers small enough to be exact), and only the raw
words of numpy's Philox are used, so the bytes are the same on every platform and numpy version.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import numpy as np

from hbr_fast.data.images import rows_per_block
from hbr_fast.data.sources.source import Source, SourceSplit

# Purposes of Philox keys; the second word of a key is 8 * split + purpose.
_PATTERN, _HARDNESS, _OTHER, _FIELD, _GRAIN = range(5)
_SPLITS = {"train": 1, "test": 2}

_ONE = 1 << 16  # hardness is a whole number of 65536ths
_EASIEST, _HARDEST, _SPREAD = 13107, 32768, 13107  # class means 0.2 to 0.5, samples within 0.2 of them
_NORM = 4 * 112 * 16  # Euclidean norm of a pattern's coefficients, in 16ths of a gray level
_MAX_CLASSES = 256


def synthetic(
    *,
    classes: int = 10,
    train_per_class: int = 500,
    test_per_class: int = 100,
    shape: tuple[int, int, int] = (3, 32, 32),
    seed: int = 0,
) -> Source:
    """Noisy mixtures of two class patterns; the share of the wrong one is the sample's hardness.

    Every class has a smooth random pattern P; all pairs of patterns are equally far apart. A sample of class
    y with hardness h in [0, 1] shows 128 + (1 - h) P_y + h P_other + noise, the other class being drawn per
    sample and the noise smooth as well. Above h = 0.5 it looks more like the other class than like its own.
    Class means of h rise evenly with the class index from 0.2 to 0.5 and samples spread uniformly by 0.2
    about them.

    Parameters
    ----------
    classes : int
        2 to 256.
    train_per_class, test_per_class : int
        Samples of every class in each split, at least 1.
    shape : tuple of int
        (C, H, W); H and W at least 4, or 8 above 16 classes, or 16 above 64.
    seed : int
        In [0, 2**63).

    Returns
    -------
    Source
        With `truth_n` in both splits. Labels cycle: 0, 1, ..., classes - 1, 0, 1, ...

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    grid = 4 if classes <= 16 else 8 if classes <= 64 else 16
    if not 2 <= classes <= _MAX_CLASSES:
        raise ValueError(f"synthetic: classes must be in 2..{_MAX_CLASSES}, got {classes}")
    if min(train_per_class, test_per_class) < 1:
        raise ValueError(
            f"synthetic: every class needs a sample in each split, got {train_per_class} and {test_per_class}"
        )
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < grid:
        raise ValueError(
            f"synthetic: shape must be (channels, height, width) with sides of at least {grid} pixels "
            f"for {classes} classes, got {shape}"
        )
    if not 0 <= seed < 2**63:
        raise ValueError(f"synthetic: seed must be in [0, 2**63), got {seed}")

    prototypes = _prototypes(classes, shape[0], grid, seed)
    sizes = {"train": classes * train_per_class, "test": classes * test_per_class}
    splits = {name: _split(name, size, prototypes, shape, grid, seed) for name, size in sizes.items()}
    digits = len(str(classes - 1))
    options = {
        "classes": classes,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "shape": list(shape),
        "seed": seed,
    }
    names = tuple(f"class_{index:0{digits}d}" for index in range(classes))
    return Source("synthetic", names, splits, {"kind": "synthetic", "options": options})


def _split(
    name: str, size: int, prototypes: np.ndarray, shape: tuple[int, int, int], grid: int, seed: int
) -> SourceSplit:
    classes = len(prototypes)
    labels_n = np.arange(size, dtype=np.int64) % classes
    means_c = _EASIEST + (_HARDEST - _EASIEST) * np.arange(classes, dtype=np.int64) // (classes - 1)
    spread_n = _words(seed, name, _HARDNESS).random_raw(size).astype(np.int64) & 0xFFFF
    hardness_n = means_c[labels_n] + ((2 * spread_n - _ONE) * _SPREAD >> 16)
    # The other class: 1 to classes - 1 steps on from its own, by the high bits (multiply and shift).
    steps_n = (_words(seed, name, _OTHER).random_raw(size) >> np.uint64(32)).astype(np.int64) * (classes - 1) >> 32
    others_n = (labels_n + 1 + steps_n) % classes

    def blocks() -> Iterator[np.ndarray]:
        field, grain = _words(seed, name, _FIELD), _words(seed, name, _GRAIN)
        rise, across = _interpolation(shape[1], grid), _interpolation(shape[2], grid)
        rows = rows_per_block(shape)
        for start in range(0, size, rows):
            here = slice(start, min(start + rows, size))
            h = hardness_n[here, None, None, None]
            signal = (_ONE - h) * prototypes[labels_n[here]] + h * prototypes[others_n[here]]
            # The sum of four bytes is nearly normal: standard deviation 148, tripled, in 16ths: 28 gray
            # levels.
            noise = _bytes(field, (*signal.shape, 4)).sum(axis=-1, dtype=np.int64) - 510
            coefficients = (signal >> 16) + 3 * noise
            # 12 bits by 8 of weights that sum to 2**8: below 2**24, so float32 is exact in any order of
            # summation.
            smooth = rise @ coefficients.astype(np.float32) @ across.T
            # Grain of up to 16 gray levels either way; a gray level is 2**12 here (16ths, twice 16ths of
            # weights).
            grain_nchw = (_bytes(grain, smooth.shape).astype(np.int32) - 128) << 9
            pixels = 128 + (smooth.astype(np.int32) + grain_nchw >> 12)
            yield np.clip(pixels, 0, 255).astype(np.uint8)

    return SourceSplit(shape=shape, labels_n=labels_n, blocks=blocks, truth_n=hardness_n / _ONE)


def _prototypes(classes: int, channels: int, grid: int, seed: int) -> np.ndarray:
    """Patterns on the coarse grid, int64 [classes, channels, grid, grid], in 16ths of a gray level.

    Rows of a Hadamard matrix with random signs and column order, one matrix per channel: all values are plus or
    minus one amplitude and any two rows differ in half of the positions, so no pair of classes is closer than
    another. The amplitude falls with the number of coefficients so that the distance relative to the noise does
    not depend on the shape.
    """
    size = grid * grid
    index = np.arange(size)
    hadamard = 1 - 2 * (np.bitwise_count(index[:, None] & index[None, :]).astype(np.int64) & 1)
    words = _words(seed, None, _PATTERN).random_raw(2 * channels * size).reshape(channels, 2, size)
    amplitude = isqrt(_NORM * _NORM // (channels * size))
    patterns = []
    for signs, order in words:
        columns = hadamard[:, np.argsort(order, kind="stable")]
        patterns.append(columns[:classes] * (1 - 2 * (signs >> np.uint64(63)).astype(np.int64)))
    return amplitude * np.stack(patterns, axis=1).reshape(classes, channels, grid, grid)


def _interpolation(pixels: int, grid: int) -> np.ndarray:
    """Linear interpolation from `grid` points to `pixels` points, float32 [pixels, grid], in whole 16ths."""
    place = 16 * np.arange(pixels) * (grid - 1) // (pixels - 1)
    weights = 16 - np.abs(place[:, None] - 16 * np.arange(grid)[None, :])
    return np.maximum(weights, 0).astype(np.float32)


def _words(seed: int, split: str | None, purpose: int) -> np.random.Philox:
    stream = purpose if split is None else 8 * _SPLITS[split] + purpose
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))


def _bytes(words: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """The next random bytes as uint8 of `shape`; whole words are drawn, image by image.

    Every image takes a whole number of words, so that its bytes do not depend on the block size.
    """
    count, each = shape[0], int(np.prod(shape[1:]))
    per_image = -(-each // 8)
    drawn = words.random_raw(count * per_image).astype("<u8").view(np.uint8).reshape(count, 8 * per_image)
    return drawn[:, :each].reshape(shape)
