"""Wrong labels: inject known ones, suspect samples, and score the suspects.

Source: Pleiss et al., "Identifying mislabeled data using the area under the margin ranking", NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.resampling.pruning import rounded_share
from hbr_fast.resampling.ranking import members_of_classes, raw_bits, shuffled
from hbr_fast.seeding import Stream

Kind = Literal["uniform", "pairwise"]


@dataclass(frozen=True)
class NoisyLabels:
    """Labels, some of them wrong, and the truth.

    Attributes
    ----------
    labels : int64 [N]
        The training's labels.
    truth : int64 [N]
    """

    labels: np.ndarray
    truth: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Samples whose label is wrong, bool [N]."""
        return self.labels != self.truth


def inject_noise(
    labels_n: ArrayLike, rate: float, *, num_classes: int, kind: Kind = "uniform", seed: int
) -> NoisyLabels:
    """Give a share of each class a wrong label.

    Parameters
    ----------
    labels_n : integer [N]
        The truth, in [0, C).
    rate : float
        Share of each class, in [0, 1], halves rounded up.
    num_classes : int
        At least 2.
    kind : "uniform" or "pairwise"
        Any other class with equal chance, or the next one (the last becomes the first).
    seed : int
        In [0, 2**63).

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> labels = np.repeat([0, 1], 10)
    >>> noisy = inject_noise(labels, 0.2, num_classes=2, seed=0)
    >>> int((noisy.labels != labels).sum())
    4
    """
    truth = np.asarray(labels_n).astype(np.int64)
    if not 0 <= rate <= 1:
        raise ValueError(f"a noise rate is a share in [0, 1], got {rate}")
    if num_classes < 2 or truth.min(initial=0) < 0 or truth.max(initial=0) >= num_classes:
        raise ValueError(f"noise needs labels in [0, {num_classes}) and at least 2 classes")
    if kind not in ("uniform", "pairwise"):
        raise ValueError(f"kind of noise must be uniform or pairwise, got {kind!r}")
    labels = truth.copy()
    for c, own in enumerate(members_of_classes(truth, num_classes)):
        chosen = shuffled(own, seed=seed, stream=Stream.NOISE, c=c)[: rounded_share(rate, len(own))]
        step = np.ones(len(chosen), np.int64)
        if kind == "uniform":
            bits = raw_bits(len(chosen), seed=seed, stream=Stream.NOISE, c=c + num_classes)
            step += ((bits >> np.uint64(32)) * np.uint64(num_classes - 1) >> np.uint64(32)).astype(np.int64)
        labels[chosen] = (c + step) % num_classes
    return NoisyLabels(labels, truth)


def threshold_labels(labels_n: np.ndarray, *, num_classes: int, seed: int) -> np.ndarray:
    """Labels with an extra class `num_classes`, filled by a random N / (C + 1) of the samples (rounded half up).

    Nothing belongs to the extra class, so the AUM of its samples is that of a wrong label: train on these
    labels (see `hbr_fast.data.relabel`) and cut with `threshold_of`.
    """
    labels = np.asarray(labels_n).astype(np.int64)
    count = (2 * len(labels) + num_classes + 1) // (2 * (num_classes + 1))
    labels[shuffled(np.arange(len(labels)), seed=seed, stream=Stream.THRESHOLD, c=0)[:count]] = num_classes
    return labels


def threshold_of(
    scores_n: np.ndarray, labels_n: np.ndarray, *, num_classes: int, hard_is: str, percentile: float = 99
) -> float:
    """The score at which a sample becomes a suspect: a percentile of the threshold samples, from the hard end.

    Parameters
    ----------
    scores_n : float [N]
        From the training on `labels_n`.
    labels_n : integer [N]
        As returned by `threshold_labels`.
    num_classes : int
        Without the extra class.
    hard_is : "low" or "high"
    percentile : float
        Share of the threshold samples that look wrong at this score, in percent.
    """
    own = np.asarray(scores_n, np.float64)[np.asarray(labels_n) == num_classes]
    if len(own) == 0:
        raise ValueError(f"no sample has the extra class {num_classes}: make the labels with threshold_labels")
    return float(np.percentile(own, percentile if hard_is == "low" else 100 - percentile))


def suspects(
    scores_n: ArrayLike,
    *,
    hard_is: str,
    count: int | None = None,
    threshold: float | None = None,
) -> np.ndarray:
    """Samples suspected of a wrong label, ascending ids: the `count` hardest, or all at least as hard as `threshold`.

    Samples that were never seen (NaN) are never suspects. Leave suspects out with
    `Plan.of_rows(np.setdiff1d(np.arange(N), suspects))`, or `resample(ids=...)`.

    Raises
    ------
    ValueError
        If not exactly one of `count` and `threshold` is given, or `count` is out of range.

    Examples
    --------
    >>> suspects(np.array([2.1, -0.4, 1.7, -1.2]), hard_is="low", count=2).tolist()
    [1, 3]
    >>> suspects(np.array([2.1, -0.4, 1.7, -1.2]), hard_is="low", threshold=-1.0).tolist()
    [3]
    """
    scores_n = np.asarray(scores_n, np.float64)
    if (count is None) == (threshold is None):
        raise ValueError("suspects are found by count or by threshold: give exactly one")
    if hard_is not in ("low", "high"):
        raise ValueError(f'hard_is must be "low" or "high", got {hard_is!r}')
    if threshold is not None:
        return np.flatnonzero(scores_n <= threshold if hard_is == "low" else scores_n >= threshold)
    assert count is not None
    seen = int((~np.isnan(scores_n)).sum())
    if not 0 <= count <= seen:
        raise ValueError(f"count must be in [0, {seen}], the samples scored of {len(scores_n)}, got {count}")
    order = np.argsort(scores_n if hard_is == "low" else -scores_n, kind="stable")  # NaN, never seen, comes last
    return np.sort(order[:count])


@dataclass(frozen=True)
class RankedDetection:
    """How well a ranking by hardness finds wrong labels: shares in [0, 1].

    Attributes
    ----------
    average_precision : float
        Mean of the precision at the place of each wrong label.
    auroc : float
        Chance that a wrong label is harder than a right one.
    precision_at_count : float
        Share of wrong labels among as many of the hardest samples as there are wrong labels.
    """

    average_precision: float
    auroc: float
    precision_at_count: float


def score_ranking(scores_n: np.ndarray, noisy: NoisyLabels, *, hard_is: str) -> RankedDetection:
    """Compare a ranking by hardness with the labels known to be wrong; samples never seen (NaN) do not count.

    Raises
    ------
    ValueError
        If all labels are right, or all are wrong.

    Examples
    --------
    >>> noisy = NoisyLabels(labels=np.array([0, 1, 1, 0]), truth=np.array([0, 1, 0, 0]))
    >>> score_ranking(np.array([2.0, -0.5, -1.0, 1.5]), noisy, hard_is="low").auroc
    1.0
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.asarray(scores_n, np.float64)
    seen = ~np.isnan(scores)
    wrong, hardness = noisy.wrong[seen], scores[seen] * (-1 if hard_is == "low" else 1)
    count = int(wrong.sum())
    if not 0 < count < len(wrong):
        raise ValueError(f"a ranking finds wrong labels among right ones, but {count} of {len(wrong)} are wrong")
    hardest = suspects(hardness, hard_is="high", count=count)
    return RankedDetection(
        float(average_precision_score(wrong, hardness)),
        float(roc_auc_score(wrong, hardness)),
        float(wrong[hardest].mean()),
    )


@dataclass(frozen=True)
class Detection:
    """How well suspects match the wrong labels: shares in [0, 1]; precision without suspects and recall without wrong
    labels are NaN."""

    precision: float
    recall: float


def score_detection(suspected: np.ndarray, noisy: NoisyLabels) -> Detection:
    """Compare suspected ids with the labels known to be wrong."""
    hits = int(noisy.wrong[suspected].sum())
    wrong = int(noisy.wrong.sum())
    return Detection(hits / len(suspected) if len(suspected) else float("nan"), hits / wrong if wrong else float("nan"))
