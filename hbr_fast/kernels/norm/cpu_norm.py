"""Training-mode batch norm fused with what follows it: ReLU, and a 2x2 max-pool or a residual sum (channels last).

The forward pass reads the images twice: for the mean and variance of each channel, then to write the final result. The
backward pass reads them twice too: for the gradients of weight and bias, then for that of the images. It computes again
what ReLU let through and which pixel of a window was the largest, instead of storing it. torch's own operators make a
pass for each of the three steps.

Sums are taken over groups of images and the groups are added in order, so the bits do not depend on the threads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.norm.norm_vectors import (
    CENTRE,
    FACTOR,
    LANES,
    LEVEL,
    NOTHING,
    RELU,
    RESIDUAL,
    SCALE,
    SHIFT,
    SLOPE,
    UNCOVERED,
    add_gradients,
    add_moments,
    add_pooled_gradients,
    differentiate_pixels,
    differentiate_pooled_pixels,
    normalise_pixels,
    pool_pixels,
)

POOL = 4  # a mode beside NOTHING, RELU and RESIDUAL: ReLU, then the largest of 2x2 pixels
CONSTANTS = 7  # rows of constants: those of `norm_vectors`, and the inverse standard deviation
INVERSE = 6
GROUPS = 64

# The words that the kernels are called with (see `team`): sizes, the mode, and addresses.
(
    _N, _H, _W, _C, _BF16, _MODE, _X, _OTHER, _Y, _G, _DX, _DOTHER, _CONSTANTS_AT, _TOTALS,
    _WEIGHT, _BIAS, _RUNNING_MEAN, _RUNNING_VAR, _OPTIONS, _DWEIGHT, _DBIAS,
) = range(21)  # fmt: skip
_BLOCK = 8192  # numbers read at a time: they stay in the first-level cache while the channels are worked on


def groups(images: int) -> int:
    """Number of groups into which a batch of images is divided."""
    return min(images, GROUPS)


@nb.njit(inline="always")
def _block(words):
    return max(_BLOCK // words[_C], 8)


@nb.njit(inline="always")
def _bounds(group, words):
    count = min(words[_N], GROUPS)
    return group * words[_N] // count, (group + 1) * words[_N] // count


@nb.njit(inline="always")
def _first_pixel(line, height, width):
    """Index of the first pixel of a line of windows; both count over all images."""
    image = line // (height // 2)
    return (image * height + 2 * (line - image * (height // 2))) * width


@nb.njit(inline="always")
def _moments(first, last, words, size, bf16):
    channels, area = words[_C], words[_H] * words[_W]
    step, row, block = channels * size, channels * 4, _block(words)
    for group in range(first, last):
        totals = words[_TOTALS] + group * 16 * channels
        team.array_at(totals, (2 * channels,), np.float64)[:] = 0.0
        start, stop = _bounds(group, words)
        for pixel in range(start * area, stop * area, block):
            count = min(block, stop * area - pixel)
            for c in range(0, channels, LANES):
                x = np.uint64(words[_X] + pixel * step + c * size)
                constants = np.uint64(words[_CONSTANTS_AT] + 4 * c)
                add_moments(x, count, step, constants, row, np.uint64(totals + 8 * c), bf16)


@nb.njit(inline="always")
def _normalise(first, last, words, size, bf16):
    height, width, channels, mode = words[_H], words[_W], words[_C], words[_MODE]
    step, row, block = channels * size, channels * 4, _block(words)
    for group in range(first, last):
        start, stop = _bounds(group, words)
        if mode == POOL:
            for line in range(start * (height // 2), stop * (height // 2)):
                pixel = _first_pixel(line, height, width)
                for c in range(0, channels, LANES):
                    x = np.uint64(words[_X] + pixel * step + c * size)
                    y = np.uint64(words[_Y] + line * (width // 2) * step + c * size)
                    constants = np.uint64(words[_CONSTANTS_AT] + 4 * c)
                    pool_pixels(x, x + np.uint64(width * step), y, width // 2, step, constants, row, bf16)
            continue
        stop *= height * width
        for pixel in range(start * height * width, stop, block):
            count = min(block, stop - pixel)
            for c in range(0, channels, LANES):
                offset = pixel * step + c * size
                x, other, y = (
                    np.uint64(words[_X] + offset),
                    np.uint64(words[_OTHER] + offset),
                    np.uint64(words[_Y] + offset),
                )
                constants = np.uint64(words[_CONSTANTS_AT] + 4 * c)
                if mode == NOTHING:
                    normalise_pixels(x, other, y, count, step, constants, row, NOTHING, bf16)
                elif mode == RELU:
                    normalise_pixels(x, other, y, count, step, constants, row, RELU, bf16)
                else:
                    normalise_pixels(x, other, y, count, step, constants, row, RESIDUAL, bf16)


@nb.njit(inline="always")
def _sum_gradients(first, last, words, size, bf16):
    height, width, channels, mode = words[_H], words[_W], words[_C], words[_MODE]
    step, row, block = channels * size, channels * 4, _block(words)
    for group in range(first, last):
        all_totals = words[_TOTALS] + group * 16 * channels
        team.array_at(all_totals, (2 * channels,), np.float64)[:] = 0.0
        start, stop = _bounds(group, words)
        if mode == POOL:
            for line in range(start * (height // 2), stop * (height // 2)):
                pixel = _first_pixel(line, height, width)
                for c in range(0, channels, LANES):
                    x = np.uint64(words[_X] + pixel * step + c * size)
                    g = np.uint64(words[_G] + line * (width // 2) * step + c * size)
                    constants, totals = np.uint64(words[_CONSTANTS_AT] + 4 * c), np.uint64(all_totals + 8 * c)
                    below = x + np.uint64(width * step)
                    add_pooled_gradients(x, below, g, width // 2, step, constants, row, totals, bf16)
            continue
        stop *= height * width
        for pixel in range(start * height * width, stop, block):
            count = min(block, stop - pixel)
            for c in range(0, channels, LANES):
                offset = pixel * step + c * size
                x, y, g = np.uint64(words[_X] + offset), np.uint64(words[_Y] + offset), np.uint64(words[_G] + offset)
                constants, totals = np.uint64(words[_CONSTANTS_AT] + 4 * c), np.uint64(all_totals + 8 * c)
                if mode == NOTHING:
                    add_gradients(x, y, g, count, step, constants, row, totals, NOTHING, bf16)
                elif mode == RELU:
                    add_gradients(x, y, g, count, step, constants, row, totals, RELU, bf16)
                else:
                    add_gradients(x, y, g, count, step, constants, row, totals, RESIDUAL, bf16)


@nb.njit(inline="always")
def _differentiate_pool(start, stop, words, size, bf16):
    """For images [start, stop): the windows, then the pixels that an odd width or height leaves over."""
    height, width, channels = words[_H], words[_W], words[_C]
    step, row = channels * size, channels * 4
    rows, columns = height // 2, width // 2
    for image in range(start, stop):
        for line in range(rows):
            pixel = (image * height + 2 * line) * width
            for c in range(0, channels, LANES):
                offset, down = pixel * step + c * size, np.uint64(width * step)
                x, dx = np.uint64(words[_X] + offset), np.uint64(words[_DX] + offset)
                g = np.uint64(words[_G] + (image * rows + line) * columns * step + c * size)
                constants = np.uint64(words[_CONSTANTS_AT] + 4 * c)
                differentiate_pooled_pixels(x, x + down, g, dx, dx + down, columns, step, constants, row, bf16)
                if width % 2:
                    skip = np.uint64((width - 1) * step)
                    # The last pixel of each of the two rows: one row apart.
                    differentiate_pixels(
                        x + skip, x, g, dx + skip, dx, 2, width * step, constants, row, UNCOVERED, bf16
                    )
        if height % 2:
            pixel = (image * height + height - 1) * width
            for c in range(0, channels, LANES):
                offset = pixel * step + c * size
                x, dx = np.uint64(words[_X] + offset), np.uint64(words[_DX] + offset)
                constants = np.uint64(words[_CONSTANTS_AT] + 4 * c)
                differentiate_pixels(x, x, x, dx, dx, width, step, constants, row, UNCOVERED, bf16)


@nb.njit(inline="always")
def _differentiate(first, last, words, size, bf16):
    channels, area, mode = words[_C], words[_H] * words[_W], words[_MODE]
    step, row, block = channels * size, channels * 4, _block(words)
    for group in range(first, last):
        start, stop = _bounds(group, words)
        if mode == POOL:
            _differentiate_pool(start, stop, words, size, bf16)
            continue
        for pixel in range(start * area, stop * area, block):
            count = min(block, stop * area - pixel)
            for c in range(0, channels, LANES):
                offset = pixel * step + c * size
                x, y, g = np.uint64(words[_X] + offset), np.uint64(words[_Y] + offset), np.uint64(words[_G] + offset)
                dx, dother = np.uint64(words[_DX] + offset), np.uint64(words[_DOTHER] + offset)
                constants = np.uint64(words[_CONSTANTS_AT] + 4 * c)
                if mode == NOTHING:
                    differentiate_pixels(x, y, g, dx, dother, count, step, constants, row, NOTHING, bf16)
                elif mode == RELU:
                    differentiate_pixels(x, y, g, dx, dother, count, step, constants, row, RELU, bf16)
                else:
                    differentiate_pixels(x, y, g, dx, dother, count, step, constants, row, RESIDUAL, bf16)


@nb.cfunc(team.KERNEL, cache=CACHE)
def moments(first, last, words):
    """For each group of images: add the sums of `x - centre` and of its square to the group's totals."""
    if words[_BF16]:
        _moments(first, last, words, 2, True)
    else:
        _moments(first, last, words, 4, False)


@nb.cfunc(team.KERNEL, cache=CACHE)
def normalise(first, last, words):
    """For each group of images: write `y`."""
    if words[_BF16]:
        _normalise(first, last, words, 2, True)
    else:
        _normalise(first, last, words, 4, False)


@nb.cfunc(team.KERNEL, cache=CACHE)
def sum_gradients(first, last, words):
    """For each group of images: add the sums of the gradient before ReLU, and of its product with `x - centre`."""
    if words[_BF16]:
        _sum_gradients(first, last, words, 2, True)
    else:
        _sum_gradients(first, last, words, 4, False)


@nb.cfunc(team.KERNEL, cache=CACHE)
def differentiate(first, last, words):
    """For each group of images: write `dx` (and `dother`)."""
    if words[_BF16]:
        _differentiate(first, last, words, 2, True)
    else:
        _differentiate(first, last, words, 4, False)


@nb.njit(inline="always")
def _add_groups(words):
    channels, count = words[_C], min(words[_N], GROUPS)
    totals = team.array_at(words[_TOTALS], (count, 2, channels), np.float64)
    for group in range(1, count):
        for row in range(2):
            for c in range(channels):
                totals[0, row, c] += totals[group, row, c]
    return totals[0]


@nb.cfunc(team.KERNEL, cache=CACHE)
def finish_moments(first, last, words):
    """From the totals: mean and variance, scale and shift of the normalisation, and the running statistics."""
    channels, size = words[_C], words[_N] * words[_H] * words[_W]
    constants = team.array_at(words[_CONSTANTS_AT], (CONSTANTS, channels), np.float32)
    weight, bias = (
        team.array_at(words[_WEIGHT], (channels,), np.float32),
        team.array_at(words[_BIAS], (channels,), np.float32),
    )
    running_mean = team.array_at(words[_RUNNING_MEAN], (channels,), np.float32)
    running_var = team.array_at(words[_RUNNING_VAR], (channels,), np.float32)
    momentum, eps = team.array_at(words[_OPTIONS], (2,), np.float64)
    totals = _add_groups(words)
    for c in range(channels):
        away = totals[0, c] / size
        variance = max(totals[1, c] / size - away * away, 0.0)
        mean = constants[CENTRE, c] + away
        inverse = 1.0 / np.sqrt(variance + eps)
        constants[CENTRE, c], constants[INVERSE, c] = mean, inverse
        constants[SCALE, c] = weight[c] * inverse
        constants[SHIFT, c] = bias[c] - mean * weight[c] * inverse
        running_mean[c] += momentum * (mean - running_mean[c])
        running_var[c] += momentum * (variance * size / (size - 1) - running_var[c])


@nb.cfunc(team.KERNEL, cache=CACHE)
def finish_gradients(first, last, words):
    """From the totals: the gradients of weight and bias, and the constants that `differentiate` needs."""
    channels, size = words[_C], words[_N] * words[_H] * words[_W]
    constants = team.array_at(words[_CONSTANTS_AT], (CONSTANTS, channels), np.float32)
    dweight = team.array_at(words[_DWEIGHT], (channels,), np.float32)
    dbias = team.array_at(words[_DBIAS], (channels,), np.float32)
    totals = _add_groups(words)
    for c in range(channels):
        inverse, factor = np.float64(constants[INVERSE, c]), np.float64(constants[SCALE, c])
        by_weight = totals[1, c] * inverse
        dweight[c], dbias[c] = by_weight, totals[0, c]
        constants[FACTOR, c] = factor
        constants[SLOPE, c] = -factor * inverse * by_weight / size
        constants[LEVEL, c] = -factor * totals[0, c] / size


def run(kernel: Any, finish: Any, last: Any, words: Sequence[int]) -> None:
    """Run both passes over the images of a batch, and the step between them."""
    count = groups(words[_N])
    words = array("q", words)  # shared by the stages
    team.run_stages(team.Stage(kernel, count, words), team.Stage(finish, 1, words), team.Stage(last, count, words))
