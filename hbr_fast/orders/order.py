"""The interface of all orders: a length, rows at positions, shards for ranks, and a state to resume from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

import numpy as np

from hbr_fast.arguments import whole_number
from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.machine import usable_cpus
from hbr_fast.seeding import Stream, philox, stream_key

Uneven = Literal["pad", "drop", "keep"]

STATE_SCHEMA = 1
PARALLEL_ROWS = 2**16  # minimum rows per thread when a call is split: for fewer, starting the thread costs more

# The last word of the order stream's counters says their use. 0 to 2 belong to the kernels of weighted draws.
ROUND_KEYS, MEMBER_KEYS, CLASS_SALTS, SHARD_KEYS = 3, 4, 5, 6


class Sampler:
    """An order that a loader draws from: a length, and the row at any position of any epoch.

    Examples
    --------
    >>> from hbr_fast import uniform_order
    >>> order = uniform_order(10, seed=0)
    >>> (isinstance(order, Sampler), len(order), order.num_rows)
    (True, 10, 10)
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self):,} positions an epoch, of {self.num_rows:,} rows>"

    def __len__(self) -> int:
        """Positions in an epoch."""
        raise NotImplementedError

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count].

        Raises
        ------
        ValueError
            If a position is outside the epoch, or the epoch is negative.
        """
        raise NotImplementedError

    @property
    def num_rows(self) -> int:
        """Number of rows to draw from: every row drawn is below this."""
        return len(self)

    def describe(self) -> dict[str, Any]:
        """Identity of the order: a few JSON values, equal if and only if the orders are."""
        raise NotImplementedError

    def global_positions(self, start: int) -> tuple[int, int]:
        """Location of position `start` and its successors in the order that all ranks share: (first, step)."""
        return start, 1

    def shard(self, rank: int, world_size: int, *, uneven: Uneven = "pad", origin: int = 0) -> Shard:
        """The part of one of several processes: rank r of W takes positions r, r + W, r + 2 W, ...

        Parameters
        ----------
        rank, world_size : int
        uneven : "pad", "drop" or "keep"
            If W does not divide the epoch, "pad" fills up from the epoch's beginning and "drop" leaves out the last
            few, so that every rank has equally many positions; "keep" gives the first ranks one more.
        origin : int
            Position of the whole order to begin at, to resume an interrupted epoch.

        Raises
        ------
        ValueError
            If the world size is below 1, or the rank or the origin is out of range.
        """
        rank, world_size = checked_rank(rank, world_size)
        origin = whole_number("origin", origin)
        if uneven not in ("pad", "drop", "keep"):
            raise ValueError(f'uneven must be "pad", "drop" or "keep", got {uneven!r}')
        if not 0 <= origin <= len(self):
            raise ValueError(f"origin must be in [0, {len(self)}], the epoch's positions, got {origin}")
        return Shard(self, rank, world_size, uneven, origin)

    def state(self, *, epoch: int, position: int) -> dict[str, Any]:
        """A position in the order, of constant size: the order's identity, the epoch, and the position in it."""
        return {
            "schema": STATE_SCHEMA,
            "order": self.describe(),
            "epoch": whole_number("epoch", epoch),
            "position": whole_number("position", position),
        }

    def restore(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The (epoch, position) of a state of the same order.

        Raises
        ------
        ValueError
            If the state has another schema or is from another order; the message names what differs.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a state must come from state_dict() or state(), got {type(state).__name__}")
        if state.get("schema") != STATE_SCHEMA:
            raise ValueError(f"this state has schema {state.get('schema')!r}, this version reads {STATE_SCHEMA}")
        for name, kind in (("order", Mapping), ("epoch", Integral), ("position", Integral)):
            if not isinstance(state.get(name), kind):
                raise ValueError(f"this state is incomplete: its {name} is {state.get(name)!r}")
        mine, theirs = self.describe(), state["order"]
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"this state is from another order: its {name} is {theirs.get(name)!r}, this order's is "
                    f"{mine.get(name)!r}"
                )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(f"this state is at epoch {epoch}, position {position}: not one of {len(self)} positions")
        return epoch, position


@dataclass(frozen=True, eq=False, repr=False)
class Shard(Sampler):
    """One rank's part of an order; see `Sampler.shard`."""

    order: Sampler
    rank: int
    world_size: int
    uneven: Uneven
    origin: int = 0

    @property
    def num_rows(self) -> int:
        """As of the whole order."""
        return self.order.num_rows

    def __len__(self) -> int:
        left = len(self.order) - self.origin
        full, over = divmod(left, self.world_size)
        return full + {"pad": over > 0, "drop": False, "keep": self.rank < over}[self.uneven]

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at the shard's positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, len(self), epoch)
        first, step = self._in_order(start), self.world_size * stride
        inside = min(count, max(0, -(-(len(self.order) - first) // step)))
        rows = self.order.rows(first, inside, epoch=epoch, stride=step)
        if inside == count:
            return rows
        # At most one position per rank is padding, and it takes rows from the epoch's beginning.
        wrapped = (first + np.arange(inside, count) * step) % len(self.order)
        padding = [self.order.rows(int(position), 1, epoch=epoch) for position in wrapped]
        return np.concatenate([rows, *padding])

    def describe(self) -> dict[str, Any]:
        """The whole order's fingerprint: any number of ranks may restore a state."""
        return self.order.describe()

    def global_positions(self, start: int) -> tuple[int, int]:
        """Position in the whole order, and the distance to the next."""
        first, step = self.order.global_positions(self._in_order(start))
        return first, step * self.world_size

    def state(self, *, epoch: int, position: int) -> dict[str, Any]:
        """A position in the whole order, after every rank has done `position` of its positions."""
        position = whole_number("position", position)
        done = min(self.origin + position * self.world_size, len(self.order))
        if self.uneven == "drop" and position >= len(self):
            done = len(self.order)  # dropped positions must not reappear after a restart with another number of ranks
        return self.order.state(epoch=epoch, position=done)

    def restore(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The (epoch, position) of a state in the whole order: the `origin` of shards that resume there."""
        return self.order.restore(state)

    def _in_order(self, start: int) -> int:
        return self.origin + self.rank + start * self.world_size


def filled(count: int, fill: Callable[[int, np.ndarray], None]) -> np.ndarray:
    """`count` rows from `fill(first, out)`, which writes rows from `first` on; threads share large counts."""
    out = np.empty(count, np.int64)
    threads = 1 if count < 2 * PARALLEL_ROWS else min(usable_cpus(), count // PARALLEL_ROWS)
    if threads < 2:
        fill(0, out)
        return out
    edges = [count * part // threads for part in range(threads + 1)]
    # Threads that end with the call: a persistent pool would be dead in the workers that a DataLoader forks.
    with ThreadPoolExecutor(threads - 1) as pool:
        others = pool.map(lambda part: fill(edges[part], out[edges[part] : edges[part + 1]]), range(1, threads))
        fill(0, out[: edges[1]])
        list(others)  # re-raises errors of the threads
    return out


@lru_cache(maxsize=64)
def round_keys(seed: int, epoch: int, use: int, rounds: int) -> np.ndarray:
    """Round keys of an epoch's bijection, int64 [rounds]; cached, because every batch of the epoch needs them."""
    key = stream_key(seed, Stream.ORDER)
    return np.array([word for block in range(rounds // 4) for word in philox((block, 0, epoch, use), key)], np.int64)


def kept(array: np.ndarray) -> np.ndarray:
    """A private, read-only copy of an array."""
    array.flags.writeable = False
    return array


def content_of(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def checked_length(length: int) -> int:
    if not 1 <= (length := whole_number("length", length)) <= cpu_bijections.MAX_LENGTH:
        raise ValueError(f"an order needs a whole length in [1, 2**48], got {length}")
    return length


def checked_positions(start: int, count: int, stride: int, length: int, epoch: int) -> tuple[int, int, int, int]:
    """Start, count, stride and epoch as Python's integers, checked to lie inside an epoch of this length."""
    if not type(start) is type(count) is type(stride) is int:
        start, count, stride = (
            whole_number(name, value) for name, value in (("start", start), ("count", count), ("stride", stride))
        )
    last = start + (count - 1) * stride
    if start < 0 or count < 0 or stride < 1 or (count > 0 and last >= length):
        raise ValueError(f"positions {start} to {last} in steps of {stride} are not inside the epoch's {length}")
    return start, count, stride, checked_epoch(epoch)


def checked_epoch(epoch: int) -> int:
    epoch = whole_number("epoch", epoch)
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
    return epoch


def checked_rank(rank: int, world_size: int) -> tuple[int, int]:
    rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), the world size, got {rank}")
    return rank, world_size
