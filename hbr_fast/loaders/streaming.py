"""Streaming raw images to the device: pinned buffers, and a copy stream beside the training stream.

A slot holds a batch's images and numbers in pinned memory and on the device. A thread fills it, the copy stream sends
it in one piece, the batch's kernel reads it; then it is refilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hbr_fast.data.dataset import Split
from hbr_fast.kernels.images.triton_batch import Table
from hbr_fast.loaders.batch import Job

_ALIGNMENT = 512


class _Events(NamedTuple):
    """Completion events of a slot's last copy and of the last kernel that read it."""

    sent: torch.cuda.Event
    read: torch.cuda.Event


class Slot:
    """A batch's images and numbers, in pinned memory and on the device."""

    def __init__(
        self, rows: int, image_shape: tuple[int, int, int], device: torch.device, *, mixed: bool, keyed: bool
    ) -> None:
        self.image_bytes = int(np.prod(image_shape))
        columns = 5 if keyed else 4
        numbers, weights = columns * rows * 8, rows * 4
        self._first = -(-(numbers + weights) // _ALIGNMENT) * _ALIGNMENT
        size = self._first + rows * (1 + mixed) * self.image_bytes
        on_gpu = device.type == "cuda"
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        self.device = torch.empty(size, dtype=torch.uint8, device=device)
        self.events = _Events(torch.cuda.Event(), torch.cuda.Event()) if on_gpu else None
        self.count = self.used = 0

        def parts(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (
                # Labels, ids, plan rows, addresses of partners, keys of random numbers.
                memory[:numbers].view(torch.int64).view(columns, rows),
                memory[numbers : numbers + weights].view(torch.float32),
            )

        self.host_numbers, self.host_weights = (part.numpy() for part in parts(self.host))
        self.numbers, self.weights = parts(self.device)
        self.host_images = self.host[self._first :].view(-1, *image_shape).numpy()
        self.base = self.device.data_ptr() + self._first
        self.addresses = self.base + self.image_bytes * torch.arange(rows, device=device)
        self.mixed, self.keyed = mixed, keyed

    def fill(self, job: Job, labels: np.ndarray, rows: np.ndarray) -> None:
        """Gather the images of plan rows, followed by their partners, and their numbers."""
        count, plan, splits = len(rows), job.plan, (job.split, *job.stores)
        store, index = plan.store[rows], plan.index[rows]
        ids = job.first_ids[store] + index
        self.host_numbers[:3, :count] = labels[ids], ids, rows
        if job.draw_keys is not None:
            self.host_numbers[4, :count] = job.draw_keys[rows]
        _gather(splits, store, index, self.host_images[:count])
        self.count, self.used = count, self._first + count * self.image_bytes
        if not self.mixed:
            return
        partner = plan.partner[rows]
        who = np.flatnonzero(partner >= 0)
        _gather(splits, store[who], partner[who], self.host_images[count : count + len(who)])
        place = np.arange(count)
        place[who] = count + np.arange(len(who))
        self.host_numbers[3, :count] = self.base + place * self.image_bytes
        self.host_weights[:count] = plan.weight[rows]
        self.used += len(who) * self.image_bytes

    def table(self) -> Table:
        """The kernel's inputs, on the device."""
        numbers = self.numbers[:, : self.count]
        return Table(
            self.addresses[: self.count],
            numbers[3] if self.mixed else None,
            self.weights[: self.count] if self.mixed else None,
            numbers[0],
            numbers[1],
            numbers[4] if self.keyed else None,
        )

    def rows(self) -> torch.Tensor:
        """A copy of the plan rows."""
        return self.numbers[2, : self.count].clone()


def _gather(splits: Sequence[Split], store: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    if len(splits) == 1:
        splits[0].store.gather(index, out=out)
        return
    for number, split in enumerate(splits):
        which = np.flatnonzero(store == number)
        out[which] = split.store.gather(index[which])


class CopyStream:
    """Copies slots to the device, concurrently with its other work; on a CPU these are plain copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def wait_until_sent(self, slot: Slot) -> None:
        """Wait, on the host, until the slot's pinned memory may be written again."""
        if slot.events is not None:
            slot.events.sent.synchronize()

    def send(self, slot: Slot) -> None:
        """Copy the used part of a slot, once the kernel that last read it has finished."""
        if self._stream is None or slot.events is None:
            slot.device[: slot.used].copy_(slot.host[: slot.used])
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.events.read)
            slot.device[: slot.used].copy_(slot.host[: slot.used], non_blocking=True)
            slot.events.sent.record(self._stream)

    def wait_for(self, slot: Slot) -> None:
        """Let the caller's stream wait for the slot."""
        if slot.events is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.events.sent)

    def release(self, slot: Slot) -> None:
        """Record that all reads of the slot are queued in the caller's stream."""
        if slot.events is not None:
            slot.events.read.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Let the caller's stream, to which the slots' memory returns, wait for all copies."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
