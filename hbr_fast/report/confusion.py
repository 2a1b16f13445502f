"""Which classes are mistaken for which: the baseline's confusion matrix, and its change by each arm."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.colors import Normalize, TwoSlopeNorm

from hbr_fast.report.drawing import MOST_LABELS, Picture, count, heat_map, report_style
from hbr_fast.report.study_files import BASELINE, StudyFiles, arm_label


def confusion_pictures(study: StudyFiles) -> list[Picture]:
    """The baseline's matrix and the change by each arm; none with more classes than a picture can name."""
    if len(study.classes) > MOST_LABELS:
        return []
    return [_baseline(study), *(_change(study, arm) for arm in study.treatments)]


def shares(study: StudyFiles, arm: str) -> np.ndarray:
    """Share of each true class (row) predicted as each class, in percent, by `hard_to_easy`: `[classes, classes]`."""
    order = study.hard_to_easy()
    confusion = study.confusion(arm)[np.ix_(order, order)]
    return 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _baseline(study: StudyFiles) -> Picture:
    names = [study.classes[c] for c in study.hard_to_easy()]
    values = shares(study, BASELINE)
    with report_style():
        figure, axes = heat_map(
            "Confusion of the baseline",
            f"share of the true class (%), {study.order_words}",
            values,
            rows=names,
            columns=names,
            scale=Normalize(0, 100),
            form=".0f",
            colours="Blues",
            label="% of the true class",
        )
        axes.set(xlabel="predicted class", ylabel="true class")
    mistaken = values - np.diag(values.diagonal())
    worst = np.unravel_index(mistaken.argmax(), mistaken.shape)
    return Picture(
        "confusion_baseline",
        "Confusion of the baseline",
        f"Share of each true class that is predicted as each class, on {study.evaluated}, mean over "
        f"{count(study, BASELINE)}.",
        f"Heat map of the confusion matrix of {len(names)} classes. Most frequent mistake: {names[worst[0]]} "
        "predicted as "
        f"{names[worst[1]]}, {mistaken[worst]:.1f} %.",
        _frame(names, values, "percent"),
        figure,
    )


def _change(study: StudyFiles, arm: str) -> Picture:
    names = [study.classes[c] for c in study.hard_to_easy()]
    other, label = study.against(arm), arm_label(arm)
    values = shares(study, arm) - shares(study, other)
    reach = max(0.1, float(np.abs(values).max()))
    with report_style():
        figure, axes = heat_map(
            f"Change of confusion by {label}",
            f"points against {arm_label(other)}, {study.order_words}",
            values,
            rows=names,
            columns=names,
            scale=TwoSlopeNorm(0, -reach, reach),
            form="+.1f",
            colours="PuOr",
            label="points",
        )
        axes.set(xlabel="predicted class", ylabel="true class")
    away = values - np.diag(values.diagonal())
    most = np.unravel_index(away.argmax(), away.shape)
    return Picture(
        f"confusion_change_{study.treatments.index(arm) + 1}",
        f"Change of confusion by {label}",
        f"Share of each true class predicted as each class, {label} minus {arm_label(other)}, in percentage points, on "
        f"{study.evaluated}: means over members. On the diagonal violet is better, elsewhere orange.",
        f"Heat map of the change of the confusion matrix of {len(names)} classes. Mistake that grew most: "
        f"{names[most[0]]} predicted as {names[most[1]]}, {away[most]:+.1f} points.",
        _frame(names, values, "points"),
        figure,
    )


def _frame(names: list[str], values: np.ndarray, unit: str) -> pl.DataFrame:
    rows = [
        {"true_class": true, "predicted_class": guess, unit: float(values[r, c])}
        for r, true in enumerate(names)
        for c, guess in enumerate(names)
    ]
    return pl.DataFrame(rows)
