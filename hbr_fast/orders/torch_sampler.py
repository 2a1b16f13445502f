"""Orders inside torch's `DataLoader`: exact, distributed and resumable, in place of `WeightedRandomSampler`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DistributedSampler

from hbr_fast.arguments import whole_number
from hbr_fast.orders import Sampler, Uneven
from hbr_fast.orders.order import checked_epoch, checked_rank
from hbr_fast.orders.torch_consumers import Consumer, called_by_torchdata, consumer
from hbr_fast.processes import in_process_group, left_alone

BLOCK = 4096  # indices made at once: the overhead of single calls would exceed the work


class OrderSampler(DistributedSampler[int]):
    """An order as a torch sampler: `DataLoader(dataset, sampler=OrderSampler(order), ...)`.

    Every iteration is the next epoch, so plain loops need no `set_epoch`. Iterations are independent, even if left
    early or nested. After a state was loaded, the next iteration is the rest of its epoch. The length is always that of
    a whole epoch.

    In a distributed run each rank takes its part, unless the consumer shards the indices itself, as Accelerate and
    Hugging Face's `Trainer` do. Lightning does not, because this is a `DistributedSampler`. docs/sampling.md has a
    table of trainers.

    Parameters
    ----------
    order : Sampler
        E.g. `quota_order(...)`, `weighted_order(...)`, `uniform_order(...)`.
    rank, world_size : int, optional
        By default those of `torch.distributed` when an iteration begins, or 0 and 1 where it is not initialised.
    uneven : "pad", "drop" or "keep"
        See `Sampler.shard`.

    Raises
    ------
    ValueError
        If the order is no order, only one of rank and world size is given, or they do not fit each other. When an
        iteration begins: if rank and world size are given, and the consumer would shard this rank's part again.

    Examples
    --------
    >>> from hbr_fast import uniform_order
    >>> sampler = OrderSampler(uniform_order(100, seed=0))
    >>> indices = iter(sampler)
    >>> first = [next(indices) for _ in range(60)]
    >>> resumed = OrderSampler(uniform_order(100, seed=0))
    >>> resumed.load_state_dict(sampler.state_dict())
    >>> sorted(first + list(resumed)) == list(range(100))
    True
    """

    # A DistributedSampler's data set attributes do not apply, so its __init__ is not called.
    def __init__(
        self, order: Sampler, *, rank: int | None = None, world_size: int | None = None, uneven: Uneven = "pad"
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        self._place = None if rank is None or world_size is None else checked_rank(rank, world_size)
        self._order, self.uneven = _checked_order(order), uneven
        self._epoch, self._position = 0, 0  # start of the next iteration; a position of the whole order
        self._latest: _Indices | None = None
        order.shard(0, 1, uneven=uneven)  # refuses a bad `uneven` early

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self.order):,} indices an epoch, next is epoch {self.epoch}>"

    @property
    def order(self) -> Sampler:
        """The order of the next epoch."""
        return self._order

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The epoch that the next iteration begins, or resumes if a state was loaded."""
        return self._epoch

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's rank: as given, else the current one of `torch.distributed`."""
        return (self._place or process_place())[0]

    @property
    def world_size(self) -> int:
        """The world size: as given, else the current one of `torch.distributed`."""
        return (self._place or process_place())[1]

    num_replicas = world_size  # its name in a DistributedSampler

    def __len__(self) -> int:
        """Indices of a whole epoch on this rank, whatever has been iterated or loaded."""
        return len(self._shard(consumer(self), origin=0))

    def __iter__(self) -> Iterator[int]:
        """The next epoch: a whole one, or the rest of the epoch whose state was loaded."""
        return _Indices(self)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch, from its beginning unless a position in the same epoch was loaded."""
        epoch = checked_epoch(epoch)
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0
        if self._latest is not None and self._latest.epoch != epoch:
            self._latest = None

    def set_order(self, order: Sampler) -> None:
        """Use another order from the next iteration on, e.g. `sampler.order.with_weights(weights)`.

        Running iterations keep theirs. The epoch count continues.

        Raises
        ------
        ValueError
            If the order is no order or draws from another number of rows, or a position within the former one was
            loaded.
        """
        if _checked_order(order).num_rows != self._order.num_rows:
            raise ValueError(f"the sampler draws from {self._order.num_rows} rows, the order from {order.num_rows}")
        if self._position:
            raise ValueError("a state of the former order was loaded: set the order first, then load its state")
        self._order = order

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """The position in the whole order, in constant size; any number of ranks may load it.

        Parameters
        ----------
        consumed : int, optional
            Indices of the latest iteration that this rank has trained on: the sum of `len(batch)` since its loop began.
            By default all that were handed out, which is correct in a loop over a `DataLoader` without workers.

        Raises
        ------
        ValueError
            If `consumed` is missing though indices are taken ahead of the training, or exceeds what was handed out.
        """
        latest = self._latest
        if latest is None:
            if consumed:
                raise ValueError(f"no iteration has begun, so none of its indices can be consumed, got {consumed}")
            return self._order.state(epoch=self._epoch, position=self._position)
        if consumed is not None:
            if latest.consumer.shards:
                raise ValueError(
                    f"{latest.consumer.shards} shards the indices, so what this rank consumed is no position in the "
                    "order: resume as the trainer does, e.g. with Accelerate's skip_first_batches"
                )
            return latest.state(whole_number("consumed", consumed))
        if latest.consumer.reads_ahead and not called_by_torchdata():
            raise ValueError(
                f"{latest.consumer.reads_ahead} takes indices before they are trained on, so this place is not known: "
                "give state_dict(consumed=number of indices that were trained on), or call set_epoch(next epoch) first "
                "if the epoch is over, or take the state of a torchdata StatefulDataLoader"
            )
        if latest.exhausted and not latest.consumer.in_loop:
            return self._order.state(epoch=self._epoch, position=self._position)
        return latest.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where a state was taken, with any number of ranks; `set_epoch` of the same epoch keeps the position.

        Raises
        ------
        ValueError
            If the state is from another order or version.
        """
        self._epoch, self._position = self._order.restore(state)
        self._latest = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the iteration, which does not continue in a copy or another process."""
        return {**self.__dict__, "_latest": None}

    def _shard(self, reader: Consumer, *, origin: int) -> Sampler:
        rank, world_size = self._place or place_to_iterate()
        if reader.shards:
            if self._place is not None and world_size > 1:
                raise ValueError(
                    f"{reader.shards} gives each process its part, and this sampler is a part already, with "
                    f"rank={rank} and world_size={world_size}: leave both out"
                )
            rank, world_size = 0, 1
        return self._order.shard(rank, world_size, uneven=self.uneven, origin=origin)


class _Indices(Iterator[int]):
    """One iteration of an `OrderSampler`, with a state of its own for torchdata.

    It takes its epoch when its first index is requested, like a generator: loaders make iterators that they never use,
    and some set the epoch after making one.
    """

    def __init__(self, sampler: OrderSampler) -> None:
        self.epoch, self.consumer, self.exhausted = -1, Consumer(), False
        self._sampler = sampler
        self._loaded: tuple[int, int] | None = None
        self._shard: Sampler | None = None  # None until the first index
        self._block: list[int] = []
        self._block_start = self._next = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._next == len(self._block):
            self._make_block()
        index = self._block[self._next]
        self._next += 1
        return index

    def _make_block(self) -> None:
        if self._shard is None:
            self._shard = self._begin(consumer(self._sampler))
        self._block_start += len(self._block)
        self._block, self._next = [], 0
        count = min(BLOCK, len(self._shard) - self._block_start)
        if count == 0:
            self.exhausted = True
            raise StopIteration
        self._block = self._shard.rows(self._block_start, count, epoch=self.epoch).tolist()

    def _begin(self, reader: Consumer) -> Sampler:
        sampler = self._sampler
        if self._loaded is None:
            if reader.epoch is not None:
                # Accelerate does not pass its epoch on through `skip_first_batches`, and Lightning does so too late.
                sampler.set_epoch(reader.epoch)
            self.epoch, origin = sampler._epoch, sampler._position
            sampler._epoch, sampler._position = self.epoch + 1, 0
        else:
            self.epoch, origin = self._loaded
        sampler._latest, self.consumer = self, reader
        return sampler._shard(reader, origin=origin)

    def state(self, consumed: int) -> dict[str, Any]:
        """The position after `consumed` indices of this iteration."""
        given = self._block_start + self._next
        if not 0 <= consumed <= given:
            raise ValueError(f"consumed must be in [0, {given}], the indices handed out, got {consumed}")
        if self._shard is not None:
            return self._shard.state(epoch=self.epoch, position=consumed)
        epoch, position = self._loaded or (self._sampler._epoch, self._sampler._position)
        return self._sampler.order.state(epoch=epoch, position=position)

    def state_dict(self) -> dict[str, Any]:
        """The position after the indices handed out."""
        return self.state(self._block_start + self._next)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; the sampler's next iteration is the epoch after it."""
        sampler = self._sampler
        sampler.load_state_dict(state)
        self.__init__(sampler)  # type: ignore[misc]
        self._loaded, self.epoch = (sampler._epoch, sampler._position), sampler._epoch
        sampler._epoch, sampler._position, sampler._latest = sampler._epoch + 1, 0, self


def _checked_order(order: Any) -> Sampler:
    if not isinstance(order, Sampler):
        raise ValueError(f"order must be e.g. uniform_order(len(dataset), seed=0), got {type(order).__name__}")
    return order


def process_place() -> tuple[int, int]:
    """Rank and world size of this process in `torch.distributed`, or (0, 1) if it is not initialised."""
    if in_process_group():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def place_to_iterate() -> tuple[int, int]:
    """`process_place`, with a warning where processes would each iterate over the whole epoch."""
    if alone := left_alone():
        warnings.warn(alone, stacklevel=3)
    return process_place()
