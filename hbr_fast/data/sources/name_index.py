"""Finding names in a list of very many, at 16 bytes a name beside the list itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class NameIndex:
    """Rows by name; where a name occurs several times, the first of its rows.

    Parameters
    ----------
    names : sequence of str

    Attributes
    ----------
    count : int
        The number of different names.

    Examples
    --------
    >>> index = NameIndex(["b.png", "a.png", "b.png"])
    >>> index.find("b.png"), index.find("c.png"), list(index.repeated()), index.count
    (0, None, [(0, 2)], 2)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        hashes = np.fromiter((hash(name) for name in names), dtype=np.int64, count=len(names))
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]
        self.count = len(names) - sum(1 for _ in self.repeated())

    def find(self, name: str) -> int | None:
        """The row of a name, or None."""
        wanted = hash(name)
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._rows) and self._hashes[at] == wanted:
            row = int(self._rows[at])
            if self._names[row] == name:
                return row
            at += 1
        return None

    def repeated(self) -> Iterator[tuple[int, int]]:
        """(first row, row) of every further row of a name."""
        for at in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]) + 1:
            row = int(self._rows[at])
            first = self.find(self._names[row])
            if first is not None and first != row:
                yield first, row
