"""The rows and random numbers of a batch, before any pixel is touched: for backends with third-party kernels.

The random numbers are those of `hbr_fast.kernels.reference.make_batch`, so that every backend makes the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hbr_fast.kernels.reference import crop_sizes
from hbr_fast.kernels.words import words_of
from hbr_fast.loaders.batch import Job
from hbr_fast.loaders.pictures import IGNORED
from hbr_fast.seeding import Stream, stream_key

TOLD_AHEAD = 2**13  # rows

_32 = np.uint64(32)


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one batch and their random draws.

    Attributes
    ----------
    rows, ids, labels : int64 [B]
        As in `Batch`.
    store, index, partner, weight : [B]
        As in `Plan`.
    crop : int64 [B, 4]
        Top, left, height and width of the crop. In the image, where it may reach `pad` pixels outside.
    flipped : bool [B]
    cutout : int64 [B, 2]
        Top and left of the cutout square.
    words : uint64 [4, B]
        The random words that the crops come from.
    """

    rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    store: np.ndarray
    index: np.ndarray
    partner: np.ndarray
    weight: np.ndarray
    crop: np.ndarray
    flipped: np.ndarray
    cutout: np.ndarray
    words: np.ndarray


def rows_of_order(job: Job, position: int, count: int, epoch: int) -> np.ndarray:
    """Rows of the plan at the order's positions from `position` on: int64 [count].

    They are checked: an order may be user-defined, and kernels read wherever its rows point.

    Raises
    ------
    ValueError
        If the order returns the wrong number of rows, rows that are not whole numbers, or a row outside the plan.
    """
    given = np.asarray(job.order.rows(position, count, epoch=epoch))
    where = f"of epoch {epoch}"
    if given.shape != (count,):
        raise ValueError(f"the order gave {given.shape} rows at position {position} {where}, not {count}")
    if given.dtype.kind not in "iu":
        raise ValueError(f"the order gave rows of {given.dtype} at position {position} {where}, not whole numbers")
    rows = np.ascontiguousarray(given, np.int64)
    if rows.min() < 0 or rows.max() >= len(job.plan):
        bad = int(np.flatnonzero((rows < 0) | (rows >= len(job.plan)))[0])
        raise ValueError(
            f"the order gave row {given[bad]} at position {position + bad} {where}, outside the plan's "
            f"{len(job.plan)} rows"
        )
    return rows


class RowsOfJob:
    """The rows of a job's batches."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.splits = (job.split, *job.stores)
        self.interpolates = bool((job.plan.partner >= 0).any())
        self._labels = np.concatenate([split.labels for split in self.splits])
        self._key0, self._key1 = np.array(stream_key(job.seed, Stream.AUGMENTATION), np.uint64)
        augment, (_, height, width) = job.augment, job.split.image_shape
        self._sizes = crop_sizes(height, width, augment.resized_crop, augment.aspect) if augment.resized_crop else None

    def batch(self, epoch: int, number: int) -> Rows:
        """The rows of batch `number` of an epoch."""
        job, plan = self.job, self.job.plan
        position = number * job.batch_size
        count = min(job.batch_size, len(job.order) - position)
        rows = rows_of_order(job, position, count, epoch)
        first, step = job.order.global_positions(position)
        store, index = plan.store[rows], plan.index[rows]
        ids = job.first_ids[store] + index
        keys = first + step * np.arange(count) if job.draw_keys is None else job.draw_keys[rows]
        words = self._words(keys, epoch, 0)
        return Rows(
            rows=rows,
            ids=ids,
            labels=self._labels[ids],
            store=store,
            index=index,
            partner=plan.partner[rows],
            weight=plan.weight[rows],
            crop=self._crops(words),
            flipped=self._flips(words, ids, epoch),
            cutout=self._cutouts(keys, epoch),
            words=words,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Rows]:
        """The rows of batches `start`, `start + 1`, ...; the stores are told what will be needed, as `expect` says."""
        job, plan = self.job, self.job.plan
        at_once = max(1, TOLD_AHEAD // job.batch_size)
        for number in range(start, job.batches):
            if job.pictures is not None and (number - start) % at_once == 0:
                position = number * job.batch_size
                count = min(at_once * job.batch_size, len(job.order) - position)
                next_rows = rows_of_order(job, position, count, epoch)
                columns = plan.store[next_rows], plan.index[next_rows], plan.partner[next_rows]
                job.pictures.expect(*columns, first=number == start)
            yield self.batch(epoch, number)

    def images(self, rows: Rows) -> np.ndarray:
        """Raw pixels [B, C, H, W], interpolated: float32 if the plan interpolates, else uint8."""
        every = np.arange(len(rows.rows))
        images = self.gathered(rows, every, rows.index)
        if not self.interpolates:
            return images
        mixed = images.astype(np.float32)
        has = np.flatnonzero(rows.partner >= 0)
        share = rows.weight[has, None, None, None]
        mixed[has] *= share
        mixed[has] += (1 - share) * self.gathered(rows, has, rows.partner[has])
        return mixed

    def gathered(self, rows: Rows, some: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Pixels of these samples, for some of the rows; the labels of rows with a bad picture become `IGNORED`."""
        store = rows.store[some]
        if self.job.pictures is not None:
            images = np.empty((len(index), *self.job.split.image_shape), np.uint8)
            words = rows.words[:, some]
            bad = self.job.pictures.decode(store, index, words, images, threads=self.job.threads)
            rows.labels[some[bad]] = IGNORED
            return images
        if len(self.splits) == 1:
            return self.job.split.store.gather(index)
        images = np.empty((len(index), *self.job.split.image_shape), np.uint8)
        for number, split in enumerate(self.splits):
            images[store == number] = split.store.gather(index[store == number])
        return images

    def _words(self, keys: np.ndarray, epoch: int, use: int) -> np.ndarray:
        words = np.empty((4, len(keys)), np.uint64)
        words_of(keys, epoch, use, self._key0, self._key1, words)
        return words

    def _crops(self, words: np.ndarray) -> np.ndarray:
        pad, (_, height, width) = self.job.augment.pad, self.job.split.image_shape
        crops = np.empty((words.shape[1], 4), np.int64)
        crops[:, 2:] = height, width
        if self._sizes is not None:
            crops[:, 2:] = self._sizes[(words[3] * np.uint64(len(self._sizes))) >> _32]
        room = np.array([height, width]) + 2 * pad - crops[:, 2:] + 1
        crops[:, :2] = ((words[1:3].T * room.astype(np.uint64)) >> _32).astype(np.int64) - pad
        return crops

    def _flips(self, words: np.ndarray, ids: np.ndarray, epoch: int) -> np.ndarray:
        below = np.uint64(self.job.flip_below)
        if not self.job.augment.alternating_flip:
            return words[0] < below
        return (self._words(ids, 0, 2)[0] < below) != bool(epoch % 2)

    def _cutouts(self, keys: np.ndarray, epoch: int) -> np.ndarray:
        side, (_, height, width) = self.job.augment.cutout, self.job.split.image_shape
        if not side:
            return np.zeros((len(keys), 2), np.int64)
        room = np.array([height - side + 1, width - side + 1], np.uint64)
        return ((self._words(keys, epoch, 1)[:2].T * room) >> _32).astype(np.int64)
