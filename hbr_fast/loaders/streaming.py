"""Raw images on their way to the device: pinned buffers, and a stream for copies beside the one that trains.

A slot is a batch's images and numbers in pinned memory and the same on the device. A thread fills it, the copy stream
sends it in one piece, the kernel of the batch reads it; then it is filled again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hbr_fast.data.dataset import Split
from hbr_fast.kernels.triton_images import Table
from hbr_fast.plan import Plan

_ALIGNMENT = 512


class _Events(NamedTuple):
    """When a slot's last copy was through, and the last kernel that read it."""

    sent: torch.cuda.Event
    read: torch.cuda.Event


class Slot:
    """A batch's images and numbers, in pinned memory and on the device."""

    def __init__(self, rows: int, image_shape: tuple[int, int, int], device: torch.device, *, mixed: bool) -> None:
        self.image_bytes = int(np.prod(image_shape))
        numbers, weights = 4 * rows * 8, rows * 4
        self._first = -(-(numbers + weights) // _ALIGNMENT) * _ALIGNMENT
        size = self._first + rows * (1 + mixed) * self.image_bytes
        on_gpu = device.type == "cuda"
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        self.device = torch.empty(size, dtype=torch.uint8, device=device)
        self.events = _Events(torch.cuda.Event(), torch.cuda.Event()) if on_gpu else None
        self.count = self.used = 0

        def parts(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (
                memory[:numbers].view(torch.int64).view(4, rows),  # labels, ids, plan rows, addresses of partners
                memory[numbers : numbers + weights].view(torch.float32),
            )

        self.host_numbers, self.host_weights = (part.numpy() for part in parts(self.host))
        self.numbers, self.weights = parts(self.device)
        self.host_images = self.host[self._first :].view(-1, *image_shape).numpy()
        self.base = self.device.data_ptr() + self._first
        self.addresses = self.base + self.image_bytes * torch.arange(rows, device=device)
        self.mixed = mixed

    def fill(
        self, splits: Sequence[Split], labels: np.ndarray, first_ids: np.ndarray, plan: Plan, rows: np.ndarray
    ) -> None:
        """Gather the images of plan rows, partners behind them, and their numbers."""
        count = len(rows)
        store, index = plan.store[rows], plan.index[rows]
        ids = first_ids[store] + index
        self.host_numbers[:3, :count] = labels[ids], ids, rows
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
        """What the kernel reads, on the device."""
        numbers = self.numbers[:, : self.count]
        return Table(
            self.addresses[: self.count],
            numbers[3] if self.mixed else None,
            self.weights[: self.count] if self.mixed else None,
            numbers[0],
            numbers[1],
        )

    def rows(self) -> torch.Tensor:
        """The plan rows, in memory of their own."""
        return self.numbers[2, : self.count].clone()


def _gather(splits: Sequence[Split], store: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    if len(splits) == 1:
        # "clip" writes into `out` itself; the loader has checked the plan's indices.
        np.take(splits[0].images, index, axis=0, out=out, mode="clip")
        return
    for number, split in enumerate(splits):
        which = np.flatnonzero(store == number)
        out[which] = split.images[index[which]]


class CopyStream:
    """Copies of slots to the device, beside what else it does; on a CPU they are plain copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def wait_until_sent(self, slot: Slot) -> None:
        """Wait, on the host, until the slot's pinned memory may be written again."""
        if slot.events is not None:
            slot.events.sent.synchronize()

    def send(self, slot: Slot) -> None:
        """Copy what is used of a slot, once the kernel that read it last is through."""
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
        """Say that all that reads the slot is in the caller's stream."""
        if slot.events is not None:
            slot.events.read.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Let the caller's stream, which the slots' memory goes back to, wait for all copies."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
