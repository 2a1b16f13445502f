"""Pick images from a pool of generated ones: any, those with the confidence of real ones, or the least confident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hbr_fast.resampling.ranking import class_name, raw_bits
from hbr_fast.seeding import Stream

RANKED = ("pool-average", "pool-hard")
POOL = ("pool-random", *RANKED)


@dataclass(frozen=True)
class RankedPool:
    """What resampling needs to know of a pool of images, without its pixels.

    Attributes
    ----------
    labels : int64 [P]
        Class of each image.
    fingerprint : str
        Of the pool; the plan stores it.
    confidence : float [P], optional
        Probability of the image's own class, mean over an ensemble; "pool-average" and "pool-hard" need it.
    real_confidence : float [C], optional
        The same for each class's real images, mean over them; "pool-average" needs it.
    """

    labels: np.ndarray
    fingerprint: str
    confidence: np.ndarray | None = None
    real_confidence: np.ndarray | None = None


def pick(
    strategy: str, pool: RankedPool, c: int, wanted: int, *, seed: int, classes: Sequence[str] | None
) -> np.ndarray:
    """Rows of the pool for class `c`: `wanted` distinct ones, int64.

    "pool-average" draws from the 2 x wanted images whose confidence is nearest to the class's real mean, "pool-hard"
    from the 2 x wanted of lowest confidence, or from all where there are fewer.

    Raises
    ------
    ValueError
        If the pool has fewer: the message names the class, the requested and the available number.
    """
    rows = np.flatnonzero(pool.labels == c)
    if len(rows) < wanted:
        raise ValueError(
            f"{class_name(c, classes)} wants {wanted} generated images but the pool has {len(rows)}: give a larger "
            "pool, lower alpha, or oversample another way"
        )
    if strategy != "pool-random":
        assert pool.confidence is not None
        distance = pool.confidence[rows].astype(np.float64)
        if strategy == "pool-average":
            assert pool.real_confidence is not None
            distance = np.abs(distance - pool.real_confidence[c])
        rows = rows[np.argsort(distance, kind="stable")[: 2 * wanted]]
    bits = raw_bits(len(rows), seed=seed, stream=Stream.POOL, c=c)
    return rows[np.argsort(bits, kind="stable")[:wanted]]
