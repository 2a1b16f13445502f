"""Hardness-based resampling inside torch's `DataLoader`: scores or counts in, a sampler with exact quotas out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.estimators import Hard
from hbr_fast.hardness.estimators import estimator as estimator_of
from hbr_fast.orders import Uneven, quota_order
from hbr_fast.orders.arrays import one_each
from hbr_fast.orders.quota import checked_labels
from hbr_fast.orders.torch_sampler import OrderSampler
from hbr_fast.resampling.allocation import Nonpositive, allocate
from hbr_fast.resampling.base import Base, base_sizes, resolved_base

if TYPE_CHECKING:
    from hbr_fast.hardness import HardnessRecorder, HardnessScores


class HardnessSampler(OrderSampler):
    """Hardness-based resampling for any `DataLoader`: harder classes are drawn more, at constant epoch size.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample of the dataset, in [0, C).
    scores_n : float [N], HardnessScores or HardnessRecorder, optional
        Hardness of each sample; class means become counts by `allocate`.
    estimator : str, optional
        Which scores these are: it selects among several, and says which end is hard.
    counts_c : integer [C] or mapping from label to count, optional
        Samples per class instead of scores.
    hard_is : "low" or "high", optional
        Which end of the scores is hard, e.g. "low" for aum and confidence. Needed for an array without `estimator`.
    alpha : float
        Degree of resampling; 0 draws the classes in the sizes of `base`.
    base : "own", "balanced", float in [0, 1] or None
        Sizes that the classes start from: their own, equal ones, or their own to a power. None is "own" where they
        differ by more than a tenth, else "balanced".
    nonpositive, clip
        What to do if the scores give no ratio, and if alpha is too large; see `allocate`.
    seed : int
        In [0, 2**63).
    rank, world_size, uneven
        See `OrderSampler`.

    Raises
    ------
    ValueError
        If neither or both of scores and counts are given, or they do not fit (see `allocate`, `quota_order`).

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> sampler = HardnessSampler(labels.numpy(), counts_c=[2, 4])
    >>> loader = DataLoader(TensorDataset(labels), sampler=sampler, batch_size=6)
    >>> sorted(next(iter(loader))[0].tolist())
    [0, 0, 1, 1, 1, 1]
    """

    def __init__(
        self,
        labels_n: ArrayLike,
        *,
        scores_n: ArrayLike | HardnessScores | HardnessRecorder | None = None,
        estimator: str | None = None,
        counts_c: ArrayLike | Mapping[int, int] | None = None,
        hard_is: Hard | None = None,
        alpha: float = 1.0,
        base: Base | None = None,
        nonpositive: Nonpositive | None = None,
        clip: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "pad",
    ) -> None:
        if (scores_n is None) == (counts_c is None):
            raise ValueError("give either scores_n or counts_c")
        if scores_n is not None:
            labels = checked_labels(labels_n)
            scores, hard_end = _scores_and_end(scores_n, estimator, hard_is)
            means = class_means(scores, labels, int(labels.max()) + 1)
            sizes = np.bincount(labels, minlength=len(means))
            counts_c = allocate(
                means,
                hard_is=hard_end,
                alpha=alpha,
                total=len(labels),
                nonpositive=nonpositive,
                clip=clip,
                base=base_sizes(resolved_base(base, sizes), sizes),
            ).counts
        assert counts_c is not None
        order = quota_order(labels_n, counts_c, seed=seed)
        super().__init__(order, rank=rank, world_size=world_size, uneven=uneven)


def _scores_and_end(scores: Any, name: str | None, hard_is: Hard | None) -> tuple[np.ndarray, Hard]:
    """Scores of the samples, and which end of them is hard."""
    known = estimator_of(name).hard_is if name is not None else None
    if known is not None and hard_is not in (None, known):
        raise ValueError(f"hard_is={hard_is!r} contradicts estimator={name!r}, of which {known} is hard: leave it out")
    if hasattr(scores, "record"):
        scores = scores.scores()
    if hasattr(scores, "per_sample"):
        if name is None:
            raise ValueError(f"say which scores to use: estimator=, one of {', '.join(scores.values)}")
        scores = scores.per_sample(name)
    end = known or hard_is
    if end is None:
        raise ValueError(
            'say which end of the scores is hard: hard_is="low" (aum, confidence) or hard_is="high" (loss, el2n), or '
            "estimator= with their name"
        )
    return np.asarray(one_each("scores", scores), np.float64), end
