"""The torchvision backend: a DataLoader with transforms in worker processes, the baseline everyone knows.

The transforms use our crops and flips instead of drawing their own, so that a batch does not depend on the workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.pictures import IGNORED
from hbr_fast.loaders.rows import RowsOfJob


class Draw(NamedTuple):
    """All that a worker needs to make one row of a batch; see `Rows`."""

    row: int
    id: int
    label: int
    store: int
    image: int
    partner: int
    weight: float
    crop: list[int]
    flipped: bool
    cutout: list[int]
    words: list[int]


class TorchvisionBackend:
    """Batches of a job by a DataLoader; its workers, one per thread of the job, are started for each epoch."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._rows = RowsOfJob(job)
        self._images = _Images(job)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        job = self.job
        workers = min(job.threads, job.batches - start) if job.prefetch else 0
        draws = _Draws(self._rows, epoch, start)
        loader = DataLoader(
            self._images,
            batch_sampler=draws,
            num_workers=workers,
            prefetch_factor=-(-job.prefetch // workers) if workers else None,
            multiprocessing_context="fork" if workers else None,  # the split is inherited, not sent
        )
        for images, labels, ids, rows in loader:
            if job.pictures is not None:  # decoded in another process
                bad = ids[labels == IGNORED].tolist()
                job.pictures.bad.update((one, "could not be decoded") for one in bad if one not in job.pictures.bad)
            layout = torch.channels_last if job.channels_last else torch.contiguous_format
            yield Batch(images.contiguous(memory_format=layout), labels, ids, rows)
        if draws.error is not None:
            raise draws.error


class _Draws:
    """The batch sampler: the draws for each row of each batch.

    An error in the order ends it and is stored: raised inside the DataLoader, it would keep the workers alive.
    """

    def __init__(self, rows: RowsOfJob, epoch: int, start: int) -> None:
        self._rows, self._epoch, self._start = rows, epoch, start
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[list[Draw]]:
        for number in range(self._start, self._rows.job.batches):
            try:
                rows = self._rows.batch(self._epoch, number)
            except Exception as error:
                self.error = error
                return
            columns = (
                rows.rows,
                rows.ids,
                rows.labels,
                rows.store,
                rows.index,
                rows.partner,
                rows.weight,
                rows.crop,
                rows.flipped,
                rows.cutout,
                rows.words.T,
            )
            yield [Draw(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


class _Images(Dataset[tuple[torch.Tensor, int, int, int]]):
    """Transformed image, label, id and row of a draw."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stores = [split.store for split in (job.split, *job.stores)]
        _, self._height, self._width = job.split.image_shape
        self._scale, self._bias = (torch.from_numpy(part)[:, None, None] for part in (job.scale_c, job.bias_c))
        self._padding = job.padding_c.tolist()
        self._cutout = torch.from_numpy(job.cutout_c)[:, None, None]

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int, int, int]:
        augment = self.job.augment
        pixels, is_bad = self._picture(draw, draw.image)
        image = torch.from_numpy(pixels)
        if draw.partner >= 0:
            pixels, partner_is_bad = self._picture(draw, draw.partner)
            is_bad |= partner_is_bad
            image = draw.weight * image.float() + (1 - draw.weight) * torch.from_numpy(pixels).float()
        top, left, height, width = draw.crop
        if augment.resized_crop:
            image = functional.resized_crop(
                image.float(), top, left, height, width, [self._height, self._width], antialias=False
            )
        elif augment.pad:
            pad = augment.pad
            if augment.padding in ("reflect", "edge"):
                image = functional.pad(image, [pad], padding_mode=augment.padding)
            else:
                image = functional.pad(image, [pad], fill=self._padding)
            image = functional.crop(image, top + pad, left + pad, height, width)
        if draw.flipped:
            image = functional.horizontal_flip(image)
        if augment.cutout:
            image = functional.erase(image, *draw.cutout, augment.cutout, augment.cutout, self._cutout)
        normalised = torch.addcmul(self._bias, image.float(), self._scale)
        return normalised.to(self.job.dtype), IGNORED if is_bad else draw.label, draw.id, draw.row

    def _picture(self, draw: Draw, index: int) -> tuple[np.ndarray, bool]:
        """The pixels of one sample, and whether its picture is bad."""
        if self.job.pictures is None:
            return self._stores[draw.store].gather([index])[0], False
        image = np.empty((1, *self.job.split.image_shape), np.uint8)
        words = np.array([draw.words], np.uint64).T
        bad = self.job.pictures.decode(np.array([draw.store]), np.array([index]), words, image, threads=1)
        return image[0], len(bad) > 0
