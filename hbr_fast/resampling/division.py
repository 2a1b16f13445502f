"""A total divided among classes by hardness, in whole numbers: what `allocate` computes, exactly and fast.

The targets are rational. Where low is hard their common denominator is that of a sum of reciprocals, which for
thousands of classes has hundreds of thousands of digits. So shares are first rounded down to `_BITS` bits, in which the
error of everything derived from them is bounded; where a comparison is closer than that bound, everything is
recomputed with the exact shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_BITS = 512  # of the rounded shares
_GUARD = 160  # of those, how many the derived numbers keep at least: differences below 2**-_GUARD count as too close
_SHORT = 4096  # exact shares of at most this many bits are used at once


class _TooClose(Exception):
    """The rounding of the shares might have changed the result."""


@dataclass(frozen=True)
class Problem:
    """The total to divide, and among which classes.

    Attributes
    ----------
    hardness : list of int
        Proportional to the hardness of the classes, none below 0; positive where low is hard.
    low_is_hard : bool
    base : list of int
        Proportional to the initial sizes of the classes, positive.
    alpha : Fraction
    total, floor : int
    """

    hardness: list[int]
    low_is_hard: bool
    base: list[int]
    alpha: Fraction
    total: int
    floor: int


@dataclass(frozen=True)
class Division:
    """Counts of the classes and their derivation; see `Allocation`."""

    counts: list[int]
    ratios: list[float]
    max_alpha: float
    clipped: tuple[int, ...]


def divide(problem: Problem, *, clip: bool) -> Division:
    """Divide the total.

    Parameters
    ----------
    problem : Problem
    clip : bool
        Above the largest feasible alpha, hold classes at the floor; otherwise the counts are empty.
    """
    try:
        return _divide(problem, exact=False, clip=clip)
    except _TooClose:
        return _divide(problem, exact=True, clip=clip)


def largest_remainder(
    weight: list[int], total: int, *, ties: Sequence[int], same: Sequence[object] | None = None
) -> list[int]:
    """Whole numbers in proportion to `weight` whose sum is exactly `total`.

    Ties between remainders go to the smaller value in `ties`, then to the lower index.

    Equal floors leave the larger weight the larger remainder, so a larger weight never gets less. With `same`, weights
    are rounded and count as equal where `same` is: `_TooClose` where the rounding might matter.
    """
    weight_sum = sum(weight)
    counts, remainders = map(list, zip(*(divmod(total * w, weight_sum) for w in weight), strict=True))
    order = sorted(range(len(weight)), key=lambda c: (-remainders[c], ties[c]))
    more = total - sum(counts)
    if same is not None:
        slack = weight_sum >> _GUARD
        if any(not slack < remainder < weight_sum - slack for remainder in remainders):
            raise _TooClose
        if 0 < more < len(order):
            lowest, highest = remainders[order[more]] - slack, remainders[order[more - 1]] + slack
            last = [same[c] for c in order[:more] if remainders[c] <= lowest + 2 * slack]
            first = [same[c] for c in order[more:] if remainders[c] >= highest - 2 * slack]
            if last and first and len({*last, *first}) > 1:
                raise _TooClose
    for c in order[:more]:
        counts[c] += 1
    return counts


def _divide(problem: Problem, *, exact: bool, clip: bool) -> Division:
    share, rounded = _shares(problem, exact=exact)
    # Whole numbers in the proportion of b_c r_c, then of the targets S_c: S_c = total * target_c / sum(target).
    base, base_sum = problem.base, sum(problem.base)
    weight = [own * one for own, one in zip(base, share, strict=True)]
    weight_sum = sum(weight)
    max_alpha = _largest_alpha(problem, weight, rounded=rounded)
    ratios = [one / weight_sum for one in weight]
    if rounded:  # down: the exact ones lie between these
        highest = [(one + own) / weight_sum for one, own in zip(weight, base, strict=True)]
        if highest != [one / (weight_sum + base_sum) for one in weight]:
            raise _TooClose
    up, down = problem.alpha.as_integer_ratio()
    target = base  # at alpha 0, which needs no shares
    if up:
        target = [
            own * weight_sum * down + up * (base_sum * one - own * weight_sum)
            for own, one in zip(base, weight, strict=True)
        ]
    clipped: tuple[int, ...] = ()
    if not problem.alpha <= max_alpha:
        if not clip:
            return Division([], ratios, max_alpha, ())
        clipped = _below_floor(target, problem.total, problem.floor, rounded=rounded and bool(up))
    counts = [problem.floor] * len(base)
    held = set(clipped)
    free = [c for c in range(len(base)) if c not in held]
    # Ties go to the lower class index. Only at alpha = 0 do unequal classes have equal targets: there
    # the harder class goes first, as it does for any alpha above, so that the order is kept.
    order = [0] * len(base)
    if not up:
        order = problem.hardness if problem.low_is_hard else [-value for value in problem.hardness]
    parts = largest_remainder(
        [target[c] for c in free],
        problem.total - problem.floor * len(clipped),
        ties=[order[c] for c in free],
        same=[(problem.hardness[c], base[c]) for c in free] if rounded and up else None,
    )
    for c, count in zip(free, parts, strict=True):
        counts[c] = count
    return Division(counts, ratios, max_alpha, clipped)


def _shares(problem: Problem, *, exact: bool) -> tuple[list[int], bool]:
    """Whole numbers in the proportion of r_c, and whether they were rounded (down, by less than 1)."""
    if not problem.low_is_hard:
        return problem.hardness, False
    unit = 1
    for value in problem.hardness:
        unit = math.lcm(unit, value)
        if unit.bit_length() > _SHORT and not exact:
            break
    else:
        return [unit // value for value in problem.hardness], False
    sizes = (sum(problem.base), problem.total, len(problem.base), int(problem.alpha) + 1)
    # The largest share has all these bits: an error of 1 in each is then below 2**-_BITS in any of the counts.
    top = min(problem.hardness) << _BITS + sum(size.bit_length() for size in sizes)
    return [top // value for value in problem.hardness], True


def _largest_alpha(problem: Problem, weight: list[int], *, rounded: bool) -> float:
    """The largest float alpha at which no real-valued target is below the floor; NaN if the base already is."""
    base, total, floor = problem.base, problem.total, problem.floor
    base_sum, weight_sum = sum(base), sum(weight)
    if any(total * own < floor * base_sum for own in base):
        return math.nan
    above, below = 1, 0  # the bound as a ratio: infinite
    for own, one in zip(base, weight, strict=True):
        fall = own * weight_sum - base_sum * one  # of the class per unit of alpha, times base_sum * weight_sum / total
        if rounded and abs(fall) <= own * weight_sum >> _GUARD:
            raise _TooClose
        room = (total * own - floor * base_sum) * weight_sum
        if fall > 0 and room * below < above * total * fall:
            above, below = room, total * fall
    if not below:
        return math.inf
    bounds = {_not_above(above, below)}
    if rounded:
        one = 1 << _GUARD
        bounds |= {_not_above(above * (one - 1), below * one), _not_above(above * (one + 1), below * one)}
    if len(bounds) > 1:
        raise _TooClose
    return bounds.pop()


def _not_above(above: int, below: int) -> float:
    """The largest float not above a ratio."""
    nearest = above / below
    numerator, denominator = nearest.as_integer_ratio()
    return nearest if numerator * below <= above * denominator else math.nextafter(nearest, 0)


def _below_floor(target: list[int], total: int, floor: int, *, rounded: bool) -> tuple[int, ...]:
    """Classes to hold at the floor so that the others, sharing the rest in proportion, stay at or above it.

    Raising a class takes from the others, so the lowest are held one by one until the next is high enough.
    """
    held = []
    rest, weight = total, sum(target)
    slack = weight >> _GUARD if rounded else -1
    for c in sorted(range(len(target)), key=target.__getitem__):
        surplus = rest * target[c] - floor * weight
        if abs(surplus) <= slack:
            raise _TooClose
        if surplus >= 0:
            break
        held.append(c)
        rest -= floor
        weight -= target[c]
    return tuple(sorted(held))
