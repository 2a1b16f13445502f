"""The tables of evaluated trainings: by training, by class, and each arm against the one it is compared with.

Studies make them of what they trained, `import_runs` of what was trained elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.measures import METRICS
from hbr_fast.studies.comparisons import Sides, Trained, comparison_table, measured
from hbr_fast.studies.groups import group_table
from hbr_fast.studies.of_classes import class_intervals, confusion_table


def evaluated_tables(
    arms: Mapping[str, Sequence[Trained]],
    *,
    against: Mapping[str, str],
    sides: Mapping[str, Sides],
    labels_n: np.ndarray,
    classes: Sequence[str],
    metric: str,
    seed: int,
    groups: Mapping[str, np.ndarray] | None = None,
) -> dict[str, pl.DataFrame]:
    """`per_class.csv`, `per_member.csv`, `class_intervals.csv`, `confusion.csv`, `comparisons.csv`, `groups.csv`.

    Parameters
    ----------
    arms : mapping of str to sequence of Trained
        The baseline first.
    against : mapping of str to str
        Arm -> its comparison arm; without any, there is no `comparisons.csv`.
    sides : mapping of str to Sides
        Which classes are easy, by arm.
    labels_n : integer [N]
        True classes of the samples that were evaluated.
    classes : sequence of str
    metric : str
        What the study is about.
    seed : int
        Of bootstraps.
    groups : mapping of str to str [N], optional
        Attribute -> group of each sample; without any, there is no `groups.csv`.
    """
    per_class: list[dict[str, Any]] = []
    per_member: list[dict[str, Any]] = []
    intervals: list[dict[str, Any]] = []
    for arm, trainings in arms.items():
        intervals += class_intervals(trainings, labels_n, nested=arm in against, arm=arm)
        for one in trainings:
            who = {"arm": arm, "variant": one.variant, "member": one.member, "seed": one.seed}
            per_member.append({**who, **_member_row(one, sides[arm])})
            per_class += [{**who, **row} for row in _class_rows(one, classes)]
    evaluations = {arm: [one.evaluation for one in trainings] for arm, trainings in arms.items()}
    tables = {
        "per_class.csv": pl.DataFrame(per_class),
        "per_member.csv": pl.DataFrame(per_member, schema_overrides={"seed": pl.UInt64}),
        "class_intervals.csv": pl.DataFrame(intervals),
        "confusion.csv": confusion_table(evaluations, classes),
    }
    if groups:
        tables["groups.csv"] = group_table(arms, groups, labels_n=labels_n, nested=list(against))
    if against:
        tables["comparisons.csv"] = comparison_table(arms, against, sides, labels_n=labels_n, metric=metric, seed=seed)
    return tables


def _member_row(one: Trained, sides: Sides) -> dict[str, Any]:
    numbers = measured(one.evaluation, sides, METRICS)
    return {
        "accuracy": numbers.pop("accuracy"),
        "calibration": one.evaluation.calibration,
        "train_seconds": one.seconds,
        "images_per_second": one.images_per_second,
        **numbers,
    }


def _class_rows(one: Trained, classes: Sequence[str]) -> list[dict[str, Any]]:
    evaluation = one.evaluation
    return [
        {
            "class_index": c,
            "class_name": name,
            "samples": None if one.samples is None else int(one.samples[c]),
            "hardness": math.nan if one.hardness is None else float(one.hardness[c]),
            **{metric: float(getattr(evaluation, metric)[c]) for metric in METRICS},
            "never_predicted": bool(evaluation.never_predicted[c]),
        }
        for c, name in enumerate(classes)
    ]
