"""The page of a study: one folder with an answer, pictures, tables and data, which opens from disk."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from plotly.offline import get_plotlyjs

from hbr_fast.data.dataset import open_dataset
from hbr_fast.files import atomic_directory
from hbr_fast.report import drawing, figures, tables
from hbr_fast.report.charts import charts_of
from hbr_fast.report.explorer import explorer_data
from hbr_fast.report.study_files import (
    BASELINE,
    Comparison,
    StudyFiles,
    arm_label,
    compare,
    read_study,
)

MOST_ANSWERS = 4  # arms with a sentence of their own
_MARK = '<meta name="generator" content="hbr_fast report">'


def write_report(
    study_dir: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, dataset: Any = None
) -> Path:
    """Write the report of a finished study: `index.html` with pictures, tables and their data beside it.

    Only the files that the study left are read (`study_files.FILES`) and, for the galleries, the pixels of
    the dataset's train split. The folder appears whole or not at all: where it fails, an older report stands.

    Parameters
    ----------
    study_dir : directory of the study
    out : folder to write; an older report there is replaced. By default `report` in `study_dir`
    dataset : an open `Dataset`, of which `fingerprint` and `train.images` are used. By default it is opened
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
    if target.exists() and not _is_report(target):
        raise FileExistsError(f"{target} exists and is not a report: choose another folder or remove it")
    images, why_no_gallery = _images(study, dataset)

    with atomic_directory(target, force=True) as folder:
        pictures = figures.pictures_of(study, images=images)
        sizes: dict[str, tuple[int, int]] = {}
        for picture in pictures:
            sizes |= drawing.save(picture, folder)
        all_tables = tables.tables_of(study)
        for table in all_tables:
            (folder / f"{table.name}.csv").write_text(tables.to_csv(table), encoding="utf-8")
            (folder / f"{table.name}.tex").write_text(tables.to_latex(table), encoding="utf-8")
        (folder / "study").mkdir()
        for name in study.files:
            shutil.copyfile(study.path / name, folder / "study" / name)
        inlined = {name: _data_uri(folder / name) for name in sizes}
        charts = charts_of(study)
        explorer = None if images is None else explorer_data(study, images)
        page = _template().render(
            css=markupsafe.Markup(_resource("page.css")),
            script=markupsafe.Markup(_resource("page.js")),
            plotly=markupsafe.Markup(get_plotlyjs()),
            data=_json_in_html({"charts": [dataclasses.asdict(chart) for chart in charts], "explorer": explorer}),
            charts=charts,
            inlined=inlined,
            mark=markupsafe.Markup(_MARK),
            title=f"{study.meta['dataset']['name']}: {study.meta['study']}",
            answers=answers(study),
            pictures=pictures,
            sizes=sizes,
            tables=[(table, markupsafe.Markup(tables.to_html(table))) for table in all_tables],
            why_no_gallery=why_no_gallery,
            facts=_facts(study),
            arms=study.meta["arms"],
            files=study.files,
            label=arm_label,
        )
        (folder / "index.html").write_text(page, encoding="utf-8")
    return target / "index.html"


def answers(study: StudyFiles) -> list[str]:
    """Whether the gap between classes closed, by how much, and what accuracy did: one sentence an arm, where they are
    few, else one over all and one each for the smallest and the largest gap.

    Before them one that names the trainings left out because they diverged, and one on the alpha that was chosen, if
    there are any.
    """
    return [*_left_out(study), *_choice(study), *_answers(study)]


def _left_out(study: StudyFiles) -> list[str]:
    failed = study.meta.get("failed", [])
    if not failed:
        return []
    which = "; ".join(
        f"{arm_label(f['arm'])}, variant {f['variant']}, member {f['member']}: {f['error']}" for f in failed
    )
    return [f"Trainings that diverged are left out of everything below ({which})."]


def _choice(study: StudyFiles) -> list[str]:
    chosen = study.meta.get("choice")
    if chosen is None:
        return []
    test, share, tolerance = chosen["test"], 100 * chosen["validation_share"], chosen["tolerance"]
    which = "the full set (alpha 0)" if chosen["arm"] == BASELINE else f"alpha {chosen['alpha']:g}"
    return [
        f"Chosen on {share:g} % of each class held out of training: {which}, the smallest gap that costs at most "
        f"{tolerance:g} points of accuracy there. On the test set its recall gap is {test['gap']:.1f} points, the "
        f"baseline's {test['gap_baseline']:.1f}; its accuracy is {test['accuracy']:.1f} %, the baseline's "
        f"{test['accuracy_baseline']:.1f} %. Everything below is of the held-out samples."
    ]


def _answers(study: StudyFiles) -> list[str]:
    if not study.treatments:
        gap = 100 * study.member_metric(BASELINE, "recall_max_min").mean()
        accuracy = 100 * study.member_metric(BASELINE, "accuracy").mean()
        return [
            f"Only the baseline was trained ({_members(study, BASELINE)}): its best and its worst class lie "
            f"{gap:.1f} points of recall apart, at an accuracy of {accuracy:.1f} %."
        ]
    if len(study.treatments) <= MOST_ANSWERS:
        return [answer(study, arm) for arm in study.treatments]
    return [overview(study), *(answer(study, arm) for arm in extremes(study))]


def overview(study: StudyFiles) -> str:
    """One sentence over many arms: in how many the max-min gap of recall narrowed or widened beyond chance."""
    gaps = [compare(study, arm, "recall_max_min") for arm in study.treatments]
    narrowed = sum(gap.distinguishable and gap.difference < 0 for gap in gaps)
    widened = sum(gap.distinguishable and gap.difference > 0 for gap in gaps)
    unclear = len(gaps) - narrowed - widened
    return (
        f"Of {len(gaps)} arms, {narrowed} narrowed the recall gap between the best and the worst class and {widened} "
        f"widened it by a 95 % interval that excludes zero; {unclear} cannot be told from no change. One arm in twenty "
        "would pass by chance alone: the table of tests corrects for that."
    )


def extremes(study: StudyFiles) -> list[str]:
    """The arm of the smallest and the arm of the largest mean max-min gap of recall."""
    by_gap = sorted(study.treatments, key=lambda arm: float(study.member_metric(arm, "recall_max_min").mean()))
    return [by_gap[0], by_gap[-1]]


def answer(study: StudyFiles, arm: str) -> str:
    """One sentence on the max-min gap of recall and the accuracy of `arm` against the one it is compared with.

    Where the 95 % interval includes zero, the sentence says that the change cannot be told from none; where
    there is no interval, that it may be chance, and why there is none.
    """
    gap, accuracy = compare(study, arm, "recall_max_min"), compare(study, arm, "accuracy")
    name, other = arm_label(arm), study.against(arm)
    if other != BASELINE:
        name = f"{name}, against {arm_label(other)},"
    what = "the recall gap between the best and the worst class"
    values = f"from {gap.baseline:.1f} to {gap.treatment:.1f} percentage points"
    size = f"{gap.difference:+.1f} points"
    if gap.baseline > 0:
        size += f", {100 * gap.difference / gap.baseline:+.0f} %"
    change = "narrowed" if gap.difference < 0 else "widened"
    if gap.why_no_interval:
        verdict = f"{name} {change} {what} {values} ({size}), which may be chance: {gap.why_no_interval}"
        if gap.difference == 0:
            verdict = f"{name} left {what} at {gap.treatment:.1f} percentage points: {gap.why_no_interval}"
    elif gap.distinguishable:
        verdict = f"{name} {change} {what} {values} ({size}; {_interval(gap)})"
    else:
        verdict = (
            f"{name} moved {what} {values}, which is not distinguishable from no change with {gap.variants} "
            f"variants ({size}; {_interval(gap)})"
        )
    if study.members(arm) == study.members(other):
        who = f"With {_members(study, arm)} an arm"
    else:
        first = "the baseline" if other == BASELINE else arm_label(other)
        who = f"With {_members(study, other)} of {first} and {_members(study, arm)} of {arm_label(arm)}"
    return f"{who}, {verdict}. {_accuracy(accuracy)}"


def _accuracy(accuracy: Comparison) -> str:
    change = round(accuracy.difference, 1)
    verb = "went"
    if accuracy.distinguishable:
        verb = "rose" if accuracy.difference > 0 else "fell"
    text = f"Accuracy {verb} from {accuracy.baseline:.1f} % to {accuracy.treatment:.1f} %"
    text += f" ({change + 0.0:+.1f} points"
    if accuracy.why_no_interval:
        return f"{text})."
    if accuracy.distinguishable:
        return f"{text}; {_interval(accuracy)})."
    return f"{text}; {_interval(accuracy)}: not distinguishable from no change)."


def _interval(comparison: Comparison) -> str:
    return f"95 % interval {comparison.low:+.1f} to {comparison.high:+.1f} over {comparison.variants} variants"


def _members(study: StudyFiles, arm: str) -> str:
    count = study.members(arm)
    return f"{count} member" + ("s" if count != 1 else "")


def _is_report(folder: Path) -> bool:
    page = folder / "index.html"
    return page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace")


def _images(study: StudyFiles, dataset: Any) -> tuple[Any, str]:
    """Pixels of the train split, or None and the reason."""
    wanted = study.meta["dataset"]["fingerprint"]
    if dataset is not None:
        if dataset.fingerprint != wanted:
            raise ValueError(
                f"the dataset given has the fingerprint {dataset.fingerprint}, the study used {wanted}: "
                "give the dataset that the study used, or none"
            )
        return dataset.train.images, ""
    try:
        opened = open_dataset(study.path.resolve() / study.meta["dataset"].get("path", ""))
    except (FileNotFoundError, ValueError) as error:
        return None, f"the dataset could not be opened ({error})"
    if opened.fingerprint != wanted:
        return None, "the dataset was changed after the study"
    return opened.train.images, ""


def _facts(study: StudyFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was run, as groups of (name, value)."""
    meta = study.meta
    data = {key: value for key, value in meta["dataset"].items() if key not in ("path", "classes")}
    allocation = meta.get("allocation") or {}
    groups = {
        "Study": {
            "study": meta["study"],
            "hardness estimator": meta["estimator"],
            "seconds": meta["seconds"],
        },
        "Dataset": {**data, "number of classes": len(study.classes)},
        "Allocation": {key: value for key, value in allocation.items() if not isinstance(value, list)},
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
            rows.append((name, ", ".join(map(_text, value))))
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _json_in_html(value: Any) -> markupsafe.Markup:
    """JSON that no text of a user can end the script element with."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c"))


def _resource(name: str) -> str:
    return importlib.resources.files("hbr_fast.report").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("index.html.j2"))
