"""Labelled datasets of `torchvision.datasets`, by name, from files on disk or downloaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hbr_fast import progress
from hbr_fast.arguments import near_names
from hbr_fast.data.images import rows_per_block
from hbr_fast.data.sample_sources import NumberedSources, SampleSources, SelectedSources
from hbr_fast.data.sources.headers import Mode
from hbr_fast.data.sources.pictures import Decoding, Fit, planar_pixels
from hbr_fast.data.sources.published import MD5, is_changed, md5_of, pieces_of
from hbr_fast.data.sources.source import Source, SourceSplit, array_split, checked_labels
from hbr_fast.data.sources.trees import PackedNames

# torchvision's names for our splits; the first one that a class accepts is used.
_SPLITS = {"train": ("train", "trainval"), "test": ("test", "val", "valid")}
_VALIDATION = ("val", "valid")  # where the class has another test split
_PUBLISHED = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}  # the keys of their unpacked files in `published.MD5`
# Attributes in which torchvision's classes keep the paths of their pictures, alone or with the labels.
_PATHS = ("samples", "_samples", "imgs", "_image_files", "_images", "data")
_OWN = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}  # torchvision unpickles these, which can run arbitrary code


def torchvision(
    *,
    name: str,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    split: str | None = None,
    size: tuple[int, int] | None = None,
    resize: Fit = "stretch",
    mode: Mode = "auto",
) -> Source:
    """A dataset of a torchvision class: `torchvision:SVHN`, `torchvision:STL10`, `torchvision:Food101`, ...

    Parameters
    ----------
    name : str
        Name of the torchvision class, whose items must be pictures with one class each.
    root : path
        Where torchvision keeps its files.
    download : bool
        Whether torchvision may fetch what is missing into `root`.
    split : str, optional
        For datasets with variants besides train and test: EMNIST's "letters", "balanced", ...
    size, resize, mode : optional
        As in `folder`.

    Raises
    ------
    FileNotFoundError
        If the files are not in `root`.
    OSError
        If a download fails.
    ValueError
        If there is no such class, or its samples are not pictures with one class each.
    """
    import torchvision as library  # heavy, and needed for this only

    if name not in library.datasets.__all__:
        near = near_names(name, library.datasets.__all__)
        hint = f"did you mean {' or '.join(near)}?" if near else "see torchvision.datasets"
        raise ValueError(f"torchvision has no dataset {name!r}: {hint}")
    if name in _OWN:
        raise ValueError(
            f"torchvision unpickles {name}, which can run arbitrary code: convert the source {_OWN[name]} instead"
        )
    if root is None:
        raise ValueError(f"torchvision:{name}: say where its files are, or are to go, with --root")
    made = _made(getattr(library.datasets, name), name, Path(root), download=download, variant=split)
    classes = _classes(made)
    labels = {key: checked_labels(_labels(one, name), len(classes), where=f"{name} {key}") for key, one in made.items()}
    used = np.unique(np.concatenate(list(labels.values())))
    if classes[0] == "N/A" and 0 not in used:  # EMNIST's letters count from 1
        classes, labels = classes[1:], {key: labels_n - 1 for key, labels_n in labels.items()}
    splits = {
        key: _split(one, labels[key], _origins(one, key, Path(root)), mode=mode, how=Decoding(size, resize))
        for key, one in made.items()
    }
    options = {"split": split, "size": size and list(size)}
    origin = {"kind": f"torchvision:{name}", "options": {key: v for key, v in options.items() if v is not None}}
    no_test = ValueError(f"torchvision:{name} has no test split: hold one out with --test-fraction 0.2")
    changed = sorted({str(path) for one in made.values() for path in _changed(one, name)})
    return Source(name.lower(), tuple(classes), splits, origin, no_test=no_test, changed=changed)


def _made(kind: Any, name: str, root: Path, *, download: bool, variant: str | None) -> dict[str, Any]:
    """The dataset objects by split: only "train" for a class without splits."""
    takes = _parameters(kind)
    common: dict[str, Any] = {"download": True} if download and "download" in takes else {}
    if variant is not None:
        if "split" not in takes:
            raise ValueError(f"torchvision:{name} has no variants: leave out --split")
        common["split"] = variant
    if "train" in takes:
        return {key: _open(kind, name, root, common | {"train": key == "train"}) for key in _SPLITS}
    if "split" not in takes or variant is not None:
        return {"train": _open(kind, name, root, common)}
    made, taken = {}, {}
    for key, names in _SPLITS.items():
        made[key], taken[key] = _first(kind, name, root, common, names)
    if taken["test"] not in _VALIDATION:
        try:
            made["validation"], _ = _first(kind, name, root, common, _VALIDATION)
        except ValueError:  # the class has none
            pass
        except FileNotFoundError as error:
            progress.say(f"{error}; going on without a validation split")
    return made


def _first(kind: Any, name: str, root: Path, options: dict[str, Any], splits: Sequence[str]) -> tuple[Any, str]:
    """The first of some splits that the class has, and its name."""
    refusals = []
    for one in splits:
        try:
            return _open(kind, name, root, options | {"split": one}), one
        except ValueError as error:  # torchvision's error for an unknown split
            refusals.append(error)
    raise ValueError(f"torchvision:{name}: {refusals[0]}")


def _parameters(kind: type) -> set[str]:
    """The constructor arguments of a class, including those that it passes on to its base classes."""
    names: set[str] = set()
    for one in kind.__mro__:
        if "__init__" in vars(one):
            parameters = inspect.signature(one.__init__).parameters  # type: ignore[misc]
            names |= set(parameters)
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def _open(kind: Any, name: str, root: Path, options: dict[str, Any]) -> Any:
    try:
        return kind(str(root), **options)
    except TypeError as error:
        raise ValueError(f"torchvision:{name} cannot be made with a root and a split alone: {error}") from None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if options.get("download"):
            raise OSError(f"torchvision could not fetch {name} into {root}: {reason}") from error
        raise FileNotFoundError(
            f"torchvision:{name} is not in {root} ({reason}): put its files there, or allow --download"
        ) from None


def _classes(made: dict[str, Any]) -> list[str]:
    names = getattr(made["train"], "classes", None)
    if names is not None and all(isinstance(one, str) for one in names):
        return list(names)
    if names is not None:  # ImageNet has several names per class
        return [one if isinstance(one, str) else str(one[0]) for one in names]
    return [str(number) for number in range(1 + max(int(_labels(one, "").max()) for one in made.values()))]


def _labels(dataset: Any, name: str) -> np.ndarray:
    """int64 [N], from a common attribute if there is one, else sample by sample."""
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            labels_n = np.asarray(found)
            if labels_n.ndim == 1 and labels_n.dtype.kind in "iu":
                return labels_n.astype(np.int64)
    labels = [dataset[row][1] for row in range(len(dataset))]
    if not all(isinstance(label, int | np.integer) for label in labels):
        raise ValueError(f"torchvision:{name} does not give one class per picture: it is a dataset for another task")
    return np.array(labels, dtype=np.int64)


def _array(dataset: Any) -> np.ndarray | None:
    """All pictures as one uint8 [N, C, H, W] array, if the class holds them like that."""
    found = getattr(dataset, "data", None)
    if found is None or len(found) != len(dataset):
        return None
    pixels = np.asarray(found)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        return None
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels if pixels.shape[1] in (1, 3) else pixels.transpose(0, 3, 1, 2)


def _origins(dataset: Any, split: str, root: Path) -> SampleSources:
    """Paths relative to the root if the class keeps one for each picture, else positions in the split."""
    for attribute in _PATHS:
        found = getattr(dataset, attribute, None)
        if not isinstance(found, list) or len(found) != len(dataset) or not found:
            continue
        paths = [one[0] if isinstance(one, tuple) else one for one in found]
        if all(isinstance(path, str | Path) for path in paths):
            return PackedNames(os.path.relpath(path, root) for path in paths)
    return NumberedSources([(split, len(dataset))])


def _changed(dataset: Any, name: str) -> Iterator[Path]:
    """Files of MNIST's relatives with other content than the published; torchvision compares only what it downloads."""
    folder = Path(getattr(dataset, "raw_folder", ""))
    for file in MD5.get(_PUBLISHED.get(name, ""), {}):
        if (folder / file).is_file() and is_changed(_PUBLISHED[name], file, pieces_of(str(folder / file))):
            yield folder / file
    listed = getattr(dataset, "resources", [])
    for address, known in chain.from_iterable(listed.values()) if isinstance(listed, dict) else listed:
        path = folder / address.rpartition("/")[2]
        if path.is_file() and md5_of(pieces_of(str(path))) != known:
            yield path


def _split(dataset: Any, labels_n: np.ndarray, origins: SampleSources, *, mode: Mode, how: Decoding) -> SourceSplit:
    array_nchw = _array(dataset)
    if array_nchw is not None and how.size is None and mode == "auto":
        return array_split(array_nchw, labels_n, origins=origins)
    first = dataset[0][0]
    if not isinstance(first, Image.Image):
        raise ValueError(f"{type(dataset).__name__} gives {type(first).__name__}, not pictures: it is for another task")
    channels = 1 if mode == "gray" or (mode == "auto" and first.mode in ("1", "L")) else 3
    height, width = how.size or (first.height, first.width)
    shape = (channels, height, width)

    def selected(rows_n: np.ndarray, from_: SampleSources) -> SourceSplit:
        return SourceSplit(
            shape,
            labels_n[rows_n],
            partial(_blocks, dataset, rows_n, shape=shape, how=how),
            origins=from_,
            subset=lambda _, some_n: selected(rows_n[some_n], SelectedSources(from_, some_n)),
        )

    return selected(np.arange(len(labels_n)), origins)


def _blocks(
    dataset: Sequence[Any], rows_n: np.ndarray, *, shape: tuple[int, int, int], how: Decoding
) -> Iterator[np.ndarray]:
    channels, height, width = shape
    step = rows_per_block(shape)
    for start in range(0, len(rows_n), step):
        rows = rows_n[start : start + step]
        block_nchw = np.empty((len(rows), *shape), dtype=np.uint8)
        for image_chw, row in zip(block_nchw, rows, strict=True):
            pixels_chw = planar_pixels(dataset[int(row)][0], channels=channels, how=how)
            if pixels_chw.shape != shape:
                _, *other = pixels_chw.shape
                raise ValueError(
                    f"{type(dataset).__name__}: images differ in size, {height}x{width} and "
                    f"{other[0]}x{other[1]}: give one with --size"
                )
            image_chw[:] = pixels_chw
        yield block_nchw
