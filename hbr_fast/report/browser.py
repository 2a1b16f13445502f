"""The page's browser of training samples: scores and names in one file, thumbnails in sheets of many.

Both lie beside the page and are read from disk as needed: the data by a script element, since a page opened from disk
may fetch nothing, and a sheet of thumbnails when one of its images comes into view.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from hbr_fast.data.images import ImageStore
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.report.study_files import StudyFiles

MOST_SAMPLES = 20_000  # the hardest of each class beyond
SIDE = 64  # pixels: largest side of a thumbnail
COLUMNS, PER_SHEET = 20, 500
DATA, SHEETS = "samples.js", "thumbnails"


def write_browser(study: StudyFiles, images: ImageStore, folder: Path) -> int:
    """Write the samples and their thumbnails; the number of samples, at most about `MOST_SAMPLES`.

    `samples.js` sets `hbrSamples`: ``classes`` and ``estimators`` (name, which end is hard, meaning); by sample and in
    this order ``ids``, ``class``, ``predicted`` (-1: unknown), ``changed`` (arms that predict another class),
    ``sources`` (if there are any) and ``scores`` by estimator; ``total`` samples of the study; ``sheet``: how the
    thumbnails lie in `thumbnails/N.webp`.
    """
    names = [name for name in ESTIMATORS if study.scored(name)]
    chosen = _chosen(study, names[0] if study.meta["estimator"] not in names else study.meta["estimator"])
    ids = chosen["sample_id"].to_list()
    (folder / SHEETS).mkdir()
    width, height = _write_sheets(ids, images, folder / SHEETS)
    data: dict[str, Any] = {
        "classes": list(study.classes),
        "estimators": [
            {"name": name, "hard_is": ESTIMATORS[name].hard_is, "meaning": ESTIMATORS[name].meaning} for name in names
        ],
        "total": study.samples.height,
        "ids": ids,
        "class": chosen["class_index"].to_list(),
        "predicted": _predicted(study, chosen),
        "changed": chosen["changed"].fill_null("").to_list() if "changed" in chosen.columns else [""] * chosen.height,
        "sources": chosen["source"].to_list() if "source" in chosen.columns else None,
        "scores": {name: [_rounded(value) for value in chosen[name].to_list()] for name in names},
        "sheet": {"folder": SHEETS, "width": width, "height": height, "columns": COLUMNS, "per_sheet": PER_SHEET},
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    (folder / DATA).write_text(f"const hbrSamples = {text};\n", encoding="utf-8")
    return len(ids)


def _chosen(study: StudyFiles, estimator: str) -> pl.DataFrame:
    """All samples by id, or the hardest of each class if there are too many."""
    samples = study.samples
    if samples.height > MOST_SAMPLES:
        high = ESTIMATORS[estimator].hard_is == "high"
        unseen = pl.col(estimator).is_nan()  # last
        hardest = samples.sort(unseen, estimator, "sample_id", descending=[False, high, False])
        samples = hardest.group_by("class_index", maintain_order=True).head(MOST_SAMPLES // len(study.classes))
    return samples.sort("sample_id")


def _write_sheets(ids: list[int], images: ImageStore, folder: Path) -> tuple[int, int]:
    """Sheets of thumbnails in the order of the ids; width and height of a place."""
    shape = images.image_shape
    longest = SIDE if shape is None else max(shape[1:])
    step = -(-longest // SIDE)
    width, height = (SIDE, SIDE) if shape is None else (-(-shape[2] // step), -(-shape[1] // step))
    for number, first in enumerate(range(0, len(ids), PER_SHEET)):
        here = ids[first : first + PER_SHEET]
        rows = -(-len(here) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
        for place, sample in enumerate(here):
            small = _thumbnail(images.gather([sample])[0], width, height)
            left, top = place % COLUMNS * width, place // COLUMNS * height
            sheet.paste(small, (left + (width - small.width) // 2, top + (height - small.height) // 2))
        with io.BytesIO() as buffer:
            sheet.save(buffer, format="WEBP", quality=85)
            (folder / f"{number}.webp").write_bytes(buffer.getvalue())
    return width, height


def _thumbnail(image_chw: np.ndarray, width: int, height: int) -> Image.Image:
    """The image, or its first channel as grey, scaled down to fit."""
    pixels = (
        np.moveaxis(image_chw, 0, -1) if image_chw.shape[0] == 3 else np.repeat(image_chw[0][..., None], 3, axis=-1)
    )
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((width, height))
    return picture


def _predicted(study: StudyFiles, chosen: pl.DataFrame) -> list[int]:
    if "predicted" not in chosen.columns:
        return [-1] * chosen.height
    number = {name: c for c, name in enumerate(study.classes)}
    return [number.get(name, -1) for name in chosen["predicted"].to_list()]


def _rounded(value: float | None) -> float | None:
    """Round to four decimals, more than a reader compares; JSON has neither NaN nor infinity."""
    return round(value, 4) if value is not None and np.isfinite(value) else None
