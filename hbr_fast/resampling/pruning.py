"""Prune samples, at random or by hardness, from each class alike or from the whole set; they become the holdout.

Source: Pukowski & Osmani, arXiv 2504.07031, v1 (pruning by hardness) and v2 (at random, case study 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.resampling.ranking import class_name, hardest_first, members_of_classes, shuffled
from hbr_fast.seeding import Stream

By = Literal["random", "hardness"]
Level = Literal["class", "dataset"]
End = Literal["easy", "hard"]


@dataclass(frozen=True)
class Pruning:
    """What to leave out; see `prune`.

    Examples
    --------
    >>> Pruning(0.5, by="hardness", level="dataset").drop
    'easy'
    """

    rate: float
    by: By = "random"
    level: Level = "class"
    drop: End = "easy"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"a pruning rate is a share in (0, 1), got {self.rate}")


@dataclass(frozen=True)
class Pruned:
    """What pruning leaves.

    Attributes
    ----------
    kept, holdout : int64 [K], int64 [H]
        Sample ids, ascending: together all original ids. Scores are looked up by these, so that hardness
        follows the samples.
    """

    kept: np.ndarray
    holdout: np.ndarray


def prune(
    labels_n: ArrayLike,
    rate: float,
    *,
    by: By = "random",
    level: Level = "class",
    drop: End = "easy",
    ids: ArrayLike | None = None,
    scores_n: ArrayLike | None = None,
    hard_is: str | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    stream: Stream = Stream.PRUNING,
) -> Pruned:
    """Set a share of the samples aside.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample of the split, in [0, C).
    rate : float
        Share to leave out, in [0, 1), read as a decimal.
    by : "random" or "hardness"
    level : "class" or "dataset"
        Whether every class loses the share, or the whole set, which by hardness takes more from some classes.
    drop : "easy" or "hard"
        Which end to drop, by hardness; equal scores rank by sample id.
    ids : integer [K], optional
        The samples to use; by default all.
    scores_n : float [N], optional
        Hardness score of each sample, needed by hardness.
    hard_is : "low" or "high", optional
        Which end of the scores is hard, needed with them.
    seed : int
        Of the random choice; the samples left out at a rate are among those left out at a higher one.
    classes : sequence of str, optional
        Class names for error messages.
    stream : Stream
        The random stream; other uses of the same cut have their own.

    Returns
    -------
    Pruned
        Of n samples n - round(rate n) are kept, halves rounded up, in exact arithmetic.

    Raises
    ------
    ValueError
        If an argument is out of range, scores are missing or NaN, or a class would be left with no sample.

    Examples
    --------
    >>> labels = np.repeat([0, 1], 10)
    >>> pruned = prune(labels, 0.3, seed=0)
    >>> np.bincount(labels[pruned.kept]).tolist()
    [7, 7]
    """
    labels_n = np.asarray(labels_n)
    there = np.arange(len(labels_n)) if ids is None else np.sort(np.asarray(ids, np.int64))
    if not 0 <= rate < 1:
        raise ValueError(f"a pruning rate is a share in [0, 1), got {rate}")
    for word, value, known in (
        ("by", by, ("random", "hardness")),
        ("level", level, ("class", "dataset")),
        ("drop", drop, ("easy", "hard")),
    ):
        if value not in known:
            raise ValueError(f"{word} must be one of {', '.join(known)}; got {value!r}")
    if by == "hardness":
        if scores_n is None or hard_is not in ("low", "high"):
            raise ValueError('by="hardness" ranks samples: give scores_n and hard_is "low" or "high"')
        scores_n = np.asarray(scores_n, np.float64)
        if scores_n.shape != labels_n.shape:
            raise ValueError(f"scores_n must have one score for each of {len(labels_n)} labels, got {scores_n.size}")
        if np.isnan(scores_n[there]).any():
            raise ValueError(
                f"{np.isnan(scores_n[there]).sum()} scores are NaN: score every sample, or prune at random"
            )

    num_classes = int(labels_n.max(initial=0)) + 1
    members = [there[places] for places in members_of_classes(labels_n[there].astype(np.int64), num_classes)]
    kept = []
    for c, own in enumerate(members if level == "class" else [there]):
        if by == "random":
            last_to_go = shuffled(own, seed=seed, stream=stream, c=c)
        else:
            assert isinstance(scores_n, np.ndarray)
            last_to_go = own[hardest_first(scores_n[own], hard_is)]
            if drop == "hard":
                last_to_go = last_to_go[::-1]
        kept.append(last_to_go[: len(own) - rounded_share(rate, len(own))])
    kept_ids = np.sort(np.concatenate(kept))
    left_c = np.bincount(labels_n[kept_ids], minlength=num_classes)
    for c, own in enumerate(members):
        if len(own) and not left_c[c]:
            raise ValueError(
                f"{class_name(c, classes)} would be left with none of its {len(own)} samples at rate {rate:g}: "
                "prune less, or class by class"
            )
    return Pruned(kept_ids, np.setdiff1d(there, kept_ids, assume_unique=True))


def rounded_share(rate: float, count: int) -> int:
    """`rate` of `count`, halves rounded up, with the rate read as a decimal: 0.33 of 5000 is 1650."""
    return int(Fraction(str(rate)) * count + Fraction(1, 2))
