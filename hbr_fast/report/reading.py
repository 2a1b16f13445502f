"""Reads a study's files and checks that they belong together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from hbr_fast.csv_files import read_csv
from hbr_fast.evaluation import measures
from hbr_fast.evaluation.measures import METRICS
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.progress import printable
from hbr_fast.report.columns import (
    COMPARISONS_COLUMNS,
    CONFUSION_COLUMNS,
    ENSEMBLE_SIZE_COLUMNS,
    GROUPS_COLUMNS,
    HISTORY_COLUMNS,
    INTERVALS_COLUMNS,
    PER_CLASS_COLUMNS,
    PER_MEMBER_COLUMNS,
    REAL,
    SAMPLES_COLUMNS,
    TEXT,
)
from hbr_fast.report.study_files import (
    BASELINE,
    COMPARISONS,
    ENSEMBLE_SIZE,
    FILES,
    GROUPS,
    HISTORY,
    SAMPLES,
    Comparison,
    StudyFiles,
)
from hbr_fast.studies.study_json import REMEDY, read_study_json

MOST_LETTERS = 100  # of a class's name


def read_study(study_dir: str | os.PathLike[str]) -> StudyFiles:
    """Read a study's files and check that they belong together.

    Raises
    ------
    FileNotFoundError
        If the directory or one of `FILES` is missing.
    ValueError
        If a file does not parse, lacks a field or column, or has rows that do not fit `study.json`.
        The message is one line and names the file.
    """
    path = Path(study_dir)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory: name one that `hbr-fast study` wrote")
    for name in FILES:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing: {REMEDY}")
    meta = _read_meta(path / "study.json")
    classes = tuple(meta["dataset"]["classes"])
    names = [arm["name"] for arm in meta["arms"]]
    arms = (BASELINE, *(name for name in names if name != BASELINE))
    per_class = read_csv(path / "per_class.csv", PER_CLASS_COLUMNS, remedy=REMEDY)
    measured = {f"{metric}_{measure}": REAL for metric in METRICS for measure in measures.MEASURES}
    per_member = read_csv(path / "per_member.csv", {**PER_MEMBER_COLUMNS, **measured}, remedy=REMEDY)
    intervals = read_csv(path / "class_intervals.csv", INTERVALS_COLUMNS, remedy=REMEDY)
    confusions = read_csv(path / "confusion.csv", CONFUSION_COLUMNS, remedy=REMEDY)
    wanted_intervals = sorted((arm, metric, c) for arm in arms for metric in METRICS for c in range(len(classes)))
    found_intervals = sorted(intervals.select("arm", "metric", "class_index").rows())
    _check_rows(path / "class_intervals.csv", wanted_intervals, found_intervals)
    outside = confusions.filter(
        ~pl.col("true_index").is_between(0, len(classes) - 1)
        | ~pl.col("predicted_index").is_between(0, len(classes) - 1)
        | ~pl.col("arm").is_in(arms)
    )
    if outside.height:
        raise ValueError(
            f"{path / 'confusion.csv'} has a row for {outside.row(0)}, which study.json does not have: {REMEDY}"
        )
    samples = pl.DataFrame(schema=SAMPLES_COLUMNS)
    if meta["estimator"] is not None:
        columns = {**SAMPLES_COLUMNS, meta["estimator"]: REAL}
        others = {**dict.fromkeys(ESTIMATORS, REAL), "source": TEXT, "predicted": TEXT, "changed": TEXT}
        samples = read_csv(path / SAMPLES, columns, optional=others, remedy=REMEDY)

    key = ["arm", "variant", "member"]
    per_member = per_member.sort(key)
    per_class = per_class.sort([*key, "class_index"])
    wanted = sorted((arm["name"], m["variant"], m["member"]) for arm in meta["arms"] for m in arm["members"])
    _check_rows(path / "per_member.csv", wanted, per_member.select(key).rows())
    wanted_classes = [(*row, c, name) for row in wanted for c, name in enumerate(classes)]
    found_classes = per_class.select([*key, "class_index", "class_name"]).rows()
    _check_rows(path / "per_class.csv", wanted_classes, found_classes)
    unknown = samples.filter((pl.col("class_index") < 0) | (pl.col("class_index") >= len(classes)))
    if unknown.height:
        sample, index = unknown.row(0)[0], unknown["class_index"][0]
        raise ValueError(f"{path / 'samples.csv'}: sample {sample} has class {index} of {len(classes)}: {REMEDY}")
    comparisons = _read_comparisons(path / COMPARISONS, meta) if len(arms) > 1 else {}
    size = path / ENSEMBLE_SIZE
    ensemble_size = read_csv(size, ENSEMBLE_SIZE_COLUMNS, remedy=REMEDY) if size.is_file() else None
    epochs, grouped = path / HISTORY, path / GROUPS
    history = read_csv(epochs, HISTORY_COLUMNS, remedy=REMEDY) if epochs.is_file() else None
    groups = read_csv(grouped, GROUPS_COLUMNS, remedy=REMEDY) if grouped.is_file() else None
    shown = shown_names(classes)
    return StudyFiles(
        path,
        meta,
        _as_shown(per_class, classes, shown),
        per_member,
        _as_shown(samples, classes, shown),
        shown,
        arms,
        intervals,
        confusions,
        comparisons,
        ensemble_size,
        history,
        groups,
    )


def shown_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as pictures and pages show them: printable, not too long, and different from one another."""
    shown = []
    for name in names:
        text = printable(name[: MOST_LETTERS + 1])
        shown.append(text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…")
    times = Counter(shown)
    return tuple(f"{text} ({c})" if times[text] > 1 else text for c, text in enumerate(shown))


def _as_shown(frame: pl.DataFrame, names: Sequence[str], shown: Sequence[str]) -> pl.DataFrame:
    """The same with names of classes and files as they are shown."""
    columns = [column for column in ("class_name", "predicted") if column in frame.columns]
    if tuple(names) != tuple(shown) and frame.height:
        frame = frame.with_columns(pl.col(columns).replace(dict(zip(names, shown, strict=True))))
    if "source" in frame.columns:
        files = pl.Series("source", [file and printable(file) for file in frame["source"].to_list()], dtype=TEXT)
        frame = frame.with_columns(files)
    return frame


def _read_comparisons(path: Path, meta: Mapping[str, Any]) -> dict[tuple[str, str], Comparison]:
    """The rows of `comparisons.csv` by (arm, quantity), times 100."""
    found = {}
    for row in read_csv(path, COMPARISONS_COLUMNS, remedy=REMEDY).rows(named=True):
        numbers = {name: row[name] for name in Comparison.__dataclass_fields__}
        for name in ("baseline", "treatment", "low", "high", "combined_low", "combined_high"):
            numbers[name] = 100 * row[name]
        numbers["no_test"] = row["no_test"] or ""
        found[row["arm"], row["quantity"]] = row["against"], Comparison(**numbers)
    metrics = {"recall", "precision", meta.get("metric", "recall")}  # precision: what resampling often costs
    needed = ["accuracy", *(f"{metric}_{measure}" for metric in sorted(metrics) for measure in measures.MEASURES)]
    for arm in meta["arms"]:
        if arm["name"] == BASELINE:
            continue
        for metric in needed:
            other, _ = found.get((arm["name"], metric), (None, None))
            if other != (arm.get("against") or BASELINE):
                raise ValueError(f"{path} has no row for arm {arm['name']!r} and {metric}: {REMEDY}")
    return {key: comparison for key, (_, comparison) in found.items()}


def _read_meta(path: Path) -> dict[str, Any]:
    meta = read_study_json(path.parent)
    names, estimator = [arm["name"] for arm in meta["arms"]], meta["estimator"]
    for arm in meta["arms"]:
        if not arm["members"]:
            raise ValueError(f"{path}: arm {arm['name']!r} has no members: {REMEDY}")
    if BASELINE not in names or len(set(names)) != len(names):
        raise ValueError(f"{path}: arms {names} need distinct names, one of them 'baseline': {REMEDY}")
    if meta.get("metric", "recall") not in METRICS:
        raise ValueError(f"{path}: unknown metric {meta['metric']!r}, known are {', '.join(METRICS)}")
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(f"{path}: unknown estimator {estimator!r}, known are {', '.join(sorted(ESTIMATORS))}")
    hardness = meta.get("class_hardness")
    if hardness is not None and len(hardness) != len(meta["dataset"]["classes"]):
        raise ValueError(
            f"{path}: class_hardness has {len(hardness)} values, there are {len(meta['dataset']['classes'])} classes: "
            f"{REMEDY}"
        )
    return meta


def _check_rows(path: Path, wanted: list[tuple], found: list[tuple]) -> None:
    if wanted == found:
        return
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    if missing:
        problem = f"no row for {min(missing)}"
    elif extra:
        problem = f"a row for {min(extra)}, which study.json does not have"
    else:
        problem = "rows that occur twice"
    raise ValueError(f"{path} has {problem}: {REMEDY}")
