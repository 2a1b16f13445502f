"""Pictures of the baseline's hardness scores, by class and by sample.

All are drawn from `samples.csv` (scores by sample, means over the baseline's members) and `per_class.csv`.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import polars as pl
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy import stats

from hbr_fast.data.images import ImageStore
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.report.drawing import (
    MOST_LABELS,
    Picture,
    counts,
    heat_map,
    label_points,
    legend,
    legend_label,
    look,
    new_figure,
    report_style,
    rows_of_classes,
    short,
    titled_figure,
)
from hbr_fast.report.gallery import tile
from hbr_fast.report.study_files import BASELINE, StudyFiles, arm_label

HARDEST_SHARE = 0.1  # share of the samples, on which the agreement of estimators is measured
QUANTILES = np.linspace(0, 1, 201)


def hardness_pictures(study: StudyFiles, images: ImageStore | None) -> list[Picture | None]:
    """All pictures of the scores of samples."""
    return [
        cumulative_aum(study),
        confidence_against_margin(study, images),
        suspected_noise(study),
        estimator_overlap(study),
    ]


def cumulative_aum(study: StudyFiles) -> Picture:
    """Share of each class's samples below an AUM: the whole distribution behind the class mean."""
    order = study.hard_to_easy()
    frames = []
    with report_style():
        subtitle = f"mean over {study.hardness_from}; left of 0: mostly mistaken for another class"
        figure, axes = titled_figure("Cumulative AUM of each class", subtitle, 3.2)
        # From the hardest class, dark, to the easiest: a scale that is distinguishable in grey as well.
        shades = _shades(len(order))
        for colour, c in zip(shades, order, strict=True):
            aum = np.quantile(_scores(study, "aum", c), QUANTILES)
            axes.plot(aum, 100 * QUANTILES, color=colour, linewidth=1.3, gid=f"class {c}")
            frames.append(_of_class(study, c, aum=aum, share_percent=100 * QUANTILES))
        axes.axvline(0, color="#595959", linewidth=0.8)
        axes.set_xlabel("AUM (logits)")
        axes.set_ylabel("samples of the class at or below (%)")
        axes.grid(visible=True)
        if len(order) <= MOST_LABELS:
            for colour, c in zip(shades, order, strict=True):
                axes.plot([], [], color=colour, label=short(study.classes[c]))
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5, handlelength=1.2)
    below = {c: float((_scores(study, "aum", c) < 0).mean()) for c in order.tolist()}
    words = "; ".join(f"{study.classes[c]} {100 * below[c]:.1f} %" for c in (order[0], order[-1]))
    return Picture(
        "cumulative_aum",
        "Cumulative AUM of each class",
        "Share of a class's training samples with at most this AUM (area under the margin, mean over visits and over "
        f"{study.hardness_from}), one line per class, from the hardest (violet) to the easiest "
        "(green).",
        f"Line chart of the cumulative distribution of AUM of {len(order)} classes. Samples below zero in the hardest "
        f"and the easiest class: {words}.",
        pl.concat(frames),
        figure,
    )


def confidence_against_margin(study: StudyFiles, images: ImageStore | None = None) -> Picture | None:
    """Confidence of each sample against its AUM, as a density; None where confidence was not recorded."""
    if "confidence" not in study.samples.columns:
        return None
    known = study.samples.filter(pl.col("aum").is_finite() & pl.col("confidence").is_finite())
    aum, confidence = known["aum"].to_numpy(), known["confidence"].to_numpy()
    rho = float(stats.spearmanr(aum, confidence).statistic) if known.height > 2 else float("nan")
    odd = _furthest_apart(known)
    with report_style():
        subtitle = f"a cell's shade: how many samples; Spearman {rho:+.3f} over {known.height:,} samples"
        figure, axes = titled_figure("Confidence against margin", subtitle, 3.2)
        # Cells in proportion to the axes: to the data alone they are slivers where all confidences are alike.
        low, high = (float(aum.min()), float(aum.max())) if known.height else (0.0, 1.0)
        extent = (low, high, 0.0, 1.0) if low < high else (low - 0.5, low + 0.5, 0.0, 1.0)
        cells = axes.hexbin(
            aum, confidence.clip(0, 1), gridsize=40, extent=extent, bins="log", mincnt=1, cmap="Blues", linewidths=0
        )
        axes.plot(
            odd["aum"], odd["confidence"], linestyle="none", marker="o", markersize=7, markerfacecolor="none",
            color="#D55E00", gid="examples",
        )  # fmt: skip
        axes.axvline(0, color="#595959", linewidth=0.8)
        axes.set_xlabel("AUM (logits)")
        axes.set_ylabel("confidence (probability)")
        axes.set_ylim(-0.02, 1.02)
        ticks = LogLocator(subs=(1, 2, 5))
        figure.colorbar(cells, ax=axes, label="samples", ticks=ticks, format="%g").minorticks_off()
        if images is not None:
            _insets(figure, odd, images)
        x_ac, y_ac = (odd[name].to_numpy()[np.newaxis] for name in ("aum", "confidence"))
        label_points(axes, x_ac, y_ac, [str(place) for place in range(1, odd.height + 1)])
    return Picture(
        "confidence_against_margin",
        "Confidence against margin",
        f"Mean confidence against mean AUM of every training sample, over {study.hardness_from}. "
        f"Circles: in each of {odd.height} classes the sample whose two ranks lie "
        f"furthest apart{', its image and id below' if images is not None else ''}.",
        f"Density plot of confidence against AUM of {known.height:,} samples, Spearman correlation {rho:+.3f}. Samples "
        f"ranked most differently by the two: {', '.join(map(str, odd['sample_id'].to_list()))}.",
        odd,
        figure,
        photographs=images is not None,
    )


def precision_against_recall(study: StudyFiles) -> Picture:
    """Precision of each class against its recall, arm by arm, with both correlations over classes."""
    shown = study.arms[:2]
    lines = []
    frames = []
    with report_style():
        figure, axes = new_figure(
            study, "Precision against recall", "a mark is a class: mean over members", 3.3, arms=len(shown)
        )
        points = []
        for arm in shown:
            recall, precision = (100 * study.class_metric(arm, name).mean(axis=0) for name in ("recall", "precision"))
            points.append((recall, precision))
            colour, marker = look(study, arm)
            axes.plot(
                recall, precision, linestyle="none", marker=marker, color=colour, markersize=4, gid=f"points {arm}",
                label=legend_label(study, arm),
            )  # fmt: skip
            lines.append(f"{arm_label(arm)}: {_correlations(recall, precision)}")
            every = np.arange(len(recall))
            frames.append(
                pl.DataFrame(
                    {
                        "arm": [arm] * len(recall),
                        "class_index": every,
                        "class_name": list(study.classes),
                        "recall_mean_percent": recall,
                        "precision_mean_percent": precision,
                    }
                )
            )
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="#8c8c8c", linewidth=0.8, zorder=0)
        axes.set_xlabel(f"recall on {study.evaluated} (%)")
        axes.set_ylabel(f"precision on {study.evaluated} (%)")
        axes.grid(visible=True)
        legend(figure, axes, study)
        if len(study.classes) <= MOST_LABELS:
            recall_ac, precision_ac = np.stack(points, axis=1)
            label_points(axes, recall_ac, precision_ac, study.classes)
    words = "; ".join(lines)
    return Picture(
        "precision_against_recall",
        "Precision against recall",
        f"Each class's precision against its recall, mean over members ({counts(study, shown)}). On the grey line "
        f"the two are equal: a class above it is predicted too rarely, one below too often. {words}.",
        f"Scatter plot of precision against recall of {len(study.classes)} classes. {words}.",
        pl.concat(frames),
        figure,
    )


def suspected_noise(study: StudyFiles) -> Picture:
    """Share of each class's training samples that look mislabelled: AUM below zero."""
    order = study.hard_to_easy()
    share = np.array([100 * (_scores(study, "aum", c) < 0).mean() for c in order])
    accuracy = 100 * study.member_metric(BASELINE, "accuracy").mean()
    with report_style():
        figure, axes = rows_of_classes(
            study,
            order,
            "Suspected label noise",
            "training samples with AUM below 0; of a weak network mostly what it has not learnt",
            arms=False,
        )
        bars = axes.barh(np.arange(len(order)), share, height=0.7, color="#0072B2")
        if len(order) <= MOST_LABELS:
            axes.bar_label(bars, [f"{value:.1f}" for value in share], padding=2, fontsize=7.5)
        axes.margins(x=0.12)
        axes.set_xlabel("samples of the class (%)")
    words = "; ".join(f"{study.classes[c]} {value:.1f} %" for c, value in zip(order, share, strict=True))
    frame = pl.DataFrame(
        {"class_index": order, "class_name": [study.classes[c] for c in order], "share_percent": share}
    )
    return Picture(
        "suspected_noise",
        "Suspected label noise",
        "Share of a class's training samples whose AUM is below zero: over training, some other class had the larger "
        f"logit on average (mean over {study.hardness_from}). Such samples are mislabelled, ambiguous or "
        "plainly hard: look at them before removing any. The weaker the network, the more of them are just what it has "
        f"not learnt: this one is right for {accuracy:.1f} % of {study.evaluated}.",
        f"Bar chart of {len(order)} classes, the hardest first: {words if len(order) <= MOST_LABELS else words[:300]}.",
        frame,
        figure,
    )


def estimator_overlap(study: StudyFiles) -> Picture:
    """Jaccard overlap of the hardest tenth of the samples by one estimator and by another."""
    names = [name for name in ESTIMATORS if name in study.samples.columns and _ranks_all(study.samples[name])]
    wanted = max(1, round(HARDEST_SHARE * study.samples.height))
    hardest = [_hardest(study.samples, name, wanted) for name in names]
    overlap = np.array([[len(a & b) / len(a | b) for b in hardest] for a in hardest])
    with report_style():
        subtitle = f"hardest {100 * HARDEST_SHARE:.0f} % of the samples: shared, of those in either (Jaccard)"
        figure, _ = heat_map(
            "Do estimators agree on what is hard?", subtitle, overlap, rows=names, columns=names,
            scale=Normalize(0, 1), form=".2f", colours="viridis", label="Jaccard overlap",
        )  # fmt: skip
    apart = overlap + np.eye(len(names))
    if len(names) > 1:
        a, b = np.unravel_index(apart.argmin(), apart.shape)
        words = f"Least: {names[a]} and {names[b]}, {overlap[a, b]:.2f}."
    else:
        words = "There is only one estimator."
    frame = pl.DataFrame({"estimator": names, **{name: overlap[:, i] for i, name in enumerate(names)}})
    return Picture(
        "estimator_overlap",
        "Do estimators agree on what is hard?",
        f"Jaccard overlap of the hardest {wanted:,} samples by each pair of estimators (scores: means over "
        f"{study.hardness_from}). By chance it would be about "
        f"{HARDEST_SHARE / (2 - HARDEST_SHARE):.2f}.",
        f"Heat map of the Jaccard overlap between {len(names)} estimators. {words}",
        frame,
        figure,
    )


def _scores(study: StudyFiles, name: str, c: int) -> np.ndarray:
    """Scores of a class's observed samples; a single NaN if there are none."""
    values = study.samples.filter((pl.col("class_index") == c) & pl.col(name).is_finite())[name].to_numpy()
    return values if len(values) else np.array([np.nan])


def _of_class(study: StudyFiles, c: int, **columns: np.ndarray) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    return pl.DataFrame({"class_index": [int(c)] * size, "class_name": [study.classes[c]] * size, **columns})


def _shades(number: int) -> list[tuple[float, ...]]:
    return [tuple(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 0.88, number))]


def _furthest_apart(known: pl.DataFrame, most: int = 8) -> pl.DataFrame:
    """The sample of each class whose ranks by AUM and confidence differ most; the most extreme classes."""
    ranked = known.with_columns((pl.col("aum").rank() - pl.col("confidence").rank()).abs().alias("ranks_apart"))
    order = ranked.sort(["ranks_apart", "sample_id"], descending=[True, False])
    chosen = order.group_by("class_index", maintain_order=True).head(1).head(most)
    return chosen.select("sample_id", "class_index", "class_name", "aum", "confidence", "ranks_apart")


def _insets(figure: Figure, odd: pl.DataFrame, images: ImageStore) -> None:
    """The images of the circled samples in a row under the axes."""
    height = figure.get_size_inches()[1]
    engine = figure.get_layout_engine()
    assert engine is not None
    left, bottom, width, old = engine.get()["rect"]
    room = 0.75 / height
    engine.set(rect=(left, bottom + room, width, old - room))  # type: ignore[call-arg]
    for place, sample in enumerate(odd["sample_id"].to_list()):
        axes = figure.add_axes((0.03 + place * 0.12, 0.17 / height, 0.1, 0.5 / height))
        axes.set_in_layout(False)
        axes.imshow(tile(images.gather([sample])[0]), interpolation="none")
        axes.set_axis_off()
        axes.text(0.5, -0.12, f"{place + 1}: {sample}", transform=axes.transAxes, ha="center", va="top", fontsize=6.5)


def _correlations(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "no correlation can be told"
    pearson, spearman = stats.pearsonr(x, y).statistic, stats.spearmanr(x, y).statistic
    return f"Pearson {pearson:+.2f}, Spearman {spearman:+.2f} over {len(x)} classes"


def _ranks_all(column: pl.Series) -> bool:
    values = column.drop_nulls()
    return values.dtype.is_numeric() and values.drop_nans().n_unique() > 1


def _hardest(samples: pl.DataFrame, name: str, wanted: int) -> set[int]:
    """The hardest samples by an estimator; ties by sample id, so that the set is well defined."""
    high = ESTIMATORS[name].hard_is == "high"
    known = samples.filter(pl.col(name).is_not_nan() & pl.col(name).is_not_null())
    return set(known.sort([name, "sample_id"], descending=[high, False]).head(wanted)["sample_id"].to_list())
