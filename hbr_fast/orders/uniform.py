"""Every row once per epoch: shuffled or sequential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.orders.order import ROUND_KEYS, Sampler, checked_length, checked_positions, filled, round_keys
from hbr_fast.seeding import checked_seed

if TYPE_CHECKING:
    import torch


def uniform_order(length: int, *, seed: int) -> UniformOrder:
    """An order that visits each of `length` rows once per epoch, reshuffled every epoch.

    The order is a bijection computed on demand: constant memory, and immediate access to any position of any epoch.

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
    return UniformOrder(checked_length(length), checked_seed(seed))


def sequential_order(length: int) -> SequentialOrder:
    """The order that takes `length` rows sequentially in every epoch.

    Raises
    ------
    ValueError
        If the length is out of range.

    Examples
    --------
    >>> sequential_order(5).rows(1, 3, epoch=0).tolist()
    [1, 2, 3]
    """
    return SequentialOrder(checked_length(length))


@dataclass(frozen=True)
class UniformOrder(Sampler):
    """Every row once per epoch, reshuffled each epoch; see `uniform_order`."""

    length: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, self.length, epoch)
        grid = cpu_bijections.grid(self.length)
        keys = round_keys(self.seed, epoch, ROUND_KEYS, cpu_bijections.rounds(self.length))

        def fill(first: int, out: np.ndarray) -> None:
            cpu_bijections.bijection(start + first * stride, stride, self.length, *grid, keys, out)

        return filled(count, fill)

    def device_rows(
        self, start: int, count: int, *, epoch: int, stride: int = 1, device: torch.device | str
    ) -> torch.Tensor:
        """The same as `rows`, made on a GPU by a Triton kernel: int64 [count] on `device`."""
        import torch

        from hbr_fast.kernels.orders import triton_bijections

        start, count, stride, epoch = checked_positions(start, count, stride, self.length, epoch)
        keys = round_keys(self.seed, epoch, ROUND_KEYS, cpu_bijections.rounds(self.length))
        out = torch.empty(count, dtype=torch.int64, device=device)
        triton_bijections.bijection(start, stride, self.length, *cpu_bijections.grid(self.length), keys, out)
        return out

    def describe(self) -> dict[str, Any]:
        """Kind, length and seed."""
        return {"kind": "uniform", "length": self.length, "seed": self.seed}


@dataclass(frozen=True)
class SequentialOrder(Sampler):
    """Rows 0, 1, 2, ... in every epoch, as for evaluation."""

    length: int

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, self.length, epoch)
        return np.arange(start, start + count * stride, stride, dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Kind and length."""
        return {"kind": "sequential", "length": self.length}
