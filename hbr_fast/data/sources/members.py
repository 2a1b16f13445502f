"""The files of an archive by folder, in little memory: archives hold millions of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hbr_fast.data.sources.trees import HIDDEN, Entry, PackedNames, PassedOver, is_clutter, joined


class Members:
    """Files of an archive, numbered in the order in which they are added, and the folders that they are in.

    A file takes the bytes of its name, without its folder, and 20 more.
    """

    def __init__(self) -> None:
        self._names = PackedNames()
        self._folder_of = array("i")
        self._folders: dict[str, int] = {"": 0}
        self._inner: list[set[str]] = [set()]  # the names of the folders in each folder
        self._order = np.zeros(0, dtype=np.int64)
        self._starts = np.zeros(2, dtype=np.int64)

    def add(self, path: str) -> None:
        """Add a file and its parent folders."""
        folder, _, name = path.rpartition("/")
        self._names.append(name)
        self._folder_of.append(self._folder(folder))

    def _folder(self, folder: str) -> int:
        known = self._folders.get(folder)
        if known is None:
            above, _, name = folder.rpartition("/")
            self._inner[self._folder(above)].add(name)
            known = self._folders[folder] = len(self._inner)
            self._inner.append(set())
        return known

    def sort(self) -> None:
        """Order the files by folder and name; needed once, after the last `add`."""
        folder_of = np.array(self._folder_of, dtype=np.int32)
        self._order = np.argsort(folder_of, kind="stable")
        self._starts = np.searchsorted(folder_of[self._order], np.arange(len(self._inner) + 1))
        for start, end in pairwise(self._starts.tolist()):
            rows = self._order[start:end]
            names = np.empty(len(rows), dtype=object)  # its `argsort` needs less memory than `sorted`
            for place, row in enumerate(rows):
                names[place] = self._names[int(row)]
            rows[:] = rows[np.argsort(names, kind="stable")]

    def entries(self, folder: str, passed: PassedOver | None) -> Iterator[Entry]:
        """As `Tree.entries`."""
        at = self._folders.get(folder)
        if at is None:
            return
        folders = sorted(self._inner[at], reverse=True)
        before = None
        for place in range(self._starts[at], self._starts[at + 1]):
            name = self._names[int(self._order[place])]
            while folders and folders[-1] <= name:
                yield from _shown(folders.pop(), folder, passed, is_folder=True)
            if name != before and name not in self._inner[at]:
                yield from _shown(name, folder, passed, is_folder=False)
            before = name
        for name in reversed(folders):
            yield from _shown(name, folder, passed, is_folder=True)

    def find(self, path: str) -> int | None:
        """The number of a file; if a path occurs twice the last one counts, as when unpacking."""
        folder, _, name = path.rpartition("/")
        at = self._folders.get(folder)
        if at is None:
            return None
        start, end = int(self._starts[at]), int(self._starts[at + 1])
        places = range(start, end)
        after = start + bisect_right(places, name, key=lambda place: self._names[int(self._order[place])])
        if after == start:
            return None
        row = int(self._order[after - 1])
        return row if self._names[row] == name else None


@dataclass(frozen=True, eq=False)
class ArchiveTree(ABC):
    """An archive as a `Tree`, read by the numbers of its files."""

    place: Path
    members: Members

    def entries(self, folder: str, passed: PassedOver | None = None) -> Iterator[Entry]:
        return self.members.entries(folder, passed)

    def has_file(self, path: str) -> bool:
        return self.members.find(path) is not None

    def read(self, path: str) -> bytes:
        return self.head(path, None)

    def head(self, path: str, count: int | None) -> bytes:
        number = self.members.find(path)
        if number is None:
            raise FileNotFoundError(f"the archive has no {path}")
        return self.part(number, count)

    @abstractmethod
    def part(self, number: int, count: int | None) -> bytes:
        """The first `count` bytes of a file, or all."""


def _shown(name: str, folder: str, passed: PassedOver | None, *, is_folder: bool) -> Iterator[Entry]:
    if not is_clutter(name):
        yield Entry(name + "/" * is_folder)
    elif passed is not None:
        passed.add(HIDDEN, joined(folder, name))
