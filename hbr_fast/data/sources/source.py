"""What a source of images passes to `convert`, and checks shared by all sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data.images import array_blocks, rows_per_block
from hbr_fast.data.sample_sources import SampleSources, SelectedSources
from hbr_fast.data.shards import Outcome


@dataclass(frozen=True, eq=False)
class SourceSplit:
    """One split of a source.

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
    origins : SampleSources [N] or None
        Where every image comes from, kept in the dataset: a path relative to the root, the member of an archive, or a
        row of a file (`NumberedSources`, `RowsOf`). None: its position in the source's split, `train[17]`.
    subset : callable or None
        Takes a split's name and rows, int64 ascending, and returns the split of that name with these rows only: for
        holding out a test split. None only for sources that always have both splits.
    """

    shape: tuple[int, int, int]
    labels_n: np.ndarray
    blocks: Callable[[], Iterable[np.ndarray]]
    truth_n: np.ndarray | None = None
    origins: SampleSources | None = None
    subset: Callable[[str, np.ndarray], SourceSplit] | None = None

    def __len__(self) -> int:
        return len(self.labels_n)


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """One split of a source whose pictures are stored encoded, in their own sizes.

    Attributes
    ----------
    channels : int
        1 or 3: of what decoding is to give.
    labels_n, origins, subset
        As in `SourceSplit`.
    outcomes : callable
        Takes the outcomes of the first files, as known from an interrupted conversion, and returns an iterator of those
        of the other files.
    identity : callable
        Returns JSON values that change if the files or what is stored of them change.
    """

    channels: int
    labels_n: np.ndarray
    outcomes: Callable[[Iterable[Outcome]], Iterable[Outcome]]
    identity: Callable[[], Any]
    origins: SampleSources | None = None
    subset: Callable[[str, np.ndarray], EncodedSplit] | None = None
    truth_n: None = None

    def __len__(self) -> int:
        return len(self.labels_n)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a source knows only after reading its images.

    Attributes
    ----------
    origin : dict
        Like `Source.origin`, now complete.
    left_out : mapping of str to int64 array
        By split, the rows that its blocks passed over, in ascending order.
    files : mapping of str to bytes
        Files about the conversion to keep inside the dataset, e.g. `skipped.csv`.
    notes : sequence of str
        Lines for the user, e.g. what was passed over and how often.
    """

    origin: dict[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """Images, labels and their origin, made by a function of this package.

    Attributes
    ----------
    name : str
        Name of the dataset.
    classes : tuple of str
        Class names; a label is an index into it.
    splits : mapping of str to SourceSplit or EncodedSplit
        "train", "test" and, if the input has one, "validation", of one kind; only "train" if the input has no test
        split, which `hold_out.with_test_split` adds.
    origin : dict
        What `meta.json` says about the origin: JSON values without times or absolute paths, so that the same
        input gives the same bytes.
    findings : callable, optional
        For a source that reads its files once: called after the blocks of every split were read.
    no_test : Exception, optional
        What to raise if there is no test split and none is to be held out: what is missing and what would do.
    also_missing : callable, optional
        Called with `no_test`: what other option it lacks, "images ...: give one with --size", or None.
    changed : sequence of str
        Files whose content is not the published one (`published.py`).
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Any]  # of either kind: a union would have to be narrowed at every use
    origin: dict[str, Any] = field(default_factory=dict)
    findings: Callable[[], Findings] | None = None
    no_test: Exception | None = None
    also_missing: Callable[[], str | None] | None = None
    changed: Sequence[str] = ()


def array_split(
    images_nchw: np.ndarray | Sequence[np.ndarray], labels_n: np.ndarray, *, origins: SampleSources | None = None
) -> SourceSplit:
    """A split of images in memory: uint8 [N, C, H, W] (any strides), or several such arrays one after another."""
    parts = [images_nchw] if isinstance(images_nchw, np.ndarray) else list(images_nchw)
    _, channels, height, width = parts[0].shape

    def subset(name: str, rows_n: np.ndarray) -> SourceSplit:
        return SourceSplit(
            shape=(channels, height, width),
            labels_n=labels_n[rows_n],
            blocks=lambda: _selected_blocks(parts, rows_n),
            origins=None if origins is None else SelectedSources(origins, rows_n),
        )

    return SourceSplit(
        shape=(channels, height, width),
        labels_n=labels_n,
        blocks=lambda: chain.from_iterable(map(array_blocks, parts)),
        origins=origins,
        subset=subset,
    )


def _selected_blocks(parts: Sequence[np.ndarray], rows_n: np.ndarray) -> Iterator[np.ndarray]:
    """Selected rows of arrays one after another, gathered block by block."""
    start = 0
    for part in parts:
        inside = rows_n[(rows_n >= start) & (rows_n < start + len(part))] - start
        step = rows_per_block(part.shape[1:])
        for at in range(0, len(inside), step):
            yield part[inside[at : at + step]]
        start += len(part)


def checked_labels(labels_n: np.ndarray, num_classes: int, *, where: str) -> np.ndarray:
    """Labels as int64 [N], every one in [0, num_classes).

    Raises
    ------
    ValueError
        Names `where`, the first bad position and its value.
    """
    bad = np.flatnonzero((labels_n < 0) | (labels_n >= num_classes))
    if len(bad):
        raise ValueError(
            f"{where}: the label at position {bad[0]} is {labels_n[bad[0]]}, outside 0..{num_classes - 1} "
            f"({len(bad)} such): correct the file"
        )
    return np.ascontiguousarray(labels_n, dtype=np.int64)


def torchvision_download(dataset: str, root: Path) -> None:
    """Let torchvision's class `dataset` fetch its files into `root`; raises a one-line `OSError` on failure."""
    import torchvision  # heavy, and needed for this only

    try:
        getattr(torchvision.datasets, dataset)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise OSError(f"torchvision could not fetch {dataset} into {root}: {error}") from error
