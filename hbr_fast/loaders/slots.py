"""Slots for the decoded pictures of a block of batches, whose addresses the native pass takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hbr_fast.kernels.images.pixel_vectors import SLACK
from hbr_fast.loaders.batch import Job


@dataclass(frozen=True)
class Decoded:
    """Addresses of the pictures of some rows, and of their partners' (0: none), int64 [B]; and the rows that are bad.

    Without addresses, pictures are in the stores.
    """

    pictures_b: np.ndarray | None = None
    partners_b: np.ndarray | None = None
    bad_b: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class DecodedSlots:
    """Memory for the pictures of at most `rows` rows, and of their partners; the next decoding overwrites it."""

    def __init__(self, job: Job, rows: int) -> None:
        assert job.pictures is not None
        self._pictures, self._plan, self._threads = job.pictures, job.plan, job.threads
        self._draw_keys = job.draw_keys
        self._image_bytes = int(np.prod(job.split.image_shape))
        self._mixed = bool((job.plan.partner >= 0).any())
        self._memory = np.empty((1 + self._mixed) * rows * self._image_bytes + 2 * SLACK, np.uint8)

    def decode(self, rows_b: np.ndarray, first_position: int, step: int, epoch: int) -> Decoded:
        """Decode the rows of the plan that are at these positions of an epoch."""
        pictures, plan, count = self._pictures, self._plan, len(rows_b)
        keys = first_position + step * np.arange(count) if self._draw_keys is None else self._draw_keys[rows_b]
        words = pictures.words(keys, epoch)
        store, partner = plan.store[rows_b], plan.partner[rows_b]
        has = np.flatnonzero(partner >= 0)
        slots = self._memory[SLACK : SLACK + (count + len(has)) * self._image_bytes]
        images = slots.reshape(-1, *pictures.image_shape)
        addresses = slots.ctypes.data + self._image_bytes * np.arange(len(images))
        bad = pictures.decode(store, plan.index[rows_b], words, images[:count], threads=self._threads)
        if not self._mixed:
            return Decoded(addresses, None, bad)
        mates = np.zeros(count, np.int64)
        mates[has] = addresses[count:]
        if len(has):
            of_mates = pictures.decode(store[has], partner[has], words[:, has], images[count:], threads=self._threads)
            bad = np.union1d(bad, has[of_mates])
        return Decoded(addresses[:count], mates, bad)
