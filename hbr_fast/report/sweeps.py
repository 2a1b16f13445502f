"""Pictures of many arms at once: gaps along alpha or along the pruning rate, and change class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from hbr_fast.report.controls import is_control
from hbr_fast.report.drawing import (
    COLOURS,
    MARKERS,
    Picture,
    class_rows,
    count,
    dashes,
    heat_map,
    report_style,
    titled_figure,
)
from hbr_fast.report.study_files import (
    BASELINE,
    GAPS,
    NOT_DEFINED,
    StudyFiles,
    arm_label,
    compare,
    spread,
    undefined_words,
)

ASIDE, PANEL = 3, 140  # points: between lines that share a place on the axis, and the width of a panel
LETTER = 5.5  # points, of a label
LOG_ABOVE = 4  # values spread over more than this factor may crowd at one end of a linear axis
LINE = 12  # points, between labels that are turned


def gaps_by_alpha(study: StudyFiles) -> Picture | None:
    """Each gap metric and accuracy against alpha, one line per oversampler; None with fewer than two alphas."""
    arms = [arm for arm in study.treatments if study.setting(arm, "alpha") > 0]
    return _sweep(
        study,
        arms,
        along=lambda arm: float(study.setting(arm, "alpha")),
        line=lambda arm: _named(study, arm, ("oversample", "undersample", "prune")),
        words=("alpha", "degree of resampling, alpha", "gaps_by_alpha", "Gaps along alpha"),
        start="baseline (alpha 0)",
    )


def gaps_by_pruning_rate(study: StudyFiles) -> Picture | None:
    """Each gap metric and accuracy against the pruning rate, one line per treatment; None with fewer than two rates."""
    arms = [arm for arm in study.treatments if study.setting(arm, "prune_rate") > 0]
    return _sweep(
        study,
        arms,
        along=lambda arm: 100 * float(study.setting(arm, "prune_rate")),
        line=lambda arm: _named(study, arm, ("oversample", "undersample", "level")),
        words=("rate", "samples pruned (%)", "gaps_by_pruning_rate", "Gaps along the pruning rate"),
        start="baseline (nothing pruned)",
    )


def change_per_class(study: StudyFiles) -> Picture | None:
    """Change of recall of every class by every arm, in points; None without an arm."""
    if not study.treatments:
        return None
    order = study.hard_to_easy()
    before = 100 * study.class_metric(BASELINE, study.metric).mean(axis=0)[order]
    change = np.stack(
        [100 * study.class_metric(arm, study.metric).mean(axis=0)[order] - before for arm in study.treatments], axis=1
    )
    reach = max(0.1, float(np.abs(change).max()))
    classes = [study.classes[c] for c in order]
    with report_style():
        figure, _ = heat_map(
            f"Change of {study.metric_words}, class by class",
            "points against the baseline, mean over members; hardest class first",
            change,
            rows=classes,
            columns=[arm_label(arm) for arm in study.treatments],
            scale=TwoSlopeNorm(0, -reach, reach),
            form="+.1f",
            colours="PuOr",
            label=f"points of {study.metric_words}",
        )
    hardest = "; ".join(f"{arm_label(a)} {change[0, i]:+.1f}" for i, a in enumerate(study.treatments[:6]))
    return Picture(
        "change_per_class",
        f"Change of {study.metric_words}, class by class",
        f"{study.metric_title} on {study.evaluated}, arm minus baseline, in percentage points: means over members "
        f"({count(study, BASELINE)} of the baseline). Violet is better, orange is worse.",
        f"Heat map of the change of {study.metric_words} of {len(order)} classes in {len(study.treatments)} arms. "
        "Hardest class, "
        f"{classes[0]}: {hardest}.",
        _wide(study, order, study.treatments, change),
        figure,
    )


def recall_of_arms(study: StudyFiles) -> Picture:
    """Mean recall of every class in every arm: for studies with more arms than a dot plot can hold."""
    order = np.argsort(study.class_metric(BASELINE, study.metric).mean(axis=0), kind="stable")
    recall_by_arm = {arm: 100 * study.class_metric(arm, study.metric)[:, order] for arm in study.arms}
    recall = np.stack([recall_mc.mean(axis=0) for recall_mc in recall_by_arm.values()], axis=1)
    classes = [study.classes[c] for c in order]
    with report_style():
        figure, _ = heat_map(
            f"{study.metric_title} per class",
            f"on {study.evaluated} (%), mean over members; worst class of the baseline first",
            recall,
            rows=classes,
            columns=[arm_label(arm) for arm in study.arms],
            scale=Normalize(float(recall.min()), max(float(recall.max()), float(recall.min()) + 1e-6)),
            form=".0f",
            colours="cividis",
            label=f"{study.metric_words} (%)",
        )
    words = "; ".join(f"{arm_label(arm)} {recall[0, i]:.1f} %" for i, arm in enumerate(study.arms[:6]))
    return Picture(
        f"{study.metric}_per_class",
        f"{study.metric_title} per class",
        f"{study.metric_title} on {study.evaluated} in percent, mean over the members of an arm "
        f"({count(study, BASELINE)} of the baseline), classes from the lowest to the highest baseline "
        f"{study.metric_words}. Deviation and range: in the CSV.",
        f"Heat map of the {study.metric_words} of {len(order)} classes in {len(study.arms)} arms. Worst class of "
        "the baseline, "
        f"{classes[0]}: {words}.",
        pl.concat(
            class_rows(
                study,
                order,
                arm,
                **{
                    f"{study.metric}_mean_percent": recall_mc.mean(axis=0),
                    f"{study.metric}_std_percent": spread(recall_mc),
                    f"{study.metric}_min_percent": recall_mc.min(axis=0),
                    f"{study.metric}_max_percent": recall_mc.max(axis=0),
                },
            )
            for arm, recall_mc in recall_by_arm.items()
        ),
        figure,
    )


def gaps_of_arms(study: StudyFiles) -> Picture:
    """Every gap metric of every arm, means over members."""
    gaps = np.array(
        [[100 * study.member_metric(arm, f"{study.metric}_{gap}").mean() for gap in GAPS] for arm in study.arms]
    )
    # A column is shaded relative to the baseline's value: the scale of a gap differs between the measures.
    # A signed gap is judged by its absolute value.
    shade = np.divide(np.abs(gaps), np.abs(gaps[0]), out=np.ones_like(gaps), where=gaps[0] != 0)
    reach = max(0.02, float(np.nanmax(np.abs(shade - 1))))
    shade[(gaps[0] == 0) & (gaps != 0)] = 1 + reach  # any gap is wider than none
    with report_style():
        figure, axes = heat_map(
            f"{study.metric_title} gaps between classes",
            "shade: share of the baseline's gap, mean over members; numbers: points",
            shade,
            rows=[arm_label(arm) for arm in study.arms],
            columns=list(GAPS.values()),
            scale=TwoSlopeNorm(1, 1 - reach, 1 + reach),
            form="",
            colours="PuOr_r",
            label="gap over the baseline's",
            written=gaps,
        )
        bar = axes.get_images()[0].colorbar
        assert bar is not None
        bar.ax.set_ylim(max(0.0, 1 - reach), 1 + reach)  # the scale is symmetrical, but no share is below 0
        for row, column in np.argwhere(np.isnan(gaps)):
            axes.text(column, row, "n/a", ha="center", va="center", fontsize=7)
    frame = pl.DataFrame({"arm": study.arms, **{gap: gaps[:, i] for i, gap in enumerate(GAPS)}})
    best = int(gaps[:, 0].argmin())
    return Picture(
        "gap_metrics",
        f"{study.metric_title} gaps between classes",
        f"Five measures of how far the classes lie apart in {study.metric_words}, in percentage points, means over "
        "the members "
        f"of an arm ({count(study, BASELINE)} of the baseline): nearer to zero is better. Violet is "
        f"nearer than the baseline's.{undefined_words(study)}",
        f"Heat map of five gap measures of {len(study.arms)} arms. Smallest max - min: {arm_label(study.arms[best])}, "
        f"{gaps[best, 0]:.1f} points; baseline {gaps[0, 0]:.1f}.",
        frame,
        figure,
    )


def samples_of_arms(study: StudyFiles) -> Picture:
    """Samples of every class in every arm; arms with the same counts appear once."""
    order = study.hard_to_easy()
    unlike: dict[tuple[float, ...], list[str]] = {}
    for arm in study.arms:
        unlike.setdefault(tuple(study.class_metric(arm, "samples").mean(axis=0)[order]), []).append(arm)
    counts = np.array(list(unlike)).T
    firsts = [arms[0] for arms in unlike.values()]
    with report_style():
        figure, _ = heat_map(
            "Samples per class",
            "in an epoch, hardest class first; arms with the same counts once",
            counts,
            rows=[study.classes[c] for c in order],
            columns=[arm_label(arm) for arm in firsts],
            scale=Normalize(0, float(counts.max())),
            form=",.0f",
            colours="viridis",
            label="samples",
        )
    same = "; ".join(f"{arms[0]} also for {', '.join(arms[1:])}" for arms in unlike.values() if len(arms) > 1)
    return Picture(
        "samples_per_class",
        "Samples per class",
        f"How the epoch is shared between classes, the hardest first. {same + '.' if same else ''}".strip(),
        f"Heat map of the samples of {len(order)} classes in {len(firsts)} different allocations.",
        _wide(study, order, firsts, counts),
        figure,
    )


def _sweep(
    study: StudyFiles,
    arms: Sequence[str],
    *,
    along: Callable[[str], float],
    line: Callable[[str], str],
    words: tuple[str, str, str, str],
    start: str,
) -> Picture | None:
    places = sorted({along(arm) for arm in arms})
    if len(places) < 2:
        return None
    column, axis, name, title = words
    shown = {f"{study.metric}_{gap}": f"{study.metric_words} gap, {said}" for gap, said in GAPS.items()}
    shown["accuracy"] = "accuracy"
    lines = list(dict.fromkeys(line(arm) for arm in arms))
    rows = []
    with report_style():
        subtitle = f"mean over members; bars: 95 % interval of the difference from {study.compared_with}"
        figure, panels = _panels(title, subtitle, legend_rows=-(-(len(lines) + 1) // _legend_columns([*lines, start])))
        for (metric, label), axes in zip(shown.items(), panels, strict=True):
            first = axes is panels[0]  # the panel that the legend is made from
            before = 100 * study.member_metric(BASELINE, metric).mean()
            level = axes.axhline(before, color="#000000", linewidth=0.9, linestyle=(0, (4, 2)))
            level.set_label(start if first else "")
            for number, of_line in enumerate(lines):
                points = sorted(((along(arm), arm) for arm in arms if line(arm) == of_line), key=lambda pair: pair[0])
                colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
                style = dashes(number)
                compared = [compare(study, arm, metric) for _, arm in points]
                x = np.array([place for place, _ in points])
                y = np.array([c.treatment for c in compared])
                half = np.nan_to_num(np.array([(c.interval[1] - c.interval[0]) / 2 for c in compared]))
                # Lines are slightly offset, so that no bar hides another.
                aside = ScaledTranslation((number - (len(lines) - 1) / 2) * ASIDE / 72, 0, figure.dpi_scale_trans)
                axes.errorbar(
                    x, y, yerr=half, color=colour, marker=marker, markersize=3.5, linewidth=1.2, linestyle=style,
                    elinewidth=0.8, capsize=2, label=of_line if first else None, transform=axes.transData + aside,
                )  # fmt: skip
                axes.update_datalim([*zip(x, y - half, strict=True), *zip(x, y + half, strict=True)])
                rows += [
                    {
                        "metric": metric,
                        "line": of_line,
                        "arm": arm,
                        column: place,
                        "against": study.against(arm),
                        "against_percent": c.baseline,
                        "mean_percent": c.treatment,
                        "difference_points": c.difference,
                        "difference_low": c.interval[0],
                        "difference_high": c.interval[1],
                    }
                    for (place, arm), c in zip(points, compared, strict=True)
                ]
            axes.set_title(label, fontsize=8.5, fontweight="normal")
            axes.grid(visible=True)
            _fit(axes, places, lines=len(lines), least=-100 if metric.endswith("_easy_hard") else 0)
        for axes in panels[-2:]:
            axes.set_xlabel(axis, fontsize=8)
        figure.supylabel("percentage points (accuracy: %)", fontsize=8)
        figure.legend(
            loc="upper left", bbox_to_anchor=(0.02, 1 - 0.49 / figure.get_size_inches()[1]),
            ncols=_legend_columns([*lines, start]), borderpad=0, borderaxespad=0, fontsize=8,
        )  # fmt: skip
    best = min(
        (row for row in rows if row["metric"] == f"{study.metric}_max_min"),
        key=lambda row: float(str(row["mean_percent"])),
    )
    return Picture(
        name,
        title,
        f"Five measures of the {study.metric_words} gap (less is better) and accuracy by {axis}, a line per "
        "treatment, means "
        f"over members ({count(study, BASELINE)} of the baseline, dashed). Bars: half width of the 95 % interval of "
        f"the paired difference from {study.compared_with}, over resampled variants, where the design gives one, cut "
        "off where percentages end.",
        f"Line charts of five gap measures and accuracy along the {axis} for {', '.join(lines)}. Smallest max - min "
        f"gap: {best['mean_percent']:.1f} points by {best['arm']}; {best['against']} {best['against_percent']:.1f}.",
        pl.DataFrame(rows),
        figure,
    )


def _panels(title: str, subtitle: str, *, legend_rows: int) -> tuple[Figure, list[Axes]]:
    """A heading, room for a legend, and two columns of three panels."""
    figure, axes = titled_figure(title, subtitle, 5.4, legend_rows=legend_rows)
    axes.remove()
    return figure, list(figure.subplots(3, 2, sharex=True).ravel())


def _fit(axes: Axes, places: Sequence[float], *, lines: int, least: float) -> None:
    """Limits and ticks: values in equal ratios on a logarithmic axis, percentages within their range."""
    if places[0] > 0 and places[-1] > LOG_ABOVE * places[0] and _closest(np.log(places)) > _closest(places):
        axes.set_xscale("log")
        names = [f"{place:g}" for place in places]
        turned = sum(len(name) + 1 for name in names) * LETTER > PANEL
        tilt: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(places, _clear(np.log(places), names, turned=turned), **tilt)
        axes.minorticks_off()
    bars = [drawn for drawn in axes.containers if isinstance(drawn, ErrorbarContainer)]
    if not any(np.isfinite(np.asarray(bar.lines[0].get_ydata())).any() for bar in bars):
        axes.set_yticks([])
        axes.text(0.5, 0.5, NOT_DEFINED.replace("shares ", "shares\n"), transform=axes.transAxes,
                  ha="center", va="center", fontsize=8)  # fmt: skip
        return
    room = (lines - 1) / 2 * ASIDE + 5  # points, for the outermost line and its marker
    axes.margins(x=max(0.08, room / (PANEL - 2 * room)))
    axes.autoscale_view()
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, least - 3), min(high, 103))


def _closest(places: np.ndarray | Sequence[float]) -> float:
    """The smallest distance between neighbours, as a share of the whole."""
    return float(np.diff(places).min() / np.ptp(places))


def _clear(places: np.ndarray, names: Sequence[str], *, turned: bool) -> list[str]:
    """The names that fit along a panel; the others, which would be printed over them, are empty."""
    at = PANEL * (places - places[0]) / np.ptp(places)
    shown: list[str] = []
    end = -np.inf  # of the last name that is shown
    for middle, name in zip(at, names, strict=True):
        width = LINE if turned else LETTER * (len(name) + 1)
        fits = middle - width / 2 >= end
        shown.append(name if fits else "")
        end = middle + width / 2 if fits else end
    return shown


def _legend_columns(lines: Sequence[str]) -> int:
    return max(1, 66 // (max(map(len, lines)) + 8))


def _named(study: StudyFiles, arm: str, parts: Sequence[str]) -> str:
    """What an arm does, in the words that distinguish this study's arms."""
    if study.setting(arm, "reweight"):
        return "class weights, not resampled"
    if study.setting(arm, "other_class"):
        return "by the hardness of other classes"
    told = []
    for part in parts:
        said = {_words(study, other, part) for other in study.treatments if not is_control(study, other)} - {""}
        if len(said) > 1:
            told.append(_words(study, arm, part))
    return ", ".join(word for word in told if word) or "resampled"


def _words(study: StudyFiles, arm: str, part: str) -> str:
    if part in ("prune", "level"):
        level, by = study.setting(arm, "prune_level"), study.setting(arm, "prune_by")
        rate = f" {100 * study.setting(arm, 'prune_rate'):g} %" if part == "prune" else ""
        whose = "of each class" if level == "class" else "of the whole set"
        return "" if level == "none" else f"pruned{rate} by {by.replace('random', 'chance')}, {whose}"
    if study.setting(arm, "alpha") == 0:
        return "not resampled" if part == "oversample" else ""
    return f"{study.setting(arm, part)} {part.removesuffix('e')}ing"


def _wide(study: StudyFiles, order: np.ndarray, arms: Sequence[str], values_ca: np.ndarray) -> pl.DataFrame:
    head = {"class_index": order, "class_name": [study.classes[c] for c in order]}
    return pl.DataFrame({**head, **{arm: values_ca[:, i] for i, arm in enumerate(arms)}})
