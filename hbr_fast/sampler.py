"""Orders: which plan row stands at which position of an epoch, as pure functions of (seed, epoch, position)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from hbr_fast.kernels import cpu_orders
from hbr_fast.seeding import Stream, philox, stream_key


class Sampler(Protocol):
    """What a loader draws from: a length, and the row at any position of any epoch. No hidden state."""

    def __len__(self) -> int:
        """Positions in an epoch."""
        ...

    def rows(self, start: int, count: int, *, epoch: int) -> np.ndarray:
        """Plan rows (int64 [count]) at positions `start` to `start + count - 1` of an epoch."""
        ...


@dataclass(frozen=True)
class UniformOrder:
    """Every row once an epoch, in an order that depends on nothing but (length, seed, epoch); see `uniform_order`."""

    length: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int) -> np.ndarray:
        """Plan rows (int64 [count]) at positions `start` to `start + count - 1` of epoch `epoch`."""
        _check_positions(start, count, self.length, epoch)
        out = np.empty(count, np.int64)
        keys = _round_keys(self.seed, epoch, cpu_orders.rounds(self.length))
        cpu_orders.bijection(start, 1, self.length, *cpu_orders.grid(self.length), keys, out)
        return out


@dataclass(frozen=True)
class SequentialOrder:
    """Rows as they stand, 0, 1, 2, ..., in every epoch: what evaluation wants."""

    length: int

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int) -> np.ndarray:
        """Plan rows (int64 [count]) at positions `start` to `start + count - 1`."""
        _check_positions(start, count, self.length, epoch)
        return np.arange(start, start + count, dtype=np.int64)


def uniform_order(length: int, *, seed: int) -> UniformOrder:
    """An order that visits each of `length` rows once an epoch, shuffled anew every epoch.

    The order is a bijection computed on demand: constant memory, and any position of any epoch at once.

    Parameters
    ----------
    length : int
        Rows in an epoch, in [1, 2**48].
    seed : int
        In [0, 2**63).

    Returns
    -------
    UniformOrder
        `order.rows(start, count, epoch=e)` gives rows; `len(order)` is `length`.

    Raises
    ------
    ValueError
        If the length or the seed is out of range.

    Examples
    --------
    >>> order = uniform_order(10, seed=0)
    >>> sorted(order.rows(0, 10, epoch=3).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> order.rows(4, 2, epoch=3).tolist() == order.rows(0, 10, epoch=3)[4:6].tolist()
    True
    """
    _check_length(length)
    stream_key(seed, Stream.ORDER)  # refuses a seed out of range now, not at the first draw
    return UniformOrder(length, seed)


def sequential_order(length: int) -> SequentialOrder:
    """The order that takes `length` rows as they stand, in every epoch.

    Raises
    ------
    ValueError
        If the length is out of range.
    """
    _check_length(length)
    return SequentialOrder(length)


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int, rounds: int) -> np.ndarray:
    """Round keys of an epoch's bijection, int64 [rounds]; kept, because every batch of the epoch asks for them."""
    key = stream_key(seed, Stream.ORDER)
    return np.array([word for block in range(rounds // 4) for word in philox((block, 0, epoch, 0), key)], np.int64)


def _check_length(length: int) -> None:
    if not 1 <= length <= cpu_orders.MAX_LENGTH:
        raise ValueError(f"an order needs a length in [1, 2**48], got {length}")


def _check_positions(start: int, count: int, length: int, epoch: int) -> None:
    if start < 0 or count < 0 or start + count > length:
        raise ValueError(f"positions {start} to {start + count - 1} are outside the epoch's {length}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
