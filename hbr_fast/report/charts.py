"""The page's interactive charts: plotly's JSON, drawn in the browser by the copy of plotly.js that the page carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hbr_fast.report.drawing import look
from hbr_fast.report.study_files import BASELINE, GAPS, StudyFiles, arm_label, compare, estimator_label

# plotly's names of the markers that `drawing.look` gives.
_SYMBOLS = {"o": "circle", "D": "diamond", "s": "square", "^": "triangle-up", "v": "triangle-down", "P": "cross",
            "X": "x", "*": "star"}  # fmt: skip
_INK = "ink"  # stands for the page's text colour, which the browser knows


@dataclass(frozen=True)
class Chart:
    """An interactive chart.

    Attributes
    ----------
    name : its id in the page
    title, alt : for readers who see it, and for those who do not
    traces : plotly traces
    layout : plotly layout
    choices : label to the numbers of the traces it shows; empty where all are shown at once
    """

    name: str
    title: str
    alt: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    choices: dict[str, list[int]]


def charts_of(study: StudyFiles) -> list[Chart]:
    """All charts of a study."""
    return [gaps_against_accuracy(study), recall_of_classes(study), hardness_and_recall(study)]


def gaps_against_accuracy(study: StudyFiles) -> Chart:
    """Every member as accuracy against a gap of its recalls, with the mean of each arm: the trade of resampling."""
    traces: list[dict[str, Any]] = []
    choices: dict[str, list[int]] = {}
    for gap, words in GAPS.items():
        chosen = []
        for arm in study.arms:
            accuracy = 100 * study.member_metric(arm, "accuracy")
            points = 100 * study.member_metric(arm, f"recall_{gap}")
            colour, symbol = _look(study, arm)
            chosen.append(len(traces))
            members = [f"{arm_label(arm)}, member {number}" for number in range(len(points))]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": arm_label(arm),
                    "legendgroup": arm,
                    "showlegend": False,
                    "x": _numbers(points),
                    "y": _numbers(accuracy),
                    "text": members,
                    "marker": {"color": colour, "symbol": f"{symbol}-open", "size": 7, "opacity": 0.7},
                    "hovertemplate": "%{text}<br>gap %{x:.2f} points, accuracy %{y:.2f} %<extra></extra>",
                }
            )
            chosen.append(len(traces))
            traces.append(_mean_with_interval(study, arm, gap, accuracy, points))
        choices[words] = chosen
    layout = {
        "xaxis": {"title": {"text": "recall gap between classes (percentage points)"}},
        "yaxis": {"title": {"text": "accuracy (%)"}},
    }
    words = "; ".join(
        f"{arm_label(arm)}: gap {100 * study.member_metric(arm, 'recall_max_min').mean():.1f} points, "
        f"accuracy {100 * study.member_metric(arm, 'accuracy').mean():.1f} %"
        for arm in study.arms
    )
    return Chart(
        "chart_gaps",
        "Recall gap against accuracy",
        "Scatter chart: to the left the classes are more equal, upwards the model is better. Open marks are members, "
        "full ones the mean of an arm; bars are the 95 % interval of its difference from "
        f"{study.compared_with}, where it has one. Means: {words}.",
        traces,
        layout,
        choices,
    )


def recall_of_classes(study: StudyFiles) -> Chart:
    """Recall of every class, arm by arm, from the hardest class to the easiest."""
    order = study.hard_to_easy()
    traces = []
    for arm in study.arms:
        recall_mc = 100 * study.class_metric(arm, "recall")[:, order]
        mean = recall_mc.mean(axis=0)
        colour, symbol = _look(study, arm)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": arm_label(arm),
                "x": [study.classes[c] for c in order],
                "y": _numbers(mean),
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": _numbers(recall_mc.max(axis=0) - mean),
                    "arrayminus": _numbers(mean - recall_mc.min(axis=0)),
                    "thickness": 1,
                    "width": 3,
                },
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "hovertemplate": "%{x}, " + arm_label(arm) + ": %{y:.2f} %<extra></extra>",
            }
        )
    worst = order[0]
    words = "; ".join(
        f"{arm_label(arm)} {100 * study.class_metric(arm, 'recall')[:, worst].mean():.1f} %" for arm in study.arms
    )
    layout = {
        "xaxis": {"title": {"text": "class, the hardest first"}, "type": "category"},
        "yaxis": {"title": {"text": f"recall on {study.evaluated} (%)"}},
    }
    return Chart(
        "chart_recall",
        "Recall of each class",
        f"Dot chart of the recall of {len(order)} classes; bars from the least to the largest member. Hardest class, "
        f"{study.classes[worst]}: {words}.",
        traces,
        layout,
        {},
    )


def hardness_and_recall(study: StudyFiles) -> Chart:
    """Class hardness against recall, a point a class and arm."""
    hardness = study.class_hardness()
    traces = []
    for arm in study.arms:
        colour, symbol = _look(study, arm)
        samples = study.class_metric(arm, "samples").mean(axis=0)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": arm_label(arm),
                "x": _numbers(hardness),
                "y": _numbers(100 * study.class_metric(arm, "recall").mean(axis=0)),
                "text": [f"{name}, {n:,.0f} samples" for name, n in zip(study.classes, samples, strict=True)],
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "hovertemplate": "%{text}<br>"
                + arm_label(arm)
                + ": recall %{y:.2f} %, hardness %{x:.3f}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": f"class hardness: mean {estimator_label(study)} of the baseline"}},
        "yaxis": {"title": {"text": f"recall on {study.evaluated} (%)"}},
    }
    order = study.hard_to_easy()
    return Chart(
        "chart_hardness",
        "Class hardness against recall",
        f"Scatter chart of {len(study.classes)} classes. Hardest {study.classes[order[0]]}, easiest "
        f"{study.classes[order[-1]]}.",
        traces,
        layout,
        {},
    )


def _mean_with_interval(
    study: StudyFiles, arm: str, gap: str, accuracy: np.ndarray, points: np.ndarray
) -> dict[str, Any]:
    """The mean of an arm; where its difference from the one compared with has an interval, that is its error bar."""
    colour, symbol = _look(study, arm)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": arm_label(arm),
        "legendgroup": arm,
        "x": _numbers([points.mean()]),
        "y": _numbers([accuracy.mean()]),
        "marker": {"color": colour, "symbol": symbol, "size": 12},
        "hovertemplate": f"{arm_label(arm)}, mean<br>gap %{{x:.2f}} points, accuracy %{{y:.2f}} %<extra></extra>",
    }
    if arm != BASELINE:
        difference = compare(study, arm, f"recall_{gap}")
        if not difference.why_no_interval:
            half = (difference.high - difference.low) / 2
            trace["error_x"] = {"type": "data", "array": _numbers([half]), "thickness": 1.5, "width": 4}
    return trace


def _look(study: StudyFiles, arm: str) -> tuple[str, str]:
    colour, marker = look(study, arm)
    return (_INK if arm == BASELINE else colour), _SYMBOLS[marker]


def _numbers(values: Any) -> list[float | None]:
    """JSON has no NaN: plotly leaves a gap at None."""
    return [float(value) if np.isfinite(value) else None for value in values]
