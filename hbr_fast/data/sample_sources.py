"""Where every sample of a split came from: a relative path, a member of an archive, or a row of a file of many images.

Paths are stored in two `.npy` files: the concatenated bytes of the names (uint8) and their offsets (int64 [N + 1]).
Rows of files of many images are stored as a few runs in `meta.json`. Both are read one sample at a time.

A path is kept byte for byte, including newlines and bytes that are not UTF-8 (Python's `surrogateescape`);
`hbr_fast.progress.printable` formats it for tables, pictures and terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PARTS = ("sources", "source_offsets")  # a split's files: bytes of the names, and their offsets


class SampleSources(Protocol):
    """The source of each sample of a split, by row; any sequence of str is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> str: ...


@dataclass(frozen=True, eq=False)
class NumberedSources:
    """Rows of files or arrays that hold many samples: `data_batch_1.bin[17]`.

    Parameters
    ----------
    runs : sequence of (str, int)
        Names in order, with their numbers of rows: the first rows of the split are `NAME[0]`, `NAME[1]`, ...

    Examples
    --------
    >>> sources = NumberedSources([("a.bin", 3), ("b.bin", 2)])
    >>> len(sources), sources[2], sources[3]
    (5, 'a.bin[2]', 'b.bin[0]')
    """

    runs: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return sum(rows for _, rows in self.runs)

    def __getitem__(self, row: int, /) -> str:
        at = _checked(row, len(self))
        for name, rows in self.runs:
            if at < rows:
                return f"{name}[{at}]"
            at -= rows
        raise AssertionError("a row below the length is in some run")


@dataclass(frozen=True, eq=False)
class RowsOf:
    """Rows of one file or array, in any order: `images[17]`.

    Parameters
    ----------
    name : str
    index : integer [N]
        The row of each sample.
    """

    name: str
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int, /) -> str:
        return f"{self.name}[{self.index[_checked(row, len(self))]}]"


@dataclass(frozen=True, eq=False)
class SelectedSources:
    """Some rows of other sources.

    Parameters
    ----------
    sources : SampleSources
    index : integer [N]
        The row of each sample.

    Examples
    --------
    >>> list(SelectedSources(["a.png", "b.png", "c.png"], np.array([2, 0])))
    ['c.png', 'a.png']
    """

    sources: SampleSources
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int, /) -> str:
        return self.sources[int(self.index[_checked(row, len(self))])]


@dataclass(frozen=True, eq=False)
class NamedSources:
    """Names as they are stored, memory-mapped.

    Parameters
    ----------
    names : uint8 [bytes]
        The concatenated bytes of the names.
    offsets : int64 [N + 1]
        Where each name begins, and where the last one ends.
    """

    names: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int, /) -> str:
        at = _checked(row, len(self))
        return self.names[self.offsets[at] : self.offsets[at + 1]].tobytes().decode("utf-8", "surrogateescape")


def packed_names(sources: SampleSources) -> NamedSources:
    """Convert names to their stored form.

    Raises
    ------
    ValueError
        If a name is empty, or holds a lone surrogate, which no file name does.
    """
    names, offsets = bytearray(), np.zeros(len(sources) + 1, np.int64)
    for row in range(len(sources)):
        try:
            names += sources[row].encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(f"the source {sources[row]!r} of sample {row} cannot be stored: rename it") from None
        offsets[row + 1] = len(names)
        if offsets[row + 1] == offsets[row]:
            raise ValueError(f"the source of sample {row} has no name: give it one")
    return NamedSources(np.frombuffer(names, np.uint8), offsets)


def kept_sources(sources: SampleSources, rows: np.ndarray) -> SampleSources:
    """The sources of some rows, in ascending order; for all rows, `sources` itself."""
    return sources if len(rows) == len(sources) else SelectedSources(sources, rows)


def numbered_of_meta(value: Any) -> NumberedSources:
    """Parse the `meta.json` entry of a split with numbered samples, a list of [name, rows].

    Raises
    ------
    ValueError
        If it is something else; the caller adds the place.
    """
    right = isinstance(value, list) and all(
        isinstance(run, list) and len(run) == 2 and isinstance(run[0], str) and isinstance(run[1], int) and run[1] > 0
        for run in value
    )
    if not right:
        raise ValueError("is not a list of [name, rows]")
    return NumberedSources([(name, rows) for name, rows in value])


def _checked(row: int, count: int) -> int:
    if not 0 <= row < count:
        raise IndexError(f"sample {row} of {count}")
    return int(row)
