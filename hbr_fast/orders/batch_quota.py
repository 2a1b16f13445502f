"""Class counts that are exact in every batch, not only over the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.arguments import whole_number
from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.orders.order import Sampler, checked_positions
from hbr_fast.orders.quota import QuotaOrder, quota_order


def batch_quota_order(
    labels_n: ArrayLike,
    counts_c: ArrayLike | Mapping[int, int],
    *,
    batch_size: int,
    seed: int,
    preference: ArrayLike | None = None,
) -> BatchQuotaOrder:
    """`quota_order` with exact shares in every batch: a batch of 100 of two equal classes has 50 of each.

    The epoch is cut into batches of `batch_size` positions. In each, a class has its share of the batch, rounded up or
    down if it is not whole; the choice of samples is as random as in `quota_order`. Within a batch the rows are
    sorted by class, so that ranks that take every W-th row get equal shares as well, up to one sample.

    Parameters
    ----------
    labels_n, counts_c, seed, preference
        As in `quota_order`: the counts are per epoch.
    batch_size : int
        Positions per batch, over all ranks. In [1, positions of the epoch].

    Returns
    -------
    BatchQuotaOrder

    Raises
    ------
    ValueError
        As in `quota_order`, or if the batch size is out of range.

    Examples
    --------
    >>> labels = np.repeat([0, 1], [900, 100])
    >>> order = batch_quota_order(labels, [500, 500], batch_size=100, seed=0)
    >>> [np.bincount(labels[order.rows(100 * b, 100, epoch=0)]).tolist() for b in range(3)]
    [[50, 50], [50, 50], [50, 50]]
    """
    quotas = quota_order(labels_n, counts_c, seed=seed, preference=preference)
    batch_size = whole_number("batch_size", batch_size)
    if not 1 <= batch_size <= len(quotas):
        raise ValueError(f"batch_size must be in [1, {len(quotas)}], the positions of an epoch, got {batch_size}")
    return BatchQuotaOrder(quotas, batch_size)


@dataclass(frozen=True, eq=False, repr=False)
class BatchQuotaOrder(Sampler):
    """A fixed number of samples of each class per epoch, shared evenly over batches; see `batch_quota_order`."""

    quotas: QuotaOrder = field(repr=False)
    batch_size: int

    def __len__(self) -> int:
        return len(self.quotas)

    @property
    def num_rows(self) -> int:
        """Number of samples."""
        return self.quotas.num_rows

    def with_counts(self, counts_c: ArrayLike | Mapping[int, int]) -> BatchQuotaOrder:
        """The same samples, batch size, seed and preference with other counts."""
        quotas = self.quotas
        return batch_quota_order(
            quotas.labels, counts_c, batch_size=self.batch_size, seed=quotas.seed, preference=quotas.preference
        )

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Sample ids at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, len(self), epoch)
        slots = self._slots(start + stride * np.arange(count))
        cpu_bijections.members_of_slots(*(*self.quotas.member_arguments(epoch), slots))
        return slots

    def describe(self) -> dict[str, Any]:
        """The quota order's entries, and the batch size."""
        return {**self.quotas.describe(), "kind": "batch quota", "batch_size": self.batch_size}

    @cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First slots of the classes: in the epoch, in whole batches, and in a smaller last batch."""
        counts = self.quotas.counts(0)
        length, rest = len(self), len(self) % self.batch_size
        # The last batch's share of each class, by largest remainders; what is left divides among the whole ones.
        share = counts.astype(object) * rest  # Python's integers: the products pass 2**63
        last = (share // length).astype(np.int64)
        order = np.argsort(-(share % length).astype(np.float64), kind="stable")
        last[order[: rest - int(last.sum())]] += 1
        return tuple(np.concatenate([[0], np.cumsum(part)]) for part in (counts, counts - last, last))  # type: ignore[return-value]

    def _slots(self, positions: np.ndarray) -> np.ndarray:
        """The quota order's slots at positions: int64."""
        first, of_whole, of_last = self._edges
        batch, place = np.divmod(positions, self.batch_size)
        whole_batches = len(self) // self.batch_size
        # Slots sorted by class are dealt to the whole batches in turn: each gets every class's share, up to one.
        slots = np.where(batch < whole_batches, batch + place * whole_batches, 0)
        c = np.searchsorted(of_whole, slots, side="right") - 1
        slots += first[c] - of_whole[c]
        in_last = batch == whole_batches
        if in_last.any():
            place = place[in_last]
            c = np.searchsorted(of_last, place, side="right") - 1
            # A class's slots of the last batch come after those of the whole ones.
            slots[in_last] = first[c + 1] - of_last[c + 1] + place
        return slots.astype(np.int64)
