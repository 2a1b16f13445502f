"""Orders inside torch's `DataLoader`: where `WeightedRandomSampler` stood, but exact, distributed and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data

from hbr_fast.allocation import Hard, Nonpositive, allocate
from hbr_fast.sampler import Sampler, Uneven, quota_order
from hbr_fast.sampler.order import check_epoch
from hbr_fast.sampler.quota import checked_labels

BLOCK = 4096  # indices made at once: calling for one at a time would cost more than making it


class OrderSampler(torch.utils.data.Sampler[int]):
    """An order as a torch sampler: `DataLoader(dataset, sampler=OrderSampler(order), ...)`.

    Every iteration is the next epoch, so that plain loops need no `set_epoch`. In a distributed run each rank takes its
    part. `state_dict` holds the place in the whole order, in constant size; any number of ranks may load it.

    Parameters
    ----------
    order : Sampler
        E.g. `quota_order(...)`, `weighted_order(...)`, `uniform_order(...)`.
    rank, world_size : int, optional
        By default those of `torch.distributed` where it is initialised, else 0 and 1.
    uneven : "pad", "drop" or "keep"
        See `Sampler.shard`.

    Raises
    ------
    ValueError
        If only one of rank and world size is given, or they do not fit each other.
    """

    def __init__(
        self, order: Sampler, *, rank: int | None = None, world_size: int | None = None, uneven: Uneven = "pad"
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        if rank is None or world_size is None:
            rank, world_size = process_place()
        self.order = order
        self.rank, self.world_size, self.uneven = rank, world_size, uneven
        self.epoch = 0
        self._position = 0  # of the whole order, in this epoch: a multiple of the world size unless it was loaded
        order.shard(rank, world_size, uneven=uneven)  # refuses a bad rank now

    def __len__(self) -> int:
        """Indices that the next iteration gives this rank."""
        return len(self._shard())

    def __iter__(self) -> Iterator[int]:
        """The rest of the epoch: all of it, unless a state in its middle was loaded."""
        return _Indices(self)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch, from its beginning, as with `DistributedSampler`."""
        check_epoch(epoch)
        self.epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The place in the whole order, in constant size: indices given out so far do not come again."""
        return self.order.state(epoch=self.epoch, position=self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, with any number of ranks.

        Raises
        ------
        ValueError
            If the state is another order's or another version's.
        """
        self.epoch, self._position = self.order.restore(state)

    def _shard(self) -> Sampler:
        return self.order.shard(self.rank, self.world_size, uneven=self.uneven, origin=self._position)


class _Indices(Iterator[int]):
    """One iteration of an `OrderSampler`. It moves the sampler's place, and has a state of its own for torchdata."""

    def __init__(self, sampler: OrderSampler) -> None:
        self._sampler = sampler
        self._start()

    def _start(self) -> None:
        sampler = self._sampler
        self._origin, self._epoch = sampler._position, sampler.epoch
        self._shard = sampler._shard()
        self._given, self._block, self._block_start = 0, np.empty(0, np.int64), 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        sampler = self._sampler
        if self._given == len(self._shard):
            sampler.set_epoch(self._epoch + 1)
            raise StopIteration
        if self._given == self._block_start + len(self._block):
            count = min(BLOCK, len(self._shard) - self._given)
            self._block_start, self._block = self._given, self._shard.rows(self._given, count, epoch=self._epoch)
        index = int(self._block[self._given - self._block_start])
        self._given += 1
        sampler.epoch = self._epoch
        sampler._position = min(self._origin + self._given * sampler.world_size, len(sampler.order))
        return index

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the indices this iteration gave."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the sampler."""
        self._sampler.load_state_dict(state)
        self._start()


class HardnessSampler(OrderSampler):
    """Hardness-based resampling for anyone's `DataLoader`: harder classes are drawn more, at constant epoch size.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample of the dataset, in [0, C).
    scores_n : float [N], optional
        Hardness scores, e.g. `HardnessScores.per_sample("aum")`; class means become counts by `allocate`.
    counts_c : integer [C], optional
        Samples per class instead of scores.
    hard_is : "low" or "high"
        Which end of the scores is hard: "low" for aum and confidence.
    alpha : float
        Degree of resampling; 0 balances the classes.
    nonpositive, clip
        What to do where the scores give no ratio, and where alpha is too large; see `allocate`.
    seed : int
        In [0, 2**63).
    rank, world_size, uneven
        See `OrderSampler`.

    Raises
    ------
    ValueError
        If neither or both of scores and counts are given, or they do not fit (see `allocate`, `quota_order`).

    Examples
    --------
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> sampler = HardnessSampler(labels.numpy(), counts_c=[2, 4])
    >>> loader = DataLoader(TensorDataset(labels), sampler=sampler, batch_size=6)
    >>> sorted(next(iter(loader))[0].tolist())
    [0, 0, 1, 1, 1, 1]
    """

    def __init__(
        self,
        labels_n: np.ndarray,
        *,
        scores_n: np.ndarray | None = None,
        counts_c: np.ndarray | Sequence[int] | None = None,
        hard_is: Hard = "low",
        alpha: float = 1.0,
        nonpositive: Nonpositive | None = None,
        clip: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "pad",
    ) -> None:
        if (scores_n is None) == (counts_c is None):
            raise ValueError("give either scores_n or counts_c")
        if scores_n is not None:
            labels, scores = checked_labels(labels_n), np.asarray(scores_n)
            means = _class_means(labels, scores)
            counts_c = allocate(
                means, hard_is=hard_is, alpha=alpha, total=len(labels), nonpositive=nonpositive, clip=clip
            ).counts
        assert counts_c is not None
        order = quota_order(labels_n, counts_c, seed=seed)
        super().__init__(order, rank=rank, world_size=world_size, uneven=uneven)


def process_place() -> tuple[int, int]:
    """Rank and world size of this process in `torch.distributed`, or (0, 1) where that is not initialised."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _class_means(labels_n: np.ndarray, scores_n: np.ndarray) -> np.ndarray:
    """Mean score of each class, float64 [C], over the samples that have one."""
    if labels_n.shape != scores_n.shape:
        raise ValueError(f"{len(labels_n)} labels but {len(scores_n)} scores: give one of each a sample")
    seen = ~np.isnan(scores_n)
    sizes = np.bincount(labels_n[seen], minlength=labels_n.max() + 1)
    if not sizes.all():
        raise ValueError(f"class {int(np.flatnonzero(sizes == 0)[0])} has no sample with a score")
    return np.bincount(labels_n[seen], weights=scores_n[seen]) / sizes
