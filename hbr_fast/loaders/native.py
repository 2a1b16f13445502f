"""The native backend on the CPU: one fused numba pass makes a block of batches.

Each thread makes a whole block by itself (the kernel holds no Python lock), so there is nothing to synchronise within
one, and the next ones are made while the current one trains. A block is a few small batches or one large one: handing
work to a thread and back costs as much as making a hundred small images.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch

from hbr_fast.kernels.cpu_images import make_batch
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.seeding import Stream, stream_key

BLOCK_BYTES = 8 * 2**20  # measured: several small batches, so that handing them over costs little beside making them

_STORAGE = {torch.float32: np.float32, torch.bfloat16: np.uint16}  # numpy has no bfloat16: its bits stand in


class NativeBackend:
    """Batches of a job from memory-mapped uint8 images."""

    def __init__(self, job: Job) -> None:
        self.job = job
        split = job.split
        channels, height, width = split.images.shape[1:]
        self._image_shape = (channels, height, width)
        splits = (split, *job.stores)
        self._sources = np.array([one.images.ctypes.data for one in splits], np.uint64)
        self._first_ids = np.cumsum([0, *(len(one) for one in splits[:-1])])
        self._labels = np.concatenate([one.labels for one in splits]) if job.stores else split.labels
        pad = job.augment.pad
        self._scratch_size = 2 * channels * (height + 2 * pad) * (width + 2 * pad)
        self._scale, self._bias = job.scale_c, job.bias_c
        self._key = np.array(stream_key(job.seed, Stream.AUGMENTATION), np.uint64)
        batch_bytes = job.batch_size * channels * height * width * np.dtype(_STORAGE[job.dtype]).itemsize
        self._batches_per_block = max(1, min(BLOCK_BYTES // batch_bytes, job.batches)) if job.prefetch else 1
        size = self._batches_per_block * job.batch_size * channels * height * width
        # One block in training, one more held by a loop variable, the rest ahead.
        self._buffers = _Buffers(size, _STORAGE[job.dtype], keep=job.prefetch + job.threads + 2)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        step = self._batches_per_block
        blocks = [(first, min(first + step, self.job.batches)) for first in range(start, self.job.batches, step)]
        if self.job.prefetch == 0:
            return (batch for first, stop in blocks for batch in self._make(epoch, first, stop))
        return self._ahead(epoch, blocks)

    def _ahead(self, epoch: int, blocks: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.job.threads, thread_name_prefix="hbr-loader")
        waiting: deque[Future[list[Batch]]] = deque()
        try:
            for first, stop in blocks:
                waiting.append(pool.submit(self._make, epoch, first, stop))
                if len(waiting) > self.job.prefetch:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:  # also when the caller leaves early
            pool.shutdown(cancel_futures=True)

    def _make(self, epoch: int, first: int, stop: int) -> list[Batch]:
        """Batches `first` to `stop - 1`, in one buffer."""
        job, plan = self.job, self.job.plan
        position = first * job.batch_size
        count = min(stop * job.batch_size, len(job.order)) - position
        rows = job.order.rows(position, count, epoch=epoch)
        if rows.shape != (count,):
            raise ValueError(f"the order gave {rows.shape} rows at position {position} of epoch {epoch}, not {count}")
        labels, ids = np.empty(count, np.int64), np.empty(count, np.int64)
        buffer = self._buffers.take()
        bad = make_batch(
            job.split.images,
            self._sources,
            self._first_ids,
            self._labels,
            plan.store,
            plan.index,
            plan.partner,
            plan.weight,
            rows,
            *job.order.global_positions(position),
            epoch,
            self._key,
            job.flip_below,
            job.augment.pad,
            self._scale,
            self._bias,
            job.channels_last,
            np.zeros(self._scratch_size, np.uint8),
            buffer,
            labels,
            ids,
        )
        if bad >= 0:
            raise ValueError(
                f"the order gave row {rows[bad]} at position {position + bad} of epoch {epoch}, outside the plan's "
                f"{len(plan)} rows"
            )
        block = Batch(
            self._as_images(torch.from_numpy(buffer), count),
            torch.from_numpy(labels),
            torch.from_numpy(ids),
            torch.from_numpy(rows),
        )
        if stop - first == 1:
            return [block]
        return [Batch(*parts) for parts in zip(*(column.split(job.batch_size) for column in block), strict=True)]

    def _as_images(self, flat: torch.Tensor, count: int) -> torch.Tensor:
        channels, height, width = self._image_shape
        flat = flat.view(self.job.dtype)[: count * channels * height * width]
        if self.job.channels_last:
            return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(count, channels, height, width)


class _Buffers:
    """Output buffers that are used again once nobody looks at them: fresh memory costs more than filling it.

    A tensor made from a numpy array holds a reference to it for as long as its storage lives, views and tensors saved
    for backward included. So a buffer whose only reference is this pool's is free.
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


# What the count is where the sequence alone holds a buffer: how many the look itself adds differs between Pythons.
_UNUSED = _reference_counts([np.empty(1)])[0]


def _aligned(size: int, dtype: type) -> np.ndarray:
    """An empty array that starts on a cache line, so that no vector store straddles two."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.empty(size * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * itemsize].view(dtype)
