"""The results files of a study: the source of all tables, pictures and the page (docs/results.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from hbr_fast.data.dataset import Dataset
from hbr_fast.evaluation.metrics import evaluate
from hbr_fast.files import atomic_write, relative_path, sha256_of_file
from hbr_fast.hardness import HardnessScores, estimator
from hbr_fast.hardness.class_means import class_means
from hbr_fast.json_schema import write_sealed_json
from hbr_fast.machine import hardware, versions
from hbr_fast.members.scoring.final_model import scores_by
from hbr_fast.members.store import StoredMember
from hbr_fast.progress import printable
from hbr_fast.resampling.allocation import Allocation
from hbr_fast.resampling.base import Base
from hbr_fast.studies.choice import choose, logits_of
from hbr_fast.studies.comparisons import Sides, Trained
from hbr_fast.studies.evaluated import evaluated_tables
from hbr_fast.studies.plans import Rows, held_out_share
from hbr_fast.studies.stability import ensemble_sizes, estimator_agreement
from hbr_fast.studies.study import BASELINE, Arm, Study
from hbr_fast.studies.study_json import NAME, SCHEMA

MOST_OF_CLASS, MOST_PREDICTED = 20, 1000  # hardest samples that get a prediction
# Of any study, beside `study.json`.
_TABLES = (
    *("per_class.csv", "per_member.csv", "class_intervals.csv", "confusion.csv", "comparisons.csv", "groups.csv"),
    *("samples.csv", "history.csv", "ensemble_size.csv", "estimators.csv"),
)


@dataclass(frozen=True)
class Cell:
    """One training of an arm."""

    variant: int
    member: int
    stored: StoredMember


@dataclass(frozen=True)
class Failure:
    """A training of an arm that diverged, and where, in words."""

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
        One per variant; None where the arm does not resample. Empty for the baseline.
    counts : int64 [V, C]
        Samples per class of each variant.
    cells : tuple of Cell
    base : "own", "balanced" or float
        Class sizes that the arm started from.
    """

    name: str
    arm: Arm | None
    allocations: tuple[Allocation | None, ...]
    counts: np.ndarray
    cells: tuple[Cell, ...]
    base: Base = "own"

    @property
    def allocation(self) -> Allocation | None:
        """How many samples the classes should have; the variants differ in it only through pruning."""
        return self.allocations[0] if self.allocations else None


def write_results(
    directory: Path,
    *,
    study: Study,
    dataset: Dataset,
    rows: Rows,
    arms: Sequence[ArmResult],
    failed: Sequence[Failure] = (),
    infeasible: Mapping[str, str] | None = None,
    scores: HardnessScores,
    class_hardness: np.ndarray,
    seconds: float,
    groups: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Evaluate every training from its stored logits and write the files.

    Parameters
    ----------
    rows : Rows
        Those to choose an arm by, if any, are evaluated in place of the test split, of which only the chosen arm's
        results and the baseline's are reported.
    arms : sequence of ArmResult
        The baseline first.
    failed : sequence of Failure
        Trainings missing from them.
    infeasible : mapping of str to str, optional
        Arms that could not be made, and why.
    scores : HardnessScores
        Of the baseline members that define hardness.
    class_hardness : float64 [C]
        By the study's estimator.
    seconds : float
        Wall time of this run of the study.
    groups : mapping of str to str [N], optional
        Attribute -> group of each test sample.
    """
    labels = dataset.test.labels if study.choose is None else dataset.splits[rows.of].labels[rows.validation]

    def logits(stored: StoredMember) -> np.ndarray:
        if study.choose is None:
            return stored.test_logits()
        return logits_of(stored, dataset, rows.validation, split=rows.of)

    def trained(arm: ArmResult, of: Callable[[StoredMember], np.ndarray], labels_n: np.ndarray) -> list[Trained]:
        return [_trained(study, dataset, arm, cell, of(cell.stored), labels_n) for cell in arm.cells]

    trainings = {arm.name: trained(arm, logits, labels) for arm in arms}
    evaluations = {arm: [one.evaluation for one in of_arm] for arm, of_arm in trainings.items()}
    tables = evaluated_tables(
        trainings,
        against={arm.name: arm.arm.against for arm in arms if arm.arm is not None},
        sides=_sides(arms),
        labels_n=labels,
        classes=dataset.classes,
        metric=study.metric,
        seed=study.seed,
        groups=groups,
    )
    predictions = predictions_of_hardest(arms, dataset, scores, study)
    tables["samples.csv"] = sample_table(scores, dataset).with_columns(predictions)
    tables["history.csv"] = _histories(arms)
    extra: dict[str, Any] = {}
    if study.stability:
        frame, enough = ensemble_sizes(
            scores, dataset.train.labels, num_classes=len(dataset.classes), total=len(rows.train), seed=study.seed
        )
        tables |= {"ensemble_size.csv": frame, "estimators.csv": estimator_agreement(scores)}
        extra["enough_members"] = enough
    if study.choose is not None:
        chosen = choose(
            study.choose,
            evaluations,
            {arm.name: arm.arm.alpha if arm.arm else 0.0 for arm in arms},
            metric=study.metric,
            share=held_out_share(study, dataset),
        )
        looked_at = {
            arm.name: [one.evaluation for one in trained(arm, StoredMember.test_logits, dataset.test.labels)]
            for arm in arms
            if arm.name in (BASELINE, chosen.arm)
        }
        extra["choice"] = chosen.to_json(looked_at)
    plans = [plan_path(arm.name, variant) for arm in arms if arm.arm for variant in range(len(arm.counts))]
    write_study(
        directory,
        tables,
        plans=plans,
        about={
            "schema": SCHEMA,
            "study": study.name,
            "dataset": {
                "path": dataset.seen_from(directory),
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "classes": list(dataset.classes),
                "samples": len(dataset.train),
            },
            "recipe": study.recipe.to_json(),
            "seed": study.seed,
            "estimator": study.estimator,
            "metric": study.metric,
            "evaluated_on": "test" if study.choose is None else "validation",
            "evaluated_samples": np.bincount(labels, minlength=len(dataset.classes)).tolist(),
            "class_hardness": class_hardness.tolist(),
            "hardness_members": len(arms[0].cells[: study.hardness_members]),
            "seconds": seconds,
            "versions": versions(),
            "hardware": hardware(),
            "arms": [_arm_entry(arm, directory) for arm in arms],
            "infeasible": dict(infeasible or {}),
            "failed": [dataclasses.asdict(failure) for failure in failed],
            **extra,
        },
    )


def write_study(
    directory: Path, tables: Mapping[str, pl.DataFrame], *, plans: Sequence[str] = (), about: Mapping[str, Any]
) -> None:
    """Write the tables of a study, and last `study.json` with the checksums of all its files: they belong together."""
    for name, table in tables.items():
        with atomic_write(directory / name) as file:
            table.write_csv(file)
    _remove_other_results(directory, {*tables, *plans})
    files = {name: sha256_of_file(directory / name) for name in (*tables, *plans)}
    write_sealed_json(directory / NAME, {**about, "files": files})


def plan_path(arm: str, variant: int) -> str:
    """Where a study keeps the plan of a variant, relative to its directory."""
    return f"plans/{arm}-variant-{variant}.safetensors"


def _remove_other_results(directory: Path, own: Collection[str]) -> None:
    """Remove what an earlier study in the same directory left and this one did not write again."""
    tables = [directory / name for name in _TABLES]
    for path in [*tables, *(directory / "plans").glob("*-variant-*.safetensors")]:
        if path.relative_to(directory).as_posix() not in own:
            path.unlink(missing_ok=True)


def sample_table(scores: HardnessScores, dataset: Dataset) -> pl.DataFrame:
    """One row per sample of the train split: class, source if stored, every estimator's mean over members, visits."""
    scores.require_dataset(dataset.fingerprint)
    frame = scores.to_frame(dataset.train.labels, dataset.classes)
    sources = dataset.train.sources
    if sources is None:
        return frame
    shown = pl.Series("source", [printable(sources[row]) for row in range(len(sources))], dtype=pl.String)
    return frame.insert_column(frame.get_column_index("class_name") + 1, shown)


def _sides(arms: Sequence[ArmResult]) -> dict[str, Sides]:
    """Which classes are easy and which hard, by arm.

    By its own allocation if hardness made it. Otherwise by the first that hardness made: the baseline and a balanced
    set say nothing about their classes. Without any, by what an arm keeps of the classes, as pruning by hardness does.
    """
    own = arms[0].counts[0]
    by_hardness = {
        arm.name: Sides(arm.allocation.counts, arm.allocation.base)
        for arm in arms
        if arm.allocation is not None and arm.allocation.alpha > 0
    }
    first = next(iter(by_hardness.values()), None)
    return {arm.name: by_hardness.get(arm.name) or first or Sides(arm.counts[0], own) for arm in arms}


def predictions_of_hardest(
    arms: Sequence[ArmResult], dataset: Dataset, scores: HardnessScores, study: Study
) -> list[pl.Series]:
    """Columns about the hardest samples of each class, null for all others.

    `predicted` is what the baseline takes a sample for: by the mean probability of as many members as define hardness,
    eval mode, no augmentation. `changed` has the arms that take it for another class, each as "arm: class"; it is empty
    where all agree.
    """
    labels, values = dataset.train.labels, scores.per_sample(study.estimator)
    sign = 1 if estimator(study.estimator).hard_is == "low" else -1
    per_class = min(MOST_OF_CLASS, MOST_PREDICTED // len(dataset.classes))
    hardest = np.argsort(sign * values, kind="stable")  # NaN last
    ids = np.sort(np.concatenate([hardest[labels[hardest] == c][:per_class] for c in range(len(dataset.classes))]))
    guesses = []
    for arm in arms:
        mean = np.zeros((len(ids), len(dataset.classes)))
        for cell in arm.cells[: study.hardness_members]:
            mean += softmax(logits_of(cell.stored, dataset, ids), axis=1)
        guesses.append([dataset.classes[c] for c in mean.argmax(axis=1).tolist()])
    predicted: list[str | None] = [None] * len(labels)
    changed: list[str | None] = [None] * len(labels)
    for row, sample in enumerate(ids.tolist()):
        predicted[sample] = guesses[0][row]
        others = zip(arms[1:], guesses[1:], strict=True)
        changed[sample] = "; ".join(f"{arm.name}: {of[row]}" for arm, of in others if of[row] != guesses[0][row])
    return [pl.Series("predicted", predicted, dtype=pl.String), pl.Series("changed", changed, dtype=pl.String)]


def _histories(arms: Sequence[ArmResult]) -> pl.DataFrame:
    """Every training's epochs."""
    parts = []
    for arm in arms:
        for cell in arm.cells:
            who = {"arm": arm.name, "variant": cell.variant, "member": cell.member}
            columns = ("epoch", "learning_rate", "train_loss", "train_accuracy", "seconds")
            parts.append(cell.stored.history().select(*(pl.lit(v).alias(k) for k, v in who.items()), *columns))
    return pl.concat(parts)


def _trained(
    study: Study, dataset: Dataset, arm: ArmResult, cell: Cell, logits_nc: np.ndarray, labels_n: np.ndarray
) -> Trained:
    history = cell.stored.history()
    own_scores = scores_by([cell.stored], dataset, study.estimator).per_sample(study.estimator)
    return Trained(
        variant=cell.variant,
        member=cell.member,
        seed=cell.stored.seed,
        evaluation=evaluate(logits_nc, labels_n, classes=dataset.classes),
        predicted=logits_nc.argmax(axis=1).astype(np.int32),
        samples=arm.counts[cell.variant],
        # NaN where the training saw no sample of a class, e.g. only generated ones.
        hardness=class_means(own_scores, dataset.train.labels, len(dataset.classes), unscored="nan"),
        seconds=float(history["seconds"].sum()),
        images_per_second=float(history["images_per_second"].median()),  # type: ignore[arg-type]
    )


def _arm_entry(arm: ArmResult, directory: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": arm.name,
        "alpha": 0.0,
        "undersample": "none",
        "oversample": "none",
        "prune_level": "none",
        "prune_by": "none",
        "prune_rate": 0.0,
        "base": "own",
    }
    if arm.arm is not None:
        entry |= {name: value for name, value in dataclasses.asdict(arm.arm).items() if name != "prune"}
        entry["base"] = arm.base  # the one taken where none was given
        if (prune := arm.arm.prune) is not None:
            entry |= {"prune_level": prune.level, "prune_by": prune.by, "prune_rate": prune.rate}
            entry["prune_drop"] = prune.drop
        allocations = [one for one in arm.allocations if one is not None]
        if allocations:
            entry["counts_wanted"] = allocations[0].counts.tolist()
            entry["base_counts"] = allocations[0].base.tolist()
            # JSON has no infinity: equally hard classes have no largest alpha.
            most = allocations[0].max_alpha
            entry["max_alpha"] = most if math.isfinite(most) else None
            entry["shifted"] = allocations[0].shifted
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
