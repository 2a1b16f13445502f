"""What a finished study says of itself in one line: its headline numbers, and what it had to leave out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from hbr_fast.csv_files import read_csv
from hbr_fast.studies.results import Failure
from hbr_fast.studies.study import BASELINE
from hbr_fast.studies.study_json import REMEDY, evaluated_on, read_study_json


def failed_trainings(directory: Path) -> list[Failure]:
    """The trainings that a finished study had to leave out."""
    fields = Failure.__dataclass_fields__
    return [Failure(**{name: entry[name] for name in fields}) for entry in read_study_json(directory).get("failed", [])]


def summary(directory: Path) -> dict[str, Any]:
    """The headline numbers of a finished study, means over members: the baseline, and the arm if there is one.

    They are of the samples that `evaluated_on` names. Where an arm was chosen by these, `chosen` and the keys that
    begin with `test` say what it does on the test split. All are fractions.
    """
    study = read_study_json(directory)
    columns = {"arm": pl.String, "accuracy": pl.Float64, "recall_max_min": pl.Float64}
    frame = read_csv(directory / "per_member.csv", columns, remedy=REMEDY)

    def mean(arm: str, column: str) -> float:
        return float(frame.filter(pl.col("arm") == arm)[column].to_numpy().mean())

    numbers: dict[str, Any] = {
        "evaluated_on": evaluated_on(study),
        "evaluated_samples": sum(study.get("evaluated_samples", [])),
        "baseline_accuracy": mean(BASELINE, "accuracy"),
        "recall_gap_baseline": mean(BASELINE, "recall_max_min"),
        "members_per_arm": len(study["arms"][0]["members"]),
    }
    if len(study["arms"]) == 2:
        treatment = study["arms"][1]["name"]
        numbers |= {"hbr_accuracy": mean(treatment, "accuracy"), "recall_gap_hbr": mean(treatment, "recall_max_min")}
    else:
        numbers["arms"] = len(study["arms"])
    if study.get("infeasible"):
        numbers["infeasible"] = list(study["infeasible"])
    return numbers | _choice(study)


def _choice(study: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen arm, and how it and the baseline do on the test split."""
    if "choice" not in study:
        return {}
    choice = study["choice"]
    test = {name: choice["test"][name] for name in ("gap", "gap_baseline", "accuracy", "accuracy_baseline")}
    return {
        "chosen": choice["arm"],
        "alpha": choice["alpha"],
        "metric": choice.get("metric", "recall"),
        **{f"test_{name}": value / 100 for name, value in test.items()},
    }
