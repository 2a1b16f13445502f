"""Per-class metrics of one model from its stored logits, and how unequal they are over the classes.

Source: Pukowski & Osmani, arXiv 2504.07031 (the gap metrics); MCC is Matthews' correlation, one class against
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """What one model gets right and wrong, class by class.

    Attributes
    ----------
    confusion : int64 [C, C]
        Samples by true class (row) and predicted class (column).
    accuracy : float
        Share of samples predicted right, in [0, 1].
    recall, precision, f1 : float64 [C]
        One class against the rest, in [0, 1]; precision and F1 are 0 for a class never predicted.
    mcc : float64 [C]
        Matthews' correlation of one class against the rest, in [-1, 1]; 0 where it is undefined, which is
        where the class is predicted never or always.
    never_predicted : bool [C]
        Classes that no sample was predicted as: their precision is 0 by definition, not by count.
    """

    confusion: np.ndarray
    accuracy: float
    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    mcc: np.ndarray
    never_predicted: np.ndarray


def evaluate(logits_nc: np.ndarray, labels_n: np.ndarray, *, classes: Sequence[str] | None = None) -> Evaluation:
    """Evaluate a model from the logits it gave to a test set.

    Parameters
    ----------
    logits_nc : float [N, C]
        The prediction is the largest logit, ties to the lowest class index.
    labels_n : integer [N]
        True class of each sample, in [0, C); every class has at least one sample.
    classes : sequence of str, optional
        Class names for the messages of errors.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If a class has no sample, a label is out of range, a logit is NaN or the shapes disagree.
    """
    logits_nc, labels_n = np.asarray(logits_nc), np.asarray(labels_n)
    if logits_nc.ndim != 2 or labels_n.shape != logits_nc.shape[:1] or labels_n.dtype.kind not in "iu":
        raise ValueError(
            f"logits must be [N, C] and labels whole numbers [N], got {logits_nc.shape} and "
            f"{labels_n.dtype} {labels_n.shape}"
        )
    num_classes = logits_nc.shape[1]
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"logits have {num_classes} classes but {len(classes)} class names are given")
    outside = np.flatnonzero((labels_n < 0) | (labels_n >= num_classes))
    if len(outside):
        n = outside[0]
        raise ValueError(f"label {labels_n[n]} of sample {n} is outside the {num_classes} classes of the logits")
    undefined = np.flatnonzero(np.isnan(logits_nc).any(axis=1))
    if len(undefined):
        raise ValueError(
            f"logits of {len(undefined)} samples are NaN, first sample {undefined[0]}: the model diverged, "
            "train it again with a lower learning rate"
        )

    predicted_n = logits_nc.argmax(axis=1)
    cells = np.bincount(labels_n.astype(np.int64) * num_classes + predicted_n, minlength=num_classes**2)
    confusion = cells.reshape(num_classes, num_classes)
    true_c, predicted_c = confusion.sum(axis=1), confusion.sum(axis=0)
    if not true_c.all():
        c = int(true_c.argmin())
        named = f"class {c}" if classes is None else f"class {classes[c]!r}"
        raise ValueError(
            f"{named} has no test samples, so its recall is undefined: test on a split that has all classes"
        )

    hits_c, total = confusion.diagonal(), len(labels_n)
    # Matthews' correlation: covariance of "is c" and "predicted as c" over their deviations (each x total^2).
    covariance_c = (total * hits_c - true_c * predicted_c).astype(np.float64)
    deviation_c = np.sqrt((true_c * (total - true_c)).astype(np.float64)) * np.sqrt(predicted_c * (total - predicted_c))
    return Evaluation(
        confusion=confusion,
        accuracy=float(hits_c.sum() / total),
        recall=hits_c / true_c,
        precision=hits_c / np.maximum(predicted_c, 1),
        f1=2 * hits_c / (true_c + predicted_c),
        mcc=np.divide(covariance_c, deviation_c, out=np.zeros(num_classes), where=deviation_c > 0),
        never_predicted=predicted_c == 0,
    )


def gaps(
    metric_c: np.ndarray | Sequence[float], *, counts_c: np.ndarray | Sequence[int] | None = None
) -> dict[str, float]:
    """How unequal a metric is over the classes. Every class counts, also one whose value is 0.

    Parameters
    ----------
    metric_c : float [C]
        Recall, precision, F1 or MCC of each class.
    counts_c : integer [C], optional
        Training samples per class after resampling, S_c: classes at or below their mean are the easy ones.

    Returns
    -------
    dict of float
        ``max_min``: largest minus smallest. ``quantile``: mean of the best k minus mean of the worst k, with
        k = max(1, C // 5) up to 20 classes and C // 10 above. ``easy_hard``: mean over easy classes minus
        mean over hard ones, signed; NaN without `counts_c` or where all counts are equal. ``std``: population
        standard deviation. ``mad``: median absolute deviation about the median. ``mean``.

    Raises
    ------
    ValueError
        If a value is NaN or the lengths disagree.
    """
    metric_c = np.asarray(metric_c, dtype=np.float64)
    if metric_c.ndim != 1 or len(metric_c) == 0 or np.isnan(metric_c).any():
        raise ValueError(f"the metric must have one value a class and no NaN, got {metric_c}")
    num_classes = len(metric_c)
    k = max(1, num_classes // 5) if num_classes <= 20 else num_classes // 10
    ordered = np.sort(metric_c)
    easy_hard = float("nan")
    if counts_c is not None:
        counts_c = np.asarray(counts_c)
        if counts_c.shape != metric_c.shape:
            raise ValueError(f"counts_c must have one count for each of {num_classes} classes, got {counts_c.shape}")
        hard_c = counts_c * num_classes > counts_c.sum()
        if hard_c.any():
            easy_hard = float(metric_c[~hard_c].mean() - metric_c[hard_c].mean())
    return {
        "max_min": float(ordered[-1] - ordered[0]),
        "quantile": float(ordered[-k:].mean() - ordered[:k].mean()),
        "easy_hard": easy_hard,
        "std": float(metric_c.std()),
        "mad": float(np.median(np.abs(metric_c - np.median(metric_c)))),
        "mean": float(metric_c.mean()),
    }
