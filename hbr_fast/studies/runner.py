"""Running a study: what to train, what is done already, and the results files at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.files import locked, make_directory
from hbr_fast.studies.plans import ArmPlan, Planner, Rows, baseline_plan, require_pool, study_rows
from hbr_fast.studies.results import ArmResult, Cell, Failure, write_results
from hbr_fast.studies.study import BASELINE, Arm, Study
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.cluster import Cluster
from hbr_fast.training.device import Compute
from hbr_fast.training.final import scores_by
from hbr_fast.training.jobs import Training
from hbr_fast.training.parallel import MembersDiverged, obtain_members
from hbr_fast.training.store import StoredMember


def run_study(
    study: Study,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    pool: Pool | None = None,
    members_at_once: int = 1,
    stacked: bool = False,
    cluster: Cluster | None = None,
    checkpoint: CheckpointEvery | None = None,
    tensorboard: bool = False,
    compute: Compute | None = None,
) -> Path:
    """Train what is missing of a study and write its results files.

    Parameters
    ----------
    study : Study
    dataset : Dataset
    out : path
        The study's directory; docs/results.md says what is in it. Trainings are under `members/`, each under the hash
        of what determines it, so that studies with one directory share what they have in common.
    pool : Pool, optional
        Generated images, for arms that take from one.
    members_at_once, stacked, cluster, checkpoint, tensorboard, compute
        See `hbr_fast.training.parallel.obtain_members`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If an arm cannot be had: alpha not feasible, a class without positive hardness, a holdout or pool too small.
    MembersDiverged
        If all trainings of an arm diverge. Where some do, the study goes on without them and `study.json` lists them.
    BlockingIOError
        If another process runs a study in `out`.
    """
    directory = Path(out)
    require_pool([*study.arms, *([study.path_from] if study.path_from else [])], pool)
    rows = study_rows(study, dataset)
    make_directory(directory)
    with locked(directory):
        _run(
            study,
            dataset,
            directory,
            rows,
            pool=pool,
            members_at_once=members_at_once,
            stacked=stacked,
            cluster=cluster,
            checkpoint=checkpoint,
            tensorboard=tensorboard,
            compute=compute,
        )
    return directory


def _run(
    study: Study,
    dataset: Dataset,
    directory: Path,
    rows: Rows,
    *,
    pool: Pool | None,
    members_at_once: int,
    stacked: bool,
    cluster: Cluster | None,
    checkpoint: CheckpointEvery | None,
    tensorboard: bool,
    compute: Compute | None,
) -> None:
    start = time.perf_counter()
    failed: list[Failure] = []

    def train(label: str, trainings: Sequence[Training]) -> list[StoredMember | FloatingPointError]:
        # Arms that come to the same rows are one training.
        unique = {identity(training): training for training in trainings}
        try:
            outcomes: Sequence[StoredMember | FloatingPointError] = obtain_members(
                dataset,
                study.recipe,
                list(unique.values()),
                store=directory,
                members_at_once=members_at_once,
                stacked=stacked,
                cluster=cluster,
                checkpoint=checkpoint,
                tensorboard=tensorboard,
                compute=compute,
                label=label,
            )
        except MembersDiverged as error:
            outcomes = [error.diverged.get(n, member) for n, member in enumerate(error.members)]  # type: ignore[misc]
        found = dict(zip(unique, outcomes, strict=True))
        return [found[identity(training)] for training in trainings]

    def cells_of(arm: str, outcomes: Sequence[StoredMember | FloatingPointError]) -> tuple[Cell, ...]:
        """The members of an arm; those that diverged go to `failed`."""
        lost = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, FloatingPointError)}
        if len(lost) == len(outcomes):
            raise MembersDiverged([None] * len(outcomes), lost, arm)
        pairs = list(zip(study.cells(), outcomes, strict=True))
        failed.extend(Failure(arm, *pairs[n][0], str(error)) for n, error in lost.items())
        return tuple(Cell(*cell, member) for cell, member in pairs if isinstance(member, StoredMember))

    baseline = cells_of(BASELINE, train(BASELINE, baseline_trainings(study, dataset)))
    members = [cell.stored for cell in baseline]
    planner = make_planner(study, dataset, members, pool=pool, directory=directory)
    arms = [*study.arms, *planner.path_arms()]
    plans = {arm.name: [planner.plan(arm, variant) for variant in range(study.variants)] for arm in arms}
    for arm in arms:
        _say_counts(arm, plans[arm.name][0], dataset)
        for variant, made in enumerate(plans[arm.name]):
            (directory / "plans").mkdir(exist_ok=True)
            made.plan.save(directory / "plans" / f"{arm.name}-variant-{variant}.safetensors")
    trainings = [training for arm in arms for training in arm_trainings(study, plans[arm.name])]
    stored = iter(train("arms", trainings) if trainings else [])
    full = np.bincount(dataset.train.labels[rows.train], minlength=len(dataset.classes))
    results = [ArmResult(BASELINE, None, (), np.tile(full, (study.variants, 1)), baseline)]
    for arm in arms:
        counts = np.array([made.plan.provenance["counts"] for made in plans[arm.name]])
        cells = cells_of(arm.name, [next(stored) for _ in study.cells()])
        results.append(ArmResult(arm.name, arm, tuple(made.allocation for made in plans[arm.name]), counts, cells))
    write_results(
        directory,
        study=study,
        dataset=dataset,
        rows=rows,
        arms=results,
        failed=failed,
        scores=scores_by(members[: study.hardness_members], dataset, study.estimator),
        class_hardness=planner.class_hardness,
        seconds=time.perf_counter() - start,
    )


def make_planner(
    study: Study, dataset: Dataset, members: Sequence[StoredMember], *, pool: Pool | None, directory: Path
) -> Planner:
    """What makes the plans of a study whose baseline is trained."""
    of_hardness = list(members[: study.hardness_members])
    return Planner(
        study,
        dataset,
        study_rows(study, dataset),
        scores=scores_by(of_hardness, dataset, study.estimator),
        members=of_hardness,
        pool=pool,
        cache=directory / "cache",
    )


def baseline_trainings(study: Study, dataset: Dataset) -> list[Training]:
    """The trainings of the baseline."""
    plan = baseline_plan(study, dataset, study_rows(study, dataset))
    return [Training(study.training_seed(*cell), plan) for cell in study.cells()]


def arm_trainings(study: Study, plans: Sequence[ArmPlan]) -> list[Training]:
    """The trainings of an arm, from the plan of each variant."""
    return [
        Training(study.training_seed(variant, member), plans[variant].plan, plans[variant].pools)
        for variant, member in study.cells()
    ]


def identity(training: Training) -> tuple[int, str | None]:
    """What tells the trainings of a study apart."""
    return training.seed, training.plan.content_hash() if training.plan is not None else None


def _say_counts(arm: Arm, made: ArmPlan, dataset: Dataset) -> None:
    counts = zip(dataset.classes, made.plan.provenance["counts"], strict=True)
    progress.say(f"{arm.name}: samples per class at alpha {arm.alpha:g}: {', '.join(f'{c} {n}' for c, n in counts)}")
