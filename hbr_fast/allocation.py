"""Class hardness -> samples per class, at a total that is kept exactly.

Everything between the hardness and the counts is done in whole numbers, so no rounding of a float can change
the total, break a tie the wrong way or give a harder class fewer samples than an easier one.

Source: Pukowski & Osmani, arXiv 2504.07031 (the ratio and the degree alpha); the rounding is the
largest-remainder rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

Hard = Literal["low", "high"]
Nonpositive = Literal["shift", "authors"]


@dataclass(frozen=True)
class Allocation:
    """Samples per class, and what led to them.

    Attributes
    ----------
    counts : int64 [C]
        Samples per class, S_c: the sum is the wanted total, each is at least the floor.
    alpha : float
        The degree asked for.
    max_alpha : float
        The largest degree at which every real-valued S_c is at least the floor; inf where all classes are
        equally hard. With `clip=True` alpha may be above it.
    hardness : float64 [C]
        Class hardness that the ratios came from: the input, after the shift where one was used.
    ratios : float64 [C]
        R_c, the share of class c at alpha = 1; the sum is 1.
    shifted : str or None
        The policy that made the hardness positive, None where it was not needed.
    clipped : tuple of int
        Classes held at the floor because their share was below it; empty without `clip`.
    """

    counts: np.ndarray
    alpha: float
    max_alpha: float
    hardness: np.ndarray
    ratios: np.ndarray
    shifted: str | None
    clipped: tuple[int, ...]


def allocate(
    class_hardness_c: np.ndarray | Sequence[float],
    *,
    hard_is: Hard,
    alpha: float = 1.0,
    total: int,
    floor: int = 1,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    classes: Sequence[str] | None = None,
) -> Allocation:
    """Turn the hardness of each class into a number of samples for it.

    The share of a class is R_c = r_c / sum(r), with r_c = 1 / H_c where low scores are hard and r_c = H_c
    where high ones are. Its target is mean + alpha (total R_c - mean), with mean = total / C. Targets become
    integers by largest remainders, ties to the lower class index (at alpha = 0 to the harder class first). A
    harder class never gets fewer samples than an easier one, and equally hard ones differ by one at most.

    Parameters
    ----------
    class_hardness_c : float [C]
        Mean score of each class, H_c.
    hard_is : "low" or "high"
        Which end of the estimator is hard: "low" for aum and confidence, "high" for loss and el2n.
    alpha : float
        Degree of resampling, >= 0: 0 gives balanced classes, 1 the ratio itself.
    total : int
        Sum of the counts, at least C x floor.
    floor : int
        Fewest samples a class may get, >= 0.
    nonpositive : "shift", "authors" or None
        What to do where the hardness gives no ratio. Where low is hard that is some H_c <= 0; where high is
        hard, some H_c < 0 or all of them 0 (a single 0 is a ratio of 0, which `max_alpha` then limits). None
        is an error. "shift" adds -min H + 0.05 (max H - min H), or a constant 0.05 where all are equal.
        "authors" adds -min H + 1e-4, as the paper's code does: nearly everything goes to the hardest class
        where low is hard. Hardness that has a ratio already is never shifted.
    clip : bool
        Above the largest feasible alpha: hold the classes that fall below the floor at the floor and share
        the rest among the others in proportion to their targets, instead of raising.
    classes : sequence of str, optional
        Class names for the messages of errors.

    Returns
    -------
    Allocation

    Raises
    ------
    ValueError
        If the hardness is not finite or gives no ratio, if alpha is not feasible (the message names the
        largest feasible one) or if an argument is out of its range.
    """
    hardness_c = np.asarray(class_hardness_c, dtype=np.float64)
    if hardness_c.ndim != 1 or len(hardness_c) == 0:
        raise ValueError(f"class hardness must have one value a class, got shape {hardness_c.shape}")
    num_classes = len(hardness_c)
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"{num_classes} class hardness values but {len(classes)} class names")
    if hard_is not in ("low", "high"):
        raise ValueError(f'hard_is must be "low" or "high", got {hard_is!r}')
    if nonpositive not in (None, "shift", "authors"):
        raise ValueError(f'nonpositive must be None, "shift" or "authors", got {nonpositive!r}')
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be a finite number >= 0, got {alpha}")
    if int(total) != total or int(floor) != floor or floor < 0:
        raise ValueError(f"total and floor must be whole numbers and floor >= 0, got {total} and {floor}")
    alpha, total, floor = float(alpha), int(total), int(floor)
    if total < max(1, num_classes * floor):
        raise ValueError(
            f"total {total} is too small for {num_classes} classes of at least {floor}: "
            f"it must be at least {max(1, num_classes * floor)}"
        )
    bad_c = ~np.isfinite(hardness_c)
    if bad_c.any():
        named = _named(bad_c, hardness_c, classes)
        raise ValueError(f"hardness of {named} is not finite: every class needs scored samples")

    hardness = [Fraction(value) for value in hardness_c.tolist()]
    bad_c = hardness_c <= 0 if hard_is == "low" else hardness_c < 0
    if hard_is == "high" and not hardness_c.any():
        bad_c = ~bad_c  # nothing is hard: no ratio either
    shifted = None
    if bad_c.any():
        if nonpositive is None:
            raise ValueError(
                f'hardness of {_named(bad_c, hardness_c, classes)} gives no ratio where hard_is="{hard_is}": '
                'make it positive with nonpositive="shift", or with nonpositive="authors" as the paper did'
            )
        shifted = nonpositive
        hardness = _shift(hardness, nonpositive)

    # Whole numbers in the proportion of r_c, then of the targets S_c: S_c = total * target_c / sum(target).
    ratios = [1 / value for value in hardness] if hard_is == "low" else hardness
    unit = math.lcm(*(ratio.denominator for ratio in ratios))
    share = [ratio.numerator * (unit // ratio.denominator) for ratio in ratios]
    share_sum = sum(share)
    up, down = Fraction(alpha).as_integer_ratio()
    target = [share_sum * down + up * (num_classes * weight - share_sum) for weight in share]

    max_alpha = _largest_alpha(share, total, floor)
    clipped: tuple[int, ...] = ()
    if alpha > max_alpha:
        if not clip:
            easiest = _name(share.index(min(share)), classes)
            raise ValueError(
                f"alpha {alpha} would put {easiest} below the floor of {floor}: "
                f"the largest feasible alpha is {max_alpha!r}; use at most that, or clip=True to hold such "
                "classes at the floor"
            )
        clipped = _below_floor(target, total, floor)

    counts_c = np.full(num_classes, floor, dtype=np.int64)
    free = np.setdiff1d(np.arange(num_classes), clipped)
    # Ties go to the lower class index. Only at alpha = 0 have unequal classes equal targets: there
    # the harder class goes first, as it does for any alpha above, so that the order is kept.
    first = [-weight if alpha == 0 else 0 for weight in share]
    counts_c[free] = _largest_remainder(
        [target[c] for c in free], total - floor * len(clipped), ties=[first[c] for c in free]
    )
    return Allocation(
        counts=counts_c,
        alpha=alpha,
        max_alpha=max_alpha,
        hardness=np.array([float(value) for value in hardness]),
        ratios=np.array([weight / share_sum for weight in share]),
        shifted=shifted,
        clipped=clipped,
    )


def reallocate(
    counts_c: np.ndarray | Sequence[int],
    class_hardness_c: np.ndarray | Sequence[float],
    *,
    hard_is: Hard,
    alpha: float = 1.0,
    max_change: float,
) -> np.ndarray:
    """Counts moved towards what newer class hardness asks for, by a bounded step: resampling while training goes on.

    Hardness early in a training is noisy, so a class gains or loses at most a share of what it has. Where the hardness
    gives no ratio yet it is shifted, and classes are held at one sample where alpha is too large (see `allocate`).

    Parameters
    ----------
    counts_c : integer [C]
        Samples per class so far, each at least 1; their sum is kept.
    class_hardness_c : float [C]
        Mean score of each class so far.
    hard_is : "low" or "high"
    alpha : float
        Degree of resampling to move towards, >= 0.
    max_change : float
        Largest change of a class as a share of its count, in [0, 1]; no class moves by more, rounded down.

    Returns
    -------
    int64 [C]
        New counts.

    Raises
    ------
    ValueError
        If counts, hardness or `max_change` are out of range.
    """
    counts = np.asarray(counts_c)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=1) < 1:
        raise ValueError(f"counts must be whole numbers of at least 1, one a class, got {counts}")
    if len(counts) != len(class_hardness_c):
        raise ValueError(f"{len(counts)} counts but {len(class_hardness_c)} class hardness values")
    if not 0 <= max_change <= 1:
        raise ValueError(f"max_change is a share in [0, 1], got {max_change}")
    total = int(counts.sum())
    wanted = allocate(
        class_hardness_c, hard_is=hard_is, alpha=alpha, total=total, nonpositive="shift", clip=True
    ).counts
    step = np.floor(counts * max_change).astype(np.int64)
    lowest, highest = np.maximum(counts - step, 1), counts + step
    moved = np.clip(wanted, lowest, highest)
    missing = total - int(moved.sum())
    # What clipping left over goes to, or comes from, classes that may still move that way, in proportion to how far.
    room = highest - moved if missing > 0 else moved - lowest
    if missing:
        shared = _largest_remainder(room.tolist(), abs(missing), ties=[0] * len(room))
        moved += np.sign(missing) * np.array(shared)
    return moved


def _shift(hardness: list[Fraction], policy: Nonpositive) -> list[Fraction]:
    lowest = min(hardness)
    if policy == "authors":
        margin = Fraction(1, 10_000)
    else:
        margin = (max(hardness) - lowest or 1) / Fraction(20)
    return [value - lowest + margin for value in hardness]


def _largest_alpha(share: list[int], total: int, floor: int) -> float:
    """The largest float alpha at which no real-valued target is below the floor."""
    num_classes, share_sum, least = len(share), sum(share), min(share)
    fall = total * (share_sum - num_classes * least)  # of the easiest class per unit of alpha, times C * share_sum
    if fall == 0:
        return math.inf
    bound = Fraction((total - num_classes * floor) * share_sum, fall)
    nearest = float(bound)
    return nearest if Fraction(nearest) <= bound else math.nextafter(nearest, 0)


def _below_floor(target: list[int], total: int, floor: int) -> tuple[int, ...]:
    """Classes to hold at the floor so that the others, sharing the rest in proportion, stay at or above it.

    Holding a class up takes from the others, so the lowest are taken one by one until the next is high
    enough.
    """
    held = []
    rest, weight = total, sum(target)
    for c in sorted(range(len(target)), key=target.__getitem__):
        if rest * target[c] >= floor * weight:
            break
        held.append(c)
        rest -= floor
        weight -= target[c]
    return tuple(sorted(held))


def _largest_remainder(weight: list[int], total: int, *, ties: list[int]) -> list[int]:
    """Whole numbers in proportion to `weight` whose sum is exactly `total`.

    Equal remainders go by the least of `ties`, then by the lower index.

    Equal floors leave the larger weight the larger remainder, so a larger weight never gets less.
    """
    weight_sum = sum(weight)
    counts, remainders = map(list, zip(*(divmod(total * w, weight_sum) for w in weight), strict=True))
    for c in sorted(range(len(weight)), key=lambda c: (-remainders[c], ties[c]))[: total - sum(counts)]:
        counts[c] += 1
    return counts


def _named(bad_c: np.ndarray, hardness_c: np.ndarray, classes: Sequence[str] | None) -> str:
    """The classes that `bad_c` marks with their hardness, the first few of many."""
    bad = np.flatnonzero(bad_c).tolist()
    first = ", ".join(f"{_name(c, classes)} ({hardness_c[c]:g})" for c in bad[:5])
    return first + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")


def _name(c: int, classes: Sequence[str] | None) -> str:
    return f"class {c}" if classes is None else f"class {classes[c]!r}"
