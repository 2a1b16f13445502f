"""The layouts of labelled folders: locating the splits and the class of each file."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from hbr_fast.arguments import near_names
from hbr_fast.data.sources.pictures import is_picture, suffixes
from hbr_fast.data.sources.tables import GROUND_TRUTH, normal
from hbr_fast.data.sources.trees import PackedNames, PassedOver, SelectedNames, Tree, joined

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLITS = ("train", "test", "validation")
TABLE_NAMES = ("{split}_annotations.txt", "LOC_{split}_solution.csv", "{split}.csv", "{split}.txt", "labels.csv")
# Where ImageNet's development kit has its list, if it lies beside the splits.
_GROUND_TRUTHS = (GROUND_TRUTH, f"data/{GROUND_TRUTH}", f"ILSVRC2012_devkit_t12/data/{GROUND_TRUTH}")
LAYOUTS = "train/CLASS and test/CLASS"

_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """The folder of one split in a tree."""

    tree: Tree
    folder: str

    @property
    def path(self) -> Path:
        return self.tree.place / self.folder

    def folders(self) -> list[str]:
        return [entry.name for entry in self.tree.entries(self.folder) if entry.is_folder]

    def inside(self, name: str) -> Place:
        return Place(self.tree, joined(self.folder, name))


@dataclass(frozen=True)
class Listing:
    """The files of one split and their labels, in order of class and path.

    Attributes
    ----------
    place : Place
    paths : sequence of str [N]
        Paths in the tree.
    labels_n : int64 [N]
    """

    place: Place
    paths: Sequence[str]
    labels_n: np.ndarray

    def subset(self, rows_n: np.ndarray) -> Listing:
        return Listing(self.place, SelectedNames(self.paths, rows_n), self.labels_n[rows_n])


def find_splits(
    tree: Tree, passed: PassedOver, *, test_table: str | None, more: Sequence[str] = ()
) -> dict[str, Place]:
    """The folders of the train split and of the others that there are; the tree itself for root/CLASS.

    The test split is the first of `TEST_NAMES` and `VALIDATION_NAMES` that has labels; with a table `test_table` of
    them, the first whose name is part of the table's name, such as `val` of `LOC_val_solution.csv`, else the first. The
    first of `VALIDATION_NAMES` that has labels is the validation split beside a test split of another name. Folders
    named in `more` are splits of their own names.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no train split, or two.
    """
    top = Place(tree, "")
    names = top.folders()
    if len(names) == 1 and not tree.place.is_dir() and not _named(names, TRAIN_NAMES):
        top = top.inside(names[0])  # an archive of one folder
        names = top.folders()
    train = _one_of(top, names, TRAIN_NAMES)
    if missing := [name for name in more if name not in names]:
        near = near_names(missing[0], names)
        hint = f"did you mean {near[0]}?" if near else f"its folders are {', '.join(sorted(names)[:20])}"
        raise ValueError(f"{top.path} has no folder {missing[0]} to keep as a split: {hint}")
    if train is None:
        _refuse_misspelt(top, names)
        if more:
            raise ValueError(f"{top.path / 'train'} is missing: only beside it a folder can be a split of its own name")
        return {"train": top}
    splits = {"train": train}
    for entry in tree.entries(top.folder, passed):
        if not entry.is_folder:
            passed.add("files/file beside the folders of the splits", joined(top.folder, entry.name))
        elif entry.name not in more and entry.name.casefold() not in (*TRAIN_NAMES, *TEST_NAMES, *VALIDATION_NAMES):
            passed.add("folders/folder beside those of the splits", joined(top.folder, entry.name))
    wanted = (*TEST_NAMES, *VALIDATION_NAMES)
    candidates = [top.inside(name) for one in wanted for name in _named(names, (one,)) if name not in more]
    if candidates:
        classes = {normal(name) for name in train.folders()}
        labelled = [one for one in candidates if _is_labelled(top, one, classes)]
        of_table = PurePosixPath(test_table or "").name.casefold()
        fitting = (
            labelled if test_table is None else [one for one in candidates if one.path.name.casefold() in of_table]
        )
        test = splits["test"] = (fitting or candidates)[0]
        for other in candidates:
            is_validation = _named([other.path.name], VALIDATION_NAMES) and _named([test.path.name], TEST_NAMES)
            if is_validation and other in labelled and "validation" not in splits:
                splits["validation"] = other
            elif other is not test:
                passed.add(f"split folders/folder beside {test.path.name}, which is the test split", other.folder)
    return splits | {name: top.inside(name) for name in more}


def _named(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    return [name for name in names if name.casefold() in wanted]


def _one_of(top: Place, names: Sequence[str], wanted: Sequence[str]) -> Place | None:
    found = _named(names, wanted)
    if len(found) > 1:
        raise ValueError(f"{top.path} has {found[0]} and {found[1]}: say which one with --train-dir and --test-dir")
    return top.inside(found[0]) if found else None


def _is_labelled(top: Place, place: Place, classes: set[str]) -> bool:
    return any(normal(name) in classes for name in place.folders()) or find_table(top, place) is not None


def _refuse_misspelt(top: Place, names: Sequence[str]) -> None:
    """Refuse a folder that looks as if it should have a train split but has none."""
    missing = top.path / "train"
    tests = _named(names, (*TEST_NAMES, *VALIDATION_NAMES))
    near = [name for name in names if name not in tests and near_names(name, TRAIN_NAMES)]
    if near and (tests or len(names) <= 3):
        raise FileNotFoundError(
            f"{missing} is missing; {near[0]} looks like it: rename it, or give it as --train-dir "
            f"(and the other one as --test-dir)"
        )
    if tests:
        raise FileNotFoundError(f"{missing} is missing beside {tests[0]}: a folder source holds {LAYOUTS}")
    for name in names:
        if _named(top.inside(name).folders(), TRAIN_NAMES):
            raise FileNotFoundError(f"{missing} is missing, but {top.path / name} has it: give that as --root")


def list_folders(place: Place, classes: Sequence[str], passed: PassedOver) -> Listing:
    """Every picture below the class folders, at any depth; labels are indices into `classes`."""
    folders: dict[str, str] = {}
    for name in place.folders():
        if normal(name) in folders:
            raise ValueError(f"{place.path}: two folders are named {normal(name)!r}, spelt differently: join them")
        folders[normal(name)] = name
    paths, labels = PackedNames(), array("q")
    for label, name in enumerate(classes):
        for path in pictures_in(place.tree, joined(place.folder, folders[name]), passed):
            paths.append(path)
            labels.append(label)
    for entry in place.tree.entries(place.folder, passed):
        if not entry.is_folder:
            passed.add("files/file beside the folders of the classes", joined(place.folder, entry.name))
    return Listing(place, paths, np.array(labels, dtype=np.int64))


def class_folders(place: Place, *, split: str = "train") -> list[str]:
    """Sorted class names; a single class that only wraps others is refused.

    Raises
    ------
    ValueError
    """
    found = sorted(normal(name) for name in place.folders())
    if len(found) == 1:
        inner = place.inside(place.folders()[0])
        below = inner.folders()
        if len(below) > 1:
            other = "test" if split == "train" else "train"
            option = "--root" if place.folder == "" else f"--{split}-dir (and its counterpart as --{other}-dir)"
            raise ValueError(
                f"{place.path} has only one class, {found[0]!r}, with the folders "
                f"{', '.join(below[:5])}{', ...' if len(below) > 5 else ''} in it: "
                f"if these are the classes, give {inner.path} as {option}"
            )
    return found


def pictures_in(tree: Tree, folder: str, passed: PassedOver) -> Iterator[str]:
    """Sorted paths of the pictures in a folder and below. Content decides if the suffix is not that of a picture."""
    known = suffixes()
    for entry in tree.entries(folder, passed):
        path = joined(folder, entry.name)
        suffix = os.path.splitext(entry.name)[1]
        if entry.is_folder:
            yield from pictures_in(tree, path, passed)
        elif suffix.lower() in known or is_picture(tree.head(path, _HEAD_BYTES)):
            yield path
        else:
            what = f"{suffix} files/file" if suffix else "files/file without suffix"
            passed.add(f"{what} that are/is no pictures/picture of a format that is read", path)


def find_table(top: Place, place: Place) -> str | None:
    """The path, in `top`, of the label file of a flat folder, in it or beside it, under a usual name."""
    split = PurePosixPath(place.folder).name
    inside = place.folder.removeprefix(top.folder).lstrip("/")
    usual = [name.format(split=split) for name in TABLE_NAMES]
    kit = _GROUND_TRUTHS if split.casefold() in VALIDATION_NAMES else ()
    tables = [*(joined(inside, name) for name in [*usual, *kit[:1]]), *usual, *kit]
    return next((table for table in tables if top.tree.has_file(joined(top.folder, table))), None)
