"""The page of a study: one folder with an answer, pictures, tables and data, readable from disk."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from plotly.offline import get_plotlyjs

from hbr_fast.data.dataset import open_recorded
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import ImageStore
from hbr_fast.data.verify import require_unchanged
from hbr_fast.files import atomic_directory, foreign_entries, read_json, write_json
from hbr_fast.report import drawing, figures, tables
from hbr_fast.report.answers import answers, glossary
from hbr_fast.report.browser import write_browser
from hbr_fast.report.charts import charts_of
from hbr_fast.report.gallery import CELL
from hbr_fast.report.reading import read_study
from hbr_fast.report.study_files import StudyFiles, arm_label
from hbr_fast.report.table_formats import to_csv, to_html, to_latex

WRITTEN = "files.json"  # names of all files of a report, which the next report may replace
_MARK = '<meta name="generator" content="hbr_fast report">'


def write_report(
    study_dir: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, dataset: Any = None
) -> Path:
    """Write the report of a finished study: `index.html` with pictures, tables and their data beside it.

    Only the files that the study left are read (`study_files.FILES`) and, for the galleries, the pixels of
    the dataset's train split. The folder appears whole or not at all: on failure, an older report stays.

    Parameters
    ----------
    study_dir : directory of the study
    out : folder to write; an older report there is replaced. By default `report` in `study_dir`
    dataset : an open `Dataset`, of which `fingerprint` and `train.store` are used. By default it is opened
        where `study.json` says; where it is gone or changed, the page says so and has no galleries.

    Returns
    -------
    Path of `index.html`.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file of the study is missing or wrong, or `dataset` is not the one that the study used.
    FileExistsError
        If `out` holds something that is not a report.
    """
    study = read_study(study_dir)
    target = Path(study_dir) / "report" if out is None else Path(out)
    _require_replaceable(target)
    images, why_no_gallery = _images(study, dataset)

    with atomic_directory(target, force=True) as folder:
        pictures = figures.pictures_of(study, images=images)
        sizes: dict[str, tuple[int, int]] = {}
        for picture in pictures:
            sizes |= drawing.save(picture, folder)
        all_tables = tables.tables_of(study)
        for table in all_tables:
            (folder / f"{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
            (folder / f"{table.name}.tex").write_text(to_latex(table), encoding="utf-8")
        (folder / "study").mkdir()
        for name in study.files:
            shutil.copyfile(study.path / name, folder / "study" / name)
        inlined = {name: _data_uri(folder / name) for name in sizes}
        charts = charts_of(study)
        if images is not None:
            write_browser(study, images, folder)
        page = _template().render(
            css=markupsafe.Markup(_resource("page.css")),
            script=markupsafe.Markup(_resource("page.js")),
            plotly=markupsafe.Markup(get_plotlyjs()),
            data=_json_in_html({"charts": [dataclasses.asdict(chart) for chart in charts]}),
            charts=charts,
            inlined=inlined,
            mark=markupsafe.Markup(_MARK),
            title=f"{study.meta['dataset']['name']}: {study.meta['study']}",
            answers=answers(study),
            glossary=glossary(study),
            pictures=pictures,
            charted=_charted(study, pictures),
            sizes=sizes,
            tables=[(table, markupsafe.Markup(to_html(table))) for table in all_tables],
            why_no_gallery=why_no_gallery,
            facts=_facts(study),
            arms=study.meta["arms"],
            files=study.files,
            label=arm_label,
        )
        (folder / "index.html").write_text(page, encoding="utf-8")
        write_json(folder / WRITTEN, [*foreign_entries(folder, ()), WRITTEN])
    return target / "index.html"


def _require_replaceable(target: Path) -> None:
    """Raise unless `target` is free, or an older report without foreign files."""
    if not os.path.lexists(target):
        return
    if not _is_report(target):
        raise FileExistsError(f"{target} exists and is not a report: choose another folder or remove it")
    written = read_json(target / WRITTEN) if (target / WRITTEN).is_file() else []
    foreign = foreign_entries(target, [*map(str, written)] if isinstance(written, list) else [])
    if foreign:
        raise FileExistsError(
            f"{target} holds {foreign[0]}, which no report wrote ({len(foreign)} such) and a new report would delete: "
            "move it away or choose another folder"
        )


def _is_report(folder: Path) -> bool:
    page = folder / "index.html"
    return page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace")


def _images(study: StudyFiles, dataset: Any) -> tuple[ImageStore | None, str]:
    """Pixels of the train split, or None and the reason."""
    wanted = study.meta["dataset"]["fingerprint"]
    changed = "the dataset was changed after the study"
    if not study.has_hardness:
        return None, "the hardness of the training samples is not known"
    if not wanted:
        return None, "imported runs name no dataset"
    if dataset is not None:
        if dataset.fingerprint != wanted:
            raise ValueError(
                f"the given dataset has the fingerprint {dataset.fingerprint}, the study used {wanted}: "
                "give the dataset that the study used, or none"
            )
        require_unchanged(dataset)
        return _of_one_size(dataset.train.store), ""
    try:
        opened = open_recorded(study.path, study.meta["dataset"].get("path", ""))
    except (FileNotFoundError, ValueError) as error:
        return None, f"the dataset could not be opened ({error})"
    if opened.fingerprint != wanted:
        return None, changed
    try:
        require_unchanged(opened)
    except (FileNotFoundError, ValueError) as error:
        return None, f"{changed} ({error})"
    return _of_one_size(opened.train.store), ""


def _of_one_size(images: ImageStore) -> ImageStore:
    """Encoded pictures as whole ones, at the size of the galleries whatever the size they were trained at."""
    return images.at_size(CELL, "pad") if isinstance(images, EncodedImages) else images


def _facts(study: StudyFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """The run's settings, as groups of (name, value)."""
    meta = study.meta
    data = {key: value for key, value in meta["dataset"].items() if key not in ("path", "classes")}
    allocation = meta.get("allocation") or {}
    groups = {
        "Study": {
            "study": meta["study"],
            "hardness estimator": meta["estimator"],
            **({"hardness from": study.hardness_from} if study.has_hardness else {}),
            "metric": study.metric,
            # 0 of imported runs
            **({"seconds to train and resample, in the last run": meta["seconds"]} if meta["seconds"] else {}),
        },
        "Dataset": {**data, "number of classes": len(study.classes)},
        "Allocation": {key: value for key, value in allocation.items() if not isinstance(value, list)},
        "Hardware": meta.get("hardware", {}),
        "Recipe": meta["recipe"],
        "Versions": meta["versions"],
    }
    return [(title, _flat(values)) for title, values in groups.items() if values]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(_text, value)) or "none"))
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value) or "none"


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _json_in_html(value: Any) -> markupsafe.Markup:
    """JSON in which no user text can end the script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c"))


def _resource(name: str) -> str:
    return importlib.resources.files("hbr_fast.report").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _charted(study: StudyFiles, pictures: Sequence[drawing.Picture]) -> list[str]:
    """The pictures that show what an interactive chart shows: folded, so that nothing is shown twice."""
    twins = {f"{study.metric}_per_class", f"class_hardness_against_{study.metric}", "gap_against_accuracy"}
    return [one.name for one in pictures if one.name in twins or one.name.startswith("confusion_")]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("index.html.j2"))
