"""Folder trees for the folder source: their contents in a fixed order, and what is passed over."""

from __future__ import annotations

import os
import posixpath
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, overload

import numpy as np

from hbr_fast.files import named_reading

# Folders and files that systems and tools leave beside pictures, in addition to names that begin with a dot.
_CLUTTER = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
_EXAMPLES = 3
MOST_FILE_BYTES = 1 << 29  # of a picture or a table
HIDDEN = "hidden files/file and/or folders/folder"
SPECIAL = "entries/entry that are/is neither files/file nor folders/folder"


class PassedOver:
    """Counts entries that do not become samples, by reason, with the first few paths.

    A reason is a plural phrase with the singular of its words after a slash: "broken links/link".
    """

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, path: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._paths.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(path)

    def notes(self) -> list[str]:
        """A line a reason."""
        lines = []
        for reason, count in sorted(self._counts.items()):
            more = ", ..." if count > _EXAMPLES else ""
            chosen = 1 if count == 1 else 0
            words = " ".join(word.split("/")[chosen] if "/" in word else word for word in reason.split(" "))
            lines.append(f"passed over {count:,} {words}: {', '.join(self._paths[reason])}{more}")
        return lines


class Entry(str):
    """A file or folder in a folder: its name, with a trailing slash for a folder.

    A plain string, since folders hold very many.
    """

    __slots__ = ()

    @property
    def is_folder(self) -> bool:
        return self.endswith("/")

    @property
    def name(self) -> str:
        return self.removesuffix("/")


class Tree(Protocol):
    """A folder, or an archive read as one; paths in it are relative, with slashes, "" for the top."""

    @property
    def place(self) -> Path:
        """Its location, for messages."""

    @property
    def name(self) -> str:
        """The name of a dataset made from it."""

    def entries(self, folder: str, passed: PassedOver | None = None) -> Iterable[Entry]:
        """The entries of a folder, sorted by name, without those passed over, which are counted in `passed`."""

    def has_file(self, path: str) -> bool:
        """Whether there is a file at a path."""

    def read(self, path: str) -> bytes:
        """The whole content of a file."""

    def head(self, path: str, count: int) -> bytes:
        """Its first bytes."""


def require_reasonable(size: int) -> None:
    """Refuse to read so large a file as a whole; an archive of a few megabytes can hold one."""
    if size > MOST_FILE_BYTES:
        raise OSError(f"it has {size:,} bytes, more than the {MOST_FILE_BYTES:,} that a picture or a table may have")


class PackedNames(Sequence[str]):
    """A list of names in one buffer: the bytes of each plus 8, a third of what a list of `str` takes."""

    def __init__(self, names: Sequence[str] | Iterator[str] = ()) -> None:
        self._buffer = bytearray()
        self._ends = array("q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._buffer += os.fsencode(name)
        self._ends.append(len(self._buffer))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._buffer[start : self._ends[index]]))


class SelectedNames(Sequence[str]):
    """Some names of a list, by row: 8 bytes a name beside the list itself."""

    def __init__(self, names: Sequence[str], rows_n: np.ndarray) -> None:
        self._names, self._rows = names, rows_n

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._names[row] for row in self._rows[index].tolist()]
        return self._names[int(self._rows[index])]


def joined(folder: str, name: str) -> str:
    """A path in a tree."""
    return f"{folder}/{name}" if folder else name


def plain_path(name: str) -> str | None:
    """The name of an archive's member as a path in the tree; None if it leads out of the archive."""
    path = posixpath.normpath(name.replace("\\", "/"))
    return None if path.startswith(("/", "../")) or path in (".", "..") else path


def is_clutter(name: str) -> bool:
    """Whether a name is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in _CLUTTER


@dataclass(frozen=True, eq=False)
class DirectoryTree:
    """A folder of the file system.

    Links within the folder are followed, others only with `follow_links`.
    """

    place: Path
    follow_links: bool = False

    @property
    def name(self) -> str:
        return self.place.resolve().name

    def entries(self, folder: str, passed: PassedOver | None = None) -> Iterator[Entry]:
        found: list[str] = []  # not of `Entry`, whose names without slashes would be copies
        rejected: list[tuple[str, str]] = []
        with os.scandir(self.place / folder) as entries:
            for entry in entries:
                path = joined(folder, entry.name)
                reason = self._reason_to_pass(entry, folder, path)
                if reason is None:
                    found.append(entry.name + "/" * entry.is_dir())
                else:
                    rejected.append((path, reason))
        if passed is not None:
            for path, reason in sorted(rejected):
                passed.add(reason, path)
        found.sort(key=lambda name: name.removesuffix("/"))
        return map(Entry, found)

    def _reason_to_pass(self, entry: os.DirEntry[str], folder: str, path: str) -> str | None:
        if is_clutter(entry.name):
            return HIDDEN
        if entry.is_symlink():
            reason = self._reason_against_link(folder, path)
            if reason is not None:
                return reason
        if not entry.is_dir() and not stat.S_ISREG(entry.stat().st_mode):
            return SPECIAL
        return None

    def _reason_against_link(self, folder: str, path: str) -> str | None:
        target = os.path.join(self.place, path)
        if not os.path.exists(target):
            return "broken links/link"
        real = os.path.realpath(target)
        if not self.follow_links and not real.startswith(os.path.join(os.path.realpath(self.place), "")):
            return "links/link out of the folder, for --follow-links to follow"
        above = [folder, *(str(parent) for parent in PurePosixPath(folder).parents)]
        if os.path.isdir(target) and any(os.path.realpath(self.place / one) == real for one in above):
            return "links/link to a folder that they/it are/is in"
        return None

    def has_file(self, path: str) -> bool:
        is_link = os.path.islink(self.place / path)
        return os.path.isfile(self.place / path) and not (
            is_link and self._reason_against_link(path.rpartition("/")[0], path)
        )

    def read(self, path: str) -> bytes:
        # Not by pathlib, which keeps every name in a process-wide table.
        name = os.path.join(self.place, path)
        with named_reading(name), open(name, "rb", buffering=0) as file:
            require_reasonable(os.fstat(file.fileno()).st_size)
            return file.readall()

    def head(self, path: str, count: int) -> bytes:
        name = os.path.join(self.place, path)
        with named_reading(name), open(name, "rb") as file:
            return file.read(count)
