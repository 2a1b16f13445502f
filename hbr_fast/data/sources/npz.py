"""Images and labels from one `.npz` file of arrays, under our names, or those of Keras or MedMNIST."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from hbr_fast.data.npy import NPZ_DAMAGE, check_npz_member
from hbr_fast.data.sample_sources import NumberedSources
from hbr_fast.data.sources.source import Findings, Source, array_split, checked_labels
from hbr_fast.files import require_ordinary, sha256_of_file
from hbr_fast.progress import printable

Layout = Literal["nhwc", "nchw"]
_ORIGINS = {
    "train": "images",
    "test": "test_images",
    "validation": "val_images",
}  # in sources, whatever the file's names

# (images, labels) of each split, by naming convention.
_TRAIN = (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"))
_TEST = (("test_images", "test_labels"), ("x_test", "y_test"))
_VALIDATION = (("val_images", "val_labels"), ("validation_images", "validation_labels"), ("x_val", "y_val"))


def npz(*, root: str | os.PathLike[str] | None = None, layout: Layout | None = None) -> Source:
    """Images and labels in an `.npz` file.

    Their names are `images`, `labels` (train), `test_images`, `test_labels`; or MedMNIST's `train_images`, ...; or
    Keras's `x_train`, `y_train`, `x_test`, `y_test`. `val_images` (or `validation_images`, `x_val`) and its labels
    become the split "validation", or the test split if there is no other.

    Parameters
    ----------
    root : path
        The file. Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3; labels are whole
        numbers [N] or [N, 1], or one-hot [N, classes]. Classes are numbered up to the largest label of all splits and
        named by their number, unless there is an array `classes` of strings. If no label is 0 they count from 1.
    layout : {"nhwc", "nchw"}, optional
        Needed only where the shape fits both.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If an array is missing, of the wrong type or shape, holds objects, or the file is damaged: the message
        names file and array, and lists the arrays that are there.
    """
    if root is None:
        raise ValueError("npz: say which file with --root")
    path = Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the .npz file as --root")
    arrays, found = _read(path)
    train_names = next((pair for pair in _TRAIN if pair[0] in arrays or pair[1] in arrays), _TRAIN[0])
    others = [
        pair for named in (_TEST, _VALIDATION) if (pair := next((p for p in named if set(p) & arrays.keys()), None))
    ]
    pairs = {"train": train_names, **dict(zip(("test", "validation"), others, strict=False))}
    read = {split: _pair(arrays, *names, layout=layout, path=path, found=found) for split, names in pairs.items()}
    first = _first_label(*(labels_n for _, labels_n in read.values()))
    numbered = {split: labels_n - first for split, (_, labels_n) in read.items()}
    classes = _classes(arrays, *numbered.values(), first=first, path=path)
    splits = {}
    for split, (images_nchw, _) in read.items():
        labels_n = checked_labels(numbered[split], len(classes), where=f"{path} {pairs[split][1]}")
        origins = NumberedSources([(_ORIGINS[split], len(labels_n))])
        splits[split] = array_split(images_nchw, labels_n, origins=origins)
    origin = {"kind": "npz", "files": {path.name: sha256_of_file(path)}, "options": {}}
    unused = [name for name in found if name not in {*(one for pair in pairs.values() for one in pair), "classes"}]
    notes = [f"passed over the arrays {', '.join(unused)}"] if unused else []
    return Source(
        path.stem,
        classes,
        splits,
        origin,
        lambda: Findings(origin, notes=notes),
        ValueError(
            f"{path} lacks test_images and test_labels: it has {', '.join(found)}; add them, or set a share aside "
            "with --test-fraction 0.2"
        ),
    )


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays with known names, and the names of all."""
    wanted = {name for pair in (*_TRAIN, *_TEST, *_VALIDATION) for name in pair} | {"classes"}
    arrays: dict[str, np.ndarray] = {}
    name = ""
    require_ordinary(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = [file.removesuffix(".npy") for file in archive.namelist()]
            names = [name for name in found if name in wanted]
            for name in names:
                check_npz_member(path, archive, name)
        with np.load(path, allow_pickle=False) as members:
            for name in names:
                arrays[name] = np.asarray(members[name])
    except MemoryError:
        raise ValueError(f"{path}: array {name!r} does not fit into memory: split the file") from None
    # The last two mean an encrypted archive or an unknown compression method.
    except NPZ_DAMAGE as error:
        if "allow_pickle" in str(error) and name:
            raise ValueError(f"{path}: array {name!r} holds Python objects: save it as plain numbers") from None
        raise ValueError(f"{path} is not a readable .npz file ({error}): save it again with numpy.savez") from None
    return arrays, found


def _pair(
    arrays: dict[str, np.ndarray],
    images_name: str,
    labels_name: str,
    *,
    layout: Layout | None,
    path: Path,
    found: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Images of one split as a [N, C, H, W] view, and its labels as stored."""
    for name in (images_name, labels_name):
        if name not in arrays:
            held = printable(", ".join(found)) or "none"
            raise ValueError(f"{path} lacks the array {name!r} (it has {held}): save it with numpy.savez")
    images, labels_n = arrays[images_name], _as_numbers(arrays[labels_name])
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: {images_name} is {images.dtype}, not uint8 (0..255): convert it")
    if labels_n.ndim != 1 or labels_n.dtype.kind not in "iu":
        raise ValueError(f"{path}: {labels_name} is {labels_n.dtype} {list(labels_n.shape)}, not whole numbers [N]")
    if images.ndim == 0 or len(images) != len(labels_n):
        raise ValueError(f"{path}: {images_name} has shape {list(images.shape)} but {labels_name} has {len(labels_n)}")
    return _planar(images, layout=layout, where=f"{path}: {images_name}"), labels_n


def _as_numbers(labels: np.ndarray) -> np.ndarray:
    """Convert labels [N, 1] and one-hot labels [N, classes] to [N]; others are returned unchanged."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        is_one = labels == 1
        if np.array_equal(labels, is_one) and (is_one.sum(axis=1) == 1).all():
            return is_one.argmax(axis=1)
    return labels


def _first_label(*labels: np.ndarray) -> int:
    """1 if the labels of all splits count from 1, else 0."""
    return int(min(labels_n.min(initial=2) for labels_n in labels) == 1)


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


def _classes(arrays: dict[str, np.ndarray], *labels: np.ndarray, first: int, path: Path) -> tuple[str, ...]:
    if "classes" not in arrays:
        count = max(int(labels_n.max(initial=0)) for labels_n in labels) + 1
        samples = sum(len(labels_n) for labels_n in labels)
        if count > max(samples, 1):
            raise ValueError(
                f"{path}: labels go up to {count - 1} with {samples} samples, so some class is empty: "
                "number the classes 0, 1, 2, ..."
            )
        return tuple(str(first + index) for index in range(count))
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"{path}: classes is {names.dtype} {list(names.shape)}, not a list of strings")
    return tuple(str(name) for name in names)
