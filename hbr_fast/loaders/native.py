"""The native backend on the CPU: one fused pass makes a block of batches, on the threads of torch's operators.

A block is a few small batches or one large one: starting a pass and wrapping its results costs as much as making ten
small images. Batches are made on request, by all threads together, or ahead of time in one thread's team.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch

from hbr_fast.kernels import reference
from hbr_fast.kernels.images import cpu_crops
from hbr_fast.kernels.images.cpu_batch import ImagePass
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.pictures import IGNORED
from hbr_fast.loaders.rows import rows_of_order
from hbr_fast.loaders.slots import Decoded, DecodedSlots
from hbr_fast.seeding import Stream, stream_key

BLOCK_BYTES = 8 * 2**20  # makes starting a pass and wrapping its batches cheap; a few fit the last cache
ROWS_AT_ONCE = 2**13  # makes the cost of an order call small

_STORAGE = {torch.float32: np.float32, torch.bfloat16: np.uint16}  # numpy has no bfloat16: uint16 holds its bits
_PADDING = {
    "zero": cpu_crops.CONSTANT,
    "mean": cpu_crops.CONSTANT,
    "reflect": cpu_crops.REFLECT,
    "edge": cpu_crops.EDGE,
}


class NativeBackend:
    """Batches of a job from memory-mapped uint8 images."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._image_shape = channels, height, width = job.split.image_shape
        if job.pictures is None:
            self._stores = [split.images for split in (job.split, *job.stores)]  # the pass refers to them by address
            self._pass = image_pass(job, bases=[images.ctypes.data for images in self._stores])
        else:
            self._pass = image_pass(job)
        batch_values = job.batch_size * channels * height * width
        batch_bytes = batch_values * np.dtype(_STORAGE[job.dtype]).itemsize
        self._batches_per_block = max(1, min(BLOCK_BYTES // batch_bytes, job.batches))
        self._blocks_ahead = -(-job.prefetch // self._batches_per_block)
        # One block in training, one more held by a loop variable, the rest ahead.
        self._buffers = _Buffers(
            self._batches_per_block * batch_values, _STORAGE[job.dtype], keep=self._blocks_ahead + 2
        )  # fmt: skip

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        blocks = self._blocks(epoch, start)
        if self.job.prefetch == 0:
            return (batch for block in blocks for batch in block)
        return self._ahead(blocks)

    def _ahead(self, blocks: Iterator[list[Batch]]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(1, thread_name_prefix="hbr-loader")  # one: a generator runs in one thread at a time
        waiting: deque[Future[list[Batch]]] = deque()
        try:
            waiting.extend(pool.submit(next, blocks, []) for _ in range(self._blocks_ahead))
            while True:
                waiting.append(pool.submit(next, blocks, []))
                if not (block := waiting.popleft().result()):
                    return
                yield from block
        finally:  # also if the caller leaves early
            pool.shutdown(cancel_futures=True)

    def _blocks(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """Batches from `start` on, block by block."""
        size, step = self.job.batch_size, self._batches_per_block
        at_once = step * max(1, ROWS_AT_ONCE // (step * size))
        for first in range(start, self.job.batches, at_once):
            rows = torch.from_numpy(self._rows(epoch, first, min(first + at_once, self.job.batches)))
            if self.job.pictures is not None:
                plan, some = self.job.plan, rows.numpy()
                self.job.pictures.expect(plan.store[some], plan.index[some], plan.partner[some], first=first == start)
            count = rows.numel()  # `len` of a tensor takes a microsecond
            labels, ids = torch.empty_like(rows), torch.empty_like(rows)
            # `unsafe_split` is `split` without autograd's bookkeeping, and takes a third of the time.
            parts = [column.unsafe_split(size) for column in (labels, ids, rows)]
            position, stride = self.job.order.global_positions(first * size)
            slots = None if self.job.pictures is None else DecodedSlots(self.job, min(step * size, count))
            for begin in range(0, count, step * size):
                buffer = torch.from_numpy(self._buffers.take())
                images = self._as_images(buffer, min(step * size, count - begin))
                decoded = (
                    Decoded()
                    if slots is None
                    else slots.decode(
                        rows.numpy()[begin : begin + len(images)], position + begin * stride, stride, epoch
                    )
                )
                self._pass.make(
                    rows,
                    begin=begin,
                    first_position=position + begin * stride,
                    step=stride,
                    epoch=epoch,
                    images=images,
                    labels_r=labels,
                    ids_r=ids,
                    threads=self.job.threads,
                    pictures_b=decoded.pictures_b,
                    partners_b=decoded.partners_b,
                )
                labels[begin + decoded.bad_b] = IGNORED
                made = slice(begin // size, begin // size + step)
                yield list(map(Batch, images.unsafe_split(size), *(part[made] for part in parts)))

    def _rows(self, epoch: int, first: int, stop: int) -> np.ndarray:
        """Rows of the plan of batches `first` to `stop - 1`: int64, checked."""
        job = self.job
        position = first * job.batch_size
        count = min(stop * job.batch_size, len(job.order)) - position
        return rows_of_order(job, position, count, epoch)

    def _as_images(self, flat: torch.Tensor, count: int) -> torch.Tensor:
        channels, height, width = self._image_shape
        if flat.dtype != self.job.dtype:
            flat = flat.view(self.job.dtype)
        if flat.numel() > (values := count * channels * height * width):
            flat = flat[:values]
        if self.job.channels_last:
            return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(count, channels, height, width)


def image_pass(job: Job, *, bases: Sequence[int] | None = None) -> ImagePass:
    """The pass that makes a job's batches; without `bases` (image addresses), each batch brings its pictures."""
    augment, plan = job.augment, job.plan
    splits = (job.split, *job.stores)
    _, height, width = job.split.image_shape
    return ImagePass(
        job.split.image_shape,
        sizes=[len(split) for split in splits],
        bases=bases,
        labels=np.concatenate([split.labels for split in splits]) if job.stores else job.split.labels,
        store_r=plan.store,
        index_r=plan.index,
        partner_r=plan.partner,
        weight_r=plan.weight,
        key=stream_key(job.seed, Stream.AUGMENTATION),
        draw_keys_r=job.draw_keys,
        scale_c=job.scale_c,
        bias_c=job.bias_c,
        channels_last=job.channels_last,
        bf16=job.dtype == torch.bfloat16,
        flip_below=job.flip_below,
        alternating_flip=augment.alternating_flip,
        pad=augment.pad,
        padding=_PADDING[augment.padding],
        border_c=job.padding_c,
        crop_sizes=(
            reference.crop_sizes(height, width, augment.resized_crop, augment.aspect) if augment.resized_crop else None
        ),
        cutout=augment.cutout,
        cutout_c=job.cutout_c,
    )


class _Buffers:
    """Output buffers that are reused once unreferenced: fresh memory costs more than filling it.

    A tensor made from a numpy array holds a reference to it as long as its storage lives, including views and tensors
    saved for backward. So a buffer that only this pool references is free.
    """

    def __init__(self, size: int, dtype: type, *, keep: int) -> None:
        self._size, self._dtype, self._keep = size, dtype, keep
        self._kept: list[np.ndarray] = []
        self._lock = Lock()

    def take(self) -> np.ndarray:
        with self._lock:
            for number, references in enumerate(_reference_counts(self._kept)):
                if references == _UNUSED:
                    return self._kept[number]
            buffer = _aligned(self._size, self._dtype)
            if len(self._kept) < self._keep:
                self._kept.append(buffer)
            return buffer


def _reference_counts(buffers: Sequence[np.ndarray]) -> list[int]:
    return [sys.getrefcount(buffer) for buffer in buffers]


# The reference count of a buffer held only by the sequence; what the query itself adds differs between Python versions.
_UNUSED = _reference_counts([np.empty(1)])[0]


def _aligned(size: int, dtype: type) -> np.ndarray:
    """An empty array aligned to a cache line, so that no vector store straddles two."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.empty(size * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * itemsize].view(dtype)
