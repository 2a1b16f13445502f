"""Galleries: the hardest and the easiest training images of each class, with their scores."""

from __future__ import annotations

import bisect
import functools
import re
from itertools import accumulate

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from hbr_fast.data.images import ImageStore
from hbr_fast.report.drawing import DPI, MOST_LABELS, Picture, report_style, wrapped
from hbr_fast.report.study_files import StudyFiles

PER_CLASS = 8  # images per row
CELL = 112  # pixels: largest side of an image
SMALL, MOST_LETTERS = 5, 40  # of a source under an image: points, and most letters considered


def gallery(study: StudyFiles, images: ImageStore, *, hardest: bool, per_class: int = PER_CLASS) -> Picture:
    """For each class a row of its hardest (lowest mean AUM) or easiest images, with score and file name under each.

    Parameters
    ----------
    images : of the train split
    hardest : lowest AUM if true, highest if not
    per_class : images per row; a class with fewer scored samples gets a shorter row

    Raises
    ------
    ValueError
        If `samples.csv` names a sample that `images` does not have.
    """
    total = len(images)
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
    tiles = {i: tile(images.gather([i])[0]) for i in chosen["sample_id"].to_list()}
    height, width, _ = next(iter(tiles.values())).shape if tiles else (CELL, CELL, 3)
    scale = max(1, CELL // max(height, width))
    height, width = height * scale, width * scale

    named = "source" in chosen.columns
    guessed = "predicted" in chosen.columns and hardest
    margin, gap, strip, head, foot = 200, 10, 32 + 14 * named + 14 * guessed, 96, 8  # pixels
    cell = max(width, 76) + gap
    canvas = np.full((head + len(order) * (height + strip) + foot, margin + per_class * cell, 3), 255, np.uint8)
    kind, end = ("Hardest", "lowest") if hardest else ("Easiest", "highest")
    with report_style():
        figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for row, index in enumerate(order):
            y = head + row * (height + strip)
            axes.text(
                margin - 14,
                y + height / 2,
                wrapped(study.classes[index]),
                ha="right",
                va="center",
                fontsize=8,
                linespacing=1.1,
            )
            for entry in chosen.filter(pl.col("class_index") == index).iter_rows(named=True):
                x = margin + entry["rank"] * cell
                shown = tiles[entry["sample_id"]].repeat(scale, axis=0).repeat(scale, axis=1)
                canvas[y : y + height, x : x + width] = shown
                axes.text(x + width / 2, y + height + 2, f"{entry['aum']:z.2f}", ha="center", va="top", fontsize=7.5)
                small = [_short(entry["source"], (cell - gap) * 72 / DPI)] if named else []
                if guessed:
                    small.insert(0, f"as {entry['predicted'][:16]}" if entry["predicted"] else "")
                for number, text in enumerate(small):
                    axes.text(
                        x + width / 2, y + height + 20 + 14 * number, text, ha="center", va="top", fontsize=SMALL,
                        parse_math=False,
                    )  # fmt: skip
        title = f"{kind} training images of each class"
        axes.text(16, 16, title, fontsize=10, fontweight="bold", va="top")
        axes.text(16, 52, f"{end} AUM first; score: mean over {study.hardness_from}", fontsize=8, va="top")
        # One canvas pixel is one pixel of the PNG, so no image is resampled.
        axes.imshow(canvas, interpolation="none", extent=(0, canvas.shape[1], canvas.shape[0], 0), aspect="auto")
    names = pl.Series([study.classes[i] for i in chosen["class_index"].to_list()], dtype=pl.String)
    rank_of = {index: row for row, index in enumerate(order)}
    data = (
        chosen.with_columns(
            names.alias("class_name"),
            pl.Series([rank_of[i] for i in chosen["class_index"].to_list()], dtype=pl.Int64).alias("row"),
        )
        .sort("row", "rank")
        .select(
            "row",
            "class_index",
            "class_name",
            "rank",
            "sample_id",
            *(["source"] if named else []),
            "aum",
            *(["predicted"] if guessed else []),
        )
    )
    # Only the hardest and the easiest of many classes: an alternative text is read aloud.
    first = data.filter(pl.col("rank") == 0)
    if first.height > MOST_LABELS:
        first = pl.concat([first.head(1), first.tail(1)])
    words = "; ".join(f"{name} {score:.2f}" for name, score in first.select("class_name", "aum").rows())
    return Picture(
        "hardest_images" if hardest else "easiest_images",
        title,
        f"The {per_class} images of {end} AUM (margin of the true class's logit over the best other, "
        f"mean over an image's visits and over {study.hardness_from}), the hardest class first. "
        "A negative score: mostly mistaken for another class."
        + (' Below it, "as CLASS": the class that the trained baseline predicts.' if guessed else ""),
        f"Grid of images, one row per class, with the {end} AUM scores. First score of a row: {words}.",
        data,
        figure,
        photographs=True,
    )


def _short(source: str, width: float) -> str:
    """The end of a file's name, without its suffix, as far as it fits into `width` points."""
    name = re.sub(r"(?<=.)\.\w{1,5}$", "", source.rsplit("/", 1)[-1])
    widths = list(accumulate(map(_width, reversed(name[-MOST_LETTERS:]))))
    if len(name) <= MOST_LETTERS and sum(map(_width, name)) <= width:
        return name
    fitting = bisect.bisect_right(widths, width - _width("…"))
    return f"…{name[-max(1, fitting) :]}"


@functools.cache
def _width(letter: str) -> float:
    """Points that a letter takes in a line."""
    return float(text_to_path.get_text_width_height_descent(letter, FontProperties(size=SMALL), ismath=False)[0])


def tile(image_chw: np.ndarray) -> np.ndarray:
    """An image as RGB `[H, W, 3]`, or its first channel as grey; large ones keep every k-th pixel, at most `CELL`."""
    step = -(-max(image_chw.shape[1:]) // CELL)
    thin = np.asarray(image_chw)[:, ::step, ::step]
    return np.moveaxis(thin, 0, -1) if thin.shape[0] == 3 else np.repeat(thin[0][..., None], 3, axis=-1)
