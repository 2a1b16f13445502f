"""Augmentation of one image: a crop of the original size, a random-resized crop, a cutout (numba).

`job` is the record of `cpu_batch.ImagePass`; images and outputs are addresses.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.images.pixel_vectors import SLACK, convert_rows, store_pixel

CONSTANT, REFLECT, EDGE = range(3)  # what is round an image


@nb.njit(inline="always")
def write_window(
    job, dst, own, mate, weight, down, right, plane, stride, lanes, together, mixed, reverse, bf16
):  # fmt: skip
    """Write the part of an image, as large as the image, that begins `down` rows and `right` columns after it does.

    Channels of the image lie `plane` and rows `stride` bytes apart. What is outside of it becomes the border's grey
    level, though up to SLACK bytes there are read. `mate` is the interpolation partner where `mixed`. Literals:
    pixels a vector, channels stored side by side, mixing, direction and type.
    """
    size = 2 if bf16 else 4
    step = job.channels if job.channels_last else 1  # from one pixel to the next
    line = np.uint64(job.width * step * size)
    channel_step = 1 if job.channels_last else job.height * job.width
    # Rows of the output that are above the image, inside of it and below.
    above = min(max(0, -down), job.height)
    below = max(above, min(job.height, job.height - down))
    for c in range(0, job.channels, together):
        skipped = np.uint64(c * plane)
        fill, number = np.uint64(job.border + c), np.uint64(4 * c)
        for section in range(3):
            first = 0 if section == 0 else above if section == 1 else below
            last = above if section == 0 else below if section == 1 else job.height
            if first == last:
                continue
            to = dst + np.uint64((c * channel_step + first * job.width * step) * size)
            for start in range(0, job.width, lanes):
                x = min(start, job.width - lanes)  # the last column overlaps the one before: no scalar tail
                mask, at, between = np.uint64(job.mask), skipped, np.uint64(0)
                if section == 1:
                    column = max(-SLACK, min((job.width - lanes - x if reverse else x) + right, job.width))
                    mask += np.uint64(4 * (SLACK + column))
                    at += np.uint64((first + down) * stride + column)
                    between = np.uint64(stride)
                convert_rows(
                    to + np.uint64(x * step * size), line, own + at, mate + at, np.uint64(plane), between,
                    last - first, mask, fill, np.uint64(job.scale) + number, np.uint64(job.bias) + number, weight,
                    lanes, together, mixed, reverse, bf16,
                )  # fmt: skip


@nb.njit(nogil=True, cache=CACHE)
def padded_copy(job, image, scratch):
    """Copy an image to `scratch` with `job.pad` pixels round it, of the kind `job.padding`."""
    height, width, pad = job.height, job.width, job.pad
    tall, wide = height + 2 * pad, width + 2 * pad
    source = team.array_at(np.int64(image), (job.channels, height, width), np.uint8)
    target = team.array_at(np.int64(scratch), (job.channels, tall, wide), np.uint8)
    border_c = team.array_at(job.border, (job.channels,), np.uint8)
    for c in range(job.channels):
        for y in range(tall):
            row = _inside(y - pad, height, job.padding)
            if row < 0:
                target[c, y] = border_c[c]
                continue
            target[c, y, pad : pad + width] = source[c, row]
            for x in range(pad):
                left, right = _inside(x - pad, width, job.padding), _inside(width + x, width, job.padding)
                target[c, y, x] = source[c, row, left] if left >= 0 else border_c[c]
                target[c, y, pad + width + x] = source[c, row, right] if right >= 0 else border_c[c]


@nb.njit(inline="always")
def _inside(x, size, padding):
    """The pixel at x, or -1 for the border's grey level."""
    if 0 <= x < size:
        return x
    if padding == REFLECT:
        return -x if x < 0 else 2 * (size - 1) - x
    if padding == EDGE:
        return 0 if x < 0 else size - 1
    return -1


@nb.njit(nogil=True, cache=CACHE)
def resized_crop(job, dst, own, mate, weight, mixed, flip, top, left, tall, wide):
    """Write the crop of `tall` by `wide` pixels at (top, left), scaled to the size of the image."""
    height, width = job.height, job.width
    shape = (job.channels, height, width)
    own_chw, mate_chw = team.array_at(np.int64(own), shape, np.uint8), team.array_at(np.int64(mate), shape, np.uint8)
    scale_c = team.array_at(job.scale, (job.channels,), np.float32)
    bias_c = team.array_at(job.bias, (job.channels,), np.float32)
    step, channel_step = (job.channels, 1) if job.channels_last else (1, height * width)
    lows, shares = np.empty(width, np.int64), np.empty(width, np.float32)
    for x in range(width):
        lows[x], shares[x] = _between(x, wide, width)
    row = np.empty(wide + 1, np.float32)
    for c in range(job.channels):
        scale, bias = scale_c[c], bias_c[c]
        for y in range(height):
            low, share = _between(y, tall, height)
            upper, lower = top + low, top + min(low + 1, tall - 1)
            for x in range(wide):
                one, other = np.float32(own_chw[c, upper, left + x]), np.float32(own_chw[c, lower, left + x])
                if mixed:
                    mate_one, mate_other = mate_chw[c, upper, left + x], mate_chw[c, lower, left + x]
                    one = np.float32(mate_one) + weight * (one - np.float32(mate_one))
                    other = np.float32(mate_other) + weight * (other - np.float32(mate_other))
                row[x] = one + share * (other - one)
            row[wide] = row[wide - 1]  # beyond the outermost centres, the edge
            for x in range(width):
                low = lows[x]
                value = row[low] + shares[x] * (row[low + 1] - row[low])
                column = width - 1 - x if flip else x
                _store(job, dst, c * channel_step + (y * width + column) * step, value * scale + bias)


@nb.njit(inline="always")
def _between(x, size, new):
    """The pixel before the centre of pixel x when `size` pixels become `new`, and the share of the pixel behind it."""
    at = max(0, min((2 * x + 1) * size - new, (size - 1) * 2 * new))
    low = at // (2 * new)
    return low, np.float32(at - low * 2 * new) / np.float32(2 * new)


@nb.njit(nogil=True, cache=CACHE)
def cut_out(job, dst, top, left):
    """Overwrite the square of `job.cutout` pixels at (top, left) with the grey level of cutouts."""
    scale_c = team.array_at(job.scale, (job.channels,), np.float32)
    bias_c = team.array_at(job.bias, (job.channels,), np.float32)
    level_c = team.array_at(job.cutout_level, (job.channels,), np.uint8)
    step, channel_step = (job.channels, 1) if job.channels_last else (1, job.height * job.width)
    for c in range(job.channels):
        # Rounded once, as the fused multiply-add of every other pixel is.
        value = np.float32(np.float64(level_c[c]) * scale_c[c] + np.float64(bias_c[c]))
        for y in range(top, top + job.cutout):
            for x in range(left, left + job.cutout):
                _store(job, dst, c * channel_step + (y * job.width + x) * step, value)


@nb.njit(inline="always")
def _store(job, dst, place, value):
    if job.bf16:
        store_pixel(dst + np.uint64(2 * place), value, True)
    else:
        store_pixel(dst + np.uint64(4 * place), value, False)
