"""From class hardness to samples per class, with an exact total.

Everything between the hardness and the counts is done in whole numbers, so no rounding of a float can change
the total, break a tie the wrong way or give a harder class fewer samples than an easier one. Where low is hard the
exact numbers of many classes have millions of digits: shares are then rounded to hundreds of bits, and a result that
their last bits could change is recomputed from the exact ones.

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
from numpy.typing import ArrayLike

from hbr_fast.hardness.estimators import Hard
from hbr_fast.resampling.division import Problem, divide, largest_remainder

Nonpositive = Literal["shift", "authors"]


@dataclass(frozen=True)
class Allocation:
    """Samples per class, and their derivation.

    Attributes
    ----------
    counts : int64 [C]
        Samples per class, S_c: the sum is the requested total, each is at least the floor.
    alpha : float
        The requested degree.
    max_alpha : float
        The largest degree at which every real-valued S_c is at least the floor; inf where all classes are
        equally hard, nan where the base itself is below the floor. With `clip=True` alpha may be above it.
    hardness : float64 [C]
        Class hardness that the ratios came from: the input, after the shift where one was used.
    ratios : float64 [C]
        R_c, the share of class c at alpha = 1; the sum is 1.
    shifted : str or None
        The policy that made the hardness positive; None if not needed.
    clipped : tuple of int
        Classes held at the floor because their share was below it; empty without `clip`.
    base : float64 [C]
        Sizes that the classes start from, B_c: S_c at alpha = 0, before rounding. Their sum is the total.

    Examples
    --------
    >>> from hbr_fast import allocate
    >>> allocation = allocate([2.0, 1.0, 1.0], hard_is="high", alpha=0.5, total=30)
    >>> allocation.counts.tolist()
    [12, 9, 9]
    """

    counts: np.ndarray
    alpha: float
    max_alpha: float
    hardness: np.ndarray
    ratios: np.ndarray
    shifted: str | None
    clipped: tuple[int, ...]
    base: np.ndarray

    def __repr__(self) -> str:
        counts = f"{int(self.counts.min()):,} to {int(self.counts.max()):,} samples, {int(self.counts.sum()):,} in all"
        return f"<Allocation: {len(self.counts):,} classes of {counts}, alpha {self.alpha:g} of {self.max_alpha:.4g}>"


def allocate(
    class_hardness_c: ArrayLike,
    *,
    hard_is: Hard,
    alpha: float = 1.0,
    total: int,
    floor: int = 1,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    classes: Sequence[str] | None = None,
    base: np.ndarray | Sequence[float] | None = None,
) -> Allocation:
    """Turn the hardness of each class into a number of samples for it.

    The share of a class is R_c = r_c / sum(r), with r_c = 1 / H_c where low scores are hard and r_c = H_c
    where high ones are. Its target is mean + alpha (total R_c - mean), with mean = total / C. Targets become
    integers by largest remainders, ties to the lower class index (at alpha = 0 to the harder class first). A
    harder class never gets fewer samples than an easier one, and equally hard ones differ by one at most.

    With a base b the classes start from their own sizes instead of equal ones: R_c = b_c r_c / sum(b r), and the
    target is S_c = B_c + alpha (total R_c - B_c), with B_c = total b_c / sum(b). Statements on harder classes then
    hold relative to the base.

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
        is an error. "shift" raises all H_c until the least is 0.05 (max H - min H), or 0.05 where all are
        equal, and does nothing if it is that much already, so values just above and just below 0 are treated alike.
        "authors" adds -min H + 1e-4, as the paper's code does: nearly everything goes to the hardest class
        where low is hard. It never shifts hardness that has a ratio already.
    clip : bool
        Above the largest feasible alpha: hold the classes that fall below the floor at the floor and share
        the rest among the others in proportion to their targets, instead of raising.
    classes : sequence of str, optional
        Class names for error messages.
    base : float [C], optional
        Sizes to start from, positive, in any unit: the classes' own to leave the set unchanged at alpha = 0, equal
        ones (the default) for a balanced set, or in between (own sizes to a power below 1).

    Returns
    -------
    Allocation

    Raises
    ------
    ValueError
        If the hardness is not finite or gives no ratio, if alpha is not feasible (the message names the
        largest feasible one) or if an argument is out of its range.

    Examples
    --------
    >>> allocate([0.8, 0.4, 0.4], hard_is="high", total=40).counts.tolist()
    [20, 10, 10]
    >>> allocate([0.8, 0.4, 0.4], hard_is="high", alpha=0.5, total=40).counts.tolist()
    [17, 12, 11]
    >>> allocate([0.8, 0.4], hard_is="low", total=30).counts.tolist()
    [10, 20]
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
    if bad_c.any() and nonpositive is None:
        raise ValueError(
            f"hardness of {_named(bad_c, hardness_c, classes)} gives no ratio, which needs "
            f"{'positive values' if hard_is == 'low' else 'values of at least 0 that are not all 0'}: "
            "choose an estimator that is never negative, such as loss, or make it positive with "
            'nonpositive="shift", or with nonpositive="authors" as the paper did'
        )
    shifted = None
    if nonpositive == "shift" or bad_c.any():
        raised = _shift(hardness, nonpositive or "shift")
        shifted = nonpositive if raised != hardness else None
        hardness = raised

    problem = Problem(
        hardness=_whole_numbers(hardness),
        low_is_hard=hard_is == "low",
        base=_whole_base(base, num_classes),
        alpha=Fraction(alpha),
        total=total,
        floor=floor,
    )
    division = divide(problem, clip=clip)
    if not division.counts:
        if math.isnan(division.max_alpha):
            smallest = _name(problem.base.index(min(problem.base)), classes)
            raise ValueError(
                f"the base itself puts {smallest} below the floor of {floor}: use a lower floor, or clip=True to hold "
                "such classes at the floor"
            )
        easiest = _name(int(np.argmax(hardness_c) if hard_is == "low" else np.argmin(hardness_c)), classes)
        raise ValueError(
            f"alpha {alpha} would put {easiest} below the floor of {floor}: "
            f"the largest feasible alpha is {division.max_alpha!r}; use at most that, or clip=True to hold such "
            "classes at the floor"
        )
    return Allocation(
        counts=np.array(division.counts, dtype=np.int64),
        alpha=alpha,
        max_alpha=division.max_alpha,
        hardness=np.array([float(value) for value in hardness]),
        ratios=np.array(division.ratios),
        shifted=shifted,
        clipped=division.clipped,
        base=np.array([total * size / sum(problem.base) for size in problem.base]),
    )


def reallocate(
    counts_c: ArrayLike,
    class_hardness_c: ArrayLike,
    *,
    hard_is: Hard,
    alpha: float = 1.0,
    max_change: float,
) -> np.ndarray:
    """Counts moved by a bounded step towards those for newer class hardness: resampling during training.

    Hardness early in a training is noisy, so a class gains or loses at most a share of its count. If the hardness
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
    counts, hardness_c = np.asarray(counts_c), np.asarray(class_hardness_c)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=1) < 1:
        raise ValueError(f"counts must be whole numbers of at least 1, one a class, got {counts}")
    if counts.shape != hardness_c.shape:
        raise ValueError(f"{len(counts)} counts but {hardness_c.size} class hardness values")
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
    # The rest after clipping goes to, or comes from, classes that may still move that way, in proportion to their room.
    room = highest - moved if missing > 0 else moved - lowest
    if missing:
        shared = largest_remainder(room.tolist(), abs(missing), ties=[0] * len(room))
        moved += np.sign(missing) * np.array(shared)
    return moved


def _shift(hardness: list[Fraction], policy: Nonpositive) -> list[Fraction]:
    lowest = min(hardness)
    if policy == "authors":
        return [value - lowest + Fraction(1, 10_000) for value in hardness]
    margin = (max(hardness) - lowest or 1) / Fraction(20)
    return [value + max(margin - lowest, Fraction(0)) for value in hardness]


def _whole_numbers(values: list[Fraction]) -> list[int]:
    """Whole numbers in the same proportion."""
    unit = math.lcm(*(value.denominator for value in values))
    return [value.numerator * (unit // value.denominator) for value in values]


def _whole_base(base: np.ndarray | Sequence[float] | None, num_classes: int) -> list[int]:
    """The base in whole numbers, equal ones if there is none."""
    if base is None:
        return [1] * num_classes
    base_c = np.asarray(base, np.float64)
    if base_c.shape != (num_classes,) or not np.isfinite(base_c).all() or base_c.min() <= 0:
        raise ValueError(f"the base must be one finite size above 0 for each of {num_classes} classes, got {base_c}")
    return _whole_numbers([Fraction(size) for size in base_c.tolist()])


def _named(bad_c: np.ndarray, hardness_c: np.ndarray, classes: Sequence[str] | None) -> str:
    """The classes that `bad_c` marks, with their hardness; only the first few of many."""
    bad = np.flatnonzero(bad_c).tolist()
    first = ", ".join(f"{_name(c, classes)} ({hardness_c[c]:g})" for c in bad[:5])
    return first + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")


def _name(c: int, classes: Sequence[str] | None) -> str:
    return f"class {c}" if classes is None else f"class {classes[c]!r}"
