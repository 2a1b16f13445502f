"""The pictures of a study. Each is saved as PNG and SVG beside a CSV of exactly what it draws.

Figures are made through matplotlib's object interface, so that nothing global changes, and the same results
give the same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from scipy.stats import spearmanr

from hbr_fast.files import atomic_write
from hbr_fast.report.study_files import BASELINE, GAPS, StudyFiles, arm_label, estimator_label, spread

DPI = 200
WIDTH = 5.2  # inches: one column of a page at about 100 %, of a two-column paper at two thirds
PER_CLASS = 8  # images a row of a gallery
MOST_LABELS = 20  # classes up to which points and bars carry names and numbers

# Okabe & Ito's palette, told apart with every common colour blindness; the baseline is black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("D", "s", "^", "v", "P", "X", "*")
_CELL = 112  # pixels: a gallery's image side at most
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "hbr_fast",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Picture:
    """A figure with the words and the numbers that belong to it.

    Attributes
    ----------
    name : stem of its files
    title, caption : for readers who see it
    alt : for readers who do not: what it shows, with the main numbers
    data : exactly what is drawn
    figure : what `save` writes
    """

    name: str
    title: str
    caption: str
    alt: str
    data: pl.DataFrame
    figure: Figure


def pictures_of(study: StudyFiles, *, images: Any = None) -> list[Picture]:
    """All pictures of a study: results first, then the galleries where `images` are given.

    Parameters
    ----------
    study : as `read_study` gives it
    images : the train split's images, uint8 `[N, C, H, W]`, indexed by sample id; anything with `shape` and
        `__getitem__` does. None leaves the galleries out.
    """
    draw: list[Callable[[StudyFiles], Picture]] = [
        recall_per_class,
        gap_metrics,
        samples_per_class,
        class_hardness_against_recall,
    ]
    pictures = [function(study) for function in draw]
    if images is not None:
        pictures += [gallery(study, images, hardest=True), gallery(study, images, hardest=False)]
    return pictures


def save(picture: Picture, folder: Path) -> dict[str, tuple[int, int]]:
    """Write `NAME.png`, `NAME.svg` and `NAME.csv` and return the size of the PNG in pixels by its name."""
    with _style():
        for kind in ("png", "svg"):
            # Neither a date nor a version goes into the file: the same results give the same bytes.
            metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            with io.BytesIO() as buffer:
                picture.figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
                with atomic_write(folder / f"{picture.name}.{kind}") as file:
                    file.write(buffer.getvalue())
    with atomic_write(folder / f"{picture.name}.csv") as file:
        file.write(picture.data.write_csv().encode())
    width, height = (round(float(side) * DPI) for side in picture.figure.get_size_inches())
    return {f"{picture.name}.png": (width, height)}


def recall_per_class(study: StudyFiles) -> Picture:
    """Recall of every class, the worst of the baseline first: mean, std and range over members by arm."""
    baseline_c = study.class_metric(BASELINE, "recall").mean(axis=0)
    order = np.argsort(baseline_c, kind="stable")
    several = any(study.members(arm) > 1 for arm in study.arms)
    bars = "mean over members; thick bar: ± 1 std, thin: min to max" if several else "one member an arm"
    with _style():
        figure, axes = _rows_of_classes(study, order, "Recall per class", bars)
        frames = []
        for arm, offset in zip(study.arms, _offsets(len(study.arms)), strict=True):
            recall_mc = 100 * study.class_metric(arm, "recall")[:, order]
            mean, std = recall_mc.mean(axis=0), spread(recall_mc)
            low, high = recall_mc.min(axis=0), recall_mc.max(axis=0)
            y = np.arange(len(order)) + offset
            colour, marker = _look(study, arm)
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
                label=_legend_label(study, arm),
            )
            frames.append(
                _frame(
                    study,
                    order,
                    arm,
                    recall_mean_percent=mean,
                    recall_std_percent=std,
                    recall_min_percent=low,
                    recall_max_percent=high,
                )
            )
        axes.set_xlabel("recall on the test set (%)")
        _legend(figure, axes, study)
    worst, best = order[0], order[-1]
    words = "; ".join(
        f"{arm_label(arm)}: {study.classes[worst]} {_recall(study, arm, worst):.1f} %, "
        f"{study.classes[best]} {_recall(study, arm, best):.1f} %"
        for arm in study.arms
    )
    return Picture(
        "recall_per_class",
        "Recall per class",
        f"Classes from the lowest to the highest baseline recall. {bars.capitalize()}. Members: {_counts(study)}.",
        f"Dot plot of the recall of {len(order)} classes, sorted by baseline recall. "
        f"Lowest and highest class of the baseline: {words}.",
        pl.concat(frames),
        figure,
    )


def samples_per_class(study: StudyFiles) -> Picture:
    """Samples of each class in an epoch, from the hardest class to the easiest, arm by arm."""
    order = study.hard_to_easy()
    estimator = estimator_label(study)
    with _style():
        subtitle = f"hardest class first, by class mean of {estimator}"
        figure, axes = _rows_of_classes(study, order, "Samples per class", subtitle)
        frames = []
        height = 0.8 / len(study.arms)
        for arm, offset in zip(study.arms, _offsets(len(study.arms), height=height), strict=True):
            counts = study.class_metric(arm, "samples").mean(axis=0)[order]
            colour = "#8c8c8c" if arm == BASELINE else _look(study, arm)[0]
            bars = axes.barh(
                np.arange(len(order)) + offset,
                counts,
                height=height,
                color=colour,
                label=_legend_label(study, arm),
            )
            if len(order) <= MOST_LABELS:
                axes.bar_label(bars, [f"{count:,.0f}" for count in counts], padding=2, fontsize=7.5)
            frames.append(_frame(study, order, arm, samples=counts))
        axes.margins(x=0.12)
        axes.set_xlabel("samples of the class in an epoch")
        _legend(figure, axes, study)
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
        f"How the epoch is shared between classes, the hardest first. Hardness: class mean of {estimator} "
        f"over {_count(study, BASELINE)} of the baseline.",
        f"Bar chart of the samples of {len(order)} classes, from hard to easy. Hardest and easiest class: {words}.",
        pl.concat(frames),
        figure,
    )


def gap_metrics(study: StudyFiles) -> Picture:
    """Each measure of the recall gap between classes: every member and the mean, arm by arm."""
    gaps = list(GAPS)
    offsets = _offsets(len(study.arms))
    rows: list[dict[str, Any]] = []
    with _style():
        subtitle = "hollow mark: a member; upright bar: mean over members"
        figure, axes = _figure(
            study, "Recall gaps between classes", subtitle, 0.6 + len(gaps) * (0.15 * len(study.arms) + 0.1)
        )
        for arm, offset in zip(study.arms, offsets, strict=True):
            colour, marker = _look(study, arm)
            for i, gap in enumerate(gaps):
                values = 100 * study.member_metric(arm, f"recall_{gap}")
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
            axes.lines[-2].set_label(_legend_label(study, arm))
        axes.axvline(0, color="#595959", linewidth=0.8)
        axes.set_yticks(range(len(gaps)), [GAPS[gap] for gap in gaps])
        axes.set_ylim(len(gaps) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", visible=True)
        axes.set_xlabel("recall gap between classes (percentage points)")
        _legend(figure, axes, study)
    data = pl.DataFrame(rows, schema_overrides={"variant": pl.Int64, "member": pl.Int64})
    words = "; ".join(
        f"{GAPS[gap]} "
        + ", ".join(
            f"{arm_label(arm)} {100 * study.member_metric(arm, f'recall_{gap}').mean():.1f}" for arm in study.arms
        )
        for gap in gaps
    )
    return Picture(
        "gap_metrics",
        "Recall gaps between classes",
        f"Five measures of how far the recalls of the classes lie apart: less is better. Hollow marks are "
        f"members, upright bars their mean. Members: {_counts(study)}.",
        f"Dot plot of five measures of the recall gap in percentage points, means over members: {words}.",
        data,
        figure,
    )


def class_hardness_against_recall(study: StudyFiles) -> Picture:
    """Class hardness against recall: a point a class and arm, lines from the baseline to the other arms."""
    hardness = study.class_hardness()
    order = study.hard_to_easy()
    recall_ac = np.stack([100 * study.class_metric(arm, "recall").mean(axis=0) for arm in study.arms])
    estimator = estimator_label(study)
    with _style():
        subtitle = "a mark is a class: mean over members; lines join the arms"
        figure, axes = _figure(study, "Class hardness against recall", subtitle, 3.4)
        for a, arm in enumerate(study.arms):
            if a:
                axes.vlines(hardness, recall_ac[0], recall_ac[a], color="#8c8c8c", linewidth=0.9, zorder=1)
            colour, marker = _look(study, arm)
            axes.plot(
                hardness[order],
                recall_ac[a][order],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=5 if a else 3.5,
                zorder=2 if a else 3,
                gid=f"points {arm}",
                label=_legend_label(study, arm),
            )
        axes.grid(visible=True)
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel(f"class hardness: mean {estimator} over baseline members ({_hard_end(study)} is harder)")
        axes.set_ylabel("recall on the test set (%)")
        _legend(figure, axes, study)
        if len(order) <= MOST_LABELS:
            _label_points(axes, hardness, recall_ac, study.classes)
    data = pl.concat(
        [
            _frame(study, order, arm, hardness=hardness[order], recall_mean_percent=recall_ac[a][order])
            for a, arm in enumerate(study.arms)
        ]
    )
    rank = _rank_correlation(hardness, recall_ac[0])
    hardest, easiest = order[0], order[-1]
    return Picture(
        "class_hardness_against_recall",
        "Class hardness against recall",
        f"Class mean of {estimator} ({_hard_end(study)} is harder) against recall, mean over members "
        f"({_counts(study)}). {rank}",
        f"Scatter plot of {len(order)} classes. Hardest: {study.classes[hardest]}, {estimator} "
        f"{hardness[hardest]:.2f}, baseline recall {recall_ac[0, hardest]:.1f} %. Easiest: "
        f"{study.classes[easiest]}, {estimator} {hardness[easiest]:.2f}, baseline recall "
        f"{recall_ac[0, easiest]:.1f} %. {rank}".strip(),
        data,
        figure,
    )


def gallery(study: StudyFiles, images: Any, *, hardest: bool, per_class: int = PER_CLASS) -> Picture:
    """For each class a row of its hardest (lowest mean AUM) or easiest images, with the score under each.

    Parameters
    ----------
    images : uint8 `[N, C, H, W]`, indexed by sample id
    hardest : lowest AUM if true, highest if not
    per_class : images a row; a class with fewer scored samples gets a shorter row

    Raises
    ------
    ValueError
        If `samples.csv` names a sample that `images` does not have.
    """
    total = images.shape[0]
    top = study.samples["sample_id"].max()
    if isinstance(top, int) and top >= total:
        raise ValueError(
            f"{study.path / 'samples.csv'} has sample {top}, the dataset {total} training images: "
            "give the dataset that the study used"
        )
    chosen = (
        study.samples.filter(pl.col("aum").is_finite())
        .sort(["class_index", "aum", "sample_id"], descending=[False, not hardest, False])
        .group_by("class_index", maintain_order=True)
        .head(per_class)
        .with_columns(pl.int_range(pl.len()).over("class_index").alias("rank"))
    )
    order = study.hard_to_easy().tolist()
    step = -(-max(images.shape[2:]) // _CELL)
    tiles = {i: _tile(images[i], step) for i in chosen["sample_id"].to_list()}
    height = -(-images.shape[2] // step)
    width = -(-images.shape[3] // step)
    scale = max(1, _CELL // max(height, width))
    height, width = height * scale, width * scale

    margin, gap, strip, head, foot = 200, 10, 32, 96, 8  # pixels
    cell = max(width, 76) + gap
    canvas = np.full((head + len(order) * (height + strip) + foot, margin + per_class * cell, 3), 255, np.uint8)
    kind, end = ("Hardest", "lowest") if hardest else ("Easiest", "highest")
    with _style():
        figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for row, index in enumerate(order):
            y = head + row * (height + strip)
            axes.text(
                margin - 14,
                y + height / 2,
                _wrapped(study.classes[index]),
                ha="right",
                va="center",
                fontsize=8,
                linespacing=1.1,
            )
            for entry in chosen.filter(pl.col("class_index") == index).iter_rows(named=True):
                x = margin + entry["rank"] * cell
                tile = tiles[entry["sample_id"]].repeat(scale, axis=0).repeat(scale, axis=1)
                canvas[y : y + height, x : x + width] = tile
                axes.text(x + width / 2, y + height + 2, f"{entry['aum']:.2f}", ha="center", va="top", fontsize=7.5)
        title = f"{kind} training images of each class"
        axes.text(16, 16, title, fontsize=10, fontweight="bold", va="top")
        members = _count(study, BASELINE)
        axes.text(16, 52, f"{end} AUM first; score: mean over {members} of the baseline", fontsize=8, va="top")
        # One canvas pixel is one pixel of the PNG, so that no image is resampled.
        axes.imshow(canvas, interpolation="none", extent=(0, canvas.shape[1], canvas.shape[0], 0), aspect="auto")
    names = pl.Series([study.classes[i] for i in chosen["class_index"].to_list()], dtype=pl.String)
    rank_of = {index: row for row, index in enumerate(order)}
    data = (
        chosen.with_columns(
            names.alias("class_name"),
            pl.Series([rank_of[i] for i in chosen["class_index"].to_list()], dtype=pl.Int64).alias("row"),
        )
        .sort("row", "rank")
        .select("row", "class_index", "class_name", "rank", "sample_id", "aum")
    )
    # The hardest and the easiest class stand for many: an alternative text is listened to.
    first = data.filter(pl.col("rank") == 0)
    if first.height > MOST_LABELS:
        first = pl.concat([first.head(1), first.tail(1)])
    words = "; ".join(f"{name} {score:.2f}" for name, score in first.select("class_name", "aum").rows())
    return Picture(
        "hardest_images" if hardest else "easiest_images",
        title,
        f"The {per_class} images of {end} AUM (margin of the true class's logit over the best other, "
        f"mean over an image's visits and over {members} of the baseline), the hardest class first. "
        "A negative score: mostly taken for another class.",
        f"Grid of images, a row a class, with the {end} AUM scores. First score of a row: {words}.",
        data,
        figure,
    )


def _style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def _look(study: StudyFiles, arm: str) -> tuple[str, str]:
    """Colour and marker of an arm; six colours and seven markers repeat together after 42 arms."""
    if arm == BASELINE:
        return "#000000", "o"
    i = study.treatments.index(arm)
    return _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]


def _offsets(arms: int, *, height: float = 0.0) -> np.ndarray:
    """Vertical places of the arms within a row, the baseline on top; bars of a given height touch."""
    reach = (arms - 1) * height if height else 1 - 1 / arms
    return np.linspace(-reach / 2, reach / 2, arms)


def _figure(study: StudyFiles, title: str, subtitle: str, body: float) -> tuple[Figure, Axes]:
    """A figure with a heading, room for the legend that `_legend` fills, and axes `body` inches high."""
    head = 0.56 + 0.19 * -(-len(study.arms) // _legend_columns(study))
    height = head + body
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0, 1, 1 - head / height))  # type: ignore[call-arg]
    figure.text(0.02, 1 - 0.09 / height, title, fontsize=10, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.29 / height, subtitle, fontsize=8, va="top")
    return figure, figure.add_subplot()


def _rows_of_classes(study: StudyFiles, order: np.ndarray, title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A figure with a row for every class, as high as it needs to be."""
    row = max(0.14 * len(study.arms) + 0.06, 0.2)
    figure, axes = _figure(study, title, subtitle, 0.6 + row * len(order))
    axes.set_yticks(range(len(order)), [_short(study.classes[i]) for i in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    if len(order) > MOST_LABELS:
        axes.tick_params(axis="x", top=True, labeltop=True)
    axes.grid(axis="x", visible=True)
    return figure, axes


def _legend(figure: Figure, axes: Axes, study: StudyFiles) -> None:
    """The arms, under the heading."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.02, 1 - 0.49 / figure.get_size_inches()[1]),
        ncols=_legend_columns(study),
        borderpad=0,
        borderaxespad=0,
        handletextpad=0.3,
        columnspacing=1.5,
        handlelength=1.4,
    )


def _legend_columns(study: StudyFiles) -> int:
    widest = max(len(_legend_label(study, arm)) for arm in study.arms)
    return min(len(study.arms), max(1, 72 // (widest + 6)))


def _legend_label(study: StudyFiles, arm: str) -> str:
    return f"{_short(arm_label(arm), 40)} ({_count(study, arm)})"


def _frame(study: StudyFiles, order: np.ndarray, arm: str, **columns: np.ndarray) -> pl.DataFrame:
    """The rows of one arm of a picture's CSV, in the order drawn."""
    head: Mapping[str, Any] = {
        "arm": [arm] * len(order),
        "members": [study.members(arm)] * len(order),
        "class_index": order,
        "class_name": [study.classes[i] for i in order],
    }
    return pl.DataFrame({**head, **columns})


def _label_points(axes: Axes, x: np.ndarray, y_ac: np.ndarray, classes: Sequence[str]) -> None:
    """Names beside a column of points a class, each at the place where it covers least of what is drawn."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    # Settle the limits and the layout: from here on the places of points are final.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    places = [(7, 0, "left", "center"), (-7, 0, "right", "center")]
    places += [(0, 8, "center", "bottom"), (0, -8, "center", "top")]
    places += [(dx, dy, side, "center") for dy in (9, -9, 18, -18) for dx, side in ((7, "left"), (-7, "right"))]
    inside = axes.get_window_extent(renderer)
    pixel = figure.dpi / 72
    taken = [
        Bbox.from_bounds(px - 4 * pixel, py - 4 * pixel, 8 * pixel, 8 * pixel)
        for y_c in y_ac
        for px, py in axes.transData.transform(np.column_stack([x, y_c]))
    ]
    for c, name in enumerate(classes):
        best: tuple[float, Annotation, Bbox] | None = None
        for rank, (dx, dy, ha, va) in enumerate(places):
            label = axes.annotate(
                _short(name),
                (x[c], y_ac[0, c]),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=7.5,
            )
            box = label.get_window_extent(renderer)
            clipped = box.width * box.height - _overlap(box, inside)
            cost = sum(_overlap(box, other) for other in taken) + clipped + 0.01 * rank
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = cost, label, box
            else:
                label.remove()
        assert best is not None
        taken.append(best[2])


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)


def _rank_correlation(hardness: np.ndarray, recall: np.ndarray) -> str:
    if len(hardness) < 3 or np.ptp(hardness) == 0 or np.ptp(recall) == 0:
        return ""
    rho = float(spearmanr(hardness, recall).statistic)
    return f"Spearman correlation with baseline recall over {len(hardness)} classes: {rho:+.2f}."


def _tile(image_chw: np.ndarray, step: int) -> np.ndarray:
    """An image as RGB `[H, W, 3]`, every `step`-th pixel; otherwise its first channel as grey."""
    thin = np.asarray(image_chw)[:, ::step, ::step]
    return np.moveaxis(thin, 0, -1) if thin.shape[0] == 3 else np.repeat(thin[0][..., None], 3, axis=-1)


def _recall(study: StudyFiles, arm: str, index: int) -> float:
    return float(100 * study.class_metric(arm, "recall")[:, index].mean())


def _samples(study: StudyFiles, arm: str, index: int) -> float:
    return float(study.class_metric(arm, "samples")[:, index].mean())


def _hard_end(study: StudyFiles) -> str:
    order = study.hard_to_easy()
    hardness = study.class_hardness()
    return "lower" if hardness[order[0]] <= hardness[order[-1]] else "higher"


def _count(study: StudyFiles, arm: str) -> str:
    members = study.members(arm)
    return f"{members} member" + ("s" if members != 1 else "")


def _counts(study: StudyFiles) -> str:
    return ", ".join(f"{arm_label(arm)} {study.members(arm)}" for arm in study.arms)


def _short(name: str, most: int = 22) -> str:
    """A class name for a picture: shortened, and kept from being read as mathematics."""
    cut = name if len(name) <= most else name[: most - 1] + "…"
    return cut.replace("$", r"\$")


def _wrapped(name: str) -> str:
    lines = textwrap.wrap(name, 13, max_lines=3, placeholder="…") or [""]
    return "\n".join(lines).replace("$", r"\$")
