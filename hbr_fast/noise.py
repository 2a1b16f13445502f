"""Wrong labels: putting known ones in, suspecting samples of having one, and scoring the suspicion.

Source: Pleiss et al., "Identifying mislabeled data using the area under the margin ranking", NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hbr_fast.pruning import rounded_share
from hbr_fast.resampling.ranking import members_of_classes, raw_bits, shuffled
from hbr_fast.seeding import Stream

Kind = Literal["uniform", "pairwise"]


@dataclass(frozen=True)
class NoisyLabels:
    """Labels of which some are wrong, and the truth.

    Attributes
    ----------
    labels : int64 [N]
        As a training would see them.
    truth : int64 [N]
    """

    labels: np.ndarray
    truth: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Samples whose label is not the truth, bool [N]."""
        return self.labels != self.truth


def inject_noise(
    labels_n: np.ndarray, rate: float, *, num_classes: int, kind: Kind = "uniform", seed: int
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

    Nothing belongs to the extra class, so that the AUM of its samples is what a wrong label gives: train on these
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
        Of the training on `labels_n`.
    labels_n : integer [N]
        As `threshold_labels` gave them.
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
    scores_n: np.ndarray,
    *,
    hard_is: str,
    count: int | None = None,
    threshold: float | None = None,
) -> np.ndarray:
    """Samples suspected of a wrong label, ascending ids: the `count` hardest, or all at least as hard as `threshold`.

    Leave them out with `Plan.of_rows(np.setdiff1d(np.arange(N), suspects))`, or `resample(ids=...)`.

    Raises
    ------
    ValueError
        If not exactly one of `count` and `threshold` is given, or `count` is out of range.
    """
    scores_n = np.asarray(scores_n, np.float64)
    if (count is None) == (threshold is None):
        raise ValueError("suspects are found by count or by threshold: give one of them")
    if hard_is not in ("low", "high"):
        raise ValueError(f'hard_is must be "low" or "high", got {hard_is!r}')
    if threshold is not None:
        return np.flatnonzero(scores_n <= threshold if hard_is == "low" else scores_n >= threshold)
    assert count is not None
    if not 0 <= count <= len(scores_n):
        raise ValueError(f"count must be in [0, {len(scores_n)}], the samples scored, got {count}")
    order = np.argsort(scores_n if hard_is == "low" else -scores_n, kind="stable")  # NaN, never seen, comes last
    return np.sort(order[:count])


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
