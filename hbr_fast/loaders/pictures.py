"""The first stage of a loader over encoded pictures: every row becomes a uint8 picture of the output's size.

A random-resized crop is taken here, from the picture as it is stored; otherwise the split's own view (`Split.at_size`).
What follows (flip, padded crop, cutout, normalisation) is the same as for stored pixels.

A picture that cannot be decoded, or is no longer what was converted, ends no epoch. It becomes an image of mean grey,
and its label becomes `IGNORED`, which losses and recorders leave out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.views import views
from hbr_fast.kernels import reference
from hbr_fast.kernels.words import words_of
from hbr_fast.loaders.batch import Job
from hbr_fast.loaders.picture_cache import CacheUse, caches_of
from hbr_fast.seeding import Stream, stream_key

IGNORED = -100  # a label that losses and recorders leave out


class Pictures:
    """Decodes the rows of a job's batches."""

    def __init__(self, job: Job) -> None:
        self._splits: tuple[Split, ...] = (job.split, *job.stores)
        self._crop = (job.augment.resized_crop, job.augment.aspect) if job.augment.resized_crop else None
        self._first_ids = np.cumsum([0, *(len(split) for split in self._splits)])
        self._key0, self._key1 = np.array(stream_key(job.seed, Stream.AUGMENTATION), np.uint64)
        self._gray = job.cutout_c[:, None, None]
        self.image_shape = job.split.image_shape
        self._caches = caches_of(self._splits, 0 if self._crop else job.cache)
        self.bad: dict[int, str] = {}  # reasons by sample id

    def take_from(self, splits: Sequence[Split]) -> None:
        """Take the pictures from other stores, that hold the same ones."""
        self._splits = tuple(splits)

    def words(self, keys_b: np.ndarray, epoch: int) -> np.ndarray:
        """The random words of rows with these keys, as `words_of` takes them: uint64 [4, B]."""
        words = np.empty((4, len(keys_b)), np.uint64)
        words_of(keys_b, epoch, 0, self._key0, self._key1, words)
        return words

    def expect(self, store_r: np.ndarray, index_r: np.ndarray, partner_r: np.ndarray, *, first: bool) -> None:
        """Tell the stores which pictures rows need next, as in `Plan`; `first` if an epoch begins."""
        for number, split in enumerate(self._splits):
            if isinstance(split.store, EncodedImages):
                both = np.stack([index_r, partner_r], axis=1)[store_r == number].ravel()
                split.store.shards.expect(both[both >= 0], first=first)

    def decode(
        self, store_b: np.ndarray, index_b: np.ndarray, words_4b: np.ndarray, out: np.ndarray, *, threads: int
    ) -> np.ndarray:
        """Write the pictures of some rows.

        Parameters
        ----------
        store_b, index_b : int [B]
            As in `Plan`, checked.
        words_4b : uint64 [4, B]
            From `words`; they draw the crops.
        out : uint8 [B, C, H, W]
            Written in full.
        threads : int

        Returns
        -------
        int64
            The rows, of these B, whose picture is bad.
        """
        bad = []
        for number in np.unique(store_b).tolist():
            own = np.flatnonzero(store_b == number)
            whole = len(own) == len(store_b)
            images = out if whole else np.empty((len(own), *self.image_shape), np.uint8)
            store, rows = self._splits[number].store, np.ascontiguousarray(index_b[own])
            cache = self._caches[number]
            if isinstance(store, EncodedImages):
                missing = np.arange(len(rows)) if cache is None else cache.fill(rows, images)
                decoded = images if len(missing) == len(rows) else np.empty((len(missing), *self.image_shape), np.uint8)
                new = rows[missing]
                boxes, places = self.views(store, new, words_4b[:, own[missing]])
                failed = {one.row: one.reason for one in store.decode(new, boxes, places, decoded, threads=threads)}
                for row, reason in failed.items():
                    self.bad[int(self._first_ids[number]) + row] = reason
                is_bad = np.isin(new, list(failed))
                decoded[is_bad] = self._gray
                if cache is not None:
                    cache.keep(new[~is_bad], decoded[~is_bad])
                if decoded is not images:
                    images[missing] = decoded
                bad.append(own[missing[is_bad]])
            else:
                store.gather(rows, out=images)
            if not whole:
                out[own] = images
        return np.concatenate(bad) if bad else np.zeros(0, np.int64)

    def cache_use(self) -> CacheUse:
        """Of all stores together."""
        uses = [cache.use() for cache in self._caches if cache is not None]
        return CacheUse(*map(sum, zip(*uses, strict=True))) if uses else CacheUse(0, 0, 0, 0)

    def views(self, store: EncodedImages, rows: np.ndarray, words_4b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which box of each picture fills which place of its image: see `hbr_fast.data.views.views`."""
        heights, widths = store.index["height"][rows], store.index["width"][rows]
        assert store.size is not None
        boxes, places = views(heights, widths, store.size, "stretch" if self._crop else store.fit)
        if self._crop is not None:
            boxes = reference.crops(heights, widths, words_4b, *self._crop).astype(np.float64)
        return boxes, places


def decoding_job(job: Job) -> Job:
    """The job as a backend gets it: with `pictures` if splits are encoded, which then take the random-resized crop."""
    if not any(isinstance(split.store, EncodedImages) for split in (job.split, *job.stores)):
        return job
    second = dataclasses.replace(job.augment, resized_crop=None)
    return dataclasses.replace(job, augment=second, pictures=Pictures(job))
