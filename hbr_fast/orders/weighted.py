"""Rows drawn in proportion to weights, with and without replacement."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.kernels.orders import cpu_draws
from hbr_fast.orders.arrays import one_each
from hbr_fast.orders.order import Sampler, checked_length, checked_positions, content_of, filled, kept
from hbr_fast.seeding import Stream, checked_seed, stream_key


def weighted_order(
    weights_n: ArrayLike, *, seed: int, length: int | None = None, replacement: bool = True
) -> WeightedOrder:
    """An order that draws rows in proportion to weights.

    With replacement each position is an independent draw (an alias table: built once, constant time per draw, immediate
    access to any position). Without, an epoch is one draw of `length` different rows (exponential keys), made when the
    epoch is first used. A weight of 0 is never drawn. Unlike `torch.multinomial`, there is no limit of 2**24 weights.

    Parameters
    ----------
    weights_n : float [N]
        Finite, >= 0, not all 0; N below 2**32. They need not sum to 1.
    seed : int
        In [0, 2**63).
    length : int, optional
        Positions in an epoch, by default N.
    replacement : bool
        Whether a row may be drawn more than once per epoch.

    Returns
    -------
    WeightedOrder

    Raises
    ------
    ValueError
        If a weight is negative, NaN or infinite, all are 0, or there are more draws without replacement than weights
        above 0.

    Examples
    --------
    >>> order = weighted_order(np.array([0.0, 1.0, 3.0]), seed=0, length=100_000)
    >>> np.bincount(order.rows(0, 100_000, epoch=0)).round(-3).tolist()
    [0, 25000, 75000]
    """
    weights = np.ascontiguousarray(one_each("weights", weights_n), np.float64)
    if weights.ndim != 1 or not 1 <= len(weights) <= cpu_draws.MAX_WEIGHTS:
        raise ValueError(f"weights must be a row of 1 to 2**32 - 1 numbers, got shape {weights.shape}")
    least, largest = weights.min(), weights.max()  # NaN if one is
    if not (least >= 0 and largest < np.inf):
        bad = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
        raise ValueError(f"weights must be finite and >= 0: weight {bad} is {weights[bad]}")
    if largest == 0:
        raise ValueError("all weights are 0: there is nothing to draw")
    length = len(weights) if length is None else checked_length(length)
    if not replacement and length > (positive := int(np.count_nonzero(weights))):
        raise ValueError(f"{length} draws without replacement need as many weights above 0, got {positive}")
    # Only ratios matter. Relative to the largest, neither their sum nor its inverse overflows.
    return WeightedOrder(kept(weights / largest), length, checked_seed(seed), replacement)


@dataclass(frozen=True, eq=False, repr=False)
class WeightedOrder(Sampler):
    """Rows drawn in proportion to weights; see `weighted_order`."""

    weights: np.ndarray = field(repr=False)
    length: int
    seed: int
    replacement: bool

    def __len__(self) -> int:
        return self.length

    @property
    def num_rows(self) -> int:
        """Number of weights."""
        return len(self.weights)

    def with_weights(self, weights_n: ArrayLike) -> WeightedOrder:
        """The same order with other weights."""
        return weighted_order(weights_n, length=self.length, seed=self.seed, replacement=self.replacement)

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, self.length, epoch)
        if not self.replacement:
            return self._drawn(epoch)[start : start + count * stride : stride].copy()
        packed, fine = self._table

        def fill(first: int, out: np.ndarray) -> None:
            cpu_draws.alias_draws(start + first * stride, stride, epoch, self._key, packed, fine, out)

        return filled(count, fill)

    def describe(self) -> dict[str, Any]:
        """Kind, length, seed, replacement, and a hash of the weights."""
        return {
            "kind": "weighted",
            "length": self.length,
            "seed": self.seed,
            "replacement": self.replacement,
            "content": self._content,
        }

    @cached_property
    def _content(self) -> str:
        return content_of(self.weights.tobytes())

    @cached_property
    def _key(self) -> np.ndarray:
        return np.array(stream_key(self.seed, Stream.ORDER), np.uint64)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        packed, fine = np.empty(len(self.weights), np.uint64), np.empty(len(self.weights), np.uint32)
        cpu_draws.alias_table(self.weights, float(self.weights.sum()), int(self.weights.argmax()), packed, fine)
        return packed, fine

    @cached_property
    def _drawn_of_epoch(self) -> dict[int, np.ndarray]:
        return {}

    def _drawn(self, epoch: int) -> np.ndarray:
        """All rows of an epoch drawn without replacement, in the order they were drawn; the last epoch's are kept."""
        drawn = self._drawn_of_epoch.get(epoch)
        if drawn is None:
            keys = np.empty(len(self.weights))
            cpu_draws.exponential_keys(self.weights, epoch, self._key, keys)
            chosen = np.argpartition(keys, self.length - 1)[: self.length]
            drawn = chosen[np.argsort(keys[chosen], kind="stable")]
            self._drawn_of_epoch.clear()
            self._drawn_of_epoch[epoch] = drawn
        return drawn
