"""A dataset with the same images but other train labels: pixels are linked, not copied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data import remote
from hbr_fast.data.convert import check_output
from hbr_fast.data.dataset import Dataset, fingerprint_of, open_dataset
from hbr_fast.data.meta_json import META
from hbr_fast.data.npy import read_npy, read_npz
from hbr_fast.files import atomic_directory, linked, sha256_of_file
from hbr_fast.json_schema import write_sealed_json

THRESHOLD = "threshold_samples_of"  # origin of a dataset with an extra class: fingerprint of the dataset without it


def relabel(
    dataset: Dataset,
    labels_n: np.ndarray,
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    origin: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Dataset:
    """Write a dataset with the images of another and other labels in its train split.

    For label noise and threshold samples. To anything that trains on it, in any process or on any machine, it is a
    separate dataset with its own fingerprint.

    Parameters
    ----------
    dataset : Dataset
    labels_n : integer [N]
        Labels of the train split; every class has a sample.
    out : path
        The directory to write; its name ends in `.hbr`.
    classes : sequence of str, optional
        Class names if there are more than before, e.g. with an extra class.
    origin : mapping, optional
        JSON values that `meta.json` keeps beside the origin of the images, e.g. kind and rate of noise.
    force : bool
        Whether to replace the dataset at `out`.

    Raises
    ------
    FileExistsError
        If `out` exists and `force` is false.
    ValueError
        If the labels do not fit the split or the classes, `out` is the dataset itself, a file of the dataset is a
        symbolic link, or its label files were changed after conversion.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> swapped = relabel(data, 1 - data.train.labels, f"{folder.name}/swapped.hbr")
    >>> swapped.fingerprint != data.fingerprint
    True
    """
    if remote.remote_url(dataset.path) is not None:
        raise ValueError(
            f"{dataset.location} is at a URL: copy it to this machine first, to write one with other labels"
        )
    if Path(out).exists() and Path(out).samefile(dataset.path):
        raise ValueError(f"{out} is the dataset itself, whose true labels would be lost: choose another name")
    check_output(out, force=force)
    labels = np.asarray(labels_n)
    names = tuple(classes) if classes is not None else dataset.classes
    if labels.shape != dataset.train.labels.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be whole numbers [{len(dataset.train)}], got {labels.dtype} {list(labels.shape)}"
        )
    if names[: len(dataset.classes)] != dataset.classes:
        raise ValueError(f"classes must start with those of {dataset.path}: the test split keeps its labels")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels must be classes in [0, {len(names)}), got some from {labels.min()} to {labels.max()}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if len(empty):
        raise ValueError(f"class {names[empty[0]]!r} has no sample: give it some or leave the class out")
    _check_files(dataset)
    with atomic_directory(out, force=force) as directory:
        meta = {**dataset.meta, "classes": list(names), "files": dict(dataset.meta["files"])}
        meta["source"] = {**dataset.meta["source"], "relabelled": {"from": dataset.fingerprint, **(origin or {})}}
        own = dataset.meta["splits"]["train"]["files"]["labels"]
        for name in meta["files"]:
            if name != own:
                linked(dataset.path / name, directory / name)
        np.save(directory / own, labels.astype(np.int64), allow_pickle=False)
        meta["files"][own] = {"sha256": sha256_of_file(directory / own), "bytes": (directory / own).stat().st_size}
        meta["fingerprint"] = fingerprint_of(meta["files"], names)
        write_sealed_json(directory / META, meta)
    return open_dataset(out)


def real_classes(dataset: Dataset) -> int:
    """Classes without the extra class of threshold samples, which comes last and has no test samples."""
    return len(dataset.classes) - (_threshold_origin(dataset) is not None)


def fingerprint_for_plans(dataset: Dataset) -> str:
    """Fingerprint of the dataset that a plan of these samples trains on: without threshold samples, or this one."""
    return _threshold_origin(dataset) or dataset.fingerprint


def _threshold_origin(dataset: Dataset) -> str | None:
    return dataset.meta["source"].get("relabelled", {}).get(THRESHOLD)


def labels_from_file(path: str | os.PathLike[str], key: str | None, dataset: Dataset) -> np.ndarray:
    """Train labels that a file holds for a dataset, one for each sample in the order of their ids: integer [N].

    Parameters
    ----------
    path : path
        `.npy`, or `.npz` with the array `key`.
    key : str or None
    dataset : Dataset

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file or array, or it does not hold one class for each sample.
    """
    file = Path(path)
    if file.suffix not in (".npy", ".npz") or (file.suffix == ".npz") != (key is not None):
        raise ValueError(f"{path}: labels come from a .npy file, or from a .npz file and the name of its array (--key)")
    labels = read_npy(file) if key is None else read_npz(file, key)
    where = str(path) if key is None else f"{path}, array {key!r},"
    count, classes = len(dataset.train), len(dataset.classes)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"{where} holds {labels.dtype} {list(labels.shape)}: {dataset.path} needs whole numbers [{count}], the "
            "class of each train sample"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{where} has labels from {labels.min()} to {labels.max()}: classes are 0 to {classes - 1}")
    return labels.astype(np.int64)


def true_labels(truth: str | os.PathLike[str], relabelled: Dataset) -> np.ndarray:
    """Labels of the train split of the dataset at `truth`, which has the same images: int64 [N].

    Raises
    ------
    ValueError
        If its images differ.
    """
    opened = open_dataset(truth)
    own, other = (one.meta["files"][one.meta["splits"]["train"]["files"]["images"]] for one in (opened, relabelled))
    if own["sha256"] != other["sha256"]:
        raise ValueError(f"{truth} has different train images from {relabelled.path}: give the dataset it came from")
    return opened.train.labels


def _check_files(dataset: Dataset) -> None:
    """Check that files are no links and labels are as converted, since the new dataset vouches for all of them."""
    for name, entry in dataset.meta["files"].items():
        path = dataset.path / name
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link, and only files of the dataset are linked: put a copy there")
        # Images keep their checksum in the new dataset, where `verify` compares it.
        if name.endswith(".labels.npy") and sha256_of_file(path) != entry["sha256"]:
            raise ValueError(f"{path} was changed after conversion (another checksum): convert it again with --force")
