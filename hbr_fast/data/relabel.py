"""The same images with other labels of the train split, as a dataset of its own: pixels are linked, not copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data.convert import check_output
from hbr_fast.data.dataset import META, Dataset, fingerprint_of, open_dataset
from hbr_fast.files import atomic_directory, sha256_of_file, write_json

THRESHOLD = "threshold_samples_of"  # origin of a dataset with an extra class: the fingerprint of the one without it


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

    For label noise and threshold samples. Whatever trains on it, in any process or on any machine, sees a dataset with
    a fingerprint of its own.

    Parameters
    ----------
    dataset : Dataset
    labels_n : integer [N]
        Of the train split; every class has a sample.
    out : path
        The directory to write; its name ends in `.hbr`.
    classes : sequence of str, optional
        Class names where there are more than before, e.g. with an extra class.
    origin : mapping, optional
        JSON values that `meta.json` keeps beside the origin of the images, e.g. kind and rate of noise.
    force : bool
        Whether to replace what is at `out`.

    Raises
    ------
    FileExistsError
        If `out` exists and `force` is false.
    ValueError
        If the labels do not fit the split or the classes.
    """
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
    with atomic_directory(out, force=force) as directory:
        meta = {**dataset.meta, "classes": list(names), "files": dict(dataset.meta["files"])}
        meta["source"] = {**dataset.meta["source"], "relabelled": {"from": dataset.fingerprint, **(origin or {})}}
        own = dataset.meta["splits"]["train"]["files"]["labels"]
        for name in meta["files"]:
            if name != own:
                _link(dataset.path / name, directory / name)
        np.save(directory / own, labels.astype(np.int64), allow_pickle=False)
        meta["files"][own] = {"sha256": sha256_of_file(directory / own), "bytes": (directory / own).stat().st_size}
        meta["fingerprint"] = fingerprint_of(meta["files"], names)
        write_json(directory / META, meta)
    return open_dataset(out)


def real_classes(dataset: Dataset) -> int:
    """Classes without the extra one of threshold samples, which is the last and has no test samples."""
    return len(dataset.classes) - (_threshold_origin(dataset) is not None)


def fingerprint_for_plans(dataset: Dataset) -> str:
    """Of the dataset that a plan of these samples is trained on: the one without threshold samples, or this one."""
    return _threshold_origin(dataset) or dataset.fingerprint


def _threshold_origin(dataset: Dataset) -> str | None:
    return dataset.meta["source"].get("relabelled", {}).get(THRESHOLD)


def true_labels(truth: str | os.PathLike[str], relabelled: Dataset) -> np.ndarray:
    """Labels of the train split of the dataset at `truth`, which has the same images: int64 [N].

    Raises
    ------
    ValueError
        If its images are others.
    """
    opened = open_dataset(truth)
    own, other = (one.meta["files"][one.meta["splits"]["train"]["files"]["images"]] for one in (opened, relabelled))
    if own["sha256"] != other["sha256"]:
        raise ValueError(f"{truth} has other train images than {relabelled.path}: give the dataset it was made from")
    return opened.train.labels


def _link(source: Path, target: Path) -> None:
    """A second name for the file's bytes, or a copy where the file system has no such thing."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
