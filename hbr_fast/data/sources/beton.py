"""FFCV's files: `train.beton` and `test.beton` of a folder, images decoded block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hbr_fast.data.images import rows_per_block
from hbr_fast.data.sources.source import Source, SourceSplit, checked_labels
from hbr_fast.files import sha256_of_file

if TYPE_CHECKING:
    from hbr_fast.data.beton import Beton

_ENDINGS = {"train": ("train",), "test": ("test", "val")}


def beton(*, root: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Source:
    """FFCV datasets of version 2, e.g. `cifar10.train.beton` and `cifar10.test.beton`.

    Parameters
    ----------
    root : path
        A folder with one file that ends in `train.beton`, and one that ends in `test.beton` or `val.beton`.
    size : (int, int), optional
        Height and width to resize to, required if image sizes differ.

    Raises
    ------
    FileNotFoundError, ValueError
        If the train file is missing, there are two of a split, or `hbr_fast.data.beton.open_beton` refuses one. Without
        a test file there is only a train split.
    """
    from hbr_fast.data.beton import numbered_classes, read_beton

    root = Path(root)
    files = {split: _file(root, split) for split in _ENDINGS}
    if files["train"] is None:
        raise _missing(root, "train")
    found = {split: read_beton(file) for split, file in files.items() if file is not None}
    classes = numbered_classes(*found.values())
    splits = {split: _split(file, len(classes), size) for split, file in found.items()}
    origin = {
        "kind": "beton",
        "files": {file.path.name: sha256_of_file(file.path) for file in found.values()},
        "options": {} if size is None else {"size": list(size)},
    }
    return Source(root.resolve().name, classes, splits, origin, no_test=_missing(root, "test"))


def _split(file: Beton, num_classes: int, size: tuple[int, int] | None) -> SourceSplit:
    from hbr_fast.data.beton import shape_of

    return SourceSplit(
        shape=shape_of(file, size),
        labels_n=checked_labels(file.labels, num_classes, where=f"{file.path} {file.label}"),
        blocks=partial(_blocks, file, shape_of(file, size), size),
        origins=file.sources,
        subset=lambda _, rows_n: _split(
            replace(file, labels=file.labels[rows_n], place=file.place[rows_n]), num_classes, size
        ),
    )


def _blocks(file: Beton, shape: tuple[int, int, int], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    rows = rows_per_block(shape)
    for start in range(0, len(file), rows):
        yield file.decoded(start, start + rows, size)


def _endings(split: str) -> list[str]:
    return [f"{ending}.beton" for ending in _ENDINGS[split]]


def _missing(root: Path, split: str) -> FileNotFoundError:
    or_held_out = ", or hold a share of each class out with --test-fraction 0.2" if split == "test" else ""
    return FileNotFoundError(
        f"{root} has no file that ends in {' or '.join(_endings(split))}: put the {split} split there{or_held_out}"
    )


def _file(root: Path, split: str) -> Path | None:
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}: give the one with the files {' and '.join(_endings(split))} as root"
        )
    files = sorted(path for path in root.glob("*.beton") if path.name.endswith(tuple(_endings(split))))
    if len(files) > 1:
        raise ValueError(f"{root} has {files[0].name} and {files[1].name}: keep one file of the {split} split there")
    return files[0] if files else None
