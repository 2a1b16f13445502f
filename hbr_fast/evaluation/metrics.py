"""Per-class metrics of one model from its stored logits; how unequal they are over the classes: `measures.py`.

Sources: MCC is Matthews' correlation, one class against the rest. The calibration error is Guo et al. 2017's ECE, that
of a class Kull et al. 2019's classwise ECE, both over 15 bins of equal width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.progress import counted

BINS = 15  # of the calibration errors


@dataclass(frozen=True)
class Evaluation:
    """Results of one model, class by class.

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
        if the class is never or always predicted.
    never_predicted : bool [C]
        Classes that no sample was predicted as: their precision is 0 by definition, not by count.
    auroc : float64 [C]
        Area under the ROC curve of one class against the rest, by its probability: the chance that a sample of the
        class gets a higher one than another sample, ties by half. NaN if all samples are of the class, or if only
        predictions are known.
    ece : float64 [C]
        Classwise calibration error, in [0, 1]: mean distance of the predicted probability of the class from its
        frequency. NaN if only predictions are known.
    calibration : float
        Expected calibration error of the predicted class, in [0, 1]: mean distance of confidence from accuracy. NaN if
        only predictions are known.

    All metrics of a class are NaN for one without a test sample, if `evaluate` allows it.

    Examples
    --------
    >>> from hbr_fast import evaluate
    >>> result = evaluate(np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), np.array([0, 1, 1]))
    >>> result.confusion.tolist()
    [[1, 0], [1, 1]]
    """

    confusion: np.ndarray
    accuracy: float
    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    mcc: np.ndarray
    never_predicted: np.ndarray
    auroc: np.ndarray
    ece: np.ndarray
    calibration: float

    def __repr__(self) -> str:
        recall = f"recall {np.nanmin(self.recall):.4f} to {np.nanmax(self.recall):.4f}"
        samples, classes = int(self.confusion.sum()), len(self.recall)
        return f"<Evaluation: accuracy {self.accuracy:.4f} on {samples:,} samples, {recall} over {classes:,} classes>"


def evaluate(
    logits_nc: ArrayLike,
    labels_n: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    absent: Literal["error", "nan"] = "error",
) -> Evaluation:
    """Evaluate a model from its logits for a test set.

    Parameters
    ----------
    logits_nc : float [N, C]
        The prediction is the largest logit, ties to the lowest class index.
    labels_n : integer [N]
        True class of each sample, in [0, C).
    classes : sequence of str, optional
        Class names for error messages.
    absent : "error" or "nan"
        What to do for classes without a sample: raise, or set every metric of the class to NaN. `gaps` takes no NaN:
        pass it only the other classes.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If a class has no sample (unless `absent` is "nan"), a label is out of range, a logit is NaN or the shapes
        disagree.

    Examples
    --------
    >>> result = evaluate(np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), np.array([0, 1, 1]))
    >>> result.recall.tolist()
    [1.0, 0.5]
    >>> result.precision.tolist()
    [0.5, 1.0]
    """
    logits_nc, labels_n = np.asarray(logits_nc), np.asarray(labels_n)
    if logits_nc.ndim != 2 or labels_n.shape != logits_nc.shape[:1] or labels_n.dtype.kind not in "iu":
        raise ValueError(
            f"logits must be [N, C] and labels whole numbers [N], got {logits_nc.shape} and "
            f"{labels_n.dtype} {labels_n.shape}"
        )
    if absent not in ("error", "nan"):
        raise ValueError(f"absent must be 'error' or 'nan', got {absent!r}")
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
            f"logits of {counted(len(undefined), 'sample')} are NaN, first sample {undefined[0]}: the model diverged, "
            "train it again with a lower learning rate"
        )

    auroc_c, ece_c, calibration = _of_probabilities(logits_nc, labels_n)
    return _evaluation(logits_nc.argmax(axis=1), labels_n, num_classes, auroc_c, ece_c, calibration, classes, absent)


def evaluate_predictions(
    predicted_n: np.ndarray,
    labels_n: np.ndarray,
    *,
    num_classes: int,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """`evaluate` where only the predicted classes are known, int64 [N]: AUROC and calibration are NaN."""
    unknown_c = np.full(num_classes, np.nan)
    return _evaluation(predicted_n, labels_n, num_classes, unknown_c, unknown_c, float("nan"), classes, "error")


def _evaluation(
    predicted_n: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    auroc_c: np.ndarray,
    ece_c: np.ndarray,
    calibration: float,
    classes: Sequence[str] | None,
    absent: Literal["error", "nan"],
) -> Evaluation:
    cells = np.bincount(labels_n.astype(np.int64) * num_classes + predicted_n, minlength=num_classes**2)
    confusion = cells.reshape(num_classes, num_classes)
    true_c, predicted_c = confusion.sum(axis=1), confusion.sum(axis=0)
    gone_c = true_c == 0
    if gone_c.any() and absent == "error":
        gone = np.flatnonzero(gone_c).tolist()
        named = ", ".join(f"class {c}" if classes is None else f"class {classes[c]!r}" for c in gone[:5])
        named += f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        raise ValueError(
            f"{named} {'has' if len(gone) == 1 else 'have'} no test samples, so recall is undefined: test on a split "
            'that has all classes, or let them be NaN with absent="nan"'
        )

    def unless_gone(metric_c: np.ndarray) -> np.ndarray:
        return np.where(gone_c, np.nan, metric_c) if gone_c.any() else metric_c

    hits_c, total = confusion.diagonal(), len(labels_n)
    # Matthews' correlation: covariance of "is c" and "predicted as c" over their deviations (each x total^2).
    covariance_c = (total * hits_c - true_c * predicted_c).astype(np.float64)
    deviation_c = np.sqrt((true_c * (total - true_c)).astype(np.float64)) * np.sqrt(predicted_c * (total - predicted_c))
    return Evaluation(
        confusion=confusion,
        accuracy=float(hits_c.sum() / total),
        recall=unless_gone(hits_c / np.maximum(true_c, 1)),
        precision=unless_gone(hits_c / np.maximum(predicted_c, 1)),
        f1=unless_gone(2 * hits_c / np.maximum(true_c + predicted_c, 1)),
        mcc=unless_gone(np.divide(covariance_c, deviation_c, out=np.zeros(num_classes), where=deviation_c > 0)),
        never_predicted=predicted_c == 0,
        auroc=unless_gone(auroc_c),
        ece=unless_gone(ece_c),
        calibration=calibration,
    )


def _of_probabilities(logits_nc: np.ndarray, labels_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """AUROC and calibration error of each class, and the calibration error of the predicted class."""
    from scipy.stats import rankdata  # here: it takes a second to import

    total, num_classes = logits_nc.shape
    # Equal infinite logits share the probability, as argmax would pick the first of them.
    with np.errstate(invalid="ignore"):
        shifted = logits_nc.astype(np.float64) - logits_nc.max(axis=1, keepdims=True)
    probability_nc = np.exp(np.where(np.isnan(shifted), 0.0, shifted))
    probability_nc /= probability_nc.sum(axis=1, keepdims=True)
    is_class_nc = labels_n[:, None] == np.arange(num_classes)
    own_c = is_class_nc.sum(axis=0)
    ranks_nc = rankdata(probability_nc, axis=0)
    above_c = (ranks_nc * is_class_nc).sum(axis=0) - own_c * (own_c + 1) / 2
    pairs_c = own_c * (total - own_c)
    auroc_c = np.divide(above_c, pairs_c, out=np.full(num_classes, np.nan), where=pairs_c > 0)
    ece_c = np.array([_calibration_error(probability_nc[:, c], is_class_nc[:, c]) for c in range(num_classes)])
    predicted_n = logits_nc.argmax(axis=1)
    confidence_n = probability_nc[np.arange(total), predicted_n]
    return auroc_c, ece_c, _calibration_error(confidence_n, predicted_n == labels_n)


def _calibration_error(probability_n: np.ndarray, happened_n: np.ndarray) -> float:
    """Mean distance of predicted probability and frequency, over `BINS` bins weighted by their samples."""
    bin_n = np.minimum((probability_n * BINS).astype(np.int64), BINS - 1)
    distance_b = np.bincount(bin_n, weights=probability_n - happened_n, minlength=BINS)
    return float(np.abs(distance_b).sum() / len(bin_n))
