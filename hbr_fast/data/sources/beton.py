"""FFCV's files: `train.beton` and `test.beton` of a folder, images decoded block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hbr_fast.data.sources.source import Source, SourceSplit, checked_labels, rows_per_block
from hbr_fast.files import sha256_of_file

_ENDINGS = {"train": ("train",), "test": ("test", "val")}


def beton(*, root: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Source:
    """FFCV datasets of version 2, e.g. `cifar10.train.beton` and `cifar10.test.beton`.

    Parameters
    ----------
    root : path
        A folder with one file that ends in `train.beton`, and one that ends in `test.beton` or `val.beton`.
    size : (int, int), optional
        Height and width to resize to, which images of different sizes need.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, there are two, or one is not as `hbr_fast.data.beton.open_beton` wants it.
    """
    from hbr_fast.data.beton import Beton, read_beton, shape_of

    root = Path(root)
    found = {split: read_beton(_file(root, split)) for split in _ENDINGS}
    classes = tuple(map(str, range(1 + max(int(file.labels.max()) for file in found.values()))))

    def blocks(file: Beton) -> Iterator[np.ndarray]:
        rows = rows_per_block(shape_of(file, size))
        for start in range(0, len(file), rows):
            yield file.decoded(start, start + rows, size)

    splits = {
        split: SourceSplit(
            shape=shape_of(file, size),
            labels_n=checked_labels(file.labels, len(classes), where=f"{file.path} {file.label}"),
            blocks=partial(blocks, file),
        )
        for split, file in found.items()
    }
    origin = {
        "kind": "beton",
        "files": {file.path.name: sha256_of_file(file.path) for file in found.values()},
        "options": {} if size is None else {"size": list(size)},
    }
    return Source(root.resolve().name, classes, splits, origin)


def _file(root: Path, split: str) -> Path:
    endings = [f"{ending}.beton" for ending in _ENDINGS[split]]
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}: give the one with the files {' and '.join(endings)} as root"
        )
    files = sorted(path for path in root.glob("*.beton") if path.name.endswith(tuple(endings)))
    if not files:
        raise FileNotFoundError(f"{root} has no file that ends in {' or '.join(endings)}: put the {split} split there")
    if len(files) > 1:
        raise ValueError(f"{root} has {files[0].name} and {files[1].name}: keep one file of the {split} split there")
    return files[0]
