"""Facts about an opened dataset, for printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.meta_json import META


@dataclass(frozen=True)
class SplitDescription:
    """Sizes of one split, `class_counts` in class order, and the sources of its first and last sample.

    `shape` is (C, H, W) of every image. Of encoded pictures it is None, and `smallest` and `largest` are the (H, W) of
    least and of most pixels.
    """

    samples: int
    channels: int
    shape: tuple[int, int, int] | None
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_counts: tuple[int, ...]
    has_truth: bool
    sources: tuple[str, str] | None


@dataclass(frozen=True)
class Description:
    """What `hbr-fast info` prints about a dataset."""

    path: Path
    name: str
    source: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, SplitDescription]
    fingerprint: str
    bytes: int


def describe(dataset: Dataset) -> Description:
    """Facts about an opened dataset, for printing."""
    splits = {
        name: SplitDescription(
            samples=len(split),
            channels=len(split.mean),
            shape=split.store.image_shape,
            smallest=_extreme_size(split, np.argmin),
            largest=_extreme_size(split, np.argmax),
            class_counts=tuple(int(count) for count in split.class_counts()),
            has_truth=split.truth is not None,
            sources=None if split.sources is None else (split.sources[0], split.sources[len(split) - 1]),
        )
        for name, split in dataset.splits.items()
    }
    size = (dataset.path / META).stat().st_size + sum(entry["bytes"] for entry in dataset.meta["files"].values())
    return Description(
        path=dataset.path,
        name=dataset.name,
        source=dataset.meta["source"],
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        splits=splits,
        fingerprint=dataset.fingerprint,
        bytes=size,
    )


def _extreme_size(split: Split, choose: Callable[[np.ndarray], np.intp]) -> tuple[int, int]:
    if not isinstance(split.store, EncodedImages):
        return split.image_shape[1], split.image_shape[2]
    height, width = split.store.index["height"], split.store.index["width"]
    row = choose(height.astype(np.int64) * width)
    return int(height[row]), int(width[row])
