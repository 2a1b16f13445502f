"""The results files of a study: everything that tables, pictures and the page are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.allocation import Allocation
from hbr_fast.data.dataset import Dataset
from hbr_fast.evaluation.metrics import Evaluation, evaluate, gaps
from hbr_fast.files import atomic_write, read_json, relative_path, write_json
from hbr_fast.hardness import HardnessScores
from hbr_fast.machine import cpu_name, versions
from hbr_fast.studies.study import BASELINE, Arm, Study
from hbr_fast.training.final import scores_by
from hbr_fast.training.store import StoredMember

SCHEMA = 1
METRICS = ("recall", "precision", "f1", "mcc")


@dataclass(frozen=True)
class Cell:
    """One training of an arm."""

    variant: int
    member: int
    stored: StoredMember


@dataclass(frozen=True)
class Failure:
    """A training of an arm that diverged, and in words where."""

    arm: str
    variant: int
    member: int
    error: str


@dataclass(frozen=True)
class ArmResult:
    """The trainings of an arm and the samples per class they saw; the baseline has no `arm` and no `allocation`."""

    name: str
    arm: Arm | None
    allocation: Allocation | None
    counts: np.ndarray
    cells: tuple[Cell, ...]


def write_results(
    directory: Path,
    *,
    study: Study,
    dataset: Dataset,
    arms: Sequence[ArmResult],
    failed: Sequence[Failure] = (),
    scores: HardnessScores,
    class_hardness: np.ndarray,
    seconds: float,
) -> None:
    """Evaluate every training from its stored logits and write `study.json` and the three CSV files.

    Parameters
    ----------
    arms : sequence of ArmResult
        The baseline first.
    failed : sequence of Failure
        Trainings that are missing in them.
    scores : HardnessScores
        Of the baseline ensemble.
    class_hardness : float64 [C]
        By the study's estimator.
    seconds : float
        Wall time of this run of the study.
    """
    per_class: list[dict[str, Any]] = []
    per_member: list[dict[str, Any]] = []
    # Whether a class counts as easy or hard follows from the first arm's counts, for the baseline as well: that the
    # baseline itself is balanced says nothing about its classes.
    compared = next((arm.counts for arm in arms if arm.arm is not None), None)
    for arm in arms:
        for cell in arm.cells:
            evaluation = evaluate(cell.stored.test_logits(), dataset.test.labels, classes=dataset.classes)
            scores_of_cell = scores_by([cell.stored], dataset, study.estimator)
            own = scores_of_cell.class_means(study.estimator, dataset.train.labels, dataset.train.num_classes)
            who = {"arm": arm.name, "variant": cell.variant, "member": cell.member, "seed": cell.stored.seed}
            by = compared if arm.arm is None else arm.counts
            per_member.append({**who, **_member_row(evaluation, cell.stored, counts=by)})
            per_class += [{**who, **row} for row in _class_rows(evaluation, dataset, counts=arm.counts, hardness=own)]
    _write_csv(directory / "per_class.csv", pl.DataFrame(per_class))
    _write_csv(directory / "per_member.csv", pl.DataFrame(per_member))
    _write_csv(directory / "samples.csv", sample_table(scores, dataset))
    write_json(
        directory / "study.json",
        {
            "schema": SCHEMA,
            "study": study.name,
            "dataset": {
                "path": relative_path(dataset.path, directory),
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "classes": list(dataset.classes),
                "samples": len(dataset.train),
            },
            "recipe": study.recipe.to_json(),
            "seed": study.seed,
            "estimator": study.estimator,
            "class_hardness": class_hardness.tolist(),
            "seconds": seconds,
            "versions": versions(),
            "processor": cpu_name(),
            "arms": [_arm_entry(arm, directory) for arm in arms],
            "failed": [dataclasses.asdict(failure) for failure in failed],
        },
    )


def failed_trainings(directory: Path) -> list[Failure]:
    """The trainings that a finished study had to leave out."""
    return [Failure(**entry) for entry in read_json(directory / "study.json")["failed"]]


def sample_table(scores: HardnessScores, dataset: Dataset) -> pl.DataFrame:
    """One row a sample of the train split: class, every estimator's mean over members, visits."""
    scores.require_dataset(dataset.fingerprint)
    return scores.to_frame(dataset.train.labels, dataset.classes)


def summary(directory: Path) -> dict[str, Any]:
    """The headline numbers of a finished study with one arm, means over members."""
    frame = pl.read_csv(directory / "per_member.csv")
    study = read_json(directory / "study.json")
    baseline, treatment = BASELINE, study["arms"][1]["name"]

    def mean(arm: str, column: str) -> float:
        return float(frame.filter(pl.col("arm") == arm)[column].to_numpy().mean())

    return {
        "baseline_accuracy": mean(baseline, "accuracy"),
        "hbr_accuracy": mean(treatment, "accuracy"),
        "recall_gap_baseline": mean(baseline, "recall_max_min"),
        "recall_gap_hbr": mean(treatment, "recall_max_min"),
        "members_per_arm": len(study["arms"][0]["members"]),
    }


def _member_row(evaluation: Evaluation, stored: StoredMember, *, counts: np.ndarray | None) -> dict[str, Any]:
    history = stored.history()
    row: dict[str, Any] = {
        "accuracy": evaluation.accuracy,
        "train_seconds": float(history["seconds"].sum()),
        "images_per_second": float(history["images_per_second"].median()),  # type: ignore[arg-type]
    }
    for metric in METRICS:
        values = gaps(getattr(evaluation, metric), counts_c=counts)
        row |= {f"{metric}_{gap}": value for gap, value in values.items()}
    return row


def _class_rows(
    evaluation: Evaluation, dataset: Dataset, *, counts: np.ndarray, hardness: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "class_index": c,
            "class_name": name,
            "samples": int(counts[c]),
            "hardness": float(hardness[c]),
            **{metric: float(getattr(evaluation, metric)[c]) for metric in METRICS},
            "never_predicted": bool(evaluation.never_predicted[c]),
        }
        for c, name in enumerate(dataset.classes)
    ]


def _arm_entry(arm: ArmResult, directory: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": arm.name, "alpha": 0.0, "undersample": "none", "oversample": "none"}
    if arm.arm is not None and arm.allocation is not None:
        entry = dataclasses.asdict(arm.arm)
        entry["counts_wanted"] = arm.allocation.counts.tolist()
        # JSON has no infinity: equally hard classes have no largest alpha.
        entry["max_alpha"] = arm.allocation.max_alpha if np.isfinite(arm.allocation.max_alpha) else None
    entry["counts"] = arm.counts.tolist()
    entry["members"] = [
        {
            "variant": cell.variant,
            "member": cell.member,
            "seed": cell.stored.seed,
            "key": cell.stored.key,
            "path": relative_path(cell.stored.path, directory),
        }
        for cell in arm.cells
    ]
    return entry


def _write_csv(path: Path, frame: pl.DataFrame) -> None:
    with atomic_write(path) as file:
        frame.write_csv(file)
