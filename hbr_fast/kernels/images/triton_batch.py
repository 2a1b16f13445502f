"""One launch that makes a batch on the GPU: gather, interpolate, crop, flip, cut out, normalise, convert (Triton).

The same draws and pixels as `cpu_batch`: which pixels are taken bit for bit, values to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hbr_fast.kernels.launch import IMAGE_WARPS, image_block, image_grid


class Table(NamedTuple):
    """Location, label and id of the image of each row, in tensors on the device.

    Addresses instead of indices: one store, several stores, and images staged for one batch become the same case, and
    no offset can overflow.

    Attributes
    ----------
    address : int64 [R]
        Of the image, uint8 [C, H, W].
    partner : int64 [R] or None
        Address of the image to interpolate with, the row's own for none; None if no row has one.
    weight : float32 [R] or None
        Share of the first of the two images.
    label, id : int64 [R]
    draw_key : int64 [R] or None
        What keys the random numbers of each row; None if its position in the epoch does.
    """

    address: torch.Tensor
    partner: torch.Tensor | None
    weight: torch.Tensor | None
    label: torch.Tensor
    id: torch.Tensor
    draw_key: torch.Tensor | None = None


class Draw(NamedTuple):
    """The augmentation of a job: the plain values of an `Augment`.

    Attributes
    ----------
    flip_below : int
        Flip where a uniform 32-bit number is below this: probability * 2**32.
    alternating : bool
        The number is the sample's, and the flip changes every epoch.
    pad : int
        Pixels of padding around the raw image before a random crop of the original size.
    padding : str
        "zero", "mean", "edge" or "reflect".
    crop_sizes : int64 [4096, 2] or None
        Heights and widths of a random-resized crop (`reference.crop_sizes`), on the device.
    cutout : int
        Side of the square that becomes the channel's mean.
    """

    flip_below: int = 0
    alternating: bool = False
    pad: int = 0
    padding: str = "zero"
    crop_sizes: torch.Tensor | None = None
    cutout: int = 0


@triton.jit
def _words(key, low, high, epoch, use):
    """Philox 4x32-10 of the counter (low, high, epoch, use), as `seeding.philox`."""
    return tl.philox(key, low.to(tl.uint32), high.to(tl.uint32), epoch.to(tl.uint32), low.to(tl.uint32) * 0 + use)


@triton.jit
def _below(word, size):
    """A uniform 32-bit number as a whole number in [0, size)."""
    return ((word.to(tl.uint64) * size) >> 32).to(tl.int32)


@triton.jit
def _between(x, size, NEW: tl.constexpr):
    """Where pixel x of NEW lies among `size`: the neighbours on either side and the share of the second."""
    at = (2 * x + 1) * size - NEW
    at = tl.minimum(tl.maximum(at, 0), (size - 1) * (2 * NEW))
    low = at // (2 * NEW)
    return low, tl.minimum(low + 1, size - 1), (at - low * (2 * NEW)).to(tl.float32) / (2 * NEW)


@triton.jit
def _grey(image, partner, share, offset, drawn, MIX: tl.constexpr):
    """Raw, interpolated grey levels at an offset into the images; 0 where none is drawn."""
    value = tl.load(image + offset, mask=drawn, other=0).to(tl.float32)
    if MIX:
        mate = tl.load(partner + offset, mask=drawn, other=0).to(tl.float32)
        value = mate + share * (value - mate)
    return value


# Compiled once per job: neither positions nor the alignment of a batch's rows may trigger another version.
_VARYING = (
    *("address_r", "partner_r", "weight_r", "label_r", "id_r", "draw_key_r", "rows_b", "label_out", "id_out"),
    *("first_position", "step", "epoch", "key", "flip_below"),
)


@triton.jit(do_not_specialize=_VARYING)
def batch_kernel(
    address_r,
    partner_r,
    weight_r,
    label_r,
    id_r,
    draw_key_r,
    rows_b,
    first_position: tl.int64,
    step: tl.int64,
    epoch: tl.int64,
    key: tl.int64,
    flip_below: tl.int64,
    crop_sizes,
    level_c,
    scale_c,
    bias_c,
    out,
    label_out,
    id_out,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FLIP: tl.constexpr,
    ALTERNATING: tl.constexpr,
    PAD: tl.constexpr,
    PADDING: tl.constexpr,
    RESIZED: tl.constexpr,
    CUTOUT: tl.constexpr,
    MIX: tl.constexpr,
    KEYED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of one image's values: of each plane, or, channels last, of the image as it lies in memory.

    A thread works on neighbours in memory, so that it stores 16 bytes at once.
    """
    PLANE: tl.constexpr = HEIGHT * WIDTH
    PLANES: tl.constexpr = 1 if CHANNELS_LAST else CHANNELS
    LENGTH: tl.constexpr = PLANE * CHANNELS // PLANES
    BLOCKS: tl.constexpr = (LENGTH + BLOCK - 1) // BLOCK
    # 64 bits before multiplying: a batch may have more than 2**31 values.
    program = tl.program_id(0).to(tl.int64)
    b = program // BLOCKS
    block = (program - b * BLOCKS).to(tl.int32)
    row = tl.load(rows_b + b)
    image = tl.load(address_r + row).to(tl.pointer_type(tl.uint8))
    partner, share = image, 1.0
    if MIX:
        partner = tl.load(partner_r + row).to(tl.pointer_type(tl.uint8))
        share = tl.load(weight_r + row)
    sample = tl.load(id_r + row)
    if block == 0:
        tl.store(label_out + b, tl.load(label_r + row))
        tl.store(id_out + b, sample)

    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < LENGTH
    pixel = i // CHANNELS if CHANNELS_LAST else i
    y = pixel // WIDTH
    x = pixel - y * WIDTH

    if KEYED:
        draw_key = tl.load(draw_key_r + row)
    else:
        draw_key = first_position.to(tl.int64) + b * step.to(tl.int64)
    if CUTOUT > 0:
        top, left, _, _ = _words(key, draw_key, draw_key >> 32, epoch, 1)
        down, right = y - _below(top, HEIGHT - CUTOUT + 1), x - _below(left, WIDTH - CUTOUT + 1)
        cut = (down >= 0) & (down < CUTOUT) & (right >= 0) & (right < CUTOUT)
    flip_word, top_word, left_word, size_word = _words(key, draw_key, draw_key >> 32, epoch, 0)
    if ALTERNATING:
        flip_word, _, _, _ = _words(key, sample, sample >> 32, epoch * 0, 2)
    if FLIP:
        flipped = flip_word.to(tl.int64) < flip_below
        if ALTERNATING:
            flipped = flipped ^ ((epoch & 1) == 1)
        x = tl.where(flipped, WIDTH - 1 - x, x)

    drawn = inside
    if PAD > 0:
        y += _below(top_word, 2 * PAD + 1) - PAD
        x += _below(left_word, 2 * PAD + 1) - PAD
        if PADDING == "edge":
            y = tl.minimum(tl.maximum(y, 0), HEIGHT - 1)
            x = tl.minimum(tl.maximum(x, 0), WIDTH - 1)
        elif PADDING == "reflect":
            y = HEIGHT - 1 - tl.abs(HEIGHT - 1 - tl.abs(y))
            x = WIDTH - 1 - tl.abs(WIDTH - 1 - tl.abs(x))
        else:
            drawn = inside & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    if RESIZED:
        choice = _below(size_word, 4096)
        tall = tl.load(crop_sizes + 2 * choice).to(tl.int32)
        wide = tl.load(crop_sizes + 2 * choice + 1).to(tl.int32)
        first = _below(top_word, HEIGHT - tall + 1) * WIDTH + _below(left_word, WIDTH - wide + 1)
        upper, lower, lower_share = _between(y, tall, HEIGHT)
        west, east, east_share = _between(x, wide, WIDTH)
        upper, lower = first + upper * WIDTH, first + lower * WIDTH

    target = out + b * (PLANE * CHANNELS) + i
    for c in range(PLANES):
        channel = i - pixel * CHANNELS if CHANNELS_LAST else c
        skipped = channel * PLANE
        if RESIZED:
            northwest = _grey(image, partner, share, skipped + upper + west, drawn, MIX)
            southwest = _grey(image, partner, share, skipped + lower + west, drawn, MIX)
            northeast = _grey(image, partner, share, skipped + upper + east, drawn, MIX)
            southeast = _grey(image, partner, share, skipped + lower + east, drawn, MIX)
            value = northwest + lower_share * (southwest - northwest)
            value += east_share * (northeast + lower_share * (southeast - northeast) - value)
        else:
            value = _grey(image, partner, share, skipped + y * WIDTH + x, drawn, MIX)
        if PAD > 0 and PADDING == "mean":
            value = tl.where(drawn, value, tl.load(level_c + channel))
        if CUTOUT > 0:
            value = tl.where(cut, tl.load(level_c + channel), value)
        value = value * tl.load(scale_c + channel) + tl.load(bias_c + channel)
        tl.store(target + c * PLANE, value.to(out.dtype.element_ty), mask=inside)


def make_batch(
    table: Table,
    rows_b: torch.Tensor,
    image_shape: tuple[int, int, int],
    draw: Draw,
    *,
    first_position: int,
    step: int,
    epoch: int,
    key: tuple[int, int],
    level_c: torch.Tensor,
    scale_c: torch.Tensor,
    bias_c: torch.Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch in fresh tensors; `hbr_fast.kernels.reference.make_batch` is the definition.

    Parameters
    ----------
    table : Table
    rows_b : int64 [B]
        Rows of the table, on its device; they are not checked.
    image_shape : (C, H, W)
    draw : Draw
    first_position, step, epoch : int
        Position of the batch's first row in the epoch's order, step between rows, and the epoch: they key the random
        numbers, unless the table has keys.
    key : (int, int)
        Philox key of the augmentation stream.
    level_c, scale_c, bias_c : float32 [C]
        Mean grey level of each channel, and `pixel * scale + bias` that normalises a byte; on the device.
    dtype : torch.dtype
        float32, bfloat16 or float16.
    channels_last : bool

    Returns
    -------
    images [B, C, H, W], labels int64 [B], ids int64 [B]
    """
    channels, height, width = image_shape
    count, device = len(rows_b), rows_b.device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.empty((count, *image_shape), dtype=dtype, device=device, memory_format=layout)
    labels, ids = torch.empty((2, count), dtype=torch.int64, device=device)
    if count == 0:
        return images, labels, ids
    length = height * width * (channels if channels_last else 1)
    with torch.cuda.device_of(rows_b):  # Triton launches on the current device
        batch_kernel[(image_grid(count, length),)](
            *table,
            rows_b,
            first_position,
            step,
            epoch,
            _signed(key[1] << 32 | key[0]),
            draw.flip_below,
            draw.crop_sizes,
            level_c,
            scale_c,
            bias_c,
            images,
            labels,
            ids,
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            FLIP=draw.flip_below > 0,
            ALTERNATING=draw.alternating,
            PAD=draw.pad,
            PADDING=draw.padding,
            RESIZED=draw.crop_sizes is not None,
            CUTOUT=draw.cutout,
            MIX=table.partner is not None,
            KEYED=table.draw_key is not None,
            CHANNELS_LAST=channels_last,
            BLOCK=image_block(length),
            num_warps=IMAGE_WARPS,
        )
    return images, labels, ids


def _signed(word: int) -> int:
    """The int64 that has the bits of a 64-bit word."""
    return word - 2**64 if word >= 2**63 else word
