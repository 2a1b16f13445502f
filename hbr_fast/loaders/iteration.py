"""A loader's epoch counter: each loop is the next epoch, with a position to resume from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hbr_fast.loaders.batch import Batch

if TYPE_CHECKING:
    from hbr_fast.loaders.loader import Loader


class Place:
    """The start of a loader's next loop, and the latest loop."""

    def __init__(self, epoch: int = 0, start: int = 0) -> None:
        self.epoch, self.start = epoch, start  # the start is a batch
        self.latest: Batches | None = None

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop this epoch, from its beginning unless a position within it was loaded."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0
        if self.latest is not None and self.latest.epoch != epoch:
            self.latest = None

    def begin(self, batches: Batches) -> tuple[int, int]:
        """Epoch and first batch of a new loop."""
        begun = self.epoch, self.start
        self.epoch, self.start, self.latest = self.epoch + 1, 0, batches
        return begun

    def now(self) -> tuple[int, int]:
        """The epoch, and how many of its batches were handed out."""
        latest = self.latest
        if latest is None or latest.exhausted:
            return self.epoch, self.start
        return latest.epoch, latest.given


class Batches(Iterator[Batch]):
    """One loop over a loader. It takes its epoch when its first batch is requested."""

    def __init__(self, loader: Loader, place: Place) -> None:
        self.epoch, self.given, self.exhausted = -1, 0, False
        self._loader, self._place = loader, place
        self._made: Iterator[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._made is None:
            self.epoch, self.given = self._place.begin(self)
            self._made = self._loader.of_this_process().epoch(self.epoch, start=self.given)
        batch = next(self._made, None)
        if batch is None:
            self.exhausted = True
            raise StopIteration
        self.given += 1
        return batch
