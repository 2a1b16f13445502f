"""Checks of a dataset's contents on disk: checksums, labels and pixel statistics."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hbr_fast import progress
from hbr_fast.data import remote
from hbr_fast.data.checksums import require_checksums
from hbr_fast.data.convert_encoded import pictures_mean_std
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import statistics_of
from hbr_fast.data.meta_json import META, REMEDY
from hbr_fast.data.sample_sources import NamedSources
from hbr_fast.files import sha256_of_file
from hbr_fast.json_schema import CHECKSUM
from hbr_fast.progress import printable

_NAMED = 100  # damaged pictures that a message lists


@dataclass(frozen=True)
class Verification:
    """What `verify_dataset` checked without finding a fault."""

    path: Path
    files: int
    bytes: int
    samples: int
    fingerprint: str


def verify_dataset(path: str | os.PathLike[str], *, fetch: bool = True) -> Verification:
    """Read the whole dataset and check everything that can be checked.

    Beyond `open_dataset`: every checksum, the range of every label, the offsets of source names, that train has a
    sample of every class, the range of the truth, and channel mean and standard deviation recomputed from the pixels.

    Parameters
    ----------
    path : path or URL
    fetch : bool
        Whether to read the shards of a dataset at a URL, too. Otherwise each picture is checked when it is read.

    Raises
    ------
    FileNotFoundError, ValueError
        At the first fault: the message names the file and what to do.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> verify_dataset(data.path).samples
    12
    """
    dataset = open_dataset(path)
    local = remote.local_files(dataset.path, dataset.meta)
    files = dataset.meta["files"] if fetch else local
    total = sum(entry["bytes"] for entry in files.values())
    damaged: list[str] = []
    with progress.task(f"verify {dataset.path.name}", total=total, unit="bytes") as advance:
        for name, entry in files.items():
            where = str(dataset.path / name) if name in local else f"{dataset.location}/{name}"
            sha256 = sha256_of_file(dataset.path / name) if name in local else remote.sha256_at(where)
            changed = sha256 != entry["sha256"]
            if changed and name in local and (pictures := _damaged_pictures(dataset, name)):
                damaged += pictures
            elif changed:
                raise ValueError(f"{where} was changed after conversion (another checksum): {REMEDY}")
            advance(entry["bytes"])
    if damaged:
        more = f"; and {len(damaged) - _NAMED:,} more" if len(damaged) > _NAMED else ""
        raise ValueError(
            f"{dataset.path}: changed after conversion (another checksum): {'; '.join(damaged[:_NAMED])}{more}: "
            f"{REMEDY}"
        )
    if dataset.fingerprint != dataset.meta.get("fingerprint"):
        raise ValueError(f"{dataset.path / META} was changed after conversion (another fingerprint): {REMEDY}")

    for name, split in dataset.splits.items():
        parts = dataset.meta["splits"][name]["files"]
        bad = np.flatnonzero((split.labels < 0) | (split.labels >= split.num_classes))
        if len(bad):
            raise ValueError(
                f"{dataset.path / parts['labels']}: "
                f"the label at position {bad[0]} is {split.labels[bad[0]]}, "
                f"outside 0..{split.num_classes - 1}: correct the source and {REMEDY}"
            )
        if isinstance(split.sources, NamedSources) and (
            split.sources.offsets[0] != 0 or not (np.diff(split.sources.offsets) > 0).all()
        ):
            raise ValueError(f"{dataset.path / parts['source_offsets']} does not rise from 0: {REMEDY}")
        if split.truth is not None and not np.all((split.truth >= 0) & (split.truth <= 1)):
            raise ValueError(f"{dataset.path / parts['hardness']} has values outside 0..1: {REMEDY}")
    empty = np.flatnonzero(dataset.train.class_counts() == 0)
    if len(empty):
        labels_file = dataset.meta["splits"]["train"]["files"]["labels"]
        raise ValueError(
            f"{dataset.path / labels_file}: class {dataset.classes[empty[0]]!r} has no sample: "
            f"correct the source and {REMEDY}"
        )
    _check_statistics(dataset)
    return Verification(
        path=dataset.path,
        files=len(files),
        bytes=total,
        samples=sum(len(split) for split in dataset.splits.values()),
        fingerprint=dataset.fingerprint,
    )


def require_unchanged(dataset: Dataset) -> None:
    """Check a dataset's files before a result is made from its pixels, unless they were since they last changed.

    Raises
    ------
    FileNotFoundError, ValueError
        Names the files that are missing or have other checksums.
    """
    files = dict(remote.local_files(dataset.path, dataset.meta))
    if files:
        files[META] = {"sha256": sha256_of_file(dataset.path / META)}
    read = require_checksums(dataset.path, files, remedy=REMEDY)
    # Whoever edits mean or std can make the checksum of meta.json fit. Those of encoded pictures would have to be
    # decoded: they are checked where nothing else protects them, in datasets of earlier versions.
    if read and (CHECKSUM not in dataset.meta or not isinstance(dataset.train.store, EncodedImages)):
        _check_statistics(dataset)


def _check_statistics(dataset: Dataset) -> None:
    store = dataset.train.store
    mean, std = pictures_mean_std(store) if isinstance(store, EncodedImages) else statistics_of(store)
    for field, stored, found in (("mean", dataset.mean, mean), ("std", dataset.std, std)):
        if not all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(stored, found, strict=True)):
            raise ValueError(f"{dataset.path / META}: {field} {stored} does not match the pixels, {found}: {REMEDY}")


def _damaged_pictures(dataset: Dataset, file: str) -> list[str]:
    """The pictures of a shard that are not as converted, for a message; none if it is no shard or they all are."""
    for name, split in dataset.splits.items():
        if not isinstance(split.store, EncodedImages):
            continue
        numbers = [n for n, path in enumerate(split.store.shards.paths) if path.name == file]
        rows = np.flatnonzero(np.isin(split.store.index["shard"], numbers)).tolist()
        found = [row for row in rows if not split.store.is_intact(row)]
        if found:
            sources = split.sources
            return [
                f"picture {row} of {name} in {file}{f' ({printable(sources[row])})' if sources is not None else ''}"
                for row in found
            ]
    return []
