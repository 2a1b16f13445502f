"""A dataset on disk (`NAME.hbr/`, plain `.npy` files and a `meta.json`): open, verify and describe it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast import progress
from hbr_fast.files import content_hash, read_json, sha256_of_file

SCHEMA = 1
META = "meta.json"

_REMEDY = "convert it again with --force"
_META_FIELDS: dict[str, type] = {
    "name": str,
    "source": dict,
    "classes": list,
    "mean": list,
    "std": list,
    "splits": dict,
    "files": dict,
}
_SUM_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset, opened. A row number is the sample's id.

    Attributes
    ----------
    name : str
        "train" or "test".
    images : uint8 [N, C, H, W]
        Memory-mapped, read-only, planar.
    labels : int64 [N]
        In memory, read-only; indices into `classes`.
    classes : tuple of str
    mean, std : float32 [C]
        Of the dataset's train split, pixels scaled to [0, 1].
    truth : float64 [N] or None
        The known hardness in [0, 1], larger being harder (synthetic datasets only).
    beton : Path or None
        A `.beton` with the same samples, for the FFCV backend to read.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    truth: np.ndarray | None = None
    beton: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def class_counts(self) -> np.ndarray:
        """Samples of each class, int64 [num_classes]."""
        return np.bincount(self.labels, minlength=self.num_classes)


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset.

    Attributes
    ----------
    path : Path
    name : str
    classes : tuple of str
    mean, std : tuple of float
        Per channel over all pixels of the train split, scaled to [0, 1]; the standard deviation is the
        population's.
    splits : mapping of str to Split
    fingerprint : str
        64 hex digits that change if and only if images, labels, truth, class names or the schema do.
    meta : dict
        The whole of `meta.json`.
    """

    path: Path
    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Split]
    fingerprint: str
    meta: dict[str, Any]

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def test(self) -> Split:
        return self.splits["test"]


@dataclass(frozen=True)
class Verification:
    """What `verify_dataset` went through without finding a fault."""

    path: Path
    files: int
    bytes: int
    samples: int
    fingerprint: str


@dataclass(frozen=True)
class SplitDescription:
    """Sizes of one split; `class_counts` is in the order of the classes."""

    samples: int
    shape: tuple[int, int, int]
    class_counts: tuple[int, ...]
    has_truth: bool


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


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open a dataset without reading its images.

    Checks schema, presence, sizes, shapes and types of the files; `verify_dataset` checks what is in them.

    Raises
    ------
    FileNotFoundError
        If there is no dataset at `path`, or one of its files is missing.
    ValueError
        If it is of another schema, or a file does not agree with `meta.json`: the message names the file.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no dataset at {path}: make one with hbr-fast convert SOURCE {path}")
    meta_path = path / META
    if not meta_path.is_file():
        raise FileNotFoundError(f"{meta_path} is missing, so {path} is not a dataset: {_REMEDY}")
    meta = _checked_meta(read_json(meta_path), meta_path)
    files = meta["files"]
    for name, entry in files.items():
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing: {_REMEDY}")
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{path / name} has {size} bytes instead of {entry['bytes']}: {_REMEDY}")

    classes = tuple(meta["classes"])
    mean, std = np.array(meta["mean"], dtype=np.float32), np.array(meta["std"], dtype=np.float32)
    splits: dict[str, Split] = {}
    for name, entry in meta["splits"].items():
        samples, shape, parts = entry["samples"], tuple(entry["shape"]), entry["files"]
        if len(shape) != 3 or not len(mean) == len(std) == shape[0]:
            raise ValueError(f"{meta_path}: shape {shape} of split {name!r} does not fit mean and std: {_REMEDY}")
        images = _load(path / parts["images"], np.uint8, (samples, *shape), mmap_mode="r")
        labels = _load(path / parts["labels"], np.int64, (samples,))
        truth = _load(path / parts["hardness"], np.float64, (samples,)) if "hardness" in parts else None
        splits[name] = Split(name, images, labels, classes, mean, std, truth)
    return Dataset(
        path=path,
        name=meta["name"],
        classes=classes,
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        splits=splits,
        fingerprint=fingerprint_of(files, classes),
        meta=meta,
    )


def verify_dataset(path: str | os.PathLike[str]) -> Verification:
    """Read a dataset whole and check everything that can be checked.

    Beyond `open_dataset`: every checksum, every label's range, a sample of every class in train, the truth's
    range, and channel mean and standard deviation computed again from the pixels.

    Raises
    ------
    FileNotFoundError, ValueError
        At the first fault: the message names the file and what to do.
    """
    dataset = open_dataset(path)
    files = dataset.meta["files"]
    total = sum(entry["bytes"] for entry in files.values())
    with progress.task(f"verify {dataset.path.name}", total=total, unit="bytes") as advance:
        for name, entry in files.items():
            if sha256_of_file(dataset.path / name) != entry["sha256"]:
                raise ValueError(f"{dataset.path / name} was changed after conversion (another checksum): {_REMEDY}")
            advance(entry["bytes"])
    if dataset.fingerprint != dataset.meta.get("fingerprint"):
        raise ValueError(f"{dataset.path / META} was changed after conversion (another fingerprint): {_REMEDY}")

    for name, split in dataset.splits.items():
        parts = dataset.meta["splits"][name]["files"]
        bad = np.flatnonzero((split.labels < 0) | (split.labels >= split.num_classes))
        if len(bad):
            raise ValueError(
                f"{dataset.path / parts['labels']}: "
                f"the label at position {bad[0]} is {split.labels[bad[0]]}, "
                f"outside 0..{split.num_classes - 1}: correct the source and {_REMEDY}"
            )
        if split.truth is not None and not np.all((split.truth >= 0) & (split.truth <= 1)):
            raise ValueError(f"{dataset.path / parts['hardness']} has values outside 0..1: {_REMEDY}")
    empty = np.flatnonzero(dataset.train.class_counts() == 0)
    if len(empty):
        labels_file = dataset.meta["splits"]["train"]["files"]["labels"]
        raise ValueError(
            f"{dataset.path / labels_file}: class {dataset.classes[empty[0]]!r} has no sample: "
            f"correct the source and {_REMEDY}"
        )
    mean, std = channel_mean_std(*_all_channel_sums(dataset.train.images))
    for field, stored, found in (("mean", dataset.mean, mean), ("std", dataset.std, std)):
        if not all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(stored, found, strict=True)):
            raise ValueError(f"{dataset.path / META}: {field} {stored} is not that of the pixels, {found}: {_REMEDY}")
    return Verification(
        path=dataset.path,
        files=len(files),
        bytes=total,
        samples=sum(len(split) for split in dataset.splits.values()),
        fingerprint=dataset.fingerprint,
    )


def describe(dataset: Dataset) -> Description:
    """Facts about an opened dataset, for printing."""
    splits = {
        name: SplitDescription(
            samples=len(split),
            shape=(split.images.shape[1], split.images.shape[2], split.images.shape[3]),
            class_counts=tuple(int(count) for count in split.class_counts()),
            has_truth=split.truth is not None,
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


def fingerprint_of(files: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Hash of what a dataset holds: checksums of its files, class names and schema."""
    checksums = {name: entry["sha256"] for name, entry in files.items()}
    return content_hash({"schema": SCHEMA, "classes": list(classes), "files": checksums})


def channel_sums(block_nchw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of each channel of a contiguous uint8 block, exact: int64 [C] each."""
    count, channels = block_nchw.shape[:2]
    planes = block_nchw.reshape(count * channels, -1)
    sums = planes.sum(axis=1, dtype=np.int64)
    squares = planes.astype(np.uint16)
    squares *= squares  # 255 squared fits into 16 bits
    return (
        sums.reshape(count, channels).sum(axis=0),
        squares.sum(axis=1, dtype=np.int64).reshape(count, channels).sum(axis=0),
    )


def channel_mean_std(
    pixels: int, sums_c: np.ndarray, squares_c: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, pixels scaled to [0, 1].

    Parameters
    ----------
    pixels : int
        Pixels a channel, over all images.
    sums_c, squares_c : int64 [C]
        Sums of the bytes and of their squares. All arithmetic up to the last division is in whole numbers.
    """
    mean = tuple(int(total) / (pixels * 255) for total in sums_c)
    std = tuple(
        math.sqrt(pixels * int(squares) - int(total) ** 2) / (pixels * 255)
        for total, squares in zip(sums_c, squares_c, strict=True)
    )
    return mean, std


def _all_channel_sums(images_nchw: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    count, channels, height, width = images_nchw.shape
    sums_c, squares_c = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)
    step = max(1, _SUM_BLOCK_BYTES // (channels * height * width))
    for start in range(0, count, step):
        sums, squares = channel_sums(images_nchw[start : start + step])
        sums_c += sums
        squares_c += squares
    return count * height * width, sums_c, squares_c


def _checked_meta(meta: Any, path: Path) -> dict[str, Any]:
    """`meta.json` with every field that opening relies on present and of its type."""
    if not isinstance(meta, dict) or "schema" not in meta:
        raise ValueError(f"{path} is not a dataset's description (it has no schema): {_REMEDY}")
    if meta["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema {meta['schema']!r} but this version of hbr-fast reads {SCHEMA}: "
            f"{_REMEDY} or use the version that wrote it"
        )
    for field, kind in _META_FIELDS.items():
        _require(meta.get(field), kind, field, path)
    for field, kind in (("classes", str), ("mean", float), ("std", float)):
        for index, value in enumerate(meta[field]):
            _require(value, kind, f"{field}[{index}]", path)
    for name, entry in meta["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} in files is not a plain file name: {_REMEDY}")
        _require(entry, dict, f"files.{name}", path)
        _require(entry.get("sha256"), str, f"files.{name}.sha256", path)
        _require(entry.get("bytes"), int, f"files.{name}.bytes", path)
    for field in ("train", "test"):
        _require(meta["splits"].get(field), dict, f"splits.{field}", path)
    for name, entry in meta["splits"].items():
        _require(entry, dict, f"splits.{name}", path)
        _require(entry.get("samples"), int, f"splits.{name}.samples", path)
        _require(entry.get("shape"), list, f"splits.{name}.shape", path)
        for index, side in enumerate(entry["shape"]):
            _require(side, int, f"splits.{name}.shape[{index}]", path)
        _require(entry.get("files"), dict, f"splits.{name}.files", path)
        for part in ("images", "labels"):
            _require(entry["files"].get(part), str, f"splits.{name}.files.{part}", path)
        for file in entry["files"].values():
            if file not in meta["files"]:
                raise ValueError(f"{path}: split {name!r} has a file {file!r} that is not under files: {_REMEDY}")
    return meta


def _require(value: Any, kind: type, field: str, path: Path) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{path}: field {field} is missing or not a {kind.__name__}: {_REMEDY}")


def _load(path: Path, dtype: type, shape: tuple[int, ...], *, mmap_mode: Any = None) -> np.ndarray:
    """A C-ordered, read-only array of exactly this type and shape."""
    try:
        array: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file ({error}): {_REMEDY}") from None
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)} instead of {np.dtype(dtype)} {list(shape)}: {_REMEDY}"
        )
    array.setflags(write=False)
    return array
