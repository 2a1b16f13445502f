"""Every row once per epoch, with rows that are stored beside each other drawn near each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from hbr_fast.arguments import whole_number
from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.orders.order import SHARD_KEYS, Sampler, checked_length, checked_positions, content_of, kept
from hbr_fast.orders.uniform import uniform_order
from hbr_fast.seeding import Stream, checked_seed, philox, stream_key


def shard_order(places: int | np.ndarray, *, seed: int, run: int = 1024, runs_at_once: int = 16) -> ShardOrder:
    """An order for data that are read in large pieces: e.g. a dataset at a URL that is larger than its cache.

    The rows, sorted by where they are stored, are cut into runs. Every epoch draws the runs in a new sequence, and
    shuffles the rows of `runs_at_once` of them together. Each row comes once per epoch, as in `uniform_order`, but a
    batch holds rows of few runs: choose exact shuffling where it is affordable.

    Parameters
    ----------
    places : int or integer array [R]
        The number of rows, stored in this sequence; or where each row of a plan is stored: `plan.index`.
    seed : int
        In [0, 2**63).
    run : int
        Rows of a run, at least 1.
    runs_at_once : int
        At least 1.

    Returns
    -------
    ShardOrder

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> order = shard_order(100, seed=0, run=10, runs_at_once=2)
    >>> rows = order.rows(0, 20, epoch=0)
    >>> len(set(rows.tolist())), len(set((rows // 10).tolist()))
    (20, 2)
    """
    sequence = None
    if isinstance(places, np.ndarray):
        if places.ndim != 1 or places.dtype.kind not in "iu":
            raise ValueError(f"places must be whole numbers [R], e.g. plan.index, got {places.dtype} {places.shape}")
        sequence = kept(np.argsort(places, kind="stable"))
    length = checked_length(whole_number("places", places) if sequence is None else len(sequence))
    run, runs_at_once = whole_number("run", run), whole_number("runs_at_once", runs_at_once)
    if run < 1 or runs_at_once < 1:
        raise ValueError(f"run and runs_at_once must be at least 1, got {run} and {runs_at_once}")
    return ShardOrder(length, checked_seed(seed), min(run, length), runs_at_once, sequence)


@dataclass(frozen=True, repr=False)
class ShardOrder(Sampler):
    """Every row once per epoch, near its neighbours; see `shard_order`."""

    length: int
    seed: int
    run: int
    runs_at_once: int
    sequence: np.ndarray | None = field(default=None, compare=False)  # rows by where they are stored

    def __len__(self) -> int:
        return self.length

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Rows at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, self.length, epoch)
        runs, ends = _runs(self.length, self.seed, self.run, self.runs_at_once, epoch)
        out = np.empty(count, np.int64)
        done = 0
        while done < count:
            position = start + done * stride
            group = int(np.searchsorted(ends, position, side="right"))
            begin = int(ends[group - 1]) if group else 0
            part = out[done : done + -(-(int(ends[group]) - position) // stride)]
            self._shuffled(group, position - begin, stride, int(ends[group]) - begin, epoch, part)
            first = group * self.runs_at_once
            self._in_runs(runs[first : first + self.runs_at_once], part)
            done += len(part)
        return out if self.sequence is None else self.sequence[out]

    def _shuffled(self, group: int, start: int, stride: int, length: int, epoch: int, out: np.ndarray) -> None:
        """Numbers of rows within a group of runs."""
        key, rounds = stream_key(self.seed, Stream.ORDER), cpu_bijections.rounds(length)
        words = [word for block in range(rounds // 4) for word in philox((block, group, epoch, SHARD_KEYS), key)]
        grid = cpu_bijections.grid(length)
        cpu_bijections.bijection(start, stride, length, *grid, np.array(words, np.int64), out)

    def _in_runs(self, runs: np.ndarray, numbers: np.ndarray) -> None:
        """Replace numbers within a group of runs by rows."""
        sizes = np.minimum(self.run, self.length - runs * self.run)
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, numbers, side="right")
        numbers += runs[which] * self.run - (ends - sizes)[which]

    def describe(self) -> dict[str, Any]:
        """Kind, length, seed, runs, and a hash of where the rows are stored."""
        stored = {} if self.sequence is None else {"sequence": content_of(self.sequence.tobytes())}
        sizes = {"run": self.run, "runs_at_once": self.runs_at_once}
        return {"kind": "shards", "length": self.length, "seed": self.seed, **sizes, **stored}


@lru_cache(maxsize=8)
def _runs(length: int, seed: int, run: int, runs_at_once: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The sequence of an epoch's runs, and the positions at which its groups of runs end."""
    count = -(-length // run)
    runs = uniform_order(count, seed=seed).rows(0, count, epoch=epoch)
    sizes = np.minimum(run, length - runs * run)
    return kept(runs), kept(np.cumsum(np.add.reduceat(sizes, np.arange(0, count, runs_at_once))))
