"""Which samples of a class stay if it has too many."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hbr_fast.resampling.ranking import hardest_first, shuffled
from hbr_fast.seeding import Stream

# How many of the `drop` surplus samples to drop from a class's hardest end; the rest from its easiest end.
DROPPED_HARD_END: dict[str, Callable[[int], int]] = {
    "easy": lambda drop: 0,
    "hard": lambda drop: drop,
    "extreme": lambda drop: drop // 2,
}
UNDERSAMPLE = (*DROPPED_HARD_END, "random", "none")


def kept(
    strategy: str, ids: np.ndarray, wanted: int, *, scores_n: np.ndarray | None, hard_is: str | None, seed: int, c: int
) -> np.ndarray:
    """The samples of class `c` that stay: `wanted` of `ids`, or all with "none"; more include fewer."""
    if strategy == "none":
        return ids
    if strategy == "random":
        return shuffled(ids, seed=seed, stream=Stream.RESAMPLING, c=c)[:wanted]
    assert scores_n is not None
    ranked = ids[hardest_first(scores_n[ids], hard_is)]
    start = DROPPED_HARD_END[strategy](len(ids) - wanted)
    return ranked[start : start + wanted]
