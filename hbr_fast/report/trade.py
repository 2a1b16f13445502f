"""What a smaller gap costs: the recall gap of every arm against its accuracy, and the arms that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from hbr_fast.report.drawing import COLOURS, Picture, count, report_style, titled_figure
from hbr_fast.report.study_files import BASELINE, StudyFiles, arm_label, compare

FAR = 1.5  # an arm whose gap is this many times the baseline's would press all others into a corner


def pareto_front(accuracy_a: Sequence[float], gap_a: Sequence[float]) -> list[int]:
    """The arms that no other arm beats, by falling accuracy.

    One beats another if it is no worse in both accuracy (more is better) and gap (less is better), and better in one.
    """
    arms = list(zip(accuracy_a, gap_a, strict=True))

    def beaten(accuracy: float, gap: float) -> bool:
        return any(a >= accuracy and g <= gap and (a, g) != (accuracy, gap) for a, g in arms)

    front = [i for i, arm in enumerate(arms) if not beaten(*arm)]
    return sorted(front, key=lambda i: -arms[i][0])


def gap_against_accuracy(study: StudyFiles) -> Picture | None:
    """Recall gap against accuracy, an arm a point, with the front; None where fewer than two alphas are."""
    arms = [arm for arm in study.treatments if study.setting(arm, "alpha") > 0]
    if len({study.setting(arm, "alpha") for arm in arms}) < 2:
        return None
    rows = [_baseline_row(study), *(_row(study, arm) for arm in arms)]
    accuracy, gap = ([float(str(row[key])) for row in rows] for key in ("accuracy_percent", "gap_points"))
    front = pareto_front(accuracy, gap)
    shown = [i for i in range(len(rows)) if gap[i] <= FAR * gap[0]]
    outside = [arm_label(str(rows[i]["arm"])) for i in range(len(rows)) if i not in shown]
    with report_style():
        figure, axes = titled_figure(
            "Gap against accuracy", "bars: 95 % interval of the difference from the baseline; line: Pareto front", 3.6
        )
        in_sight = [i for i in front if i in shown]
        axes.plot(
            [accuracy[i] for i in in_sight], [gap[i] for i in in_sight], color="#000000", linewidth=0.9, gid="front"
        )
        for i in shown:
            axes.errorbar(
                accuracy[i], gap[i], xerr=_half(rows[i], "accuracy"), yerr=_half(rows[i], "gap"),
                color="#000000" if i == 0 else COLOURS[0], marker="s" if i == 0 else "o", markersize=4, elinewidth=0.8,
                capsize=2, alpha=1 if i in front else 0.5,
            )  # fmt: skip
            text = BASELINE if i == 0 else arm_label(str(rows[i]["arm"]))
            axes.annotate(text, (accuracy[i], gap[i]), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set_xlabel("accuracy (%)", fontsize=8)
        axes.set_ylabel("recall gap, best minus worst class (points)", fontsize=8)
        axes.grid(visible=True)
    names = [BASELINE if i == 0 else arm_label(str(rows[i]["arm"])) for i in front]
    missing = f" Outside the picture: {', '.join(outside)}." if outside else ""
    return Picture(
        "gap_against_accuracy",
        "Gap against accuracy",
        f"Recall gap (less is better) against accuracy (more is better), means over members ({count(study, BASELINE)} "
        "of the baseline). Bars: half width of the 95 % interval of the paired difference from the baseline, where the "
        f"design gives one. Strong points on the line are beaten by no other arm; pale ones are.{missing}",
        f"Scatter of {len(shown)} arms. Not beaten by any other, by falling accuracy: {', '.join(names)}.",
        pl.DataFrame(rows).with_columns(on_front=pl.Series([i in front for i in range(len(rows))])),
        figure,
    )


def _baseline_row(study: StudyFiles) -> dict[str, object]:
    accuracy, gap = (100 * study.member_metric(BASELINE, of).mean() for of in ("accuracy", "recall_max_min"))
    return _as_row(BASELINE, 0.0, (accuracy, 0.0, 0.0), (gap, 0.0, 0.0))


def _row(study: StudyFiles, arm: str) -> dict[str, object]:
    accuracy, gap = compare(study, arm, "accuracy"), compare(study, arm, "recall_max_min")
    alpha = float(study.setting(arm, "alpha"))
    return _as_row(arm, alpha, *((c.treatment, c.low, c.high) for c in (accuracy, gap)))


def _as_row(
    arm: str, alpha: float, accuracy: tuple[float, float, float], gap: tuple[float, float, float]
) -> dict[str, object]:
    return {
        "arm": arm,
        "alpha": alpha,
        "accuracy_percent": float(accuracy[0]),
        "accuracy_difference_low": float(accuracy[1]),
        "accuracy_difference_high": float(accuracy[2]),
        "gap_points": float(gap[0]),
        "gap_difference_low": float(gap[1]),
        "gap_difference_high": float(gap[2]),
    }


def _half(row: dict[str, object], what: str) -> float:
    low, high = (float(str(row[f"{what}_difference_{end}"])) for end in ("low", "high"))
    return float(np.nan_to_num((high - low) / 2))
