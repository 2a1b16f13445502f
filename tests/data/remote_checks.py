"""What the tests of datasets at a URL share, whatever the file system."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loaders.contracts import joined

from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.remote_shards import RemoteShards
from hbr_fast.data.verify import verify_dataset
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader

CROPPED = Augment(flip=0.5, resized_crop=(0.2, 0.9))


def shards_of(opened: Dataset) -> RemoteShards:
    found: Any = opened.train.store
    assert isinstance(found.shards, RemoteShards)
    return found.shards


def kept_bytes(opened: Dataset) -> int:
    """What the pictures of the train split take on the disk."""
    found: Any = opened.train.store
    return int(found.index["length"][shards_of(opened)._kept == 1].sum())


def train_loader(opened: Dataset, **options: Any) -> Loader:
    return Loader(opened.train, **{"size": 24, "augment": CROPPED, "batch_size": 5, "seed": 3, **options})


def check_a_damaged_picture_is_set_aside(url: str, dataset: Dataset, *, filesystem: Any) -> None:
    """Damage picture 6 of the copy of `dataset` at `url`, whose file system is fsspec's `filesystem`."""
    opened = open_dataset(url)
    entry = shards_of(opened)._index[6]
    path = f"{url}/train.{int(entry['shard']):05}.tar"
    content = bytearray(filesystem.cat_file(path))
    content[int(entry["offset"]) + 300] ^= 1
    filesystem.pipe_file(path, bytes(content))
    loader = train_loader(opened)
    found, expected = joined(loader.epoch(0)), joined(train_loader(dataset).epoch(0))
    bad = found.ids == 6
    assert found.labels[bad].tolist() == [-100]
    assert torch.equal(found.images[~bad], expected.images[~bad])
    assert list(loader.bad_pictures) == [6]
    with pytest.raises(ValueError, match=rf"{path} was changed after conversion \(another checksum\)"):
        verify_dataset(url)
