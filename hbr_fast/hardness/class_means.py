"""Class hardness H_c: the mean score of a class's samples (method, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


def class_means(
    scores_n: ArrayLike,
    labels_n: ArrayLike,
    num_classes: int,
    *,
    unscored: Literal["error", "nan"] = "error",
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Mean score of each class over its scored samples.

    Parameters
    ----------
    scores_n : float [N]
        NaN for samples that were never observed, which are ignored.
    labels_n : integer [N]
        In [0, num_classes).
    num_classes : int
    unscored : "error" or "nan"
        Treatment of a class without a scored sample.
    classes : sequence of str, optional
        Class names for error messages.

    Returns
    -------
    float64 [C]

    Raises
    ------
    ValueError
        If scores and labels differ in length, a label is out of range, or, by default, a class has no sample with a
        score.

    Examples
    --------
    >>> class_means(np.array([1.0, 2.0, np.nan, 5.0]), np.array([0, 0, 0, 1]), 2)
    array([1.5, 5. ])
    """
    scores, labels = np.asarray(scores_n, np.float64), np.asarray(labels_n)
    if scores.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels but {len(scores)} scores: give one of each a sample")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must be classes in [0, {num_classes}), got some from {labels.min()} to {labels.max()}"
        )
    if labels.dtype == np.uint64:
        labels = labels.astype(np.int64)  # NumPy before 2.3 counts no unsigned ones of 64 bits
    seen = ~np.isnan(scores)
    counts = np.bincount(labels[seen], minlength=num_classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty) and unscored == "error":
        named = " or ".join(f"class {c}" if classes is None else f"class {classes[c]!r}" for c in empty.tolist())
        raise ValueError(f"no sample of {named} has a score: score one, or leave fewer of them out")
    sums = np.bincount(labels[seen], weights=scores[seen], minlength=num_classes)
    return np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0)
