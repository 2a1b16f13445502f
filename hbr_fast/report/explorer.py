"""The page's explorer of images: for each class and estimator the hardest, the easiest and the suspected samples.

Everything goes into the page as one JSON value, images as PNG, so that it works from disk without a network.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from hbr_fast.hardness import ESTIMATORS
from hbr_fast.report.gallery import CELL, tile
from hbr_fast.report.study_files import StudyFiles

MOST_PER_LIST = 8
IMAGE_BUDGET = 3000  # images in a page, before those that several lists share: a few megabytes


def explorer_data(study: StudyFiles, images: Any) -> dict[str, Any]:
    """What the explorer shows, as JSON values.

    Parameters
    ----------
    images : uint8 `[N, C, H, W]`, indexed by sample id

    Returns
    -------
    dict
        ``classes`` and ``estimators`` (name, which end is hard, meaning); ``lists`` of sample ids by kind ("hardest",
        "easiest", "suspected"), estimator and class index; ``samples`` by id: class index and scores, in the order of
        ``estimators``; ``images`` by id: a data URI.
    """
    names = [name for name in ESTIMATORS if name in study.samples.columns and _has_scores(study.samples[name])]
    per_list = max(2, min(MOST_PER_LIST, IMAGE_BUDGET // max(1, 2 * len(names) * len(study.classes))))
    lists: dict[str, dict[str, list[list[int]]]] = {"hardest": {}, "easiest": {}, "suspected": {}}
    for name in names:
        high = ESTIMATORS[name].hard_is == "high"
        known = study.samples.filter(pl.col(name).is_finite())
        for kind, descending in (("hardest", high), ("easiest", not high)):
            order = known.sort([name, "sample_id"], descending=[descending, False])
            lists[kind][name] = _by_class(order, per_list, len(study.classes))
    suspected = study.samples.filter(pl.col("aum") < 0).sort("aum", "sample_id")
    lists["suspected"]["aum"] = _by_class(suspected, per_list, len(study.classes))
    shown = sorted({i for kind in lists.values() for by_class in kind.values() for ids in by_class for i in ids})
    chosen = study.samples.filter(pl.col("sample_id").is_in(shown)).sort("sample_id")
    scores = chosen.select("sample_id", "class_index", *names).rows()
    return {
        "classes": list(study.classes),
        "estimators": [
            {"name": name, "hard_is": ESTIMATORS[name].hard_is, "meaning": ESTIMATORS[name].meaning} for name in names
        ],
        "lists": lists,
        "samples": {str(i): [c, *(_rounded(x) for x in values)] for i, c, *values in scores},
        "images": {str(i): _png(images[i]) for i in shown},
    }


def _by_class(ordered: pl.DataFrame, most: int, classes: int) -> list[list[int]]:
    found = ordered.group_by("class_index", maintain_order=True).head(most)
    ids: list[list[int]] = [[] for _ in range(classes)]
    for c, sample in found.select("class_index", "sample_id").rows():
        ids[c].append(sample)
    return ids


def _png(image_chw: np.ndarray) -> str:
    step = -(-max(image_chw.shape[1:]) // CELL)
    with io.BytesIO() as buffer:
        Image.fromarray(np.ascontiguousarray(tile(image_chw, step))).save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _has_scores(column: pl.Series) -> bool:
    return column.dtype.is_numeric() and bool(column.is_finite().any())


def _rounded(value: float | None) -> float | None:
    """Four digits after the point are more than a reader compares; JSON has neither NaN nor infinity."""
    return round(value, 4) if value is not None and np.isfinite(value) else None
