"""The page's interactive charts: plotly's JSON, drawn in the browser by the page's own copy of plotly.js."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.measures import MEASURES
from hbr_fast.report.confusion import shares
from hbr_fast.report.drawing import dashes, look
from hbr_fast.report.study_files import BASELINE, GAPS, StudyFiles, arm_label, compare, estimator_label

# plotly's names of the markers that `drawing.look` gives.
_SYMBOLS = {"o": "circle", "D": "diamond", "s": "square", "^": "triangle-up", "v": "triangle-down", "P": "cross",
            "X": "x", "*": "star"}  # fmt: skip
_DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
# matplotlib's Blues and PuOr, as the pictures have them; on a dark page nothing is dark, too. The browser chooses.
_SHARES = {
    "light": [[0, "#f7fbff"], [0.5, "#6aaed6"], [1, "#08306b"]],
    "dark": [[0, "#1f2023"], [0.5, "#2f7fb5"], [1, "#cfe6ff"]],
}
_CHANGES = {
    "light": [[0, "#b35806"], [0.5, "#f7f7f7"], [1, "#542788"]],
    "dark": [[0, "#f0a45c"], [0.5, "#1f2023"], [1, "#b79ae8"]],
}
MOST_TOLD = 6  # arms whose numbers the text below a chart tells; the files have all
_INK = "ink"  # placeholder for the page's text colour, which the browser fills in


@dataclass(frozen=True)
class Chart:
    """An interactive chart.

    Attributes
    ----------
    name : its id in the page
    title, alt : visible title, and the alternative text for screen readers
    traces : plotly traces
    layout : plotly layout
    choices : label to the indices of the traces it shows; empty if all are shown at once
    choice_words : what is chosen
    """

    name: str
    title: str
    alt: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    choices: dict[str, list[int]]
    choice_words: str = "show"


def charts_of(study: StudyFiles) -> list[Chart]:
    """All charts of a study."""
    charts = [gaps_against_accuracy(study), recall_of_classes(study)]
    if study.has_hardness:
        charts.append(hardness_and_recall(study))
    charts.append(confusion(study))
    return [*charts, learning_curves(study)] if study.history is not None else charts


def gaps_against_accuracy(study: StudyFiles) -> Chart:
    """Accuracy against a gap for every member, with the mean of each arm: the trade-off of resampling."""
    traces: list[dict[str, Any]] = []
    choices: dict[str, list[int]] = {}
    for gap, words in GAPS.items():
        chosen = []
        for arm in study.arms:
            accuracy = 100 * study.member_metric(arm, "accuracy")
            points = 100 * study.member_metric(arm, f"{study.metric}_{gap}")
            colour, symbol = _look(study, arm)
            chosen.append(len(traces))
            members = [f"{_plain(arm_label(arm))}, member {number}" for number in range(len(points))]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": _plain(arm_label(arm)),
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
        "xaxis": {"title": {"text": f"{study.metric_words} gap between classes (percentage points)"}},
        "yaxis": {"title": {"text": "accuracy (%)"}},
    }
    words = _told(
        f"{arm_label(arm)}: gap {100 * study.member_metric(arm, f'{study.metric}_max_min').mean():.1f} points, "
        f"accuracy {100 * study.member_metric(arm, 'accuracy').mean():.1f} %"
        for arm in study.arms
    )
    return Chart(
        "chart_gaps",
        f"{study.metric_title} gap against accuracy",
        "Scatter chart: further left classes are more equal, higher up accuracy is better. Open marks are members, "
        "filled ones the mean of an arm; bars are the 95 % interval of its difference from "
        f"{study.compared_with}, if there is one, cut off where percentages end. Means: {words}.",
        traces,
        layout,
        choices,
        "measure of the gap",
    )


def recall_of_classes(study: StudyFiles) -> Chart:
    """The metric of every class, arm by arm, from the hardest class to the easiest."""
    order = study.hard_to_easy()
    traces = []
    for arm in study.arms:
        recall_mc = 100 * study.class_metric(arm, study.metric)[:, order]
        mean = recall_mc.mean(axis=0)
        colour, symbol = _look(study, arm)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _plain(arm_label(arm)),
                "x": [_plain(study.classes[c]) for c in order],
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
                "hovertemplate": "%{x}, " + _plain(arm_label(arm)) + ": %{y:.2f} %<extra></extra>",
            }
        )
    every = 100 * np.concatenate([study.class_metric(arm, study.metric) for arm in study.arms])
    lowest, highest = float(np.nanmin(every)), float(np.nanmax(every))
    worst = order[0]
    words = _told(
        f"{arm_label(arm)} {100 * study.class_metric(arm, study.metric)[:, worst].mean():.1f} %" for arm in study.arms
    )
    layout = {
        "scattermode": "group",  # arms side by side
        "xaxis": {"title": {"text": f"class, {study.order_words}"}, "type": "category"},
        "yaxis": {
            "title": {"text": f"{study.metric_words} on {study.evaluated} (%)"},
            "range": [max(lowest - 3, -103 if lowest < 0 else -3), min(highest + 3, 103)],  # groups begin at 0 else
        },
    }
    return Chart(
        "chart_recall",
        f"{study.metric_title} of each class",
        f"Dot chart of the {study.metric_words} of {len(order)} classes; bars from the least to the largest member. "
        "Hardest class, "
        f"{study.classes[worst]}: {words}.",
        traces,
        layout,
        {},
    )


def hardness_and_recall(study: StudyFiles) -> Chart:
    """Class hardness against the metric, one point per class and arm."""
    hardness = study.class_hardness()
    traces = []
    for arm in study.arms:
        colour, symbol = _look(study, arm)
        samples = study.class_metric(arm, "samples").mean(axis=0)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _plain(arm_label(arm)),
                "x": _numbers(hardness),
                "y": _numbers(100 * study.class_metric(arm, study.metric).mean(axis=0)),
                "text": [
                    f"{_plain(name)}, {n:,.0f} samples" if np.isfinite(n) else _plain(name)
                    for name, n in zip(study.classes, samples, strict=True)
                ],
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "hovertemplate": "%{text}<br>"
                + _plain(arm_label(arm))
                + ": %{y:.2f} %, hardness %{x:.3f}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": f"class hardness: mean {estimator_label(study)} of the baseline"}},
        "yaxis": {"title": {"text": f"{study.metric_words} on {study.evaluated} (%)"}},
    }
    order = study.hard_to_easy()
    return Chart(
        "chart_hardness",
        f"Class hardness against {study.metric_words}",
        f"Scatter chart of {len(study.classes)} classes. Hardest {study.classes[order[0]]}, easiest "
        f"{study.classes[order[-1]]}.",
        traces,
        layout,
        {},
    )


def confusion(study: StudyFiles) -> Chart:
    """The confusion matrix of every arm, and its change against the comparison arm."""
    names = [_plain(study.classes[c]) for c in study.hard_to_easy()]
    traces: list[dict[str, Any]] = []
    choices: dict[str, list[int]] = {}

    def add(words: str, values: np.ndarray, *, change: bool) -> None:
        reach = max(0.1, float(np.abs(values).max()))
        choices[words] = [len(traces)]
        traces.append(
            {
                "type": "heatmap",
                "x": names,
                "y": names,
                "z": [[round(float(value), 2) for value in row] for row in values],
                "zmin": -reach if change else 0,
                "zmax": reach if change else 100,
                "colorscale": _CHANGES if change else _SHARES,
                "hovertemplate": "%{y} predicted as %{x}: %{z} " + ("points" if change else "%") + "<extra></extra>",
            }
        )

    for arm in study.arms:
        add(arm_label(arm), shares(study, arm), change=False)
    for arm in study.treatments:
        other = study.against(arm)
        change = shares(study, arm) - shares(study, other)
        add(f"change: {arm_label(arm)} against {arm_label(other)}", change, change=True)
    return Chart(
        "chart_confusion",
        "Confusion of classes",
        "Heat map: share of each true class (row) predicted as each class (column), in percent, or its change in "
        "points, on "
        f"{study.evaluated}, {study.order_words}; means over members.",
        traces,
        {
            "xaxis": {"title": {"text": "predicted class"}, "type": "category"},
            "yaxis": {"title": {"text": "true class"}, "type": "category", "autorange": "reversed"},
        },
        choices,
    )


def learning_curves(study: StudyFiles) -> Chart:
    """Training loss and accuracy by epoch, mean over the members of an arm."""
    assert study.history is not None
    traces: list[dict[str, Any]] = []
    choices: dict[str, list[int]] = {}
    for words, column, scale in (("training loss", "train_loss", 1), ("training accuracy (%)", "train_accuracy", 100)):
        choices[words] = []
        for number, arm in enumerate(study.arms, start=-1):  # the baseline has a colour of its own
            by_epoch = study.history.filter(arm=arm).group_by("epoch").agg(pl.col(column).mean()).sort("epoch")
            colour, symbol = _look(study, arm)
            choices[words].append(len(traces))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": _plain(arm_label(arm)),
                    "x": (by_epoch["epoch"] + 1).to_list(),
                    "y": _numbers(scale * by_epoch[column].to_numpy()),
                    "line": {"color": colour, "dash": _DASHES[dashes(number)]},
                    "marker": {"color": colour, "symbol": symbol, "size": 5},
                    "hovertemplate": _plain(arm_label(arm)) + ", epoch %{x}: %{y:.3f}<extra></extra>",
                }
            )
    few = max(len(trace["x"]) for trace in traces) <= 12  # else the axis's own ticks are whole numbers
    last = _told(f"{trace['name']} {trace['y'][-1]:.3f}" for trace in traces[: len(study.arms)])
    return Chart(
        "chart_learning",
        "Learning curves",
        "Line chart of training loss and accuracy by epoch, on the augmented samples of each epoch, means over "
        "members. "
        f"Last loss: {last}.",
        traces,
        {"xaxis": {"title": {"text": "epoch"}, **({"dtick": 1} if few else {})}, "yaxis": {"title": {"text": ""}}},
        choices,
    )


def _mean_with_interval(
    study: StudyFiles, arm: str, gap: str, accuracy: np.ndarray, points: np.ndarray
) -> dict[str, Any]:
    """The mean of an arm; its error bar is the interval of its difference from the comparison arm, if there is one."""
    colour, symbol = _look(study, arm)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": _plain(arm_label(arm)),
        "legendgroup": arm,
        "x": _numbers([points.mean()]),
        "y": _numbers([accuracy.mean()]),
        "marker": {"color": colour, "symbol": symbol, "size": 12},
        "hovertemplate": _plain(arm_label(arm)) + ", mean<br>gap %{x:.2f} points, accuracy %{y:.2f} %<extra></extra>",
    }
    if arm != BASELINE:
        difference = compare(study, arm, f"{study.metric}_{gap}")
        if not difference.no_test:
            low, high = difference.interval
            half, least = (high - low) / 2, -100 if MEASURES[gap].signed else 0
            trace["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": _numbers([min(half, 100 - points.mean())]),
                "arrayminus": _numbers([min(half, points.mean() - least)]),
                "thickness": 1.5,
                "width": 4,
            }
    return trace


def _look(study: StudyFiles, arm: str) -> tuple[str, str]:
    colour, marker = look(study, arm)
    return (_INK if arm == BASELINE else colour), _SYMBOLS[marker]


def _told(of_arms: Iterable[str]) -> str:
    """What is told of each arm, in one sentence that can be read aloud."""
    told = list(of_arms)
    more = len(told) - MOST_TOLD
    return "; ".join(told[:MOST_TOLD]) + (f"; {more} more in the CSV files" if more > 0 else "")


def _numbers(values: Any) -> list[float | None]:
    """Replace NaN, which JSON lacks: plotly leaves a gap at None."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _plain(text: str) -> str:
    """Escape text, so that plotly finds neither markup, such as a live link, nor template fields in it."""
    return html.escape(text, quote=False).replace("{", "&#123;")
