"""The results files of a study: everything that tables, pictures and the page are made from (docs/results.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
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
from hbr_fast.studies.choice import choose, validation_logits
from hbr_fast.studies.comparisons import METRICS, comparison_table
from hbr_fast.studies.plans import Rows
from hbr_fast.studies.stability import ensemble_sizes, estimator_agreement
from hbr_fast.studies.study import BASELINE, Arm, Study
from hbr_fast.training.final import scores_by
from hbr_fast.training.store import StoredMember

SCHEMA = 2


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
    """The trainings of an arm and the samples per class they saw.

    Attributes
    ----------
    name : str
    arm : Arm or None
        None for the baseline.
    allocations : tuple of Allocation or None
        One a variant; None where the arm does not resample. Empty for the baseline.
    counts : int64 [V, C]
        Samples per class of each variant.
    cells : tuple of Cell
    """

    name: str
    arm: Arm | None
    allocations: tuple[Allocation | None, ...]
    counts: np.ndarray
    cells: tuple[Cell, ...]

    @property
    def asked(self) -> np.ndarray:
        """Samples per class that were asked for: they say which classes are easy and which are hard."""
        first = self.allocations[0] if self.allocations else None
        return self.counts[0] if first is None else first.counts


def write_results(
    directory: Path,
    *,
    study: Study,
    dataset: Dataset,
    rows: Rows,
    arms: Sequence[ArmResult],
    failed: Sequence[Failure] = (),
    scores: HardnessScores,
    class_hardness: np.ndarray,
    seconds: float,
) -> None:
    """Evaluate every training from its stored logits and write the files.

    Parameters
    ----------
    rows : Rows
        Where some are held out to choose by, they are what is evaluated, and the test split for the choice only.
    arms : sequence of ArmResult
        The baseline first.
    failed : sequence of Failure
        Trainings that are missing in them.
    scores : HardnessScores
        Of the baseline members that hardness is taken from.
    class_hardness : float64 [C]
        By the study's estimator.
    seconds : float
        Wall time of this run of the study.
    """
    held_out = dataset.train.labels[rows.validation]
    labels = held_out if study.choose is not None else dataset.test.labels

    def logits(stored: StoredMember) -> np.ndarray:
        if study.choose is None:
            return stored.test_logits()
        return validation_logits(stored, dataset, study.recipe, rows.validation)

    def evaluated(arm: ArmResult, of: Callable[[StoredMember], np.ndarray], labels_n: np.ndarray) -> list[Evaluation]:
        return [evaluate(of(cell.stored), labels_n, classes=dataset.classes) for cell in arm.cells]

    evaluations = {arm.name: evaluated(arm, logits, labels) for arm in arms}
    # Whether a class counts as easy or hard follows from the first arm's counts, for the baseline as well: that the
    # baseline itself is balanced says nothing about its classes.
    compared = next((arm.asked for arm in arms if any(one is not None for one in arm.allocations)), None)
    per_class: list[dict[str, Any]] = []
    per_member: list[dict[str, Any]] = []
    for arm in arms:
        resamples = any(one is not None for one in arm.allocations)
        for cell, evaluation in zip(arm.cells, evaluations[arm.name], strict=True):
            own = _class_means(scores_by([cell.stored], dataset, study.estimator), study.estimator, dataset)
            who = {"arm": arm.name, "variant": cell.variant, "member": cell.member, "seed": cell.stored.seed}
            by = arm.asked if resamples else compared
            per_member.append({**who, **_member_row(evaluation, cell.stored, counts=by)})
            counts = arm.counts[cell.variant]
            per_class += [{**who, **row} for row in _class_rows(evaluation, dataset, counts=counts, hardness=own)]
    _write_csv(directory / "per_class.csv", pl.DataFrame(per_class))
    _write_csv(directory / "per_member.csv", pl.DataFrame(per_member))
    _write_csv(directory / "samples.csv", sample_table(scores, dataset))
    # Pairs need every member of both sides: arms that lost one are left out of the tests.
    whole = {arm.name for arm in arms if len(arm.cells) == study.members_per_arm}
    against = {
        arm.name: arm.arm.against for arm in arms if arm.arm is not None and {arm.name, arm.arm.against} <= whole
    }
    if against:
        counts_of = {arm.name: arm.asked for arm in arms}
        _write_csv(
            directory / "comparisons.csv",
            comparison_table(evaluations, against, counts_of, variants=study.variants, seed=study.seed),
        )
    extra: dict[str, Any] = {}
    if study.stability:
        frame, enough = ensemble_sizes(
            scores, dataset.train.labels, num_classes=len(dataset.classes), total=len(rows.train), seed=study.seed
        )
        _write_csv(directory / "ensemble_size.csv", frame)
        _write_csv(directory / "estimators.csv", estimator_agreement(scores))
        extra["enough_members"] = enough
    if study.choose is not None:
        chosen = choose(study.choose, evaluations, {arm.name: arm.arm.alpha if arm.arm else 0.0 for arm in arms})
        looked_at = {
            arm.name: evaluated(arm, StoredMember.test_logits, dataset.test.labels)
            for arm in arms
            if arm.name in (BASELINE, chosen.arm)
        }
        extra["choice"] = chosen.to_json(looked_at)
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
            "evaluated_on": "test" if study.choose is None else "validation",
            "class_hardness": class_hardness.tolist(),
            "seconds": seconds,
            "versions": versions(),
            "processor": cpu_name(),
            "arms": [_arm_entry(arm, directory) for arm in arms],
            "failed": [dataclasses.asdict(failure) for failure in failed],
            **extra,
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
    """The headline numbers of a finished study, means over members: the baseline, and the arm where there is one."""
    frame = pl.read_csv(directory / "per_member.csv")
    study = read_json(directory / "study.json")

    def mean(arm: str, column: str) -> float:
        return float(frame.filter(pl.col("arm") == arm)[column].to_numpy().mean())

    numbers: dict[str, Any] = {
        "baseline_accuracy": mean(BASELINE, "accuracy"),
        "recall_gap_baseline": mean(BASELINE, "recall_max_min"),
        "members_per_arm": len(study["arms"][0]["members"]),
    }
    if len(study["arms"]) == 2:
        treatment = study["arms"][1]["name"]
        numbers |= {"hbr_accuracy": mean(treatment, "accuracy"), "recall_gap_hbr": mean(treatment, "recall_max_min")}
    else:
        numbers["arms"] = len(study["arms"])
    return numbers


def _class_means(scores: HardnessScores, name: str, dataset: Dataset) -> np.ndarray:
    """Class means of one member; NaN where it saw no sample of a class, e.g. only generated ones."""
    values, labels = scores.per_sample(name), dataset.train.labels
    seen = ~np.isnan(values)
    counts = np.bincount(labels[seen], minlength=len(dataset.classes))
    sums = np.bincount(labels[seen], weights=values[seen], minlength=len(dataset.classes))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


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
    entry: dict[str, Any] = {
        "name": arm.name,
        "alpha": 0.0,
        "undersample": "none",
        "oversample": "none",
        "prune_level": "none",
        "prune_by": "none",
        "prune_rate": 0.0,
    }
    if arm.arm is not None:
        entry |= {name: value for name, value in dataclasses.asdict(arm.arm).items() if name != "prune"}
        if (prune := arm.arm.prune) is not None:
            entry |= {"prune_level": prune.level, "prune_by": prune.by, "prune_rate": prune.rate}
            entry["prune_drop"] = prune.drop
        allocations = [one for one in arm.allocations if one is not None]
        if allocations:
            entry["counts_wanted"] = allocations[0].counts.tolist()
            # JSON has no infinity: equally hard classes have no largest alpha.
            most = allocations[0].max_alpha
            entry["max_alpha"] = most if math.isfinite(most) else None
    entry["counts"] = arm.counts[0].tolist()
    entry["counts_by_variant"] = arm.counts.tolist()
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
