"""Pools of generated images: a dataset of ours, or an `.npz` or `.npy` file that is written once as plain arrays."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset, Split, open_dataset
from hbr_fast.data.sources.source import rows_per_block
from hbr_fast.files import atomic_directory, content_hash, read_json, sha256_of_file, write_json

SCHEMA = 1
META = "pool.json"
IMAGES, LABELS = ("images", "image"), ("labels", "label")  # what published pools call their arrays


@dataclass(frozen=True, eq=False)
class Pool:
    """A pool of images, opened.

    Attributes
    ----------
    path : Path
        Where its arrays are: `open_pool` opens it again in another process.
    fingerprint : str
        Of its content.
    split : Split
        Images, memory-mapped, and labels: a store of a `Loader`.
    """

    path: Path
    fingerprint: str
    split: Split


def open_pool(path: str | os.PathLike[str], *, dataset: Dataset, cache: Path | None = None) -> Pool:
    """Open a pool of images for a dataset.

    Parameters
    ----------
    path : path
        A dataset of ours, whose train split is the pool; an `.npz` file with arrays `images` (or `image`) and `labels`
        (or `label`); an `.npy` file of images with "images" in its name, beside one of labels of the same name with
        "labels"; or a directory that this function wrote. Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W].
    dataset : Dataset
        Its classes and the shape of its images are the pool's.
    cache : path, optional
        Where files are written as plain arrays, once, a block at a time: millions of images need little memory. Needed
        for files.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a pool, or its images or labels do not fit the dataset.
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
        if not target.exists():
            _write(path, target, dataset.train.images.shape[1:])
        pool = _of_directory(target, dataset)
    shape = dataset.train.images.shape[1:]
    if pool.split.images.shape[1:] != shape:
        raise ValueError(
            f"images of {path} are {list(pool.split.images.shape[1:])} but those of {dataset.path} are {list(shape)} "
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
    return Pool(path, opened.fingerprint, opened.train)


def _of_directory(path: Path, dataset: Dataset) -> Pool:
    meta = read_json(path / META)
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{path / META} is not a pool of schema {SCHEMA}: remove {path} and open the pool's file again"
        )
    images: np.ndarray = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
    labels: np.ndarray = np.load(path / "labels.npy", allow_pickle=False)
    train = dataset.train
    return Pool(path, meta["fingerprint"], Split("pool", images, labels, dataset.classes, train.mean, train.std))


def _fingerprint_of_file(path: Path) -> str:
    """Of the file, with that of its labels' file where it has one."""
    own = sha256_of_file(path)
    return own if path.suffix == ".npz" else content_hash([own, sha256_of_file(_labels_beside(path))])


def _labels_beside(path: Path) -> Path:
    beside = path.with_name(path.name.replace("images", "labels"))
    if path.suffix != ".npy" or beside == path or not beside.is_file():
        raise ValueError(
            f"{path} is not a pool: give a dataset, an .npz file with images and labels, or NAME.images.npy beside "
            "NAME.labels.npy"
        )
    return beside


def _write(path: Path, target: Path, shape: tuple[int, ...]) -> None:
    if path.suffix == ".npz":
        labels = _npz_labels(path)
        with zipfile.ZipFile(path) as archive, archive.open(_member(archive, IMAGES, path)) as file:
            _write_arrays(file, path, labels, target, shape)
    else:
        labels = np.load(_labels_beside(path), allow_pickle=False)
        with open(path, "rb") as file:
            _write_arrays(file, path, labels, target, shape)


def _npz_labels(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        name = _member(archive, LABELS, path).removesuffix(".npy")
    with np.load(path, allow_pickle=False) as arrays:
        labels: np.ndarray = arrays[name]
    return labels


def _member(archive: zipfile.ZipFile, names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if f"{name}.npy" in archive.namelist():
            return f"{name}.npy"
    raise ValueError(f"{path} lacks the array {names[0]!r}: save images and labels with numpy.savez")


def _write_arrays(file: IO[bytes], path: Path, labels: np.ndarray, target: Path, shape: tuple[int, ...]) -> None:
    """Planar copies of the images, which stream through memory, and of the labels."""
    count, stored, blocks = _stream(file, path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"{path} has {count} images but labels of {labels.dtype} {list(labels.shape)}")
    flat, channels_last = stored == shape[1:] and shape[0] == 1, stored == (*shape[1:], shape[0]) and stored != shape
    if stored != shape and not flat and not channels_last:
        raise ValueError(f"{path} has images of {list(stored)}, the dataset of {list(shape)}: make them alike")
    with atomic_directory(target) as directory, progress.task("pool", total=count, unit="images") as advance:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        with open(directory / "images.npy", "wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            for block in blocks:
                planar = block.transpose(0, 3, 1, 2) if channels_last else block
                out.write(np.ascontiguousarray(planar).data)
                advance(len(block))
        np.save(directory / "labels.npy", labels.astype(np.int64), allow_pickle=False)
        write_json(directory / META, {"schema": SCHEMA, "fingerprint": _fingerprint_of_file(path), "images": count})


def _stream(file: IO[bytes], path: Path) -> tuple[int, tuple[int, ...], Iterator[np.ndarray]]:
    """Number of images in an `.npy` stream, the shape of one, and blocks of them."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise ValueError(f"{path} does not hold an array of images ({error}): save it with numpy") from None
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4):
        raise ValueError(
            f"{path} has images of {dtype} {list(shape)}, not uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]"
        )
    stored = tuple(int(side) for side in shape[1:])

    def blocks() -> Iterator[np.ndarray]:
        left, step, size = int(shape[0]), rows_per_block(stored), int(np.prod(stored))
        while left:
            rows = min(step, left)
            content: Any = file.read(rows * size)
            if len(content) != rows * size:
                raise ValueError(f"{path} ends {left - len(content) // size} images early: fetch it again")
            yield np.frombuffer(content, np.uint8).reshape(rows, *stored)
            left -= rows

    return int(shape[0]), stored, blocks()
