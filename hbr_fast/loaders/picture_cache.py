"""Decoded pictures kept in memory, for sets that fit: those decoded first stay, and none is replaced.

An epoch visits every picture once, in an order that is new each time: a cache that replaced the oldest pictures would
have lost most of them before their next visit.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages


class CacheUse(NamedTuple):
    """Use of a cache of decoded pictures.

    Attributes
    ----------
    hits, needed : int
        How many of the pictures needed so far were in the cache.
    pictures, bytes : int
        What it holds.

    Examples
    --------
    >>> CacheUse(hits=30, needed=40, pictures=10, bytes=276480).rate
    0.75
    """

    hits: int
    needed: int
    pictures: int
    bytes: int

    @property
    def rate(self) -> float:
        """Share of the needed pictures that were in the cache."""
        return self.hits / max(self.needed, 1)


class PictureCache:
    """The first `room` pictures of a store that were decoded. Several threads may use it.

    Parameters
    ----------
    rows : int
        Pictures of the store.
    image_shape : (C, H, W)
    room : int
        In pictures.
    """

    def __init__(self, rows: int, image_shape: tuple[int, int, int], room: int) -> None:
        self._place = np.full(rows, -1, np.int32)
        self._pictures = np.empty((min(rows, room), *image_shape), np.uint8)
        self._held = self._hits = self._needed = 0
        self._lock = Lock()

    def fill(self, rows_b: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Copy what is held into `images`; returns the positions of the rows that are not, int64."""
        with self._lock:
            places = self._place[rows_b]
        found = np.flatnonzero(places >= 0)
        for b in found.tolist():  # a fancy index would copy the pictures twice
            images[b] = self._pictures[places[b]]
        with self._lock:
            self._hits, self._needed = self._hits + len(found), self._needed + len(rows_b)
        return np.flatnonzero(places < 0)

    def keep(self, rows_b: np.ndarray, images: np.ndarray) -> None:
        """Keep pictures as long as there is room."""
        rows, first = np.unique(rows_b, return_index=True)
        with self._lock:
            new = self._place[rows] < 0
            rows, first = rows[new], first[new]
            rows, first = rows[: len(self._pictures) - self._held], first[: len(self._pictures) - self._held]
            end = self._held + len(rows)
            self._pictures[self._held : end] = images[first]
            self._place[rows] = np.arange(self._held, end)
            self._held = end

    def use(self) -> CacheUse:
        """What it holds, and how often that was enough."""
        return CacheUse(self._hits, self._needed, self._held, self._held * self._pictures[:1].nbytes)


def caches_of(splits: Sequence[Split], room: int) -> list[PictureCache | None]:
    """A cache for every store of encoded pictures, of `room` bytes together; None where there is no room for one."""
    caches: list[PictureCache | None] = []
    for split in splits:
        cache = None
        if isinstance(split.store, EncodedImages) and split.store.image_shape is not None:
            fits = min(room // int(np.prod(split.image_shape)), len(split))
            cache = PictureCache(len(split), split.image_shape, fits) if fits else None
            room -= fits * int(np.prod(split.image_shape))
        caches.append(cache)
    return caches
