"""Pools of generated images: an hbr-fast dataset, or an `.npz` or `.npy` file, converted once to plain arrays."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

import numpy as np

from hbr_fast import progress
from hbr_fast.data.checksums import require_checksums
from hbr_fast.data.dataset import Dataset, Split, open_dataset
from hbr_fast.data.images import RawImages, rows_per_block
from hbr_fast.data.npy import NPZ_DAMAGE, check_npz_member, npy_header, read_npy, read_npz
from hbr_fast.data.sample_sources import NumberedSources
from hbr_fast.data.verify import require_unchanged
from hbr_fast.files import atomic_directory, content_hash, require_ordinary, sha256_of_file
from hbr_fast.json_schema import Natural, read_sealed_json, require_schema, write_sealed_json

SCHEMA = 1
META = "pool.json"
IMAGES, LABELS = ("images", "image"), ("labels", "label")  # array names in published pools


class _File(TypedDict):
    sha256: str


class _Meta(TypedDict):
    """`pool.json`, beside its schema; earlier versions wrote neither `file` nor `files`."""

    fingerprint: str
    images: NotRequired[Natural]
    file: NotRequired[str]
    files: NotRequired[dict[str, _File]]


@dataclass(frozen=True, eq=False)
class Pool:
    """A pool of images, opened.

    Attributes
    ----------
    path : Path
        Location of its arrays: `open_pool` opens it again in another process.
    fingerprint : str
        Hash of its content.
    split : Split
        Images, memory-mapped, and labels: a store of a `Loader`.
    """

    path: Path
    fingerprint: str
    split: Split

    def __repr__(self) -> str:
        return f"<Pool {self.path.name!r}: {self.split!r}, fingerprint {self.fingerprint[:12]}>"


def open_pool(path: str | os.PathLike[str], *, dataset: Dataset, cache: Path | None = None) -> Pool:
    """Open a pool of images for a dataset.

    Parameters
    ----------
    path : path
        An hbr-fast dataset, whose train split is the pool; an `.npz` file with arrays `images` (or `image`) and
        `labels` (or `label`); an `.npy` file of images with "images" in its name, beside a file of labels of the same
        name with "labels"; or a directory that this function wrote. Images are uint8 [N, H, W], [N, H, W, C] or
        [N, C, H, W].
    dataset : Dataset
        The pool must have its classes and image shape.
    cache : path, optional
        Where files are written as plain arrays, once, a block at a time: millions of images need little memory.
        Required for files.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a pool, or its images or labels do not fit the dataset.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> more = convert("synthetic", f"{folder.name}/more.hbr", **{**sizes, "train_per_class": 6})
    >>> len(open_pool(more.path, dataset=data).split)
    12
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no pool at {path}: give a dataset, an .npz or an .npy file")
    if path.is_dir():
        pool = _of_directory(path, dataset) if (path / META).is_file() else _of_dataset(path, dataset)
    else:
        if cache is None:
            raise ValueError(f"{path} is a file: say where its images are to be kept as plain arrays")
        target = cache / f"pool-{_fingerprint_of_file(path)[:20]}"
        if not _is_whole(target):
            _write(path, target, dataset.train.image_shape)
        pool = _of_directory(target, dataset)
    shape = dataset.train.image_shape
    if pool.split.image_shape != shape:
        raise ValueError(
            f"images of {path} are {list(pool.split.image_shape)} but those of {dataset.path} are {list(shape)} "
            "(channels, height, width): make them alike"
        )
    labels = pool.split.labels
    if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < len(dataset.classes):
        raise ValueError(
            f"labels of pool {path} must be classes in [0, {len(dataset.classes)}) of {dataset.path}, got "
            f"{f'some from {labels.min()} to {labels.max()}' if len(labels) else 'none'}"
        )
    return pool


def _of_dataset(path: Path, dataset: Dataset) -> Pool:
    opened = open_dataset(path)
    if opened.classes != dataset.classes:
        raise ValueError(f"pool {path} has other classes than {dataset.path}: give both the same, in the same order")
    require_unchanged(opened)
    return Pool(path, opened.fingerprint, opened.train)


def _is_whole(target: Path) -> bool:
    """Whether a pool's arrays are there as they were written; if they are damaged, that is reported."""
    if not target.exists():
        return False
    try:
        meta = _meta_of(target)
        require_checksums(target, meta.get("files", {}), remedy="writing them again")
    except (FileNotFoundError, ValueError) as error:
        progress.say(str(error))
        return False
    return "files" in meta


def _meta_of(path: Path) -> dict[str, Any]:
    remedy = f"remove {path} and open the pool's file again"
    meta: Any = read_sealed_json(path / META, remedy=remedy)
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise ValueError(f"{path / META} is not a pool of schema {SCHEMA}: {remedy}")
    require_schema(meta, _Meta, where=str(path / META), remedy=remedy)
    return dict(meta)


def _of_directory(path: Path, dataset: Dataset) -> Pool:
    meta = _meta_of(path)
    remedy = f"remove {path} and open the pool's file again"
    require_checksums(path, meta.get("files", {}), remedy=remedy)
    images = read_npy(path / "images.npy", mapped=True, remedy=remedy)
    labels = read_npy(path / "labels.npy", dtype=np.int64, shape=images.shape[:1], remedy=remedy)
    train = dataset.train
    # Pools written by earlier versions do not name their file.
    sources = NumberedSources([(meta["file"], len(labels))]) if "file" in meta else None
    split = Split("pool", RawImages(images), labels, dataset.classes, train.mean, train.std, sources=sources)
    return Pool(path, meta["fingerprint"], split)


def _fingerprint_of_file(path: Path) -> str:
    """Hash of the file, combined with that of its label file if it has one."""
    beside = None if path.suffix == ".npz" and path.is_file() else _labels_beside(path)
    own = sha256_of_file(path)
    return own if beside is None else content_hash([own, sha256_of_file(beside)])


def _labels_beside(path: Path) -> Path:
    beside = path.with_name(path.name.replace("images", "labels"))
    if path.suffix != ".npy" or beside == path or not beside.is_file():
        raise ValueError(
            f"{path} is not a pool: give a dataset, an .npz file with images and labels, or NAME.images.npy beside "
            "NAME.labels.npy"
        )
    return beside


def _write(path: Path, target: Path, shape: tuple[int, ...]) -> None:
    require_ordinary(path)
    if path.suffix == ".npz":
        labels = _npz_labels(path)
        with zipfile.ZipFile(path) as archive, archive.open(_member(archive, IMAGES, path)) as file:
            _write_arrays(file, path, labels, target, shape)
    else:
        labels = read_npy(_labels_beside(path))
        with open(path, "rb") as file:
            _write_arrays(file, path, labels, target, shape)


def _npz_labels(path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            name = _member(archive, LABELS, path).removesuffix(".npy")
            for array in (name, _member(archive, IMAGES, path).removesuffix(".npy")):
                check_npz_member(path, archive, array)
    except NPZ_DAMAGE as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}): fetch it again") from None
    return read_npz(path, name, remedy="fetch it again")


def _member(archive: zipfile.ZipFile, names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if f"{name}.npy" in archive.namelist():
            return f"{name}.npy"
    raise ValueError(f"{path} lacks the array {names[0]!r}: save images and labels with numpy.savez")


def _write_arrays(file: IO[bytes], path: Path, labels: np.ndarray, target: Path, shape: tuple[int, ...]) -> None:
    """Write planar copies of the images, streamed block by block, and of the labels."""
    count, stored, blocks = _stream(file, path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"{path} has {count} images but labels of {labels.dtype} {list(labels.shape)}")
    flat, channels_last = stored == shape[1:] and shape[0] == 1, stored == (*shape[1:], shape[0]) and stored != shape
    if stored != shape and not flat and not channels_last:
        raise ValueError(f"{path} has images of {list(stored)}, the dataset of {list(shape)}: make them alike")
    with (
        atomic_directory(target, force=True) as directory,
        progress.task("pool", total=count, unit="images") as advance,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        with open(directory / "images.npy", "wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            for block in blocks:
                planar = block.transpose(0, 3, 1, 2) if channels_last else block
                out.write(np.ascontiguousarray(planar).data)
                advance(len(block))
        np.save(directory / "labels.npy", labels.astype(np.int64), allow_pickle=False)
        meta = {"schema": SCHEMA, "fingerprint": _fingerprint_of_file(path), "images": count, "file": path.name}
        meta["files"] = {name: {"sha256": sha256_of_file(directory / name)} for name in ("images.npy", "labels.npy")}
        write_sealed_json(directory / META, meta)


def _stream(file: IO[bytes], path: Path) -> tuple[int, tuple[int, ...], Iterator[np.ndarray]]:
    """Number of images in an `.npy` stream, their shape, and blocks of them."""
    try:
        shape, fortran, dtype = npy_header(file)
    except NPZ_DAMAGE as error:
        raise ValueError(f"{path} does not hold an array of images ({error}): save it with numpy") from None
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4):
        raise ValueError(
            f"{path} has images of {dtype} {list(shape)}, not uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]"
        )
    stored = tuple(int(side) for side in shape[1:])

    def blocks() -> Iterator[np.ndarray]:
        left, step, size = shape[0], rows_per_block(stored), math.prod(stored)
        while left:
            rows = min(step, left)
            try:
                content: Any = file.read(rows * size)
            except NPZ_DAMAGE as error:
                raise ValueError(f"{path} is damaged ({error}): fetch it again") from None
            if len(content) != rows * size:
                raise ValueError(f"{path} ends {left - len(content) // size} images early: fetch it again")
            yield np.frombuffer(content, np.uint8).reshape(rows, *stored)
            left -= rows

    return int(shape[0]), stored, blocks()
