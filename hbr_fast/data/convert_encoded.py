"""Writing a split of encoded pictures: shards, their index, and statistics from a few hundred pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast import progress
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import channel_mean_std, channel_sums
from hbr_fast.data.shards import INDEX, Outcome, ShardFiles, write_shards
from hbr_fast.data.sources import EncodedSplit
from hbr_fast.data.unfinished import Unfinished
from hbr_fast.data.views import views
from hbr_fast.files import linked
from hbr_fast.machine import usable_cpus

_PICTURES, _SIDE = 512, 128


@dataclass(frozen=True)
class WrittenPictures:
    """A split's shards as written: entries for `meta.json` by file name in order, and the store."""

    files: dict[str, dict[str, Any]]
    store: EncodedImages

    def hashes(self) -> np.ndarray:
        """64 bits of each picture, which equal files share: uint64 [N]."""
        index = self.store.index
        return index["crc"].astype(np.uint64) << np.uint64(32) | index["length"].astype(np.uint64)

    def content(self, row: int) -> np.ndarray:
        """The bytes of a picture."""
        return np.frombuffer(self.store.content(row), np.uint8)


def write_pictures(directory: Path, name: str, split: EncodedSplit, unfinished: Unfinished) -> WrittenPictures:
    """Write the shards of a split, going on after those that are finished; in the end each is in `directory`, too."""
    shards = unfinished.finished(name)
    known = [outcome for one in shards for outcome in one.outcomes]
    with progress.task(f"convert {name}", total=len(split), unit="images") as advance:

        def outcomes() -> Iterator[Outcome]:
            for outcome in split.outcomes(known):
                yield outcome
                advance(1, 0 if outcome.picture is None else len(outcome.picture.content))

        advance(len(known))
        for shard in write_shards(unfinished.directory, name, outcomes(), split.labels_n, finished=shards):
            unfinished.keep(shard)
            shards.append(replace(shard, outcomes=[]))  # of all files they would fill memory
    for shard in shards:
        linked(unfinished.directory / shard.name, directory / shard.name)
    index = np.concatenate([np.zeros(0, INDEX), *(shard.index for shard in shards)])
    store = EncodedImages(ShardFiles([directory / shard.name for shard in shards]), index, split.channels)
    return WrittenPictures({shard.name: shard.entry for shard in shards}, store)


def pictures_mean_std(store: EncodedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from at most 512 pictures at even distances.

    Each counts at 128 x 128 pixels, cropped as in evaluation. Pictures that cannot be decoded are left out.
    """
    rows = np.unique(np.linspace(0, len(store) - 1, min(len(store), _PICTURES)).round().astype(np.int64))
    # Said before, because the decoder is compiled on its first use.
    progress.say(f"statistics: decoding {progress.counted(len(rows), 'picture')}")
    sums_c, squares_c = np.zeros(store.channels, np.int64), np.zeros(store.channels, np.int64)
    pixels = 0
    for part in np.array_split(rows, -(-len(rows) // 64)):
        images = np.empty((len(part), store.channels, _SIDE, _SIDE), np.uint8)
        boxes, places = views(store.index["height"][part], store.index["width"][part], (_SIDE, _SIDE), "crop")
        bad = {one.row for one in store.decode(part, boxes, places, images, threads=usable_cpus())}
        good = np.ascontiguousarray(images[~np.isin(part, list(bad))])
        sums, squares = channel_sums(good)
        sums_c, squares_c = sums_c + sums, squares_c + squares
        pixels += len(good) * _SIDE**2
    return channel_mean_std(max(pixels, 1), sums_c, squares_c)
