"""Labels of pictures from a table: matching rows to files, and class names."""

from __future__ import annotations

import contextlib
import os
import posixpath
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from hbr_fast.arguments import near_names
from hbr_fast.data.sources.classes import Labelled
from hbr_fast.data.sources.layouts import SPLITS, TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES, Listing, Place, pictures_in
from hbr_fast.data.sources.name_index import NameIndex
from hbr_fast.data.sources.synsets import read_synsets
from hbr_fast.data.sources.tables import Table, normal, read_class_names, read_table
from hbr_fast.data.sources.trees import PackedNames, PassedOver, SelectedNames, joined
from hbr_fast.progress import printable

META_MAT = "meta.mat"
_NAMES_COMPARED = 10_000  # when looking for one that is nearly the missing one


@dataclass(frozen=True)
class LabelFiles:
    """The options about labels in files.

    Attributes
    ----------
    train, test : str or None
        Tables of the splits.
    class_names : str or None
        Names of numbered classes.
    file_column, label_column : str or None
        Columns of the tables.
    """

    train: str | None = None
    test: str | None = None
    class_names: str | None = None
    file_column: str | None = None
    label_column: str | None = None

    def table(self, where: str, top: Place, notes: list[str]) -> Table:
        """The table at a path on disk or inside the tree.

        Raises
        ------
        FileNotFoundError, ValueError
        """
        content, found = _content(where, top)
        table = read_table(content, found, file_column=self.file_column, label_column=self.label_column)
        notes += table.notes
        return table

    def names(self, top: Place, beside: str, table: Table) -> dict[int, str] | None:
        """Names of numbered classes, if a file gives them: the option's, or `meta.mat` beside ImageNet's list.

        Parameters
        ----------
        top : Place
        beside : str
            The table's path, as given to `table`.
        table : Table

        Raises
        ------
        FileNotFoundError, ValueError
        """
        where = self.class_names
        if where is None:
            if not table.is_ground_truth:
                return None
            where = os.path.join(os.path.dirname(beside), META_MAT)
        try:
            content, found = _content(where, top)
        except FileNotFoundError:
            if self.class_names is not None:
                raise
            raise FileNotFoundError(
                f"{table.where} numbers the classes in an order of its own: put {META_MAT} of the development kit "
                "beside it, or name the numbers with --class-names"
            ) from None
        return read_synsets(content, found) if found.endswith(".mat") else read_class_names(content, found)


def labelled_by_table(
    place: Place,
    table: Table,
    passed: PassedOver,
    *,
    numbered: Sequence[str] | dict[int, str] | None,
) -> dict[str, Labelled]:
    """The pictures of a folder, at any depth, that a table has labels for; by split if it has a column for that.

    Parameters
    ----------
    place : Place
    table : Table
    passed : PassedOver
        Counts pictures without a label.
    numbered : sequence or mapping, optional
        Class names by number. By default the numbers are the names.

    Raises
    ------
    ValueError
        If rows have no file (the message names them), a file has two labels, or a number has no name.
    """
    names, label_of_word = _classes(table, numbered)
    labels_n = label_of_word[table.labels.word_n]
    split_n = np.zeros(len(labels_n), dtype=np.int8)
    splits = {"train"}
    if table.splits is not None:
        split_of_word = _splits(table.splits.words, table)
        split_n = np.array([SPLITS.index(split) for split in split_of_word], dtype=np.int8)[table.splits.word_n]
        splits = set(split_of_word)
    found = _matched(place, table, labels_n, split_n, passed)
    return {
        split: Labelled(names, _listing(place, found, labels_n, split_n == code))
        for code, split in enumerate(SPLITS)
        if split in splits
    }


def _classes(table: Table, numbered: Sequence[str] | dict[int, str] | None) -> tuple[list[str], np.ndarray]:
    """Class names, and the label of each word of the table's column of labels."""
    numbers = table.labels.numbers()
    if numbers is None:
        names, name_of_word = sorted(table.labels.words), table.labels.words
    else:
        values = sorted(set(numbers))
        named = dict(enumerate(numbered)) if isinstance(numbered, Sequence) else numbered
        if named is None:
            named = {value: str(value) for value in values}
        nameless = [value for value in values if value not in named]
        if nameless:
            raise ValueError(
                f"{table.where}: there are {len(named)} classes, numbered {min(named)} to {max(named)}, but labels "
                f"from {values[0]} to {values[-1]}: number them alike, or name the numbers with --class-names"
            )
        names = [named[value] for value in (sorted(named) if numbered is not None else values)]
        name_of_word = [named[number] for number in numbers]
    index = {name: label for label, name in enumerate(names)}
    return names, np.array([index[name] for name in name_of_word], dtype=np.int64)


def _splits(words: Sequence[str], table: Table) -> list[str]:
    """The split of each word; without a test split, the validation split is one."""
    names = {"train": TRAIN_NAMES, "test": TEST_NAMES, "validation": VALIDATION_NAMES}
    found = []
    for word in words:
        split = next((split for split, spelt in names.items() if word.casefold() in spelt), None)
        if split is None:
            raise ValueError(f"{table.where} has the split {word!r}: call them train, test and validation")
        found.append(split)
    return found if "test" in found else ["test" if split == "validation" else split for split in found]


@dataclass(frozen=True, eq=False)
class _Found:
    """Pictures in the table, in the tree's order: their paths and rows."""

    paths: PackedNames
    rows: np.ndarray


def _matched(place: Place, table: Table, labels_n: np.ndarray, split_n: np.ndarray, passed: PassedOver) -> _Found:
    """Every picture in the table.

    Files are matched by their path in the folder or in the tree, by name, or by any of these without suffix.
    """
    index = NameIndex(table.files)
    is_used = np.zeros(len(table.files), dtype=bool)
    for first, again in index.repeated():
        if (labels_n[first], split_n[first]) != (labels_n[again], split_n[again]):
            raise ValueError(f"{table.where} gives {printable(table.files[first])} two labels or splits: keep one")
        is_used[again] = True
    paths, rows = PackedNames(), array("q")
    prefix = f"{place.folder}/" if place.folder else ""
    for path in pictures_in(place.tree, place.folder, passed):
        name = normal(path)
        short = name.removeprefix(prefix)
        base = posixpath.basename(short)  # not by pathlib, which keeps every name in a process-wide table
        keys = (short, name, base, posixpath.splitext(short)[0], posixpath.splitext(base)[0])
        row = next((row for key in keys if (row := index.find(key)) is not None), None)
        if row is None:
            passed.add(f"pictures/picture that {PurePosixPath(table.where).name} has no label for", path)
        elif is_used[row]:
            raise ValueError(f"{table.where}: {table.files[row]} matches several files in {place.path}: give paths")
        else:
            is_used[row] = True
            paths.append(path)
            rows.append(row)
    missing = np.flatnonzero(~is_used)
    if len(missing):
        known = islice(pictures_in(place.tree, place.folder, PassedOver()), _NAMES_COMPARED)
        near = near_names(table.files[int(missing[0])], (path.removeprefix(prefix) for path in known))
        hint = f" (did you mean {printable(near[0])}?)" if near else ""
        named = printable(", ".join(table.files[int(row)] for row in missing[:20]))
        raise ValueError(
            f"{table.where}: {len(missing):,} of {index.count:,} files are not in {place.path}{hint}: {named}"
            f"{', ...' if len(missing) > 20 else ''}: add them or remove their rows"
        )
    return _Found(paths, np.array(rows, dtype=np.int64))


def _listing(place: Place, found: _Found, labels_n: np.ndarray, is_wanted_n: np.ndarray) -> Listing:
    """The pictures of the wanted rows of the table, by class and path."""
    wanted = np.flatnonzero(is_wanted_n[found.rows])
    labels_found = labels_n[found.rows[wanted]]
    wanted = wanted[np.argsort(labels_found, kind="stable")]
    labels_found = np.sort(labels_found)
    for label in np.unique(labels_found):
        start, end = np.searchsorted(labels_found, [label, label + 1])
        rows = wanted[start:end]
        if any(path > following for path, following in pairwise(SelectedNames(found.paths, rows))):
            rows[:] = sorted(rows.tolist(), key=found.paths.__getitem__)
    return Listing(place, SelectedNames(found.paths, wanted), labels_found)


def _content(where: str, top: Place) -> tuple[bytes, str]:
    """A file on disk or in the tree, and its path for messages."""
    outside = Path(os.path.expanduser(where))
    if outside.is_file():
        return outside.read_bytes(), str(outside)
    path = joined(top.folder, where)
    if top.tree.has_file(path):
        return top.tree.read(path), str(top.tree.place / path)
    folder, _, name = path.rpartition("/")
    files: list[str] = []
    with contextlib.suppress(OSError):  # the folder does not exist either
        files = [entry.name for entry in top.tree.entries(folder) if not entry.is_folder]
    near = near_names(name, files)
    hint = f"did you mean {joined(folder, near[0])}?" if near else "give the file with the labels or names"
    raise FileNotFoundError(f"there is no file {where}, neither here nor in {top.tree.place}: {hint}")
