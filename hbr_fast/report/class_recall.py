"""Recall of every class by every member of an ensemble, classes sorted: figure 1 of Pukowski & Osmani, 2504.07031."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hbr_fast.progress import counted
from hbr_fast.report.drawing import COLOURS, FORMATS, MOST_LABELS, report_style, short, titled_figure, write_figure


def require_figure_name(path: Path) -> None:
    """Refuse a name whose suffix is none of a picture.

    Raises
    ------
    ValueError
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise ValueError(f"{path} does not end in {', '.join(f'.{kind}' for kind in FORMATS)}: name the figure so")


def write_class_recall(path: Path, recall_mc: np.ndarray, classes: Sequence[str], *, evaluated: str) -> None:
    """Draw the recall of each class and write it as PNG, SVG or PDF, by the suffix of `path`.

    Parameters
    ----------
    path : Path
    recall_mc : float [members, classes]
    classes : sequence of str
    evaluated : str
        The images, and how well they are recognised, for the subtitle.
    """
    with report_style():
        figure = class_recall(recall_mc, classes, evaluated=evaluated)
    write_figure(figure, path)


def class_recall(recall_mc: np.ndarray, classes: Sequence[str], *, evaluated: str) -> Figure:
    """A thin line for each member, a thick one for the mean, classes from the highest mean recall to the lowest."""
    members, num_classes = recall_mc.shape
    percent = 100 * recall_mc
    order = np.argsort(-percent.mean(axis=0), kind="stable")
    place, mean = np.arange(num_classes), percent.mean(axis=0)[order]
    gap = float(np.ptp(percent, axis=1).mean())
    named = num_classes <= MOST_LABELS
    several = members > 1
    figure, axes = titled_figure(
        f"Recall of each class by {counted(members, 'member')}",
        f"{evaluated}, gap {gap:.1f} points",
        3.0,
    )
    points: dict[str, Any] = {"marker": "o", "markersize": 2.5} if named else {}
    for number, row in enumerate(percent[:, order] if several else ()):
        label = "a member" if number == 0 else None
        axes.plot(place, row, color="#8c8c8c", linewidth=0.6, alpha=0.7, label=label, gid=f"member {number}", **points)
    thick: dict[str, Any] = {"marker": "D", "markersize": 4.5} if named else {}
    label = "mean over members" if several else None
    axes.plot(place, mean, color=COLOURS[0], linewidth=1.8, label=label, gid="mean", **thick)
    axes.set_ylabel("recall (%)")
    axes.grid(axis="y", visible=True)
    if named:
        turned = max(map(len, classes)) * num_classes > 60
        names = [short(classes[c]) for c in order]
        tilt: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(place, names, **tilt)
    else:
        axes.set_xlabel(f"{num_classes} classes, from the highest mean recall to the lowest")
    if several:
        axes.legend(loc="lower left")
    return figure
