"""Fixed numbers of samples of each class per epoch, or ratios kept over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.orders.arrays import one_a_class, one_each
from hbr_fast.orders.order import (
    CLASS_SALTS,
    MEMBER_KEYS,
    ROUND_KEYS,
    Sampler,
    checked_epoch,
    checked_length,
    checked_positions,
    content_of,
    filled,
    kept,
    round_keys,
)
from hbr_fast.seeding import Stream, checked_seed, philox, stream_key


def quota_order(
    labels_n: ArrayLike,
    counts_c: ArrayLike | Mapping[int, int],
    *,
    seed: int,
    preference: ArrayLike | None = None,
) -> QuotaOrder:
    """An order with an exact number of samples of each class in every epoch.

    A class with n samples and a count of S draws each sample floor(S / n) or ceil(S / n) times; which ones get the
    extra draw, or which are left out if S < n, changes from epoch to epoch. Memory is that of the labels.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample, in [0, C).
    counts_c : integer [C]
        Samples of each class in an epoch, >= 0, e.g. `Allocation.counts`; or a mapping from label to count.
    seed : int
        In [0, 2**63).
    preference : float [N], optional
        Takes the samples of a class in decreasing order of preference, the same in every epoch: hardness scores keep
        the hardest. By default all samples are equal.

    Returns
    -------
    QuotaOrder

    Raises
    ------
    ValueError
        If labels, counts and preference do not fit each other, or an empty class has a count above 0.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> order = quota_order(labels, [2, 5], seed=0)
    >>> np.bincount(labels[order.rows(0, len(order), epoch=0)]).tolist()
    [2, 5]
    """
    counts = one_a_class("counts", counts_c)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError(f"counts must be whole numbers, one a class, got {counts.dtype} {counts.shape}")
    return _quota_order(labels_n, [Fraction(count) for count in counts.tolist()], seed=seed, preference=preference)


def ratio_order(
    labels_n: ArrayLike, ratios_c: ArrayLike | Mapping[int, float], *, length: int, seed: int
) -> QuotaOrder:
    """An order of fixed length whose classes appear in real-valued ratios.

    No epoch can hold 33.3 samples of a class; over k epochs this order holds k times 33.3 of them, off by at most one.
    Otherwise it is the same as `quota_order`.

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
        sample per epoch.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> order = ratio_order(labels, [1, 2], length=9, seed=0)
    >>> np.bincount(labels[order.rows(0, 9, epoch=0)]).tolist()
    [3, 6]
    """
    length = checked_length(length)
    ratios = np.asarray(one_a_class("ratios", ratios_c), np.float64)
    if ratios.ndim != 1 or not np.isfinite(ratios).all() or (ratios < 0).any() or not ratios.any():
        raise ValueError(f"ratios must be finite, >= 0 and not all 0, one a class, got {ratios}")
    exact = [Fraction(ratio) for ratio in ratios.tolist()]
    whole = sum(exact)
    quotas = [length * ratio / whole for ratio in exact]
    for c, quota in enumerate(quotas):
        if 0 < quota < 1:
            raise ValueError(
                f"class {c} would get {float(quota):.3g} samples an epoch: it needs at least 1, so a longer epoch, "
                "a larger ratio, or 0"
            )
    return _quota_order(labels_n, quotas, seed=seed, preference=None)


@dataclass(frozen=True, eq=False, repr=False)
class QuotaOrder(Sampler):
    """A fixed number of samples of each class per epoch, spread evenly; see `quota_order` and `ratio_order`."""

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
        epoch = checked_epoch(epoch)
        return _cumulative_counts(self.quotas, epoch + 1) - _cumulative_counts(self.quotas, epoch)

    def with_counts(self, counts_c: ArrayLike | Mapping[int, int]) -> QuotaOrder:
        """The same samples, seed and preference with other counts."""
        return quota_order(self.labels, counts_c, seed=self.seed, preference=self.preference)

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        """Sample ids at positions `start`, `start + stride`, ... of an epoch: int64 [count]."""
        start, count, stride, epoch = checked_positions(start, count, stride, self._length, epoch)
        arguments = self._arguments(epoch)

        def fill(first: int, out: np.ndarray) -> None:
            cpu_bijections.quota_rows(*(start + first * stride, stride, *arguments, self._members, out))

        return filled(count, fill)

    def member_arguments(self, epoch: int) -> tuple[Any, ...]:
        """The arguments of `cpu_bijections.members_of_slots` before the slots."""
        return *self._arguments(epoch)[4:], self._members

    def describe(self) -> dict[str, Any]:
        """Kind, length, seed, and a hash of labels, quotas and preference."""
        return {"kind": "quota", "length": self._length, "seed": self.seed, "content": self._content}

    @cached_property
    def _content(self) -> str:
        quotas = ",".join(map(str, self.quotas)).encode()
        return content_of(self.labels.tobytes(), quotas, b"" if self.preference is None else self.preference.tobytes())

    @cached_property
    def _length(self) -> int:
        return int(sum(self.quotas))

    @cached_property
    def _class_sizes(self) -> np.ndarray:
        return np.bincount(self.labels, minlength=len(self.quotas))

    @cached_property
    def _members(self) -> np.ndarray:
        """Samples grouped by class, in half the memory of the labels if they fit."""
        if self.preference is None:
            # numpy radix-sorts 16-bit numbers, many times faster than by comparison.
            members = np.argsort(
                self.labels.astype(np.uint16 if len(self.quotas) <= 2**16 else np.int64), kind="stable"
            )
        else:
            members = np.lexsort((-self.preference, self.labels))
        return members.astype(np.uint32 if len(members) <= 2**32 else np.int64)

    @cached_property
    def _classes(self) -> np.ndarray:
        """The kernel's columns of each class, except for its first slot."""
        sizes = np.maximum(self._class_sizes, 1)  # an empty class has no quota: nothing divides by it
        key = stream_key(self.seed, Stream.ORDER)
        classes = np.zeros((len(sizes) + 1, 6), np.int64)
        classes[:-1, 1] = sizes
        classes[:-1, 2:4] = [cpu_bijections.grid(size) for size in sizes.tolist()]
        classes[:-1, 4] = [philox((c, 0, 0, CLASS_SALTS), key)[0] for c in range(len(sizes))]
        classes[:-1, 5] = np.cumsum(self._class_sizes) - self._class_sizes
        return classes

    @cached_property
    def _same_every_epoch(self) -> bool:
        return all(quota.denominator == 1 for quota in self.quotas)

    @cached_property
    def _slots_of_every_epoch(self) -> tuple[int, np.ndarray, np.ndarray]:
        return self._slots(0)

    def _slots(self, epoch: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The kernel's shift, guide and classes of an epoch."""
        classes = self._classes.copy()
        classes[1:, 0] = np.cumsum(self.counts(epoch))
        shift = cpu_bijections.guide_shift(self._length, len(self.quotas))
        guide = np.searchsorted(classes[:, 0], np.arange(0, self._length, 1 << shift), side="right") - 1
        return shift, guide.astype(np.int32), classes

    @cached_property
    def _arguments_of_epoch(self) -> dict[int, tuple[Any, ...]]:
        return {}

    def _arguments(self, epoch: int) -> tuple[Any, ...]:
        """Arguments of the kernel, from the length to the member keys; the last epoch's are kept."""
        arguments = self._arguments_of_epoch.get(epoch)
        if arguments is None:
            keys = round_keys(self.seed, epoch, ROUND_KEYS, cpu_bijections.rounds(self._length))
            # With a preference the members are listed best first and taken in that order.
            rounds = 0 if self.preference is not None else cpu_bijections.rounds(int(self._classes[:-1, 1].min()))
            member_keys = round_keys(self.seed, epoch, MEMBER_KEYS, rounds)
            slots = self._slots_of_every_epoch if self._same_every_epoch else self._slots(epoch)
            arguments = self._length, *cpu_bijections.grid(self._length), keys, *slots, member_keys
            self._arguments_of_epoch.clear()
            self._arguments_of_epoch[epoch] = arguments
        return arguments


def checked_labels(labels_n: ArrayLike) -> np.ndarray:
    """Labels as a checked array [N]; unsigned ones of 64 bits as int64, which NumPy before 2.3 wants for counting."""
    labels = one_each("labels", labels_n)
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers, one a sample, got {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min()}")
    if labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels must be classes, numbered from 0, got {labels.max()}")
    return labels.astype(np.int64) if labels.dtype == np.uint64 else labels


def _quota_order(
    labels_n: ArrayLike, quotas: Sequence[Fraction], *, seed: int, preference: ArrayLike | None
) -> QuotaOrder:
    labels = checked_labels(labels_n)
    if labels.max() >= len(quotas):
        raise ValueError(f"labels go up to {labels.max()}, but there are counts for {len(quotas)} classes")
    if min(quotas) < 0:
        raise ValueError(f"counts must not be negative, class {quotas.index(min(quotas))} has {float(min(quotas)):g}")
    checked_length(int(sum(quotas)))
    for c, size in enumerate(np.bincount(labels, minlength=len(quotas)).tolist()):
        if size == 0 and quotas[c] > 0:
            raise ValueError(f"class {c} has no samples but a count of {float(quotas[c]):g}: give it a count of 0")
    if preference is not None:
        preference = np.array(one_each("preference", preference), np.float64)
        if preference.shape != labels.shape or np.isnan(preference).any():
            raise ValueError(f"preference must be {len(labels)} numbers, one a sample, and none NaN")
    labels, preference = kept(labels.astype(np.int64)), None if preference is None else kept(preference)
    return QuotaOrder(labels, tuple(quotas), checked_seed(seed), preference)


def _cumulative_counts(quotas: Sequence[Fraction], epochs: int) -> np.ndarray:
    """Samples of each class in the first `epochs` epochs: each less than one off its quota, their sum exact."""
    edges = [int(epochs * edge + Fraction(1, 2)) for edge in accumulate(quotas)]  # int() rounds down: edges are >= 0
    return np.diff(np.array([0, *edges], np.int64))
