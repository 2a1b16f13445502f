"""One pass that makes a batch: gather, interpolate, crop, flip, normalise, convert (numba).

An image is copied once into a padded scratch image that stays in the first-level cache; a crop is then a fixed-width
copy at an offset, and each row of it a few vector operations (load, reverse, convert, multiply-add, store).
"""

from __future__ import annotations

import numba as nb
import numpy as np

from hbr_fast.kernels.vector import convert_pixels, copy_bytes, mix_pixels
from hbr_fast.seeding import philox4x32

_LOW, _32, _0 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)


@nb.njit(nogil=True, cache=True)
def make_batch(
    images_nchw,
    sources_s,
    first_id_s,
    labels_n,
    store_r,
    index_r,
    partner_r,
    weight_r,
    rows_b,
    first_position,
    step,
    epoch,
    key,
    flip_below,
    pad,
    scale_c,
    bias_c,
    channels_last,
    scratch,
    out,
    labels_out,
    ids_out,
):
    """Fill one batch; `hbr_fast.kernels.reference.make_batch` is the definition.

    The plan's indices must have been checked by the caller: memory is walked by address here.

    Parameters
    ----------
    images_nchw : uint8 [N, C, H, W]
        Images of store 0; the others have the same shape and are known by address only.
    sources_s : uint64 [S], first_id_s : int64 [S]
        Address of each store's first image and its sample id; the ids of store 0 start at 0.
    labels_n : int64 [all images]
        By sample id, over all stores.
    store_r : int16 [R], index_r, partner_r : int64 [R], weight_r : float32 [R]
        The plan; partner -1 is none.
    rows_b : int64 [B]
        Plan rows of this batch.
    first_position, step, epoch : int
        Place of the batch's first row in the epoch's order, from one row to the next, and the epoch: they key the
        random numbers.
    key : uint64 [2]
        Philox key of the augmentation stream.
    flip_below : int
        Flip where a uniform 32-bit number is below this: probability * 2**32.
    pad : int
        Zeros put round the raw image before a random crop of its own size.
    scale_c, bias_c : float32 [C]
        `pixel * scale + bias` normalises a byte.
    channels_last : bool
        Store the channels of a pixel side by side instead of plane after plane.
    scratch : uint8 [2 * C * (H + 2 pad) * (W + 2 pad)]
        Zeros: the border stays so, only the inside is rewritten. It is the caller's, because this function knows it by
        address only, and numba frees an array of its own after the last use of its name.
    out : float32 or uint16 (bfloat16 bits) [B * C * H * W]
        The batch, written in full.
    labels_out, ids_out : int64 [B]
        Written in full.

    Returns
    -------
    int
        Place in the batch of the first row that the plan does not have, where it stopped; or -1.
    """
    channels, height, width = images_nchw.shape[1:]
    image_size = channels * height * width
    wide, tall = width + 2 * pad, height + 2 * pad
    padded_size = channels * tall * wide
    own_scratch = np.uint64(scratch.ctypes.data)
    mate_scratch = own_scratch + np.uint64(padded_size)
    target = np.uint64(out.ctypes.data)
    pixel_step = channels if channels_last else 1
    channel_step = 1 if channels_last else height * width
    for b in range(rows_b.shape[0]):
        row = rows_b[b]
        if not 0 <= row < index_r.shape[0]:
            return b
        store, sample, partner = store_r[row], index_r[row], partner_r[row]
        source = sources_s[store]
        ids_out[b] = first_id_s[store] + sample
        labels_out[b] = labels_n[ids_out[b]]
        position = np.uint64(first_position + b * step)
        draw = philox4x32(position & _LOW, position >> _32, np.uint64(epoch), _0, key[0], key[1])
        flip = draw[0] < np.uint64(flip_below)
        offsets = np.uint64(2 * pad + 1)
        crop = ((draw[1] * offsets) >> _32) * np.uint64(wide) + ((draw[2] * offsets) >> _32)
        own = source + np.uint64(sample * image_size)
        mate = own if partner < 0 else source + np.uint64(partner * image_size)
        if pad > 0:
            _copy_inside(own_scratch, own, channels, height, width, pad)
            if partner >= 0:
                _copy_inside(mate_scratch, mate, channels, height, width, pad)
            own, mate = own_scratch + crop, mate_scratch + crop
        for c in range(channels):
            first = np.uint64((b * image_size + c * channel_step) * out.itemsize)
            skipped = np.uint64(c * tall * wide)
            if partner < 0:
                _plane(
                    target + first, own + skipped, height, width, wide, pixel_step, flip,
                    scale_c[c], bias_c[c], out.itemsize == 2,
                )  # fmt: skip
            else:
                _mixed_plane(
                    target + first, own + skipped, mate + skipped, weight_r[row], height, width, wide, pixel_step,
                    flip, scale_c[c], bias_c[c], out.itemsize == 2,
                )  # fmt: skip
    return -1


@nb.njit(nogil=True, cache=True)
def _copy_inside(scratch, image, channels, height, width, pad):
    """Copy an image into the inside of the padded scratch image."""
    wide, tall = width + 2 * pad, height + 2 * pad
    for c in range(channels):
        dst = scratch + np.uint64((c * tall + pad) * wide + pad)
        src = image + np.uint64(c * height * width)
        if width >= 32:
            _copy_rows(dst, src, height, width, wide, 32)
        elif width >= 16:
            _copy_rows(dst, src, height, width, wide, 16)
        elif width >= 8:
            _copy_rows(dst, src, height, width, wide, 8)
        else:
            _copy_rows(dst, src, height, width, wide, 1)


@nb.njit(inline="always")
def _copy_rows(dst, src, height, width, stride, lanes):
    for start in range(0, width, lanes):
        x = np.uint64(min(start, width - lanes))
        to, row = dst + x, src + x
        for _ in range(height):
            copy_bytes(to, row, lanes)
            to += np.uint64(stride)
            row += np.uint64(width)


@nb.njit(nogil=True, cache=True)
def _plane(dst, src, height, width, stride, step, flip, scale, bias, bf16):
    """Convert one channel of one image: `height` rows of `width` bytes that lie `stride` bytes apart."""
    if bf16:
        _plane_as(dst, src, height, width, stride, step, flip, scale, bias, True)
    else:
        _plane_as(dst, src, height, width, stride, step, flip, scale, bias, False)


@nb.njit(inline="always")
def _plane_as(dst, src, height, width, stride, step, flip, scale, bias, bf16):
    # The widest vector that a row fills; a lane count and a direction are compiled in, so each pair is one branch.
    if step != 1 or width < 8:
        if flip:
            _rows(dst, src, height, width, stride, step, scale, bias, 1, True, bf16)
        else:
            _rows(dst, src, height, width, stride, step, scale, bias, 1, False, bf16)
    elif width < 16:
        if flip:
            _rows(dst, src, height, width, stride, step, scale, bias, 8, True, bf16)
        else:
            _rows(dst, src, height, width, stride, step, scale, bias, 8, False, bf16)
    elif width < 32:
        if flip:
            _rows(dst, src, height, width, stride, step, scale, bias, 16, True, bf16)
        else:
            _rows(dst, src, height, width, stride, step, scale, bias, 16, False, bf16)
    elif flip:
        _rows(dst, src, height, width, stride, step, scale, bias, 32, True, bf16)
    else:
        _rows(dst, src, height, width, stride, step, scale, bias, 32, False, bf16)


@nb.njit(inline="always")
def _rows(dst, src, height, width, stride, step, scale, bias, lanes, reverse, bf16):
    """Column of vectors after column, each down all rows: the inner loop is one conversion and two additions."""
    size = 2 if bf16 else 4
    line = np.uint64(width * step * size)
    for start in range(0, width, lanes):
        x = min(start, width - lanes)  # the last column overlaps the one before: no scalar tail
        to = dst + np.uint64(x * step * size)
        row = src + np.uint64(width - lanes - x if reverse else x)
        for _ in range(height):
            convert_pixels(to, row, scale, bias, lanes, reverse, bf16)
            to += line
            row += np.uint64(stride)


@nb.njit(nogil=True, cache=True)
def _mixed_plane(dst, src, mate, weight, height, width, stride, step, flip, scale, bias, bf16):
    """As `_plane`, of the interpolation of two images."""
    if bf16:
        _mixed_plane_as(dst, src, mate, weight, height, width, stride, step, flip, scale, bias, True)
    else:
        _mixed_plane_as(dst, src, mate, weight, height, width, stride, step, flip, scale, bias, False)


@nb.njit(inline="always")
def _mixed_plane_as(dst, src, mate, weight, height, width, stride, step, flip, scale, bias, bf16):
    if step != 1 or width < 16:
        if flip:
            _mixed_rows(dst, src, mate, weight, height, width, stride, step, scale, bias, 1, True, bf16)
        else:
            _mixed_rows(dst, src, mate, weight, height, width, stride, step, scale, bias, 1, False, bf16)
    elif flip:
        _mixed_rows(dst, src, mate, weight, height, width, stride, step, scale, bias, 16, True, bf16)
    else:
        _mixed_rows(dst, src, mate, weight, height, width, stride, step, scale, bias, 16, False, bf16)


@nb.njit(inline="always")
def _mixed_rows(dst, src, mate, weight, height, width, stride, step, scale, bias, lanes, reverse, bf16):
    size = 2 if bf16 else 4
    line = np.uint64(width * step * size)
    for start in range(0, width, lanes):
        x = min(start, width - lanes)
        to = dst + np.uint64(x * step * size)
        column = np.uint64(width - lanes - x if reverse else x)
        row, other = src + column, mate + column
        for _ in range(height):
            mix_pixels(to, row, other, weight, scale, bias, lanes, reverse, bf16)
            to += line
            row += np.uint64(stride)
            other += np.uint64(stride)
