"""How every picture of the report looks: colours, fonts, legends, labels, and the files it is saved as.

The palette is distinguishable under every common colour blindness; figures are as wide as a column of a page.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from hbr_fast.files import atomic_write
from hbr_fast.progress import counted
from hbr_fast.report.study_files import BASELINE, StudyFiles, arm_label

DPI = 200
WIDTH = 5.2  # inches: one column of a page at about 100 %, of a two-column paper at two thirds
# Formats of files, and their metadata that would hold a date or a version.
FORMATS = {"png": ("Software",), "svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator")}
MOST_LABELS = 20  # classes up to which points and bars carry names and numbers

# Okabe & Ito's palette; the baseline is black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("D", "s", "^", "v", "P", "X", "*")
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
    """A figure with its texts and data.

    Attributes
    ----------
    name : stem of its files
    title, caption : visible texts
    alt : alternative text: what it shows, with the main numbers
    data : exactly what is drawn
    figure : what `save` writes
    photographs : whether it holds images, which a dark page must not invert
    """

    name: str
    title: str
    caption: str
    alt: str
    data: pl.DataFrame
    figure: Figure
    photographs: bool = False


def save(picture: Picture, folder: Path) -> dict[str, tuple[int, int]]:
    """Write `NAME.png`, `NAME.svg`, `NAME.pdf` and `NAME.csv` and return the size of the PNG in pixels by its name."""
    for kind in FORMATS:
        write_figure(picture.figure, folder / f"{picture.name}.{kind}")
        picture.figure.set_layout_engine("none")  # the first layout serves all: finding it is a third of the time
    with atomic_write(folder / f"{picture.name}.csv") as file:
        file.write(picture.data.write_csv().encode())
    width, height = (round(float(side) * DPI) for side in picture.figure.get_size_inches())
    return {f"{picture.name}.png": (width, height)}


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, one of `FORMATS`; the same figure gives the same bytes."""
    kind = path.suffix.lower().removeprefix(".")
    metadata = dict.fromkeys(FORMATS[kind])
    with report_style(), io.BytesIO() as buffer:
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        with atomic_write(path) as file:
            file.write(buffer.getvalue())


def report_style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def titled_figure(title: str, subtitle: str, body: float, *, legend_rows: int = 0) -> tuple[Figure, Axes]:
    """A figure with a heading, room for a legend of that many rows, and axes `body` inches high."""
    head = 0.5 + (0.06 + 0.19 * legend_rows if legend_rows else 0)
    height = head + body
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0, 1, 1 - head / height))  # type: ignore[call-arg]
    figure.text(0.02, 1 - 0.09 / height, title, fontsize=10, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.29 / height, subtitle, fontsize=8, va="top")
    return figure, figure.add_subplot()


def new_figure(
    study: StudyFiles, title: str, subtitle: str, body: float, *, arms: int | None = None
) -> tuple[Figure, Axes]:
    """`titled_figure` with room for the legend of the first `arms` (or all) that `legend` fills."""
    shown = len(study.arms) if arms is None else arms
    return titled_figure(title, subtitle, body, legend_rows=-(-shown // _legend_columns(study)))


def heat_map(
    title: str,
    subtitle: str,
    values_rc: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Normalize,
    form: str,
    colours: str,
    label: str,
    written: np.ndarray | None = None,
) -> tuple[Figure, Axes]:
    """A shaded table, with numbers in the cells if they fit; NaN is left white.

    Parameters
    ----------
    values_rc : float `[rows, columns]`
    scale : maps a value to [0, 1] of the colour map
    form : format specification of a number
    written : the numbers in the cells, with one digit, if not the shaded values
    """
    figure, axes = titled_figure(title, subtitle, 1.0 + 0.27 * len(rows))
    image = axes.imshow(values_rc, norm=scale, cmap=colours, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(rows)), [short(name) for name in rows])
    turned = max(map(len, columns), default=0) > 5
    axes.set_xticks(
        range(len(columns)), [short(name) for name in columns], rotation=45 if turned else 0,
        ha="right" if turned else "center", rotation_mode="anchor" if turned else "default",
    )  # fmt: skip
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(columns) <= 14 and len(rows) <= 3 * MOST_LABELS:
        for (r, c), value in np.ndenumerate(values_rc):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                text = f"{value:{form}}" if written is None else f"{written[r, c]:.1f}"
                axes.text(c, r, text, ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label=label)
    return figure, axes


def rows_of_classes(
    study: StudyFiles, order: np.ndarray, title: str, subtitle: str, *, arms: bool = True
) -> tuple[Figure, Axes]:
    """A figure with a row per class, high enough for its arms (or for one mark)."""
    if arms:
        row = max(0.14 * len(study.arms) + 0.06, 0.2)
        figure, axes = new_figure(study, title, subtitle, 0.6 + row * len(order))
    else:
        figure, axes = titled_figure(title, subtitle, 0.6 + 0.2 * len(order))
    axes.set_yticks(range(len(order)), [short(study.classes[i]) for i in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    if len(order) > MOST_LABELS:
        axes.tick_params(axis="x", top=True, labeltop=True)
    axes.grid(axis="x", visible=True)
    return figure, axes


def look(study: StudyFiles, arm: str) -> tuple[str, str]:
    """Colour and marker of an arm; six colours and seven markers repeat together after 42 arms."""
    if arm == BASELINE:
        return "#000000", "o"
    i = study.treatments.index(arm)
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def dashes(number: int) -> str:
    """Style of a line by its number: solid until the colours repeat, then dashed, then dotted."""
    return ("solid", "dashed", "dotted")[max(0, number) // len(COLOURS) % 3]


def offsets_of(arms: int, *, height: float = 0.0) -> np.ndarray:
    """Vertical places of the arms within a row, the baseline on top; bars of a given height touch."""
    reach = (arms - 1) * height if height else 1 - 1 / arms
    return np.linspace(-reach / 2, reach / 2, arms)


def legend(figure: Figure, axes: Axes, study: StudyFiles) -> None:
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
    widest = max(len(legend_label(study, arm)) for arm in study.arms)
    return min(len(study.arms), max(1, 72 // (widest + 6)))


def legend_label(study: StudyFiles, arm: str) -> str:
    return f"{short(arm_label(arm), 40)} ({count(study, arm)})"


def label_points(axes: Axes, x_ac: np.ndarray, y_ac: np.ndarray, classes: Sequence[str]) -> None:
    """Names beside the first arm's points, each placed to cover as few points as possible; x may be one row for all."""
    x_ac = np.broadcast_to(x_ac, y_ac.shape)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    # Fix the limits and the layout: from here on the positions of points are final.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    places = [(7, 0, "left", "center"), (-7, 0, "right", "center")]
    places += [(0, 8, "center", "bottom"), (0, -8, "center", "top")]
    places += [(dx, dy, side, "center") for dy in (9, -9, 18, -18) for dx, side in ((7, "left"), (-7, "right"))]
    inside = axes.get_window_extent(renderer)
    pixel = figure.dpi / 72
    page = figure.bbox.padded(-4 * pixel)  # letters are slightly wider at another resolution
    taken = [
        Bbox.from_bounds(px - 4 * pixel, py - 4 * pixel, 8 * pixel, 8 * pixel)
        for x_c, y_c in zip(x_ac, y_ac, strict=True)
        for px, py in axes.transData.transform(np.column_stack([x_c, y_c]))
    ]
    for c, name in enumerate(classes):
        best: tuple[float, Annotation, Bbox] | None = None
        for rank, (dx, dy, ha, va) in enumerate(places):
            label = axes.annotate(
                short(name),
                (x_ac[0, c], y_ac[0, c]),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=7.5,
            )
            box = label.get_window_extent(renderer)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, inside) + 0.01 * rank
            cost += 100 * _outside(box, page)  # hidden, not only harder to read
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = cost, label, box
            else:
                label.remove()
        assert best is not None
        taken.append(best[2].padded(2 * pixel))  # adjacent names must not read as one


def _outside(box: Bbox, area: Bbox) -> float:
    return box.width * box.height - _overlap(box, area)


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)


def class_rows(study: StudyFiles, order: np.ndarray, arm: str, **columns: np.ndarray) -> pl.DataFrame:
    """The rows of one arm in a picture's CSV, classes in the order drawn."""
    head: dict[str, Any] = {
        "arm": [arm] * len(order),
        "members": [study.members(arm)] * len(order),
        "class_index": order,
        "class_name": [study.classes[i] for i in order],
    }
    return pl.DataFrame({**head, **columns})


def count(study: StudyFiles, arm: str) -> str:
    return counted(study.members(arm), "member")


def counts(study: StudyFiles, arms: Sequence[str] | None = None) -> str:
    return ", ".join(f"{arm_label(arm)} {study.members(arm)}" for arm in (study.arms if arms is None else arms))


def short(name: str, most: int = 22) -> str:
    """A class name for a picture: shortened, and escaped so that it is not read as mathematics."""
    cut = name if len(name) <= most else name[: most - 1] + "…"
    return cut.replace("$", r"\$")


def wrapped(name: str) -> str:
    lines = textwrap.wrap(name, 13, max_lines=3, placeholder="…") or [""]
    return "\n".join(lines).replace("$", r"\$")
