"""The pictures of a study. Each is saved as PNG and SVG beside a CSV of exactly what it draws.

Figures use matplotlib's object interface, so no global state changes, and the same results give the same
bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from hbr_fast.data.images import ImageStore
from hbr_fast.report.confusion import confusion_pictures
from hbr_fast.report.drawing import (
    MOST_LABELS,
    Picture,
    class_rows,
    counts,
    label_points,
    legend,
    legend_label,
    look,
    new_figure,
    offsets_of,
    report_style,
    rows_of_classes,
)
from hbr_fast.report.gallery import gallery
from hbr_fast.report.hardness_figures import hardness_pictures, precision_against_recall
from hbr_fast.report.stability import stability_pictures
from hbr_fast.report.study_files import (
    BASELINE,
    GAPS,
    NOT_DEFINED,
    StudyFiles,
    arm_label,
    estimator_label,
    spread,
    undefined_words,
)
from hbr_fast.report.sweeps import (
    change_per_class,
    gaps_by_alpha,
    gaps_by_pruning_rate,
    gaps_of_arms,
    recall_of_arms,
    samples_of_arms,
)
from hbr_fast.report.trade import gap_against_accuracy

MOST_ARMS = 5  # with the baseline: more do not fit side by side in a class's row, and heat maps replace them


def pictures_of(study: StudyFiles, *, images: ImageStore | None = None) -> list[Picture]:
    """All pictures of a study: results first, then galleries if `images` are given.

    Parameters
    ----------
    study : from `read_study`
    images : the train split's images; without them there are no galleries
    """
    few = len(study.arms) <= MOST_ARMS
    pictures: list[Picture | None] = [
        recall_per_class(study) if few else recall_of_arms(study),
        gap_metrics(study) if few else gaps_of_arms(study),
        gaps_by_alpha(study),
        gap_against_accuracy(study),
        gaps_by_pruning_rate(study),
        change_per_class(study),
        (samples_per_class(study) if few else samples_of_arms(study)) if study.has_samples else None,
        class_hardness_against_recall(study) if few and study.has_hardness else None,
        precision_against_recall(study),
        *(confusion_pictures(study) if few else ()),
        *(hardness_pictures(study, images) if study.scored("aum") else ()),
        *stability_pictures(study),
    ]
    if images is not None and study.scored("aum"):
        pictures += [gallery(study, images, hardest=True), gallery(study, images, hardest=False)]
    return [picture for picture in pictures if picture is not None]


def recall_per_class(study: StudyFiles) -> Picture:
    """The metric of every class, the lowest of the baseline first: mean, std and range over members by arm."""
    baseline_c = study.class_metric(BASELINE, study.metric).mean(axis=0)
    order = np.argsort(baseline_c, kind="stable")
    several = any(study.members(arm) > 1 for arm in study.arms)
    bars = "mean over members; thick bar: ± 1 std, thin: min to max" if several else "one member an arm"
    with report_style():
        figure, axes = rows_of_classes(study, order, f"{study.metric_title} per class", bars)
        frames = []
        for arm, offset in zip(study.arms, offsets_of(len(study.arms)), strict=True):
            recall_mc = 100 * study.class_metric(arm, study.metric)[:, order]
            mean, std = recall_mc.mean(axis=0), spread(recall_mc)
            low, high = recall_mc.min(axis=0), recall_mc.max(axis=0)
            y = np.arange(len(order)) + offset
            colour, marker = look(study, arm)
            axes.hlines(y, low, high, color=colour, linewidth=0.9)
            if np.isfinite(std).all():
                axes.hlines(y, mean - std, mean + std, color=colour, linewidth=4.5, alpha=0.3)
            axes.plot(
                mean,
                y,
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=3.5,
                gid=f"mean {arm}",
                label=legend_label(study, arm),
            )
            frames.append(
                class_rows(
                    study,
                    order,
                    arm,
                    **{
                        f"{study.metric}_mean_percent": mean,
                        f"{study.metric}_std_percent": std,
                        f"{study.metric}_min_percent": low,
                        f"{study.metric}_max_percent": high,
                    },
                )
            )
        axes.set_xlabel(f"{study.metric_words} on {study.evaluated} (%)")
        legend(figure, axes, study)
    worst, best = order[0], order[-1]
    words = "; ".join(
        f"{arm_label(arm)}: {study.classes[worst]} {_recall(study, arm, worst):.1f} %, "
        f"{study.classes[best]} {_recall(study, arm, best):.1f} %"
        for arm in study.arms
    )
    return Picture(
        f"{study.metric}_per_class",
        f"{study.metric_title} per class",
        f"Classes from the lowest to the highest baseline {study.metric_words}. {bars.capitalize()}. Members: "
        f"{counts(study)}.",
        f"Dot plot of the {study.metric_words} of {len(order)} classes, sorted by baseline {study.metric_words}. "
        f"Lowest and highest class of the baseline: {words}.",
        pl.concat(frames),
        figure,
    )


def samples_per_class(study: StudyFiles) -> Picture:
    """Samples of each class in an epoch, from the hardest class to the easiest, arm by arm."""
    order = study.hard_to_easy()
    estimator = estimator_label(study)
    with report_style():
        subtitle = f"hardest class first, by class mean of {estimator}" if study.has_hardness else study.order_words
        figure, axes = rows_of_classes(study, order, "Samples per class", subtitle)
        frames = []
        height = 0.8 / len(study.arms)
        for arm, offset in zip(study.arms, offsets_of(len(study.arms), height=height), strict=True):
            counts = study.class_metric(arm, "samples").mean(axis=0)[order]
            colour = "#8c8c8c" if arm == BASELINE else look(study, arm)[0]
            bars = axes.barh(
                np.arange(len(order)) + offset,
                counts,
                height=height,
                color=colour,
                label=legend_label(study, arm),
            )
            if len(order) <= MOST_LABELS:
                axes.bar_label(bars, [f"{count:,.0f}" for count in counts], padding=2, fontsize=7.5)
            frames.append(class_rows(study, order, arm, samples=counts))
        axes.margins(x=0.12)
        axes.set_xlabel("samples of the class in an epoch")
        legend(figure, axes, study)
    hardest, easiest = order[0], order[-1]
    words = "; ".join(
        f"{arm_label(arm)}: {study.classes[hardest]} {_samples(study, arm, hardest):,.0f}, "
        f"{study.classes[easiest]} {_samples(study, arm, easiest):,.0f}, "
        f"all classes {study.class_metric(arm, 'samples').mean(axis=0).sum():,.0f}"
        for arm in study.arms
    )
    return Picture(
        "samples_per_class",
        "Samples per class",
        f"How the epoch is shared between classes, {study.order_words}."
        + (f" Hardness: class mean of {estimator} over {study.hardness_from}." if estimator else ""),
        f"Bar chart of the samples of {len(order)} classes, from hard to easy. Hardest and easiest class: {words}.",
        pl.concat(frames),
        figure,
    )


def gap_metrics(study: StudyFiles) -> Picture:
    """Each measure of the gap between classes: every member and the mean, arm by arm."""
    gaps = list(GAPS)
    offsets = offsets_of(len(study.arms))
    rows: list[dict[str, Any]] = []
    with report_style():
        subtitle = "hollow mark: a member; upright bar: mean over members"
        figure, axes = new_figure(
            study,
            f"{study.metric_title} gaps between classes",
            subtitle,
            0.6 + len(gaps) * (0.15 * len(study.arms) + 0.1),
        )
        for arm, offset in zip(study.arms, offsets, strict=True):
            colour, marker = look(study, arm)
            for i, gap in enumerate(gaps):
                values = 100 * study.member_metric(arm, f"{study.metric}_{gap}")
                who = study.per_member.filter(pl.col("arm") == arm).select("variant", "member").rows()
                mean = float(values.mean())
                drawn: dict[str, Any] = {"linestyle": "none", "color": colour, "markerfacecolor": "none"}
                y = np.full(len(values), i + offset)
                axes.plot(values, y, marker=marker, markersize=4, gid=f"members {arm} {gap}", **drawn)
                axes.plot(
                    [mean],
                    y[:1],
                    marker="|",
                    markersize=11,
                    markeredgewidth=2.2,
                    gid=f"mean {arm} {gap}",
                    **drawn,
                )
                rows += [
                    {
                        "metric": gap,
                        "arm": arm,
                        "what": "member",
                        "variant": v,
                        "member": m,
                        "points": float(x),
                    }
                    for (v, m), x in zip(who, values, strict=True)
                ]
                rows.append(
                    {
                        "metric": gap,
                        "arm": arm,
                        "what": "mean",
                        "variant": None,
                        "member": None,
                        "points": mean,
                    }
                )
            axes.lines[-2].set_label(legend_label(study, arm))
        for i, gap in enumerate(gaps):
            if all(np.isnan(study.member_metric(arm, f"{study.metric}_{gap}")).all() for arm in study.arms):
                place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
                axes.text(0.5, i, NOT_DEFINED, fontsize=7.5, **place)
        axes.axvline(0, color="#595959", linewidth=0.8)
        axes.set_yticks(range(len(gaps)), [GAPS[gap] for gap in gaps])
        axes.set_ylim(len(gaps) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", visible=True)
        axes.set_xlabel(f"{study.metric_words} gap between classes (percentage points)")
        legend(figure, axes, study)
    data = pl.DataFrame(rows, schema_overrides={"variant": pl.Int64, "member": pl.Int64})
    words = "; ".join(
        f"{GAPS[gap]} "
        + ", ".join(
            f"{arm_label(arm)} {100 * study.member_metric(arm, f'{study.metric}_{gap}').mean():.1f}"
            for arm in study.arms
        )
        for gap in gaps
    )
    return Picture(
        "gap_metrics",
        f"{study.metric_title} gaps between classes",
        f"Five measures of how far the classes lie apart in {study.metric_words}: less is better. Hollow marks are "
        f"members, upright bars their mean. Members: {counts(study)}.{undefined_words(study)}",
        f"Dot plot of five measures of the {study.metric_words} gap in percentage points, means over members: {words}.",
        data,
        figure,
    )


def class_hardness_against_recall(study: StudyFiles) -> Picture:
    """Class hardness against the metric: a point a class and arm, lines from the baseline to the other arms."""
    hardness = study.class_hardness()
    order = study.hard_to_easy()
    recall_ac = np.stack([100 * study.class_metric(arm, study.metric).mean(axis=0) for arm in study.arms])
    estimator = estimator_label(study)
    with report_style():
        subtitle = "a mark is a class: mean over members; lines join the arms"
        figure, axes = new_figure(study, f"Class hardness against {study.metric_words}", subtitle, 3.4)
        for a, arm in enumerate(study.arms):
            if a:
                axes.vlines(hardness, recall_ac[0], recall_ac[a], color="#8c8c8c", linewidth=0.9, zorder=1)
            colour, marker = look(study, arm)
            axes.plot(
                hardness[order],
                recall_ac[a][order],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=5 if a else 3.5,
                zorder=2 if a else 3,
                gid=f"points {arm}",
                label=legend_label(study, arm),
            )
        axes.grid(visible=True)
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel(f"class hardness: mean {estimator} of the baseline ({_hard_end(study)} is harder)")
        axes.set_ylabel(f"{study.metric_words} on {study.evaluated} (%)")
        legend(figure, axes, study)
        if len(order) <= MOST_LABELS:
            label_points(axes, hardness, recall_ac, study.classes)
    data = pl.concat(
        [
            class_rows(
                study, order, arm, hardness=hardness[order], **{f"{study.metric}_mean_percent": recall_ac[a][order]}
            )
            for a, arm in enumerate(study.arms)
        ]
    )
    rank = _rank_correlation(hardness, recall_ac[0], study.metric_words)
    hardest, easiest = order[0], order[-1]
    return Picture(
        f"class_hardness_against_{study.metric}",
        f"Class hardness against {study.metric_words}",
        f"Class mean of {estimator} over {study.hardness_from} ({_hard_end(study)} is harder) against "
        f"{study.metric_words}, mean over members "
        f"({counts(study)}). {rank}",
        f"Scatter plot of {len(order)} classes. Hardest: {study.classes[hardest]}, {estimator} "
        f"{hardness[hardest]:.2f}, baseline {study.metric_words} {recall_ac[0, hardest]:.1f} %. Easiest: "
        f"{study.classes[easiest]}, {estimator} {hardness[easiest]:.2f}, baseline {study.metric_words} "
        f"{recall_ac[0, easiest]:.1f} %. {rank}".strip(),
        data,
        figure,
    )


def _rank_correlation(hardness: np.ndarray, recall: np.ndarray, words: str) -> str:
    if len(hardness) < 3 or np.ptp(hardness) == 0 or np.ptp(recall) == 0:
        return ""
    rho = float(spearmanr(hardness, recall).statistic)
    return f"Spearman correlation with baseline {words} over {len(hardness)} classes: {rho:+.2f}."


def _recall(study: StudyFiles, arm: str, index: int) -> float:
    return float(100 * study.class_metric(arm, study.metric)[:, index].mean())


def _samples(study: StudyFiles, arm: str, index: int) -> float:
    return float(study.class_metric(arm, "samples")[:, index].mean())


def _hard_end(study: StudyFiles) -> str:
    order = study.hard_to_easy()
    hardness = study.class_hardness()
    return "lower" if hardness[order[0]] <= hardness[order[-1]] else "higher"
