"""Running a study: what to train, what is done already, and the results files at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hbr_fast import progress
from hbr_fast.allocation import Allocation, allocate
from hbr_fast.data.dataset import Dataset
from hbr_fast.files import locked
from hbr_fast.hardness import HardnessScores, estimator
from hbr_fast.plan import Plan
from hbr_fast.resampling import resample
from hbr_fast.studies.results import ArmResult, Cell, Failure, write_results
from hbr_fast.studies.study import BASELINE, Arm, Study
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.cluster import Cluster
from hbr_fast.training.final import scores_by
from hbr_fast.training.parallel import MembersDiverged, Training, obtain_members
from hbr_fast.training.store import StoredMember


def run_study(
    study: Study,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    members_at_once: int = 1,
    cluster: Cluster | None = None,
    checkpoint: CheckpointEvery | None = None,
) -> Path:
    """Train what is missing of a study and write its results files.

    Parameters
    ----------
    study : Study
    dataset : Dataset
    out : path
        The study's directory: `members/` (trainings, each under its hash), `plans/`, `study.json`, `per_class.csv`,
        `per_member.csv`, `samples.csv`.
    members_at_once, cluster, checkpoint
        See `hbr_fast.training.parallel.obtain_members`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an arm cannot be had: alpha not feasible, a class without positive hardness, an unknown strategy.
    MembersDiverged
        If all trainings of an arm diverge. Where some do, the study goes on without them and `study.json` lists them.
    BlockingIOError
        If another process runs a study in `out`.
    """
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        _run(study, dataset, directory, members_at_once=members_at_once, cluster=cluster, checkpoint=checkpoint)
    return directory


def _run(
    study: Study,
    dataset: Dataset,
    directory: Path,
    *,
    members_at_once: int,
    cluster: Cluster | None,
    checkpoint: CheckpointEvery | None,
) -> None:
    start = time.perf_counter()
    failed: list[Failure] = []
    seeds = [study.training_seed(variant, member) for variant, member in study.cells()]

    def train(label: str, plans: Sequence[Plan | None]) -> tuple[Cell, ...]:
        trainings = [Training(seed, plan) for seed, plan in zip(seeds, plans, strict=True)]
        try:
            stored: Sequence[StoredMember | None] = obtain_members(
                dataset,
                study.recipe,
                trainings,
                store=directory,
                members_at_once=members_at_once,
                cluster=cluster,
                checkpoint=checkpoint,
                label=label,
            )
        except MembersDiverged as error:
            if len(error.diverged) == len(trainings):
                raise
            stored = error.members
            failed.extend(Failure(label, *study.cells()[n], str(why)) for n, why in sorted(error.diverged.items()))
        cells = zip(study.cells(), stored, strict=True)
        return tuple(Cell(*cell, member) for cell, member in cells if member is not None)

    full = dataset.train.class_counts()
    baseline = ArmResult(BASELINE, None, None, full, train(BASELINE, [None] * len(seeds)))
    scores = scores_by([cell.stored for cell in baseline.cells], dataset, study.estimator)
    class_hardness = scores.class_means(study.estimator, dataset.train.labels, dataset.train.num_classes)
    treatments = []
    for arm in study.arms:
        allocation = _allocation(study, dataset, arm, class_hardness)
        plans = [_plan(study, dataset, arm, variant, scores, allocation) for variant in range(study.variants)]
        (directory / "plans").mkdir(exist_ok=True)
        for variant, plan in enumerate(plans):
            plan.save(directory / "plans" / f"{arm.name}-variant-{variant}.safetensors")
        cells = train(arm.name, [plans[variant] for variant, _ in study.cells()])
        treatments.append(ArmResult(arm.name, arm, allocation, np.array(plans[0].provenance["counts"]), cells))
    write_results(
        directory,
        study=study,
        dataset=dataset,
        arms=[baseline, *treatments],
        failed=failed,
        scores=scores,
        class_hardness=class_hardness,
        seconds=time.perf_counter() - start,
    )


def _allocation(study: Study, dataset: Dataset, arm: Arm, class_hardness: np.ndarray) -> Allocation:
    allocation = allocate(
        class_hardness,
        hard_is=estimator(study.estimator).hard_is,
        alpha=arm.alpha,
        total=len(dataset.train),
        nonpositive=arm.nonpositive,
        clip=arm.clip,
        classes=dataset.classes,
    )
    counts = zip(dataset.classes, allocation.counts.tolist(), strict=True)
    progress.say(f"{arm.name}: samples per class at alpha {arm.alpha:g}: {', '.join(f'{c} {n}' for c, n in counts)}")
    return allocation


def _plan(
    study: Study, dataset: Dataset, arm: Arm, variant: int, scores: HardnessScores, allocation: Allocation
) -> Plan:
    return resample(
        dataset.train.labels,
        allocation.counts,
        scores_n=scores.per_sample(study.estimator),
        hard_is=estimator(study.estimator).hard_is,
        undersample=arm.undersample,
        oversample=arm.oversample,
        seed=study.resampling_seed(variant),
        provenance={"dataset": dataset.fingerprint, "estimator": study.estimator, "alpha": arm.alpha},
        classes=dataset.classes,
    )
