"""What a source of images hands to `convert`, and the checks that all sources share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_BYTES = 1 << 20  # a block is summed, hashed and written while it is still in the processor's cache


@dataclass(frozen=True, eq=False)
class SourceSplit:
    """One split as a source gives it.

    Attributes
    ----------
    shape : tuple of int
        (C, H, W) of every image.
    labels_n : int64 [N]
        Class indices, already checked to lie in [0, number of classes).
    blocks : callable
        Returns a fresh iterator of uint8 [B, C, H, W] arrays that together hold the N images in the labels'
        order. The arrays may be views with any strides and are only valid until the next one.
    truth_n : float64 [N] or None
        The known hardness of every sample, in [0, 1], larger being harder (synthetic images only).
    """

    shape: tuple[int, int, int]
    labels_n: np.ndarray
    blocks: Callable[[], Iterable[np.ndarray]]
    truth_n: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_n)


@dataclass(frozen=True, eq=False)
class Source:
    """Images, labels and where they are from; a function of this package makes one.

    Attributes
    ----------
    name : str
        Name the dataset gets.
    classes : tuple of str
        Class names; a label is an index into it.
    splits : mapping of str to SourceSplit
        "train" and "test".
    origin : dict
        What `meta.json` says about the origin: JSON values without times or absolute paths, so that the same
        input gives the same bytes.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, SourceSplit]
    origin: dict[str, Any] = field(default_factory=dict)


def array_split(images_nchw: np.ndarray, labels_n: np.ndarray) -> SourceSplit:
    """A split whose images are one uint8 [N, C, H, W] array (any strides) in memory."""
    _, channels, height, width = images_nchw.shape
    return SourceSplit(
        shape=(channels, height, width),
        labels_n=labels_n,
        blocks=lambda: array_blocks(images_nchw),
    )


def array_blocks(images_nchw: np.ndarray) -> Iterator[np.ndarray]:
    """Views of about `BLOCK_BYTES` each, in order."""
    rows = rows_per_block(images_nchw.shape[1:])
    for start in range(0, len(images_nchw), rows):
        yield images_nchw[start : start + rows]


def rows_per_block(shape: Sequence[int]) -> int:
    """Images of (C, H, W) uint8 in a block: at least one."""
    return max(1, BLOCK_BYTES // max(1, int(np.prod(shape))))


def checked_labels(labels_n: np.ndarray, num_classes: int, *, where: str) -> np.ndarray:
    """Labels as int64 [N], every one in [0, num_classes).

    Raises
    ------
    ValueError
        Naming `where`, the first position at fault and its value.
    """
    bad = np.flatnonzero((labels_n < 0) | (labels_n >= num_classes))
    if len(bad):
        raise ValueError(
            f"{where}: the label at position {bad[0]} is {labels_n[bad[0]]}, outside 0..{num_classes - 1} "
            f"({len(bad)} such): correct the file"
        )
    return np.ascontiguousarray(labels_n, dtype=np.int64)


def torchvision_download(dataset: str, root: Path) -> None:
    """Let torchvision's class `dataset` fetch its files into `root`; a one-line `OSError` where it cannot."""
    import torchvision  # heavy, and needed for this only

    try:
        getattr(torchvision.datasets, dataset)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise OSError(f"torchvision could not fetch {dataset} into {root}: {error}") from error
