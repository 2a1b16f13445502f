"""The pass over images that somebody else decoded: crop, flip, cut out, normalise (numba)."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(nogil=True, cache=True)
def finish_batch(
    images_bhwc,
    mates_bhwc,
    partner_b,
    weight_b,
    rows_by,
    columns_bx,
    outside_c,
    cutout_b2,
    cutout,
    level_c,
    table_cv,
    scale_c,
    bias_c,
    out_bchw,
):
    """Fill one batch; `hbr_fast.kernels.reference.make_batch` is the definition.

    Parameters
    ----------
    images_bhwc, mates_bhwc : uint8 [B, H, W, C]
        The images, and those to interpolate them with, in any memory order.
    partner_b : int64 [B], weight_b : float32 [B]
        Partner (-1: none) and share of the image.
    rows_by : int64 [B, H], columns_bx : int64 [B, W]
        Row and column that each row and column of the result comes from; -1 is outside the image.
    outside_c, level_c : uint8 [C]
        Grey levels outside the image, and inside the square that is cut out.
    cutout_b2 : int64 [B, 2], cutout : int
        Top and left of that square, and its side (0: none).
    table_cv : float32 [C, 256]
        What each grey level becomes: `value * scale + bias`, rounded once.
    scale_c, bias_c : float32 [C]
        The same for what lies between grey levels.
    out_bchw : float32 [B, C, H, W]
        Written in full, in any memory order.
    """
    batch, height, width, channels = images_bhwc.shape
    for b in range(batch):
        mixed, share = partner_b[b] >= 0, weight_b[b]
        columns = columns_bx[b]
        for c in range(channels):
            table, outside = table_cv[c], table_cv[c, outside_c[c]]
            for y in range(height):
                row = rows_by[b, y]
                if row < 0:
                    for x in range(width):
                        out_bchw[b, c, y, x] = outside
                    continue
                for x in range(width):
                    column = columns[x]
                    if column < 0:
                        out_bchw[b, c, y, x] = outside
                    elif mixed:
                        own, mate = images_bhwc[b, row, column, c], mates_bhwc[b, row, column, c]
                        value = share * np.float32(own) + (np.float32(1) - share) * np.float32(mate)
                        out_bchw[b, c, y, x] = value * scale_c[c] + bias_c[c]
                    else:
                        out_bchw[b, c, y, x] = table[images_bhwc[b, row, column, c]]
            level = table_cv[c, level_c[c]]
            for y in range(cutout_b2[b, 0], cutout_b2[b, 0] + cutout):
                for x in range(cutout_b2[b, 1], cutout_b2[b, 1] + cutout):
                    out_bchw[b, c, y, x] = level
