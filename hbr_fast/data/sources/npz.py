"""Images and labels from one `.npz` file of arrays."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from hbr_fast.data.sources.source import Source, SourceSplit, array_split, checked_labels, rows_per_block
from hbr_fast.files import sha256_of_file

Layout = Literal["nhwc", "nchw"]


def npz(
    *,
    root: str | os.PathLike[str] | None = None,
    layout: Layout | None = None,
    test_fraction: float | None = None,
) -> Source:
    """Arrays `images`, `labels` (train) and `test_images`, `test_labels` of an `.npz` file.

    Parameters
    ----------
    root : path
        The file. Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3; labels are whole
        numbers [N]. Classes are numbered up to the largest label of both splits and named by their number,
        unless there is an array `classes` of strings.
    layout : {"nhwc", "nchw"}, optional
        Needed only where the shape fits both.
    test_fraction : float, optional
        In (0, 1). Where the test arrays are absent: the share of each class, rounded half up, set aside as
        the test split; always the same samples.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If an array is missing, of the wrong type or shape, holds objects, or the file is damaged: the message
        names file and array.
    """
    if root is None:
        raise ValueError("npz: say which file with --root")
    path = Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the .npz file as --root")
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ValueError(f"npz: test_fraction must be between 0 and 1, got {test_fraction}")
    arrays = _read(path)
    images_nchw, labels_n = _pair(arrays, "images", "labels", layout=layout, path=path)
    has_test = "test_images" in arrays or "test_labels" in arrays
    if has_test and test_fraction is not None:
        raise ValueError(f"{path} has test arrays of its own: leave out --test-fraction")
    if not has_test and test_fraction is None:
        raise ValueError(
            f"{path} lacks test_images and test_labels: add them, or set a share aside with --test-fraction 0.2"
        )

    options: dict[str, object] = {}
    if has_test:
        test_images_nchw, test_labels_n = _pair(arrays, "test_images", "test_labels", layout=layout, path=path)
        classes = _classes(arrays, labels_n, test_labels_n, path=path)
        labels_n = checked_labels(labels_n, len(classes), where=f"{path} labels")
        test_labels_n = checked_labels(test_labels_n, len(classes), where=f"{path} test_labels")
        splits = {
            "train": array_split(images_nchw, labels_n),
            "test": array_split(test_images_nchw, test_labels_n),
        }
    else:
        assert test_fraction is not None
        classes = _classes(arrays, labels_n, path=path)
        labels_n = checked_labels(labels_n, len(classes), where=f"{path} labels")
        is_test_n = _stratified(labels_n, len(classes), test_fraction)
        splits = {
            "train": _subset(images_nchw, labels_n, np.flatnonzero(~is_test_n)),
            "test": _subset(images_nchw, labels_n, np.flatnonzero(is_test_n)),
        }
        options = {"test_fraction": test_fraction}
    origin = {"kind": "npz", "files": {path.name: sha256_of_file(path)}, "options": options}
    return Source(path.stem, classes, splits, origin)


def _read(path: Path) -> dict[str, np.ndarray]:
    wanted = ("images", "labels", "test_images", "test_labels", "classes")
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with loaded as members:
            for name in wanted:
                if name in members.files:
                    arrays[name] = np.asarray(members[name])
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, OSError) as error:
        if "allow_pickle" in str(error) and name:
            raise ValueError(f"{path}: array {name!r} holds Python objects: save it as plain numbers") from None
        raise ValueError(f"{path} is not a readable .npz file ({error}): save it again with numpy.savez") from None
    return arrays


def _pair(
    arrays: dict[str, np.ndarray], images_name: str, labels_name: str, *, layout: Layout | None, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images as a [N, C, H, W] view and labels as they are, of one split."""
    for name in (images_name, labels_name):
        if name not in arrays:
            raise ValueError(f"{path} lacks the array {name!r}: save it with numpy.savez")
    images, labels_n = arrays[images_name], arrays[labels_name]
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: {images_name} is {images.dtype}, not uint8 (0..255): convert it")
    if labels_n.ndim != 1 or labels_n.dtype.kind not in "iu":
        raise ValueError(f"{path}: {labels_name} is {labels_n.dtype} {list(labels_n.shape)}, not whole numbers [N]")
    if images.ndim == 0 or len(images) != len(labels_n):
        raise ValueError(f"{path}: {images_name} has shape {list(images.shape)} but {labels_name} has {len(labels_n)}")
    return _planar(images, layout=layout, where=f"{path}: {images_name}"), labels_n


def _planar(images: np.ndarray, *, layout: Layout | None, where: str) -> np.ndarray:
    shape = list(images.shape)
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise ValueError(f"{where} has shape {shape}: it must be [N, H, W], [N, H, W, C] or [N, C, H, W]")
    fits = {"nhwc": shape[3] in (1, 3), "nchw": shape[1] in (1, 3)}
    if layout is None:
        if fits["nhwc"] and fits["nchw"]:
            raise ValueError(f"{where} has shape {shape}, which could be either layout: say --layout nhwc or nchw")
        layout = "nhwc" if fits["nhwc"] else "nchw"
    if layout not in fits:
        raise ValueError(f"npz: layout must be nhwc or nchw, got {layout!r}")
    if not fits[layout]:
        raise ValueError(f"{where} has shape {shape}: no place for 1 or 3 channels in layout {layout}")
    return images.transpose(0, 3, 1, 2) if layout == "nhwc" else images


def _classes(arrays: dict[str, np.ndarray], *labels: np.ndarray, path: Path) -> tuple[str, ...]:
    if "classes" not in arrays:
        count = max(int(labels_n.max(initial=0)) for labels_n in labels) + 1
        samples = sum(len(labels_n) for labels_n in labels)
        if count > max(samples, 1):
            raise ValueError(
                f"{path}: labels go up to {count - 1} with {samples} samples, so some class is empty: "
                "number the classes 0, 1, 2, ..."
            )
        return tuple(str(index) for index in range(count))
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"{path}: classes is {names.dtype} {list(names.shape)}, not a list of strings")
    return tuple(str(name) for name in names)


def _stratified(labels_n: np.ndarray, num_classes: int, fraction: float) -> np.ndarray:
    """Mask [N] of the test samples: the share `fraction` of each class, rounded half up."""
    order_n = np.random.Philox(key=0).random_raw(len(labels_n))
    is_test_n = np.zeros(len(labels_n), dtype=bool)
    for label in range(num_classes):
        members = np.flatnonzero(labels_n == label)
        count = int(Fraction(str(fraction)) * len(members) + Fraction(1, 2))
        is_test_n[members[np.argsort(order_n[members], kind="stable")[:count]]] = True
    return is_test_n


def _subset(images_nchw: np.ndarray, labels_n: np.ndarray, rows_n: np.ndarray) -> SourceSplit:
    """A split of some rows, gathered a block at a time."""
    shape = images_nchw.shape[1:]

    def blocks() -> Iterator[np.ndarray]:
        step = rows_per_block(shape)
        for start in range(0, len(rows_n), step):
            yield images_nchw[rows_n[start : start + step]]

    return SourceSplit(shape=shape, labels_n=labels_n[rows_n], blocks=blocks)
