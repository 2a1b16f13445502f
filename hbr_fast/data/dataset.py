"""A dataset on disk (`NAME.hbr/`, plain `.npy` files and a `meta.json`): opening it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data import remote
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import ImageStore, RawImages, in_words
from hbr_fast.data.meta_json import META, REMEDY, checked_meta
from hbr_fast.data.npy import read_npy
from hbr_fast.data.remote_shards import RemoteShards
from hbr_fast.data.sample_sources import PARTS, NamedSources, SampleSources, numbered_of_meta
from hbr_fast.data.shards import INDEX, INDEX_PART, SHARD_PART, STORE, ShardFiles
from hbr_fast.data.unconverted import not_a_dataset
from hbr_fast.data.views import Fit, checked_size
from hbr_fast.files import content_hash, relative_path, sha256_of_file
from hbr_fast.json_schema import read_sealed_json

_FINGERPRINT_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset, opened. A row number is the sample's id.

    Attributes
    ----------
    name : str
        "train", "test", "validation", or another that the dataset has.
    store : ImageStore
        The images; `RawImages` are uint8 [N, C, H, W], on disk memory-mapped and read-only; `EncodedImages` are
        pictures of any sizes (see `at_size`).
    labels : int64 [N]
        In memory, read-only; indices into `classes`.
    classes : tuple of str
    mean, std : float32 [C]
        Of the dataset's train split, pixels scaled to [0, 1].
    truth : float64 [N] or None
        The known hardness in [0, 1], larger being harder (synthetic datasets only).
    beton : Path or None
        A `.beton` with the same samples, for the FFCV backend to read.
    sources : SampleSources or None
        Where each sample came from, read on demand: `split.sources[17]` is a relative path, a member of an archive or
        a row of a file, e.g. `data_batch_1.bin[17]`. None in datasets of schema 1, which did not keep it.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> (data.train.image_shape, data.train.class_counts().tolist())
    ((1, 8, 8), [4, 4])
    """

    name: str
    store: ImageStore
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    truth: np.ndarray | None = None
    beton: Path | None = None
    sources: SampleSources | None = None

    def __repr__(self) -> str:
        images = in_words(self.store.image_shape)
        return f"<Split {self.name!r}: {len(self):,} {images}, {self.num_classes:,} classes>"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image.

        Raises
        ------
        ValueError
            If the images vary in size.
        """
        shape = self.store.image_shape
        if shape is None:
            raise ValueError(
                f"images of split {self.name!r} vary in size: choose one, e.g. split.at_size(224), Loader(size=224) or "
                "--set size=224"
            )
        return shape

    def at_size(self, size: int | tuple[int, int], fit: Fit = "crop") -> Split:
        """The split with its pictures as images of one size, H = W or (H, W), which they get when they are read.

        Parameters
        ----------
        size : int or (int, int)
        fit : {"crop", "pad", "stretch"}
            "crop": the shortest side becomes 256/224 of the size, and the middle is taken, as usual in evaluation;
            "pad": the whole picture, on black; "stretch": the whole picture, distorted.

        Raises
        ------
        ValueError
            If the split's images are stored at another size.
        """
        if isinstance(self.store, EncodedImages):
            return dataclasses.replace(self, store=self.store.at_size(size, fit))
        wanted = checked_size(size, fit)
        if self.image_shape[1:] != wanted:
            raise ValueError(
                f"images of split {self.name!r} are stored at {self.image_shape[1]} x {self.image_shape[2]} pixels, "
                f"not {wanted[0]} x {wanted[1]}: convert them with --size {wanted[0]} {wanted[1]}, or with --store "
                "encoded, which leaves the size open"
            )
        return self

    @property
    def images(self) -> np.ndarray:
        """The array of a split whose images are raw: uint8 [N, C, H, W].

        Raises
        ------
        ValueError
            If they are stored otherwise.
        """
        if not isinstance(self.store, RawImages):
            raise ValueError(f"images of split {self.name!r} are not one array: get some with split.store.gather(ids)")
        return self.store.array

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
        By name: "train", "test" and others that the dataset has.
    fingerprint : str
        64 hex digits that change if and only if images, labels, truth or class names change.
    meta : dict
        The whole of `meta.json`.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> (data.classes, len(data.train), len(data.test))
    (('class_0', 'class_1'), 8, 4)
    """

    path: Path
    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Split]
    fingerprint: str
    meta: dict[str, Any]

    def __repr__(self) -> str:
        splits = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        images = in_words(self.train.store.image_shape)
        about = f"{splits}; {images}, {len(self.classes):,} classes, fingerprint {self.fingerprint[:12]}"
        return f"<Dataset {self.name!r}: {about}>"

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def test(self) -> Split:
        return self.splits["test"]

    @property
    def validation(self) -> Split | None:
        """The split to choose by, if the dataset has one."""
        return self.splits.get("validation")

    @property
    def location(self) -> str:
        """What opens it in another process or on another machine: its URL if it is at one, else its path."""
        return remote.remote_url(self.path) or str(self.path)

    def seen_from(self, directory: Path) -> str:
        """What a file in a directory records of where the dataset is: a relative path, or its URL."""
        return remote.remote_url(self.path) or relative_path(self.path, directory)

    def at_size(self, size: int) -> Dataset:
        """The dataset with every split `at_size`; 0 is the dataset as it is.

        The fingerprint stays: it is that of what is stored.

        Raises
        ------
        ValueError
            As `Split.at_size`.
        """
        if size == 0:
            return self
        return dataclasses.replace(self, splits={name: split.at_size(size) for name, split in self.splits.items()})


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open a dataset without reading its images: a directory, or what fsspec finds at a URL, e.g. `s3://bucket/a.hbr`.

    Of a dataset at a URL, small files are copied to a local directory, and pictures when they are needed
    ([docs/photos.md](photos.md)).

    Checks schema, presence, sizes, shapes and types of the files and the checksums of `meta.json`, labels and truth.
    `verify_dataset` checks the images too, and `require_unchanged` does if they changed since they were last checked.

    Raises
    ------
    FileNotFoundError
        If there is no dataset at `path`, or one of its files is missing.
    ValueError
        If its schema differs, or a file does not agree with `meta.json`: the message names the file.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> open_dataset(f"{folder.name}/toy.hbr").fingerprint == data.fingerprint
    True
    """
    url = remote.url_of(path)
    path = Path(path) if url is None else remote.local_copy(url, META)
    meta_path = path / META
    if not meta_path.is_file():
        raise not_a_dataset(path, missing=META, remedy=REMEDY)
    meta = checked_meta(read_sealed_json(meta_path, remedy=REMEDY), meta_path)
    files = meta["files"]
    for name, entry in files.items():
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing: {REMEDY}")
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{path / name} has {size} bytes instead of {entry['bytes']}: {REMEDY}")

    classes = tuple(meta["classes"])
    mean, std = np.array(meta["mean"], dtype=np.float32), np.array(meta["std"], dtype=np.float32)
    splits: dict[str, Split] = {}
    for name, entry in meta["splits"].items():
        samples, parts = entry["samples"], entry["files"]
        store = _opened_store(path, name, entry, channels=len(mean) if len(mean) == len(std) else -1)
        labels = _load(path / parts["labels"], np.int64, (samples,))
        truth = _load(path / parts["hardness"], np.float64, (samples,)) if "hardness" in parts else None
        for part in ("labels", "hardness"):  # in memory: what they cost to read is spent already
            if part in parts and sha256_of_file(path / parts[part]) != files[parts[part]]["sha256"]:
                raise ValueError(f"{path / parts[part]} was changed after conversion (another checksum): {REMEDY}")
        sources = _sources(path, name, entry)
        splits[name] = Split(name, store, labels, classes, mean, std, truth, sources=sources)
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


def open_recorded(directory: Path, recorded: str) -> Dataset:
    """Open the dataset whose `seen_from` a file in a directory has."""
    return open_dataset(recorded if remote.url_of(recorded) else os.path.normpath(directory.resolve() / recorded))


def _opened_store(path: Path, name: str, entry: Mapping[str, Any], *, channels: int) -> RawImages | EncodedImages:
    samples, parts = entry["samples"], entry["files"]
    shape = (entry["channels"],) if entry.get("store") == STORE else tuple(entry["shape"])
    if len(shape) not in (1, 3) or channels != shape[0]:
        raise ValueError(f"{path / META}: shape {shape} of split {name!r} does not fit mean and std: {REMEDY}")
    if len(shape) == 3:
        return RawImages(_load(path / parts["images"], np.uint8, (samples, *shape), mapped=True))
    paths = [path / parts[part] for part in sorted(parts) if part.startswith(SHARD_PART)]
    index = _load(path / parts[INDEX_PART], INDEX, (samples,), mapped=True)
    url = remote.remote_url(path)
    shards = ShardFiles(paths) if url is None else RemoteShards(paths, url, index)
    return EncodedImages(shards, index, shape[0])


def fingerprint_of(files: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Hash of the training content: checksums of images, labels and truth, and class names.

    Sample sources are left out, and the schema stays that of datasets without them: stored members and plans refer to
    the dataset by this hash and stay valid when it is converted again. Sources have their own checksums.
    """
    not_learnt_from = tuple(f".{part}.npy" for part in PARTS)
    checksums = {name: entry["sha256"] for name, entry in files.items() if not name.endswith(not_learnt_from)}
    return content_hash({"schema": _FINGERPRINT_SCHEMA, "classes": list(classes), "files": checksums})


def _sources(path: Path, name: str, entry: Mapping[str, Any]) -> SampleSources | None:
    """The sample sources of a split's entry in `meta.json`, without reading any."""
    parts, samples = entry["files"], entry["samples"]
    if all(part in parts for part in PARTS):
        offsets = _load(path / parts[PARTS[1]], np.int64, (samples + 1,), mapped=True)
        return NamedSources(_load(path / parts[PARTS[0]], np.uint8, (int(offsets[-1]),), mapped=True), offsets)
    if "sources" not in entry:
        return None
    try:
        numbered = numbered_of_meta(entry["sources"])
    except ValueError as error:
        raise ValueError(f"{path / META}: field splits.{name}.sources {error}: {REMEDY}") from None
    if len(numbered) != samples:
        raise ValueError(
            f"{path / META}: field splits.{name}.sources is of {len(numbered)} samples, not {samples}: {REMEDY}"
        )
    return numbered


def _load(path: Path, dtype: Any, shape: tuple[int, ...], *, mapped: bool = False) -> np.ndarray:
    """A C-ordered, read-only array of exactly this type and shape."""
    array = read_npy(path, dtype=dtype, shape=shape, mapped=mapped, remedy=REMEDY)
    array.setflags(write=False)
    return array
