"""The native backend on a GPU: one Triton launch makes a batch from raw images in the device's memory.

The whole split is kept there and the order's rows are made there too, so that the host only launches. If it does not
fit, each batch's raw images are streamed through pinned memory, and the same launch does the rest. Encoded pictures
become batches on the CPU, ahead of time, which are then copied.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakSet

import numpy as np
import torch

from hbr_fast import progress
from hbr_fast.data.dataset import Split
from hbr_fast.kernels import reference
from hbr_fast.kernels.images import triton_batch
from hbr_fast.loaders import resident
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.native import NativeBackend
from hbr_fast.loaders.rows import rows_of_order
from hbr_fast.loaders.streaming import CopyStream, Slot
from hbr_fast.orders import Sampler, Shard, UniformOrder
from hbr_fast.seeding import Stream, stream_key

ROWS_AHEAD = 2**16  # rows of the order made at once, so that their cost per batch is negligible

_told: WeakSet[Split] = WeakSet()  # splits for which streaming was already reported


class NativeCudaBackend:
    """Batches of a job on a GPU, in fresh memory of torch's allocator: the caller may keep a batch indefinitely.

    The batches of an epoch are made in the stream that is current when they are requested.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._device = _numbered(job.device)
        self._splits = (job.split, *job.stores)
        self._of_pictures: NativeBackend | None = None
        if job.pictures is not None:
            dtype = torch.float32 if job.dtype == torch.float16 else job.dtype
            self._of_pictures = NativeBackend(dataclasses.replace(job, device=torch.device("cpu"), dtype=dtype))
            return
        self._image_shape = job.split.image_shape
        self._labels = np.concatenate([split.labels for split in self._splits])
        self._mixed = bool((job.plan.partner >= 0).any())
        self._key = stream_key(job.seed, Stream.AUGMENTATION)
        self._level, self._scale, self._bias = (
            torch.tensor(values_c, dtype=torch.float32, device=self._device)
            for values_c in (job.cutout_c, job.scale_c, job.bias_c)
        )
        self._draw = _draw(job, self._device)
        self._residents = resident.resident(self._splits, self._device)
        if self._residents is not None:
            self._table = self._resident_table([one.images.data_ptr() for one in self._residents])
        elif job.split not in _told:
            _told.add(job.split)
            needed = sum(split.store.nbytes for split in self._splits)
            size, free = (count / 1e9 for count in (needed, resident.free_bytes(self._device)))
            progress.say(
                f"the images of split {job.split.name!r} ({size:.3g} GB) do not fit beside the rest in the memory of "
                f"{self._device} ({free:.3g} GB free): they are streamed through pinned memory"
            )

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        if self._of_pictures is not None:
            return self._copied(self._of_pictures.epoch(epoch, start))
        if self._residents is None:
            return self._streamed(epoch, start)
        return self._from_residents(epoch, start)

    def _copied(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches of encoded pictures, which are decoded and made on the CPU."""
        for images, *numbers in batches:
            yield Batch(images.to(self._device, self.job.dtype), *(one.to(self._device) for one in numbers))

    # --- the split on the device ---

    def _from_residents(self, epoch: int, start: int) -> Iterator[Batch]:
        job = self.job
        step = max(1, ROWS_AHEAD // job.batch_size)
        for first in range(start, job.batches, step):
            position, count = _place(job, first, min(first + step, job.batches))
            rows = _device_rows(job.order, position, count, epoch, self._device)
            if rows is None:
                rows = _upload(rows_of_order(job, position, count, epoch), self._device)
            for rows_b in rows.split(job.batch_size):
                yield Batch(*self._make(self._table, rows_b, position, epoch), rows_b)
                position += len(rows_b)

    def _resident_table(self, bases: list[int]) -> triton_batch.Table:
        plan, image_bytes = self.job.plan, int(np.prod(self._image_shape))
        ids = self.job.first_ids[plan.store] + plan.index
        base = np.array(bases, np.int64)[plan.store]
        address = base + plan.index * image_bytes
        partner = np.where(plan.partner < 0, address, base + plan.partner * image_bytes)

        def on_device(column: np.ndarray) -> torch.Tensor:
            return torch.tensor(column, device=self._device)

        return triton_batch.Table(
            on_device(address),
            on_device(partner) if self._mixed else None,
            on_device(plan.weight) if self._mixed else None,
            on_device(self._labels[ids]),
            on_device(ids),
            None if self.job.draw_keys is None else on_device(self.job.draw_keys),
        )

    def _make(
        self, table: triton_batch.Table, rows_b: torch.Tensor, position: int, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        job = self.job
        first_position, step = job.order.global_positions(position)
        return triton_batch.make_batch(
            table,
            rows_b,
            self._image_shape,
            self._draw,
            first_position=first_position,
            step=step,
            epoch=epoch,
            key=self._key,
            level_c=self._level,
            scale_c=self._scale,
            bias_c=self._bias,
            dtype=job.dtype,
            channels_last=job.channels_last,
        )

    # --- images streamed ---

    def _streamed(self, epoch: int, start: int) -> Iterator[Batch]:
        job = self.job
        copies = CopyStream(self._device)
        numbers = iter(range(start, job.batches))
        slots = [self._slot() for _ in range(min(max(1, job.prefetch), job.batches - start))]
        every_row = torch.arange(job.batch_size, device=self._device)
        pool = ThreadPoolExecutor(job.threads, thread_name_prefix="hbr-loader")
        filling: deque[tuple[Slot, int, Future[None]]] = deque()

        def refill(slot: Slot) -> None:
            if (number := next(numbers, None)) is not None:
                filling.append((slot, number, pool.submit(self._send, copies, slot, epoch, number)))

        try:
            for slot in slots:
                refill(slot)
            while filling:
                slot, number, sent = filling.popleft()
                sent.result()
                copies.wait_for(slot)
                made = self._make(slot.table(), every_row[: slot.count], number * job.batch_size, epoch)
                batch = Batch(*made, slot.rows())
                copies.release(slot)
                if job.prefetch > 0:
                    refill(slot)
                yield batch
                if job.prefetch == 0:
                    refill(slot)
        finally:  # also if the caller leaves early
            pool.shutdown(cancel_futures=True)
            copies.close()

    def _slot(self) -> Slot:
        keyed = self.job.draw_keys is not None
        return Slot(self.job.batch_size, self._image_shape, self._device, mixed=self._mixed, keyed=keyed)

    def _send(self, copies: CopyStream, slot: Slot, epoch: int, number: int) -> None:
        job = self.job
        rows = rows_of_order(job, *_place(job, number, number + 1), epoch)
        copies.wait_until_sent(slot)
        slot.fill(job, self._labels, rows)
        copies.send(slot)


def _draw(job: Job, device: torch.device) -> triton_batch.Draw:
    augment = job.augment
    sizes = None
    if augment.resized_crop is not None:
        _, height, width = job.split.image_shape
        sizes = torch.tensor(reference.crop_sizes(height, width, augment.resized_crop, augment.aspect), device=device)
    return triton_batch.Draw(
        flip_below=job.flip_below,
        alternating=augment.alternating_flip,
        pad=augment.pad,
        padding=augment.padding,
        crop_sizes=sizes,
        cutout=augment.cutout,
    )


def _place(job: Job, first: int, stop: int) -> tuple[int, int]:
    """Position of the first row of batches `first` to `stop - 1`, and their number of rows."""
    position = first * job.batch_size
    return position, min(stop * job.batch_size, len(job.order)) - position


def _device_rows(order: Sampler, start: int, count: int, epoch: int, device: torch.device) -> torch.Tensor | None:
    """Rows made on the device, or None if the host has to make them."""
    whole = order.order if isinstance(order, Shard) else order
    first, step = order.global_positions(start)
    if not isinstance(whole, UniformOrder) or first + (count - 1) * step >= len(whole):  # a shard's padding
        return None
    return whole.device_rows(first, count, epoch=epoch, stride=step, device=device)


def _upload(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def _numbered(device: torch.device) -> torch.device:
    """Resolve "cuda" to the GPU that is current now, whatever is current later."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
