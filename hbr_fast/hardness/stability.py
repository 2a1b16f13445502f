"""How many members an ensemble needs: hardness by its first members compared with hardness by all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.scores import HardnessScores, pearson
from hbr_fast.seeding import Stream, generator

if TYPE_CHECKING:
    import polars as pl

AGREEMENTS = ("spearman_samples", "kendall_samples", "spearman_classes", "kendall_classes", "jaccard_hardest")


@dataclass(frozen=True)
class EnsembleSizeCurve:
    """Agreement of the first j members with all M, for every j and over random orders of the members.

    Attributes
    ----------
    spearman_samples, kendall_samples : float64 [O, M]
        Correlation of sample scores: column j - 1 is for j members. NaN where a correlation is undefined.
    spearman_classes, kendall_classes : float64 [O, M]
        Correlation of class means.
    jaccard_hardest : float64 [O, M]
        Jaccard index of the two sets of hardest samples: size of the intersection over that of the union.
    hardest : int
        Size of those sets.
    """

    spearman_samples: np.ndarray
    kendall_samples: np.ndarray
    spearman_classes: np.ndarray
    kendall_classes: np.ndarray
    jaccard_hardest: np.ndarray
    hardest: int

    def smallest_size(self, agreement: str, tolerance: float) -> int:
        """The smallest j from which on 1 - agreement, averaged over orders, stays at or below a tolerance.

        Raises
        ------
        ValueError
            If the agreement is unknown or the tolerance is not in [0, 1].
        """
        if agreement not in AGREEMENTS:
            raise ValueError(f"unknown agreement {agreement!r}: available are {', '.join(AGREEMENTS)}")
        if not 0 <= tolerance <= 1:
            raise ValueError(f"the tolerance must be in [0, 1], got {tolerance}")
        within = 1 - getattr(self, agreement).mean(axis=0) <= tolerance + 1e-12
        within[-1] = True  # all members agree with themselves, even if a correlation is undefined
        beyond = np.flatnonzero(~within)
        return int(beyond[-1]) + 2 if len(beyond) else 1

    def to_frame(self) -> pl.DataFrame:
        """One row per order and size: `order`, `members`, and the five agreements."""
        import polars as pl

        orders, members = self.spearman_samples.shape
        return pl.DataFrame(
            {
                "order": np.repeat(np.arange(orders), members),
                "members": np.tile(np.arange(1, members + 1), orders),
                **{name: getattr(self, name).ravel() for name in AGREEMENTS},
            }
        )


def observed_by_all(scores: HardnessScores, name: str, labels_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the samples that every member observed (hardest lowest), and their classes: [M, K], [K]."""
    values_mn = scores.hardest_low(scores.member_values(name), name)
    observed = ~np.isnan(values_mn).any(axis=0)
    return values_mn[:, observed], np.asarray(labels_n)[observed]


def partial_scores(values_mn: np.ndarray, *, orders: int, seed: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Scores by the first members, for every number of them and along random orders: (order, number, float64 [N])."""
    random = generator(seed, Stream.MEMBER_ORDER)
    for order in range(orders):
        total_n = np.zeros(values_mn.shape[1])
        for number, member in enumerate(random.permutation(len(values_mn)), start=1):
            total_n += values_mn[member]
            yield order, number, total_n / number


def ensemble_size_curve(
    scores: HardnessScores,
    name: str,
    *,
    labels_n: np.ndarray,
    num_classes: int,
    orders: int = 20,
    hardest: int | None = None,
    ranked: int | None = None,
    seed: int = 0,
) -> EnsembleSizeCurve:
    """Ensemble-size stability (method, section 6): nested ensembles along many random orders of the members.

    Samples that some member never observed are left out.

    Parameters
    ----------
    scores : HardnessScores
        Scores of M members.
    name : str
        The estimator.
    labels_n : int64 [N]
        Classes of the samples, in [0, num_classes).
    orders : int
        Random orders of the members.
    hardest : int, optional
        Size of the compared sets of hardest samples; by default a tenth of the samples.
    ranked : int, optional
        Correlate at most about this many samples, evenly chosen: all of 60,000 take minutes and change the third
        digit.
    seed : int
        Seed of the orders.

    Raises
    ------
    ValueError
        If an argument is out of range, or a class has no sample that every member observed.
    """
    if len(labels_n) != len(scores):
        raise ValueError(f"{len(labels_n)} labels for scores of {len(scores)} samples: another dataset's scores?")
    if orders < 1:
        raise ValueError(f"a curve needs at least 1 order of the members, got {orders}")
    values, labels = observed_by_all(scores, name, labels_n)
    sizes = np.bincount(labels[labels >= 0], minlength=num_classes)
    if labels.min(initial=0) < 0 or len(sizes) > num_classes or not sizes.all():
        raise ValueError(
            f"classes must be the {num_classes} of the labels, each with a sample that all members observed"
        )
    k = max(1, len(labels) // 10) if hardest is None else hardest
    if not 1 <= k <= len(labels):
        raise ValueError(f"the set of hardest samples must have 1 to {len(labels)} of them, got {k}")
    if ranked is not None and ranked < 2:
        raise ValueError(f"a correlation needs at least 2 ranked samples, got {ranked}")
    step = 1 if ranked is None else max(1, len(labels) // ranked)
    full = _Reference(values.mean(axis=0), labels, num_classes, k, step)
    curves = np.empty((len(AGREEMENTS), orders, len(values)))
    for order, number, scores_n in partial_scores(values, orders=orders, seed=seed):
        curves[:, order, number - 1] = full.agreements(scores_n)
    return EnsembleSizeCurve(**dict(zip(AGREEMENTS, curves, strict=True)), hardest=k)


class _Reference:
    """Scores of the whole ensemble (hardest lowest), prepared for comparison with others."""

    def __init__(self, scores_n: np.ndarray, labels_n: np.ndarray, num_classes: int, hardest: int, step: int) -> None:
        self.labels_n, self.hardest, self.step = labels_n, hardest, step
        self.scores_r, self.ranks_r = scores_n[::step], _ranks(scores_n[::step])
        self.means_c = class_means(scores_n, labels_n, num_classes)
        self.set_n = self._hardest(scores_n)

    def agreements(self, scores_n: np.ndarray) -> tuple[float, ...]:
        """The agreements, in the order of `AGREEMENTS`."""
        from scipy import stats

        means_c, scores_r = class_means(scores_n, self.labels_n, len(self.means_c)), scores_n[:: self.step]
        shared = int((self.set_n & self._hardest(scores_n)).sum())
        return (
            pearson(_ranks(scores_r), self.ranks_r),
            float(stats.kendalltau(scores_r, self.scores_r).statistic),
            pearson(_ranks(means_c), _ranks(self.means_c)),
            float(stats.kendalltau(means_c, self.means_c).statistic),
            shared / (2 * self.hardest - shared),
        )

    def _hardest(self, scores_n: np.ndarray) -> np.ndarray:
        """Whether each sample is among the hardest; ties go to the smaller id."""
        chosen = np.zeros(len(scores_n), bool)
        chosen[np.argsort(scores_n, kind="stable")[: self.hardest]] = True
        return chosen


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy import stats

    return stats.rankdata(values)
