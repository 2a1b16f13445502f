"""Why arms of a study could not be made, for a reader: arms with the same reason together, numbers as ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NO_RATIO = "gives no ratio"  # of `allocate`, where some class has no positive hardness
_MOST_NAMED, _MOST_REASONS = 4, 4
# A name in quotes, which may hold digits, or a number.
_PARTS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def by_reason(infeasible: Mapping[str, str]) -> list[tuple[list[str], str]]:
    """Arms, and why they are infeasible: once for all whose reasons differ in numbers only, which become ranges."""
    alike: dict[str, dict[str, str]] = {}
    for arm, reason in infeasible.items():
        alike.setdefault(_PARTS.sub(_without_number, reason), {})[arm] = reason
    return [(list(group), _merged(list(group.values()))) for group in alike.values()]


def named(arms: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(arms) - _MOST_NAMED
    return ", ".join(arms[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def lines(infeasible: Mapping[str, str]) -> list[str]:
    """A line for each reason; only the first of many."""
    groups = by_reason(infeasible)
    told = [
        f"{'arm' if len(arms) == 1 else 'arms'} {named([repr(arm) for arm in arms])}: {reason}"
        for arms, reason in groups[:_MOST_REASONS]
    ]
    left = sum(len(arms) for arms, _ in groups[_MOST_REASONS:])
    return [*told, f"{left} more for other reasons"] if left else told


def said(infeasible: Mapping[str, str]) -> str:
    """The same in one line."""
    return "; ".join(lines(infeasible))


def remedy(infeasible: Mapping[str, str]) -> str:
    """What would make most of the arms feasible, in words."""
    if any(NO_RATIO in reason for reason in infeasible.values()):
        return '--nonpositive shift (nonpositive="shift") makes the ratios that are missing'
    return "the reasons say what would work"


def _without_number(part: re.Match[str]) -> str:
    return part[0] if part[0][0] in "'\"" else "#"


def _merged(reasons: Sequence[str]) -> str:
    """One sentence for reasons that differ in numbers only."""
    every = [_PARTS.findall(reason) for reason in reasons]
    places = iter(range(len(every[0])))

    def span(_: re.Match[str]) -> str:
        place = next(places)
        found = {parts[place] for parts in every}
        if len(found) == 1:
            return found.pop()
        return f"{min(found, key=float)} to {max(found, key=float)}"

    return _PARTS.sub(span, reasons[0])
