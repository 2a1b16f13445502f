"""The torchvision backend: a DataLoader with transforms in worker processes, the baseline everyone knows.

The transforms are given our crops and flips instead of drawing their own, so that a batch depends on no worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.rows import RowsOfJob


class Draw(NamedTuple):
    """One row of a batch: all that a worker needs to make it; see `Rows`."""

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


class TorchvisionBackend:
    """Batches of a job by a DataLoader; its workers, one for each of the job's threads, are started for each epoch."""

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
            layout = torch.channels_last if job.channels_last else torch.contiguous_format
            yield Batch(images.contiguous(memory_format=layout), labels, ids, rows)
        if draws.error is not None:
            raise draws.error


class _Draws:
    """The batch sampler: what is drawn for each row of each batch.

    An error of the order ends it and is kept: raised inside the DataLoader, it would keep the workers alive.
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
            )
            yield [Draw(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


class _Images(Dataset[tuple[torch.Tensor, int, int, int]]):
    """Transformed image, label, id and row of a draw."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stores = [split.images for split in (job.split, *job.stores)]
        self._height, self._width = job.split.images.shape[2:]
        self._scale, self._bias = (torch.from_numpy(part)[:, None, None] for part in (job.scale_c, job.bias_c))
        self._padding = job.padding_c.tolist()
        self._cutout = torch.from_numpy(job.cutout_c)[:, None, None]

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int, int, int]:
        augment, images = self.job.augment, self._stores[draw.store]
        image = torch.tensor(images[draw.image])
        if draw.partner >= 0:
            image = draw.weight * image.float() + (1 - draw.weight) * torch.tensor(images[draw.partner]).float()
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
        pixels = torch.addcmul(self._bias, image.float(), self._scale)
        return pixels.to(self.job.dtype), draw.label, draw.id, draw.row
