"""Pictures of how many members an ensemble needs: from `ensemble_size.csv`, which the study of robustness writes."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from hbr_fast.report.drawing import COLOURS, MARKERS, Picture, heat_map, report_style, titled_figure
from hbr_fast.report.study_files import StudyFiles, estimator_label

_CORRELATIONS = {
    "class_spearman": "classes, Spearman",
    "class_kendall": "classes, Kendall",
    "sample_spearman": "samples, Spearman",
    "sample_kendall": "samples, Kendall",
}


def stability_pictures(study: StudyFiles) -> list[Picture]:
    """All pictures of ensemble size; none if the study did not examine it."""
    if study.ensemble_size is None:
        return []
    return [pruning_stability(study), counts_by_ensemble_size(study), agreement_by_ensemble_size(study)]


def pruning_stability(study: StudyFiles) -> Picture:
    """Overlap of the pruned set of j members with that of all, for each estimator and j."""
    frame = _measure(study, "pruned_jaccard")
    names, sizes = _estimators(frame), sorted(frame["size"].unique().to_list())
    values = np.full((len(names), len(sizes)), np.nan)
    for name, size, mean in frame.select("estimator", "size", "mean").rows():
        values[names.index(name), sizes.index(size)] = mean
    with report_style():
        figure, _ = heat_map(
            "Does pruning depend on the ensemble's size?",
            "overlap (Jaccard) of the set pruned by that number of members with that of all",
            values,
            rows=names,
            columns=[str(size) for size in sizes],
            scale=Normalize(0, 1),
            form=".2f",
            colours="viridis",
            label="Jaccard overlap",
        )
    words = "; ".join(f"{name} {values[i, 0]:.2f}" for i, name in enumerate(names))
    return Picture(
        "pruning_stability",
        "Does pruning depend on the ensemble's size?",
        f"Jaccard overlap of the samples pruned by the scores of j members with those pruned by all {sizes[-1]}, mean "
        "over random orders of the members.",
        f"Heat map over {len(names)} estimators and ensembles of {sizes[0]} to {sizes[-1]} members. With {sizes[0]}: "
        f"{words}.",
        frame,
        figure,
    )


def counts_by_ensemble_size(study: StudyFiles) -> Picture:
    """How much the samples per class change when a member is added."""
    frame = _measure(study, "counts_change")
    names = _estimators(frame)
    with report_style():
        figure, axes = titled_figure(
            "Do samples per class settle?", "mean change of a class when a member is added; band: 5 to 95 % of orders",
            3.1, legend_rows=-(-len(names) // 3),
        )  # fmt: skip
        for number, name in enumerate(names):
            rows = frame.filter(pl.col("estimator") == name).sort("size")
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.plot(rows["size"], rows["mean"], color=colour, marker=marker, markersize=3.5, label=name)
            axes.fill_between(rows["size"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
        axes.set_xlabel("members")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("change of a class (samples)")
        axes.grid(visible=True)
        axes.set_ylim(bottom=0)
        height = figure.get_size_inches()[1]
        figure.legend(loc="upper left", bbox_to_anchor=(0.02, 1 - 0.49 / height), ncols=3, borderpad=0, borderaxespad=0)
    enough = (study.meta.get("enough_members") or {}).get(study.meta["estimator"])
    settled = f" By {estimator_label(study)} it is at most 1 % of the mean from {enough} members on." if enough else ""
    last = {name: frame.filter(pl.col("estimator") == name).sort("size")["mean"][-1] for name in names}
    return Picture(
        "counts_by_ensemble_size",
        "Do samples per class settle?",
        "Mean absolute change of a class's sample count when one more member is added, over random orders of the "
        f"members.{settled}",
        "Line chart of the change of samples per class against ensemble size. At the last member: "
        + "; ".join(f"{name} {value:.1f}" for name, value in last.items())
        + ".",
        frame,
        figure,
    )


def agreement_by_ensemble_size(study: StudyFiles) -> Picture:
    """Rank correlation of the scores of j members with those of all."""
    estimator = study.meta["estimator"]
    with report_style():
        figure, axes = titled_figure(
            f"Do the ranks by {estimator_label(study)} settle?",
            "rank correlation with the full ensemble; band: 5 to 95 % of orders", 3.1, legend_rows=1,
        )  # fmt: skip
        frames = []
        for number, (measure, label) in enumerate(_CORRELATIONS.items()):
            rows = _measure(study, measure).filter(pl.col("estimator") == estimator).sort("size")
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.plot(rows["size"], rows["mean"], color=colour, marker=marker, markersize=3.5, label=label)
            axes.fill_between(rows["size"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
            frames.append(rows)
        axes.set_xlabel("members")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("rank correlation")
        axes.grid(visible=True)
        height = figure.get_size_inches()[1]
        figure.legend(
            loc="upper left", bbox_to_anchor=(0.02, 1 - 0.49 / height), ncols=4, borderpad=0, borderaxespad=0,
            fontsize=7.5, columnspacing=1.0, handletextpad=0.3,
        )  # fmt: skip
    frame = pl.concat(frames)
    first = frame.filter(pl.col("size") == frame["size"].min())
    words = "; ".join(f"{_CORRELATIONS[m]} {mean:.3f}" for m, mean in first.select("measure", "mean").rows())
    return Picture(
        "agreement_by_ensemble_size",
        f"Do the ranks by {estimator_label(study)} settle?",
        "Spearman and Kendall correlation of class means and of sample scores by j members with those by all, over "
        "random orders of the members.",
        f"Line chart of rank correlations against ensemble size. With the fewest members: {words}.",
        frame,
        figure,
    )


def _measure(study: StudyFiles, measure: str) -> pl.DataFrame:
    assert study.ensemble_size is not None
    return study.ensemble_size.filter(pl.col("measure") == measure)


def _estimators(frame: pl.DataFrame) -> list[str]:
    return frame["estimator"].unique(maintain_order=True).to_list()
