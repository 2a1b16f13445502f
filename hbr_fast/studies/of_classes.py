"""What becomes of each class: intervals of its metrics, and which classes it is mistaken for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.measures import METRICS
from hbr_fast.evaluation.metrics import Evaluation
from hbr_fast.evaluation.statistics import combined_interval, t_interval
from hbr_fast.studies.comparisons import Trained


def class_intervals(
    trainings: Sequence[Trained], labels_n: np.ndarray, *, nested: bool, arm: str
) -> list[dict[str, Any]]:
    """Rows of `class_intervals.csv`: every metric of every class of one arm, its mean and 95 % intervals.

    Parameters
    ----------
    trainings : sequence of Trained
    labels_n : integer [N]
        True classes of the test samples.
    nested : bool
        Whether the members of a variant share its resampled set, so that only variants are independent.
    arm : str
    """
    variants = np.array([one.variant for one in trainings])
    rows = []
    for metric in METRICS:
        values_mc = np.stack([getattr(one.evaluation, metric) for one in trainings])
        if nested:
            values_mc = np.stack([values_mc[variants == variant].mean(axis=0) for variant in np.unique(variants)])
        low_c, high_c = t_interval(values_mc.T)
        flat_c = np.ptp(values_mc, axis=0) < 1e-12  # no width: no evidence
        for c in range(values_mc.shape[1]):
            mean, tested = float(values_mc[:, c].mean()), int((labels_n == c).sum())
            # A recall is a share of the class's test samples, so that their noise is binomial.
            noise = math.sqrt(mean * (1 - mean) / tested) if metric == "recall" and tested else math.nan
            combined = combined_interval(values_mc[:, c], noise)
            rows.append(
                {
                    "arm": arm,
                    "class_index": c,
                    "metric": metric,
                    "mean": mean,
                    "low": math.nan if flat_c[c] else float(low_c[c]),
                    "high": math.nan if flat_c[c] else float(high_c[c]),
                    "combined_low": max(combined[0], 0.0),
                    "combined_high": min(combined[1], 1.0),
                    "test_samples": tested,
                }
            )
    return rows


def confusion_table(evaluations: Mapping[str, Sequence[Evaluation]], classes: Sequence[str]) -> pl.DataFrame:
    """`confusion.csv`: test samples by arm, true and predicted class, summed over members; only pairs that occur."""
    parts = []
    for arm, of_arm in evaluations.items():
        total = np.sum([one.confusion for one in of_arm], axis=0)
        true, predicted = np.nonzero(total)
        parts.append(
            pl.DataFrame(
                {
                    "arm": [arm] * len(true),
                    "true_index": true,
                    "predicted_index": predicted,
                    "true_class": [classes[c] for c in true.tolist()],
                    "predicted_class": [classes[c] for c in predicted.tolist()],
                    "samples": total[true, predicted],
                }
            )
        )
    return pl.concat(parts)
