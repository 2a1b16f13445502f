"""What a smaller gap costs: the recall gap of every arm against its accuracy, and the arms that no other arm beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from hbr_fast.report.drawing import COLOURS, Picture, count, label_points, report_style, titled_figure
from hbr_fast.report.study_files import BASELINE, StudyFiles, arm_label, compare

FAR = 1.5  # an arm whose gap is this many times the baseline's would squeeze all others into a corner


def pareto_front(accuracy_a: Sequence[float], gap_a: Sequence[float]) -> list[int]:
    """The arms that no other arm beats, by decreasing accuracy.

    An arm beats another if it is no worse in accuracy (more is better) and gap (less is better), and better in one.
    """
    arms = list(zip(accuracy_a, gap_a, strict=True))

    def beaten(accuracy: float, gap: float) -> bool:
        return any(a >= accuracy and g <= gap and (a, g) != (accuracy, gap) for a, g in arms)

    front = [i for i, arm in enumerate(arms) if not beaten(*arm)]
    return sorted(front, key=lambda i: -arms[i][0])


class Point(NamedTuple):
    """A row of the picture's CSV: an arm's means, and the intervals of its differences from the comparison arm."""

    arm: str
    alpha: float
    accuracy_percent: float
    accuracy_difference_low: float
    accuracy_difference_high: float
    gap_points: float
    gap_difference_low: float
    gap_difference_high: float

    @property
    def name(self) -> str:
        return BASELINE if self.arm == BASELINE else arm_label(self.arm)


def gap_against_accuracy(study: StudyFiles) -> Picture | None:
    """Recall gap against accuracy, one point per arm, with the front; None with fewer than two alphas."""
    arms = [arm for arm in study.treatments if study.setting(arm, "alpha") > 0]
    if len({study.setting(arm, "alpha") for arm in arms}) < 2:
        return None
    points = [_baseline(study), *(_point(study, arm) for arm in arms)]
    front = pareto_front([point.accuracy_percent for point in points], [point.gap_points for point in points])
    far = {i for i, point in enumerate(points) if point.gap_points > FAR * points[0].gap_points}
    with report_style():
        figure, axes = titled_figure(
            "Gap against accuracy",
            f"bars: 95 % interval of the difference from {study.compared_with}; line: front",
            3.6,
        )
        line = [points[i] for i in front if i not in far]
        axes.plot(
            [p.accuracy_percent for p in line],
            [p.gap_points for p in line],
            color="#000000",
            linewidth=0.9,
            gid="front",
        )
        for i, point in enumerate(points):
            if i in far:
                continue
            axes.errorbar(
                point.accuracy_percent, point.gap_points,
                xerr=_half(point.accuracy_difference_low, point.accuracy_difference_high),
                yerr=_half(point.gap_difference_low, point.gap_difference_high),
                color="#000000" if i == 0 else COLOURS[0], marker="s" if i == 0 else "o", markersize=4, elinewidth=0.8,
                capsize=2, alpha=1 if i in front else 0.5,
            )  # fmt: skip
        axes.set_xlabel("accuracy (%)", fontsize=8)
        axes.set_ylabel(f"{study.metric_words} gap, best minus worst class (points)", fontsize=8)
        axes.grid(visible=True)
        # A wide interval would reach impossible accuracies and gaps.
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        axes.set(xlim=(max(left, -3), min(right, 103)), ylim=(max(low, -3), min(high, 103)))
        shown = [point for i, point in enumerate(points) if i not in far]
        label_points(
            axes,
            np.array([point.accuracy_percent for point in shown]),
            np.array([[point.gap_points for point in shown]]),
            [point.name for point in shown],
        )
    outside = f" Outside the picture: {', '.join(points[i].name for i in sorted(far))}." if far else ""
    return Picture(
        "gap_against_accuracy",
        "Gap against accuracy",
        f"{study.metric_title} gap (less is better) against accuracy (more is better), means over members "
        f"({count(study, BASELINE)} "
        "of the baseline). Bars: half width of the 95 % interval of the paired difference from "
        f"{study.compared_with}, where the design gives one. Strong points on the line are beaten by no other arm; "
        f"pale ones are.{outside}",
        f"Scatter of {len(points) - len(far)} arms. Not beaten by any other, by decreasing accuracy: "
        f"{', '.join(points[i].name for i in front)}.",
        pl.DataFrame([point._asdict() | {"on_front": i in front} for i, point in enumerate(points)]),
        figure,
    )


def _baseline(study: StudyFiles) -> Point:
    accuracy, gap = (
        float(100 * study.member_metric(BASELINE, of).mean()) for of in ("accuracy", f"{study.metric}_max_min")
    )
    return Point(BASELINE, 0.0, accuracy, 0.0, 0.0, gap, 0.0, 0.0)


def _point(study: StudyFiles, arm: str) -> Point:
    accuracy, gap = compare(study, arm, "accuracy"), compare(study, arm, f"{study.metric}_max_min")
    of_accuracy, of_gap = ((one.treatment, *one.interval) for one in (accuracy, gap))
    return Point(arm, float(study.setting(arm, "alpha")), *of_accuracy, *of_gap)


def _half(low: float, high: float) -> float:
    return float(np.nan_to_num((high - low) / 2))
