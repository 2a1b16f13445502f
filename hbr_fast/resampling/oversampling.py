"""The rows that a class gains if it has too few: copies, interpolations, real and generated images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hbr_fast.resampling.pools import POOL, RankedPool, pick
from hbr_fast.resampling.ranking import class_name, hardest_first, raw_bits, shuffled
from hbr_fast.seeding import Stream

WEIGHTED = ("weighted-easy", "weighted-hard")
OVERSAMPLE = ("random", *WEIGHTED, "smote", "holdout", *POOL, "none")


@dataclass(frozen=True)
class Rows:
    """Rows of a plan, by column; see `hbr_fast.data.plan.Plan`."""

    store: np.ndarray
    index: np.ndarray
    partner: np.ndarray
    weight: np.ndarray

    @classmethod
    def plain(cls, index: np.ndarray, *, store: int = 0) -> Rows:
        """Images as they are."""
        count = len(index)
        return cls(np.full(count, store, np.int16), index, np.full(count, -1), np.ones(count, np.float32))


def repeated(ids: np.ndarray, extra: int, *, seed: int, c: int) -> Rows:
    """Balanced copies: counting `ids`, each sample occurs floor or ceil of (total / available) times."""
    copies, rest = divmod(extra, len(ids))
    return Rows.plain(
        np.concatenate([np.tile(ids, copies), shuffled(ids, seed=seed, stream=Stream.RESAMPLING, c=c)[:rest]])
    )


def weighted(
    ids: np.ndarray, extra: int, *, scores_n: np.ndarray, hard_is: str | None, favour: str, seed: int, c: int
) -> Rows:
    """Copies drawn with replacement, one end up to twice as likely as the other."""
    ranked = ids[hardest_first(scores_n[ids], hard_is)]
    if favour == "weighted-easy":
        ranked = ranked[::-1]
    weights = draw_weights(len(ids))
    below = np.cumsum(weights)
    bits = raw_bits(extra, seed=seed, stream=Stream.OVERSAMPLING, c=c)
    uniform = (bits >> np.uint64(11)) / 2**53
    place = np.searchsorted(below, uniform * below[-1], side="right")
    return Rows.plain(ranked[np.minimum(place, len(ids) - 1)])


def draw_weights(count: int) -> np.ndarray:
    """Draw weight by rank from the favoured end (method, section 4): 1 at the first, 0.5 at the last; float64."""
    rank = np.arange(count) / max(count - 1, 1)
    return 0.5 + 0.5 * -np.expm1(-5 * (1 - rank)) / -math.expm1(-5)


def interpolated(ids: np.ndarray, extra: int, *, neighbours_nk: np.ndarray, seed: int, c: int) -> Rows:
    """SMOTE (Chawla et al. 2002): a sample, one of its neighbours and a uniform weight; samples take turns."""
    bits = raw_bits(extra, seed=seed, stream=Stream.INTERPOLATION, c=c)
    turns = shuffled(ids, seed=seed, stream=Stream.OVERSAMPLING, c=c)
    own = np.resize(turns, extra)
    k = np.uint64(neighbours_nk.shape[1])
    which = (bits >> np.uint64(32)) * k >> np.uint64(32)
    partner = neighbours_nk[own, which.astype(np.int64)].astype(np.int64)
    weight = ((bits & np.uint64(0xFFFFFF)) / 2**24).astype(np.float32)
    return Rows(np.zeros(extra, np.int16), own, partner, weight)


def gained(
    strategy: str,
    ids: np.ndarray,
    extra: int,
    *,
    scores_n: np.ndarray | None,
    hard_is: str | None,
    holdout: np.ndarray,
    neighbours_nk: np.ndarray | None,
    pool: RankedPool | None,
    seed: int,
    c: int,
    classes: Sequence[str] | None,
) -> Rows:
    """The rows that class `c` gains besides `ids`: `extra` of them, or none with "none".

    Raises
    ------
    ValueError
        If there are too few: the message names the class, the requested and the available number.
    """
    if strategy == "none":
        return Rows.plain(ids[:0])
    if strategy in POOL:
        assert pool is not None
        return Rows.plain(pick(strategy, pool, c, extra, seed=seed, classes=classes), store=1)
    if strategy == "holdout":
        if len(holdout) < extra:
            raise ValueError(
                f"{class_name(c, classes)} wants {extra} more samples but its holdout has {len(holdout)}: prune more, "
                "lower alpha, or oversample another way"
            )
        return Rows.plain(shuffled(holdout, seed=seed, stream=Stream.HOLDOUT, c=c)[:extra])
    if len(ids) == 0:
        raise ValueError(
            f"{class_name(c, classes)} has no samples but {extra} are wanted: give it a count of 0 or add samples"
        )
    if strategy == "random":
        return repeated(ids, extra, seed=seed, c=c)
    if strategy == "smote":
        assert neighbours_nk is not None
        return interpolated(ids, extra, neighbours_nk=neighbours_nk, seed=seed, c=c)
    assert scores_n is not None
    return weighted(ids, extra, scores_n=scores_n, hard_is=hard_is, favour=strategy, seed=seed, c=c)
