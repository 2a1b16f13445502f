"""Orders: which row stands at which position of an epoch, as pure functions of (seed, epoch, position).

An order has no hidden state: any position of any epoch can be asked for, in any process, at any time. Our `Loader`
takes an order as it is; `torch_sampler.py` puts one into torch's `DataLoader`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from hbr_fast.kernels import cpu_draws, cpu_orders
from hbr_fast.machine import usable_cpus
from hbr_fast.seeding import Stream, philox, stream_key

Uneven = Literal["pad", "drop"]

STATE_SCHEMA = 1
PARALLEL_ROWS = 2**16  # a call for this many rows and more is shared between threads; below, starting them costs more

# What the counters of the order stream are used for: their last word. 0 to 2 belong to the kernels of weighted draws.
_ROUND_KEYS, _MEMBER_KEYS, _CLASS_SALTS = 3, 4, 5


class Sampler:
    """What a loader draws from: a length, and the row at any position of any epoch."""

    def __len__(self) -> int:
        """Positions in an epoch."""
        raise NotImplementedError

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count].

        Raises
        ------
        ValueError
            If a position is outside of the epoch, or the epoch is negative.
        """
        raise NotImplementedError

    @property
    def num_rows(self) -> int:
        """Rows there are to draw from: every row drawn is below this."""
        return len(self)

    def describe(self) -> dict[str, Any]:
        """What the order is: a few JSON values, equal if and only if the orders are."""
        raise NotImplementedError

    def global_positions(self, start: int) -> tuple[int, int]:
        """Where position `start` and those after it stand in the order that all ranks share: (first, step)."""
        return start, 1

    def shard(self, rank: int, world_size: int, *, uneven: Uneven = "pad", origin: int = 0) -> Shard:
        """The part of one of several processes: rank r of W takes positions r, r + W, r + 2 W, ...

        Parameters
        ----------
        rank, world_size : int
        uneven : "pad" or "drop"
            Every rank has equally many positions. Where W does not divide the epoch, "pad" fills up from the epoch's
            beginning, "drop" leaves the last few out.
        origin : int
            Position of the whole order to begin at, for an epoch that was interrupted there.

        Raises
        ------
        ValueError
            If the world size is below 1, the rank outside of it, or the origin outside of the epoch.
        """
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), the world size, got {rank}")
        if uneven not in ("pad", "drop"):
            raise ValueError(f'uneven must be "pad" or "drop", got {uneven!r}')
        if not 0 <= origin <= len(self):
            raise ValueError(f"origin must be in [0, {len(self)}], the epoch's positions, got {origin}")
        return Shard(self, rank, world_size, uneven, origin)

    def state(self, *, epoch: int, position: int) -> dict[str, Any]:
        """A place in the order, of constant size: what the order is, the epoch, and the position in it."""
        return {"schema": STATE_SCHEMA, "order": self.describe(), "epoch": epoch, "position": position}

    def restore(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """The (epoch, position) of a state of this very order.

        Raises
        ------
        ValueError
            If the state has another schema or is another order's; the message names what differs.
        """
        if state.get("schema") != STATE_SCHEMA:
            raise ValueError(f"this state has schema {state.get('schema')!r}, this version reads {STATE_SCHEMA}")
        mine, theirs = self.describe(), state["order"]
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"this state is another order's: its {name} is {theirs.get(name)!r}, this order's is "
                    f"{mine.get(name)!r}"
                )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(f"this state is at epoch {epoch}, position {position}: not one of {len(self)} positions")
        return epoch, position


@dataclass(frozen=True)
class UniformOrder(Sampler):
    """Every row once an epoch, in an order of its own each epoch; see `uniform_order`."""

    length: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        _check_positions(start, count, stride, self.length, epoch)
        grid = cpu_orders.grid(self.length)
        keys = _round_keys(self.seed, epoch, _ROUND_KEYS, cpu_orders.rounds(self.length))

        def fill(first: int, out: np.ndarray) -> None:
            cpu_orders.bijection(start + first * stride, stride, self.length, *grid, keys, out)

        return _filled(count, fill)

    def describe(self) -> dict[str, Any]:
        """Kind, length and seed."""
        return {"kind": "uniform", "length": self.length, "seed": self.seed}


@dataclass(frozen=True)
class SequentialOrder(Sampler):
    """Rows as they stand, 0, 1, 2, ..., in every epoch: what evaluation wants."""

    length: int

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        _check_positions(start, count, stride, self.length, epoch)
        return np.arange(start, start + count * stride, stride, dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Kind and length."""
        return {"kind": "sequential", "length": self.length}


@dataclass(frozen=True, eq=False)
class QuotaOrder(Sampler):
    """So many samples of each class an epoch, spread evenly over the class; see `quota_order` and `ratio_order`."""

    labels: np.ndarray = field(repr=False)
    quotas: tuple[Fraction, ...]
    seed: int
    preference: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self._length

    @property
    def num_rows(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def counts(self, epoch: int) -> np.ndarray:
        """Samples of each class in an epoch: int64 [C]."""
        return _cumulative_counts(self.quotas, epoch + 1) - _cumulative_counts(self.quotas, epoch)

    def with_counts(self, counts_c: np.ndarray | Sequence[int]) -> QuotaOrder:
        """The same samples, seed and preference with other counts."""
        return quota_order(self.labels, counts_c, seed=self.seed, preference=self.preference)

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Sample ids at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        _check_positions(start, count, stride, self._length, epoch)
        grid = cpu_orders.grid(self._length)
        keys = _round_keys(self.seed, epoch, _ROUND_KEYS, cpu_orders.rounds(self._length))
        # With a preference the members are listed best first and taken as listed.
        rounds = 0 if self.preference is not None else cpu_orders.rounds(int(self._sizes.min()))
        member_keys = _round_keys(self.seed, epoch, _MEMBER_KEYS, rounds)
        starts, guide = self._slots(0 if self._same_every_epoch else epoch)

        def fill(first: int, out: np.ndarray) -> None:
            cpu_orders.quota_rows(
                start + first * stride,
                stride,
                self._length,
                *grid,
                keys,
                guide,
                starts,
                self._sizes,
                *self._grids,
                self._salts,
                member_keys,
                self._first,
                self._members,
                out,
            )

        return _filled(count, fill)

    def describe(self) -> dict[str, Any]:
        """Kind, length, seed, and a hash of labels, quotas and preference."""
        return {"kind": "quota", "length": self._length, "seed": self.seed, "content": self._content}

    @cached_property
    def _content(self) -> str:
        quotas = ",".join(map(str, self.quotas)).encode()
        return _hash(self.labels.tobytes(), quotas, b"" if self.preference is None else self.preference.tobytes())

    @cached_property
    def _length(self) -> int:
        return int(sum(self.quotas))

    @cached_property
    def _same_every_epoch(self) -> bool:
        return all(quota.denominator == 1 for quota in self.quotas)

    @cached_property
    def _class_counts(self) -> np.ndarray:
        return np.bincount(self.labels, minlength=len(self.quotas))

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.maximum(self._class_counts, 1)  # an empty class has no quota: nothing divides by it

    @cached_property
    def _first(self) -> np.ndarray:
        return np.cumsum(self._class_counts) - self._class_counts

    @cached_property
    def _members(self) -> np.ndarray:
        if self.preference is None:
            return np.argsort(self.labels, kind="stable")
        return np.lexsort((-self.preference, self.labels))

    @cached_property
    def _grids(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = np.array([cpu_orders.grid(size) for size in self._sizes.tolist()], np.int64)
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    @cached_property
    def _salts(self) -> np.ndarray:
        key = stream_key(self.seed, Stream.ORDER)
        return np.array([philox((c, 0, 0, _CLASS_SALTS), key)[0] for c in range(len(self.quotas))], np.int64)

    @cached_property
    def _slots_of_epoch(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    def _slots(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each class's slots start, and the class at each of some evenly spread slots."""
        if epoch not in self._slots_of_epoch:
            starts = np.concatenate([[0], np.cumsum(self.counts(epoch))])
            points = 4 * len(self.quotas)
            guide = np.searchsorted(starts, np.arange(points) * self._length // points, side="right") - 1
            self._slots_of_epoch.clear()
            self._slots_of_epoch[epoch] = starts, guide
        return self._slots_of_epoch[epoch]


@dataclass(frozen=True, eq=False)
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

    def with_weights(self, weights_n: np.ndarray) -> WeightedOrder:
        """The same length, seed and kind of draw with other weights."""
        return weighted_order(weights_n, length=self.length, seed=self.seed, replacement=self.replacement)

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        _check_positions(start, count, stride, self.length, epoch)
        if not self.replacement:
            return self._drawn(epoch)[start : start + count * stride : stride].copy()
        thresholds, packed = self._table
        key = np.array(stream_key(self.seed, Stream.ORDER), np.uint64)

        def fill(first: int, out: np.ndarray) -> None:
            cpu_draws.alias_draws(start + first * stride, stride, epoch, key, thresholds, packed, out)

        return _filled(count, fill)

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
        return _hash(self.weights.tobytes())

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        thresholds, packed = np.empty((2, len(self.weights)), np.uint64)
        cpu_draws.alias_table(self.weights, float(self.weights.sum()), thresholds, packed)
        return thresholds, packed

    @cached_property
    def _drawn_of_epoch(self) -> dict[int, np.ndarray]:
        return {}

    def _drawn(self, epoch: int) -> np.ndarray:
        """All rows of an epoch drawn without replacement, in the order they were drawn; the last epoch's are kept."""
        if epoch not in self._drawn_of_epoch:
            keys = np.empty(len(self.weights))
            key = np.array(stream_key(self.seed, Stream.ORDER), np.uint64)
            cpu_draws.exponential_keys(self.weights, epoch, key, keys)
            chosen = np.argpartition(keys, self.length - 1)[: self.length]
            self._drawn_of_epoch.clear()
            self._drawn_of_epoch[epoch] = chosen[np.argsort(keys[chosen], kind="stable")]
        return self._drawn_of_epoch[epoch]


@dataclass(frozen=True, eq=False)
class Shard(Sampler):
    """One process's part of an order; see `Sampler.shard`."""

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
        return left // self.world_size if self.uneven == "drop" else -(-left // self.world_size)

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at the shard's positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        _check_positions(start, count, stride, len(self), epoch)
        first, step = self.global_positions(start)
        step *= stride
        inside = min(count, max(0, -(-(len(self.order) - first) // step)))
        rows = self.order.rows(first, inside, epoch=epoch, stride=step)
        if inside == count:
            return rows
        # At most one position a rank is padding, and it takes the rows at the epoch's beginning.
        wrapped = (first + np.arange(inside, count) * step) % len(self.order)
        padding = [self.order.rows(int(position), 1, epoch=epoch) for position in wrapped]
        return np.concatenate([rows, *padding])

    def describe(self) -> dict[str, Any]:
        """The whole order's: a state may be restored by any number of ranks."""
        return self.order.describe()

    def global_positions(self, start: int) -> tuple[int, int]:
        """Position in the whole order, and the distance to the next."""
        return self.origin + self.rank + start * self.world_size, self.world_size


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


def quota_order(
    labels_n: np.ndarray,
    counts_c: np.ndarray | Sequence[int],
    *,
    seed: int,
    preference: np.ndarray | None = None,
) -> QuotaOrder:
    """An order with exactly so many samples of each class in every epoch.

    A class of n samples that gets S of them gives each floor(S / n) or ceil(S / n) times; which ones get the extra
    copy, or which are left out where S < n, changes from epoch to epoch. Memory is that of the labels.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample, in [0, C).
    counts_c : integer [C]
        Samples of each class in an epoch, >= 0, e.g. `Allocation.counts`.
    seed : int
        In [0, 2**63).
    preference : float [N], optional
        Takes the samples of a class from the largest preference down, the same in every epoch: hardness scores keep
        the hardest. By default any sample is as good as another.

    Returns
    -------
    QuotaOrder

    Raises
    ------
    ValueError
        If labels, counts or preference do not fit each other, or an empty class is to give samples.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> order = quota_order(labels, [2, 5], seed=0)
    >>> np.bincount(labels[order.rows(0, len(order), epoch=0)]).tolist()
    [2, 5]
    """
    counts = np.asarray(counts_c)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError(f"counts must be whole numbers, one a class, got {counts.dtype} {counts.shape}")
    return _quota_order(labels_n, [Fraction(count) for count in counts.tolist()], seed=seed, preference=preference)


def ratio_order(labels_n: np.ndarray, ratios_c: np.ndarray | Sequence[float], *, length: int, seed: int) -> QuotaOrder:
    """An order of fixed length whose classes appear in real-valued ratios.

    No epoch can hold 33.3 samples of a class; over k epochs this order holds k times 33.3 of them, never more than one
    off. Otherwise it is `quota_order`.

    Parameters
    ----------
    labels_n : integer [N]
    ratios_c : float [C]
        Shares of the classes, >= 0; they are divided by their sum.
    length : int
        Positions in an epoch.
    seed : int

    Raises
    ------
    ValueError
        As in `quota_order`; also if a ratio is negative or not finite, all are 0, or a class would get less than one
        sample an epoch.
    """
    _check_length(length)
    ratios = np.asarray(ratios_c, np.float64)
    if ratios.ndim != 1 or not np.isfinite(ratios).all() or (ratios < 0).any() or not ratios.any():
        raise ValueError(f"ratios must be finite, >= 0 and not all 0, one a class, got {ratios}")
    exact = [Fraction(ratio) for ratio in ratios.tolist()]
    quotas = [length * ratio / sum(exact) for ratio in exact]
    for c, quota in enumerate(quotas):
        if 0 < quota < 1:
            raise ValueError(
                f"class {c} would get {float(quota):.3g} samples an epoch: it needs at least 1, so a longer epoch, "
                "a larger ratio, or 0"
            )
    return _quota_order(labels_n, quotas, seed=seed, preference=None)


def weighted_order(
    weights_n: np.ndarray, *, seed: int, length: int | None = None, replacement: bool = True
) -> WeightedOrder:
    """An order that draws rows in proportion to weights.

    With replacement each position is a draw of its own (an alias table: built once, constant time a draw, any position
    at once). Without, an epoch is one draw of `length` different rows (exponential keys), made when the epoch is first
    asked for. A weight of 0 is never drawn. There is no limit at 2**24 weights as in `torch.multinomial`.

    Parameters
    ----------
    weights_n : float [N]
        Finite, >= 0, not all 0; N below 2**32. They need not sum to 1.
    seed : int
        In [0, 2**63).
    length : int, optional
        Positions in an epoch, by default N.
    replacement : bool
        Whether a row may be drawn more than once an epoch.

    Returns
    -------
    WeightedOrder

    Raises
    ------
    ValueError
        If a weight is negative, NaN or infinite, all are 0, or more draws without replacement are wanted than there
        are weights above 0.

    Examples
    --------
    >>> order = weighted_order(np.array([0.0, 1.0, 3.0]), seed=0, length=100_000)
    >>> np.bincount(order.rows(0, 100_000, epoch=0)).round(-3).tolist()
    [0, 25000, 75000]
    """
    weights = np.ascontiguousarray(weights_n, np.float64)
    if weights.ndim != 1 or not 1 <= len(weights) <= cpu_draws.MAX_WEIGHTS:
        raise ValueError(f"weights must be a row of 1 to 2**32 - 1 numbers, got shape {weights.shape}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"weights must be finite and >= 0: weight {bad[0]} is {weights[bad[0]]}")
    positive = int(np.count_nonzero(weights))
    if positive == 0:
        raise ValueError("all weights are 0: there is nothing to draw")
    length = len(weights) if length is None else length
    _check_length(length)
    if not replacement and length > positive:
        raise ValueError(f"{length} draws without replacement need as many weights above 0, there are {positive}")
    stream_key(seed, Stream.ORDER)
    return WeightedOrder(weights, length, seed, replacement)


def _quota_order(
    labels_n: np.ndarray, quotas: Sequence[Fraction], *, seed: int, preference: np.ndarray | None
) -> QuotaOrder:
    labels = np.asarray(labels_n)
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers, one a sample, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(quotas):
        raise ValueError(
            f"labels go from {labels.min()} to {labels.max()}, but there are counts for {len(quotas)} classes"
        )
    if min(quotas) < 0:
        raise ValueError(f"counts must not be negative, class {quotas.index(min(quotas))} has {float(min(quotas)):g}")
    _check_length(int(sum(quotas)))
    for c, size in enumerate(np.bincount(labels, minlength=len(quotas)).tolist()):
        if size == 0 and quotas[c] > 0:
            raise ValueError(f"class {c} has no samples but is to give {float(quotas[c]):g}: give it a count of 0")
    if preference is not None:
        preference = np.ascontiguousarray(preference, np.float64)
        if preference.shape != labels.shape or np.isnan(preference).any():
            raise ValueError(f"preference must be {len(labels)} numbers, one a sample, and none NaN")
    stream_key(seed, Stream.ORDER)
    return QuotaOrder(np.ascontiguousarray(labels, np.int64), tuple(quotas), seed, preference)


def _cumulative_counts(quotas: Sequence[Fraction], epochs: int) -> np.ndarray:
    """Samples of each class in the first so many epochs: each less than one off its quota, their sum exact."""
    edges = [int(epochs * edge + Fraction(1, 2)) for edge in accumulate(quotas)]  # int() rounds down: edges are >= 0
    return np.diff(np.array([0, *edges], np.int64))


def _filled(count: int, fill: Callable[[int, np.ndarray], None]) -> np.ndarray:
    """`count` rows from `fill(first, out)`, which writes those from `first` on; threads share many rows."""
    out = np.empty(count, np.int64)
    threads = min(usable_cpus(), count // PARALLEL_ROWS)
    if threads < 2:
        fill(0, out)
        return out
    edges = [count * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: fill(edges[part], out[edges[part] : edges[part + 1]]), range(threads)))
    return out


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int, use: int, rounds: int) -> np.ndarray:
    """Round keys of an epoch's bijection, int64 [rounds]; kept, because every batch of the epoch asks for them."""
    key = stream_key(seed, Stream.ORDER)
    return np.array([word for block in range(rounds // 4) for word in philox((block, 0, epoch, use), key)], np.int64)


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _check_length(length: int) -> None:
    if not 1 <= length <= cpu_orders.MAX_LENGTH:
        raise ValueError(f"an order needs a length in [1, 2**48], got {length}")


def _check_positions(start: int, count: int, stride: int, length: int, epoch: int) -> None:
    last = start + (count - 1) * stride
    if start < 0 or count < 0 or stride < 1 or (count > 0 and last >= length):
        raise ValueError(f"positions {start} to {last} in steps of {stride} are not inside the epoch's {length}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
