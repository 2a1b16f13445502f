"""The metrics of a class, and the measures of how they differ over classes: each is one entry of a table here.

Results files, tables, pictures and the page take names, words and directions from these tables, so adding a metric or a
measure is an entry and its function.

Source: Pukowski & Osmani, arXiv 2504.07031 (the gaps).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Better = Literal["smaller", "larger"]


@dataclass(frozen=True)
class Metric:
    """A metric of a class, an attribute of `Evaluation`.

    Attributes
    ----------
    words : str
        Its name in a sentence.
    better : "smaller" or "larger"
    compared : bool
        Whether `comparisons.csv` tests its measures in every study; otherwise only in a study that is about it.
    """

    words: str
    better: Better = "larger"
    compared: bool = True


METRICS: Mapping[str, Metric] = {
    "recall": Metric("recall"),
    "precision": Metric("precision"),
    "f1": Metric("F1"),
    "mcc": Metric("MCC"),
    "auroc": Metric("AUROC", compared=False),
    "ece": Metric("calibration error", "smaller", compared=False),
}


@dataclass(frozen=True)
class Values:
    """A metric's values, float64 [..., C], which classes are hard, bool [C] or None, and what is better."""

    of_classes: np.ndarray
    hard: np.ndarray | None
    better: Better

    @property
    def few(self) -> int:
        """How many classes are the best or the worst few."""
        num_classes = self.of_classes.shape[-1]
        return max(1, num_classes // 5) if num_classes <= 20 else num_classes // 10

    def worst(self, k: int) -> np.ndarray:
        """Mean of the worst k classes."""
        ordered = np.sort(self.of_classes, axis=-1)
        return (ordered[..., :k] if self.better == "larger" else ordered[..., -k:]).mean(axis=-1)

    def quantile(self) -> np.ndarray:
        """Mean of the largest few minus mean of the smallest few."""
        ordered = np.sort(self.of_classes, axis=-1)
        return ordered[..., -self.few :].mean(axis=-1) - ordered[..., : self.few].mean(axis=-1)

    def easy_hard(self) -> np.ndarray:
        """Mean over easy classes minus mean over hard ones; NaN without any."""
        if self.hard is None or not self.hard.any():
            return np.full(self.of_classes.shape[:-1], np.nan)
        return self.of_classes[..., ~self.hard].mean(axis=-1) - self.of_classes[..., self.hard].mean(axis=-1)

    def mad(self) -> np.ndarray:
        """Median absolute deviation about the median."""
        median = np.median(self.of_classes, axis=-1, keepdims=True)
        return np.asarray(np.median(np.abs(self.of_classes - median), axis=-1))


@dataclass(frozen=True)
class Measure:
    """A number made of a metric's values over the classes.

    Attributes
    ----------
    words : str
        Its name in tables and pictures.
    of : callable
        `Values` to the number, float64 [...].
    is_gap : bool
        Whether it says how far the classes lie apart: smaller is better. Otherwise it is a level, and what is better is
        the metric's.
    signed : bool
        Whether a gap has a sign: it is judged by its absolute value.
    """

    words: str
    of: Callable[[Values], np.ndarray]
    is_gap: bool = True
    signed: bool = False


MEASURES: Mapping[str, Measure] = {
    "max_min": Measure("max - min", lambda values: np.ptp(values.of_classes, axis=-1)),
    "quantile": Measure("quantile", Values.quantile),
    "easy_hard": Measure("easy - hard", Values.easy_hard, signed=True),
    "std": Measure("std", lambda values: values.of_classes.std(axis=-1)),
    "mad": Measure("MAD", Values.mad),
    "mean": Measure("mean over classes", lambda values: values.of_classes.mean(axis=-1), is_gap=False),
    "worst": Measure("worst class", lambda values: values.worst(1), is_gap=False),
    "worst_k": Measure("worst few classes", lambda values: values.worst(values.few), is_gap=False),
}
GAPS: Mapping[str, Measure] = {name: measure for name, measure in MEASURES.items() if measure.is_gap}
MINIMISED_GAPS = tuple(name for name, measure in GAPS.items() if not measure.signed)  # always defined


def hard_classes(counts_c: np.ndarray, base_c: np.ndarray) -> np.ndarray:
    """The classes that gained a share of the samples, bool [C]."""
    return np.asarray(counts_c * base_c.sum() > base_c * counts_c.sum())


def gaps(
    metric_c: ArrayLike,
    *,
    counts_c: ArrayLike | None = None,
    base_c: ArrayLike | None = None,
    better: Better = "larger",
) -> dict[str, float]:
    """How unequal a metric is over the classes. Every class counts, even one whose value is 0.

    Parameters
    ----------
    metric_c : float [C]
        A metric of each class, e.g. its recall.
    counts_c : integer [C], optional
        Training samples per class after resampling, S_c: classes at or below their mean are the easy ones.
    base_c : float [C], optional
        Class sizes that resampling started from, in any unit, if they were not equal (`Allocation.base`): easy
        classes are then those that gained no share.
    better : "larger" or "smaller"
        Which values of the metric are better; only the worst classes depend on it.

    Returns
    -------
    dict of float
        The entries of `MEASURES`. ``max_min``: largest minus smallest. ``quantile``: mean of the best k minus mean of
        the worst k, with k = max(1, C // 5) up to 20 classes and C // 10 above. ``easy_hard``: mean over easy classes
        minus mean over hard ones, signed; NaN without `counts_c` or where no class gained. ``std``: population
        standard deviation. ``mad``: median absolute deviation about the median. ``mean``. ``worst``: the worst class.
        ``worst_k``: mean of the k worst classes.

    Raises
    ------
    ValueError
        If a value is NaN or the lengths disagree.

    Examples
    --------
    >>> gaps([0.9, 0.5, 0.7])["max_min"]
    0.4
    """
    metric_c = np.asarray(metric_c, dtype=np.float64)
    if metric_c.ndim != 1 or len(metric_c) == 0 or np.isnan(metric_c).any():
        raise ValueError(f"the metric must have one value a class and no NaN, got {metric_c}")
    num_classes = len(metric_c)
    hard_c = None
    if counts_c is not None:
        counts = np.asarray(counts_c)
        if counts.shape != metric_c.shape:
            raise ValueError(f"counts_c must have one count for each of {num_classes} classes, got {counts.shape}")
        base = np.ones(num_classes) if base_c is None else np.asarray(base_c, np.float64)
        if base.shape != metric_c.shape:
            raise ValueError(f"base_c must have one size for each of {num_classes} classes, got {base.shape}")
        hard_c = hard_classes(counts, base)
    values = Values(metric_c, hard_c, better)
    return {name: float(measure.of(values)) for name, measure in MEASURES.items()}
