"""One pass that makes a batch: gather, interpolate, crop, flip, cut out, normalise, convert (numba).

First every row gets the address of its picture, in an array of images or in a buffer of decoded pictures; the rest is
the same for all.

A crop reads the image itself at an offset: what lies beside it in memory is masked away, so that nothing is copied to
make room for a border, and each row is a few vector operations (load, mask, reverse, convert, multiply-add, store).
Images that have nothing beside them (the first and last of a store), and borders that hold pixels of the image, go
through a padded copy that stays in the first-level cache. `hbr_fast.kernels.reference.make_batch` is the definition.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numba as nb
import numpy as np
import torch

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.images.cpu_crops import CONSTANT, cut_out, padded_copy, resized_crop, write_window
from hbr_fast.kernels.images.pixel_vectors import SLACK, prefetch_image
from hbr_fast.kernels.words import words_of

# What stays the same from batch to batch: numbers, and addresses of arrays.
_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "bases", "sizes", "first_ids", "labels", "store", "index", "partner", "weight", "draw_keys",
            "channels", "height", "width", "channels_last", "bf16", "scale", "bias", "mask", "num_stores", "mixed",
            "key0", "key1", "flip_below", "alternating_flip", "pad", "padding", "border", "scratch_size",
            "crop_sizes", "num_crop_sizes", "cutout", "cutout_level",
        )
    ]
)  # fmt: skip

# Prefetch distance in images; only the first bytes, since the processor detects the rest itself.
_AHEAD, _FIRST_BYTES = 4, 512
_32 = np.uint64(32)


class ImagePass:
    """Makes batches of one set of images, rows and augmentations.

    Memory is walked by address here: the caller has checked the plan's indices, and keeps the images.

    Parameters
    ----------
    image_shape : (int, int, int)
        (C, H, W) of every picture.
    sizes : sequence of int
        Images in each store.
    bases : sequence of int, optional
        Address of each store's uint8 [N, C, H, W], C-contiguous. Without them every batch comes with the addresses of
        its pictures.
    labels : int64 [all images]
        By sample id, over all stores in turn.
    store_r : int16 [R], index_r, partner_r : int64 [R], weight_r : float32 [R]
        The plan; partner -1 is none.
    key : (int, int)
        Philox key of the augmentation stream.
    draw_keys_r : int64 [R], optional
        What keys the random numbers of each plan row; by default its position in the epoch does.
    scale_c, bias_c : float32 [C]
        `pixel * scale + bias` normalises a byte.
    channels_last, bf16 : bool
        Layout and type of the output: the channels of a pixel side by side; bfloat16 bits instead of float32.
    flip_below : int
        Flip where a uniform 32-bit number is below this: probability * 2**32.
    alternating_flip : bool
    pad : int
    padding : CONSTANT, REFLECT or EDGE
    border_c, cutout_c : uint8 [C]
        Grey level of each channel round the image and in a cutout.
    crop_sizes : int64 [K, 2], optional
        Of random-resized crops, `reference.crop_sizes`.
    cutout : int
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        sizes: Sequence[int],
        bases: Sequence[int] | None = None,
        labels: np.ndarray,
        store_r: np.ndarray,
        index_r: np.ndarray,
        partner_r: np.ndarray,
        weight_r: np.ndarray,
        key: tuple[int, int],
        draw_keys_r: np.ndarray | None = None,
        scale_c: np.ndarray,
        bias_c: np.ndarray,
        channels_last: bool = False,
        bf16: bool = False,
        flip_below: int = 0,
        alternating_flip: bool = False,
        pad: int = 0,
        padding: int = CONSTANT,
        border_c: np.ndarray,
        crop_sizes: np.ndarray | None = None,
        cutout: int = 0,
        cutout_c: np.ndarray,
    ) -> None:
        channels, height, width = image_shape
        sizes_s = np.array(sizes, np.int64)
        mask = np.zeros(SLACK + width + SLACK, np.int32)
        mask[SLACK : SLACK + width] = -1
        arrays = {
            "bases": np.array([0] * len(sizes) if bases is None else bases, np.int64),
            "sizes": sizes_s,
            "first_ids": np.cumsum(sizes_s) - sizes_s,
            "labels": labels,
            "store": store_r,
            "index": index_r,
            "partner": partner_r,
            "weight": weight_r,
            "scale": np.ascontiguousarray(scale_c, np.float32),
            "bias": np.ascontiguousarray(bias_c, np.float32),
            "mask": mask,
            "border": np.ascontiguousarray(border_c, np.uint8),
            "cutout_level": np.ascontiguousarray(cutout_c, np.uint8),
            **({"draw_keys": draw_keys_r} if draw_keys_r is not None else {}),
            **({"crop_sizes": np.ascontiguousarray(crop_sizes, np.int64)} if crop_sizes is not None else {}),
        }
        numbers = {
            "channels": channels,
            "height": height,
            "width": width,
            "channels_last": channels_last,
            "bf16": bf16,
            "key0": key[0],
            "key1": key[1],
            "flip_below": flip_below,
            "alternating_flip": alternating_flip,
            "num_stores": len(sizes),
            "mixed": (partner_r >= 0).any(),
            "pad": pad,
            "padding": padding,
            "num_crop_sizes": 0 if crop_sizes is None else len(crop_sizes),
            "cutout": cutout,
            "scratch_size": 2 * channels * (height + 2 * pad) * (width + 2 * pad) if pad else 1,
        }
        together = channels if channels_last and channels <= 4 else 1
        widest = 1 if channels_last and together == 1 else 16 if together > 1 else 32
        lanes = max(lanes for lanes in (1, 8, 16, 32) if lanes <= min(max(width, 1), widest))
        self._kernel = _kernel(lanes, together, bool((partner_r >= 0).any()), bf16)
        self._job = np.zeros(1, _JOB)
        for name, array in arrays.items():
            self._job[name] = array.ctypes.data
        for name, number in numbers.items():
            self._job[name] = number
        self._address = self._job.ctypes.data
        self._arrays = arrays  # what the addresses point to
        self._has_bases = bases is not None

    def make(
        self,
        rows_r: torch.Tensor,
        *,
        begin: int = 0,
        first_position: int,
        step: int,
        epoch: int,
        images: torch.Tensor,
        labels_r: torch.Tensor,
        ids_r: torch.Tensor,
        threads: int,
        pictures_b: np.ndarray | None = None,
        partners_b: np.ndarray | None = None,
    ) -> None:
        """Make a batch.

        Parameters
        ----------
        rows_r : int64 [at least begin + B]
            Rows of the plan, of which the batch is of those from `begin` on.
        begin : int
        first_position, step, epoch : int
            Position of its first row in the epoch's order, step between rows, and the epoch: they key the random
            numbers, unless the rows have keys of their own.
        images : float32 or bfloat16 [B, C, H, W]
            Written in full; contiguous or channels-last, as the pass is.
        labels_r, ids_r : int64 [as rows_r]
            Written where the batch is.
        threads : int
        pictures_b, partners_b : int64 [B], optional
            Where there are no `bases`: addresses of each row's picture, uint8 [C, H, W], and, where the plan
            interpolates, of its partner's (0: none). `SLACK` bytes before and behind each must be readable.
        """
        assert (pictures_b is None) == self._has_bases
        skipped = 8 * begin
        pictures, partners = (0 if table is None else table.ctypes.data for table in (pictures_b, partners_b))
        words = (
            self._address, rows_r.data_ptr() + skipped, first_position, step, epoch, images.data_ptr(),
            labels_r.data_ptr() + skipped, ids_r.data_ptr() + skipped, pictures, partners,
        )  # fmt: skip
        team.run(self._kernel, images.size(0), words, threads=threads)


@nb.njit(inline="always")
def _below(word, size):
    """A uniform 32-bit word as a whole number below `size`."""
    return np.int64((word * np.uint64(size)) >> _32)


@nb.njit(nogil=True, cache=CACHE)
def _look_up(job, rows, labels_out, ids_out, own, mate, weight, alone):
    """What the plan says of each row: labels, ids, addresses in the stores; `alone` where nothing is beside a picture.

    Apart from the pixels, so that the lookups, each in another place of memory, are under way together.
    """
    labels = team.array_at(job.labels, (1,), np.int64)
    store_r, index_r = team.array_at(job.store, (1,), np.int16), team.array_at(job.index, (1,), np.int64)
    partner_r, weight_r = team.array_at(job.partner, (1,), np.int64), team.array_at(job.weight, (1,), np.float32)
    first_ids, sizes = team.array_at(job.first_ids, (1,), np.int64), team.array_at(job.sizes, (1,), np.int64)
    bases = team.array_at(job.bases, (1,), np.uint64)
    image_size = job.channels * job.height * job.width
    for b in range(rows.shape[0]):
        row = rows[b]
        store = store_r[row] if job.num_stores > 1 else 0
        index = index_r[row]
        own[b] = bases[store] + np.uint64(index * image_size)
        ids_out[b] = first_ids[store] + index
        lowest = highest = index
        if job.mixed:
            partner = partner_r[row]
            mate[b] = 0
            if partner >= 0:
                mate[b] = bases[store] + np.uint64(partner * image_size)
                lowest, highest = min(index, partner), max(index, partner)
            weight[b] = weight_r[row]
        alone[b] = image_size < SLACK or lowest == 0 or highest == sizes[store] - 1
    for b in range(rows.shape[0]):
        labels_out[b] = labels[ids_out[b]]


@nb.njit(nogil=True, cache=CACHE)
def _take_given(first, pictures, partners, own, mate, alone):
    """Replace addresses in the stores by those that came with the batch."""
    count = own.shape[0]
    own[:] = team.array_at(pictures + 8 * first, (count,), np.uint64)
    alone[:] = False
    if partners != 0:
        mate[:] = team.array_at(partners + 8 * first, (count,), np.uint64)


@nb.njit(nogil=True, cache=CACHE)
def _draw_numbers(job, rows, first_position, step, epoch, ids, flip, draws):
    """The random numbers of each row: whether it is flipped, and the words for crop and cutout."""
    key0, key1 = np.uint64(job.key0), np.uint64(job.key1)
    places = first_position + step * np.arange(ids.shape[0])
    if job.draw_keys != 0:
        draw_keys_r = team.array_at(job.draw_keys, (1,), np.int64)
        for b in range(ids.shape[0]):
            places[b] = draw_keys_r[rows[b]]
    words_of(places, epoch, 0, key0, key1, draws[:4])
    if job.alternating_flip:
        words_of(ids, 0, 2, key0, key1, draws[4:])
        for b in range(ids.shape[0]):
            flip[b] = (draws[4, b] < np.uint64(job.flip_below)) != (epoch % 2 == 1)
    else:
        for b in range(ids.shape[0]):
            flip[b] = draws[0, b] < np.uint64(job.flip_below)
    if job.cutout > 0:
        words_of(places, epoch, 1, key0, key1, draws[4:])


@functools.cache
def _kernel(lanes, together, mixed, bf16):
    """The pass for one width of vectors and one type; with `mixed` some rows have a partner.

    Each is compiled on first use, so that unused variants cost nothing.
    """

    @nb.cfunc(team.KERNEL, cache=CACHE)
    def make_images(first, last, words):
        job = team.array_at(words[0], (1,), _JOB)[0]
        count = last - first
        rows = team.array_at(words[1] + 8 * first, (count,), np.int64)
        first_position, step, epoch = words[2] + first * words[3], words[3], words[4]
        height, width, pad = job.height, job.width, job.pad
        image_size = job.channels * height * width
        out = np.uint64(words[5]) + np.uint64(first * image_size * (2 if bf16 else 4))
        labels_out = team.array_at(words[6] + 8 * first, (count,), np.int64)
        ids_out = team.array_at(words[7] + 8 * first, (count,), np.int64)
        own, mate = np.empty(count, np.uint64), np.empty(count, np.uint64)
        weight, alone, flip = np.empty(count, np.float32), np.empty(count, np.bool_), np.empty(count, np.bool_)
        draws = np.empty((8, count), np.uint64)
        _look_up(job, rows, labels_out, ids_out, own, mate, weight, alone)
        if words[8] != 0:
            _take_given(first, words[8], words[9], own, mate, alone)
        _draw_numbers(job, rows, first_position, step, epoch, ids_out, flip, draws)
        scratch = np.empty(job.scratch_size, np.uint8)
        for b in range(count):
            if b + _AHEAD < count:
                prefetch_image(own[b + _AHEAD], min(image_size, _FIRST_BYTES))
            src, other, blend = own[b], own[b], np.float32(1)
            two = mixed and mate[b] != 0
            if two:
                other, blend = mate[b], weight[b]
            dst = out + np.uint64(b * image_size * (2 if bf16 else 4))
            down, right, plane, stride = 0, 0, height * width, width
            if job.num_crop_sizes > 0:
                sizes = team.array_at(job.crop_sizes, (job.num_crop_sizes, 2), np.int64)
                chosen = _below(draws[3, b], job.num_crop_sizes)
                tall, wide = sizes[chosen, 0], sizes[chosen, 1]
                top, left = _below(draws[1, b], height - tall + 1), _below(draws[2, b], width - wide + 1)
                resized_crop(job, dst, src, other, blend, two, flip[b], top, left, tall, wide)
            else:
                if pad > 0:
                    top, left = _below(draws[1, b], 2 * pad + 1), _below(draws[2, b], 2 * pad + 1)
                    if job.padding != CONSTANT or alone[b]:
                        tall, wide = height + 2 * pad, width + 2 * pad
                        plane, stride = tall * wide, wide
                        padded = np.uint64(scratch.ctypes.data)
                        padded_copy(job, src, padded)
                        src = padded + np.uint64(top * wide + left)
                        if two:
                            padded += np.uint64(job.channels * plane)
                            padded_copy(job, other, padded)
                            other = padded + np.uint64(top * wide + left)
                    else:
                        down, right = top - pad, left - pad
                if not mixed:
                    if flip[b]:
                        write_window(
                            job, dst, src, src, blend, down, right, plane, stride, lanes, together, False, True, bf16
                        )  # fmt: skip
                    else:
                        write_window(
                            job, dst, src, src, blend, down, right, plane, stride, lanes, together, False, False, bf16
                        )  # fmt: skip
                elif flip[b]:
                    write_window(
                        job, dst, src, other, blend, down, right, plane, stride, lanes, together, True, True, bf16
                    )  # fmt: skip
                else:
                    write_window(
                        job, dst, src, other, blend, down, right, plane, stride, lanes, together, True, False, bf16
                    )  # fmt: skip
            if job.cutout > 0:
                top = _below(draws[4, b], height - job.cutout + 1)
                cut_out(job, dst, top, _below(draws[5, b], width - job.cutout + 1))
        # Keeps it: numba frees an array after the last use of its name, and this one is used by its address.
        scratch[:1] = 0

    return make_images
