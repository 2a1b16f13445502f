"""Run a study: find what is trained already, train the rest, and write the results files."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.files import locked, make_directory, read_json
from hbr_fast.members.execution import Deprecated, Execution, execution_of
from hbr_fast.members.jobs import Job
from hbr_fast.members.obtain import MembersDiverged, obtain_members
from hbr_fast.members.preflight import check_fit
from hbr_fast.members.scoring.final_model import scores_by
from hbr_fast.members.store import StoredMember
from hbr_fast.members.telemetry import Outlook
from hbr_fast.members.trial import try_step
from hbr_fast.progress import printable
from hbr_fast.studies.groups import read_groups
from hbr_fast.studies.infeasible import lines, remedy
from hbr_fast.studies.plans import ArmPlan, Planner, Rows, baseline_plan, lacks_pool, require_pool, study_rows
from hbr_fast.studies.results import ArmResult, Cell, Failure, plan_path, write_results
from hbr_fast.studies.study import BASELINE, Arm, Study
from hbr_fast.studies.study_json import NAME
from hbr_fast.training.device import resolve_precision
from hbr_fast.training.recipe import Recipe

_START = {"own": "the classes' own sizes", "balanced": "equal classes"}
CACHE = "cache"  # of a study's directory


def run_study(
    study: Study,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    pool: Pool | None = None,
    groups: str | os.PathLike[str] | None = None,
    execution: Execution | None = None,
    advice: str = "",
    **deprecated: Unpack[Deprecated],
) -> Path:
    """Train the missing members of a study and write its results files.

    Parameters
    ----------
    study : Study
    dataset : Dataset
    out : path
        The study's directory; docs/results.md says what is in it. Trainings are under `members/`, each under the hash
        of what determines it, so that studies in one directory share trainings.
    pool : Pool, optional
        Generated images, for arms that use them.
    groups : path, optional
        A table of attributes of the test samples, by `sample_id` (their row in the split) or `source`: the accuracy of
        each group goes to `groups.csv`.
    execution : Execution, optional
        How and where members train; by default one after another in this process.
    advice : str
        What to add to the forecast of a study that takes hours, e.g. what is faster.
    **deprecated
        `members_at_once`, `cluster`, `checkpoint`, `tensorboard`, `compute`: fields of `execution`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If every arm is infeasible: alpha not feasible, a class without positive hardness, a holdout or pool too small.
        If only some are, they are named before the others train, and in `study.json`. Or if `out` holds a study of
        another dataset.
    MembersDiverged
        If all trainings of an arm diverge. If only some do, the study goes on without them; `study.json` lists them.
    BlockingIOError
        If another process runs a study in `out`.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert, named_recipe, Arm, Study
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> recipe = named_recipe("quickstart", ["model=cnn-4-8", "epochs=1", "batch_size=4", "augment.pad=0"])
    >>> arm = Arm("some", 0.25, nonpositive="shift")
    >>> study = Study("mine", recipe, (arm,), variants=2, members=1)
    >>> out = run_study(study, data, out=f"{folder.name}/study")
    >>> (out / "comparisons.csv").is_file()
    True
    """
    execution = execution_of(execution, deprecated, caller="run_study").checked()
    recipe = resolve_precision(study.recipe, execution.training_device())
    study = dataclasses.replace(study, recipe=recipe)
    dataset = dataset.at_size(recipe.size)
    directory = Path(out)
    require_pool(study, pool)
    require_same_dataset(directory, dataset)
    rows = study_rows(study, dataset)
    found = None if groups is None else _groups(Path(groups), study, dataset)
    require_trainable(study, dataset, execution)  # before there is a directory that a refusal would leave empty
    make_directory(directory)
    with locked(directory):
        _run(
            study,
            dataset,
            directory,
            rows,
            pool=pool,
            groups=found,
            execution=execution,
            advice=advice,
        )
    return directory


def require_same_dataset(directory: Path, dataset: Dataset) -> None:
    """Refuse a directory with the results of another dataset, which those of this one would replace.

    Raises
    ------
    ValueError
    """
    try:
        there = read_json(directory / NAME)["dataset"]
        name, path, fingerprint = (str(there[entry]) for entry in ("name", "path", "fingerprint"))
    except (OSError, ValueError, TypeError, KeyError):  # none, or none that could be read
        return
    if fingerprint not in ("", dataset.fingerprint):  # imported runs need not name theirs
        raise ValueError(
            f"{directory} holds a study of {name} ({Path(path).name}, fingerprint {fingerprint[:12]}), not of "
            f"{dataset.name} ({dataset.path.name}, fingerprint {dataset.fingerprint[:12]}): choose another directory "
            "or that dataset"
        )


def _groups(table: Path, study: Study, dataset: Dataset) -> dict[str, np.ndarray]:
    """The groups of the test samples, before anything is trained."""
    if study.choose is not None:
        raise ValueError("groups are of test samples, and a study that chooses an arm is evaluated on held-out ones")
    sources = dataset.test.sources
    paths = None if sources is None else [printable(sources[row]) for row in range(len(sources))]
    return read_groups(table, sample_id=np.arange(len(dataset.test)), source=paths)


def _run(
    study: Study,
    dataset: Dataset,
    directory: Path,
    rows: Rows,
    *,
    pool: Pool | None,
    groups: dict[str, np.ndarray] | None,
    execution: Execution,
    advice: str,
) -> None:
    start = time.perf_counter()
    failed: list[Failure] = []

    def train(label: str, recipe: Recipe, jobs: Sequence[Job], later: int) -> list[StoredMember | FloatingPointError]:
        # Arms with the same rows share one training.
        unique = {identity(job): job for job in jobs}
        try:
            outcomes: Sequence[StoredMember | FloatingPointError] = obtain_members(
                dataset,
                recipe,
                list(unique.values()),
                store=directory,
                execution=execution,
                label=label,
                outlook=Outlook(later, advice),
            )
        except MembersDiverged as error:
            outcomes = [error.diverged.get(n, member) for n, member in enumerate(error.members)]  # type: ignore[misc]
        found = dict(zip(unique, outcomes, strict=True))
        return [found[identity(job)] for job in jobs]

    def cells_of(arm: str, outcomes: Sequence[StoredMember | FloatingPointError]) -> tuple[Cell, ...]:
        """The members of an arm; those that diverged go to `failed`."""
        lost = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, FloatingPointError)}
        if len(lost) == len(outcomes):
            raise MembersDiverged([None] * len(outcomes), lost, arm)
        pairs = list(zip(study.cells(), outcomes, strict=True))
        failed.extend(Failure(arm, *pairs[n][0], str(error)) for n, error in lost.items())
        return tuple(Cell(*cell, member) for cell, member in pairs if isinstance(member, StoredMember))

    ahead = arm_images(study, len(rows.train), [arm for arm in study.arms if not lacks_pool(arm, pool)])
    baseline = cells_of(BASELINE, train(BASELINE, study.recipe, baseline_jobs(study, dataset), ahead))
    members = [cell.stored for cell in baseline]
    planner = make_planner(study, dataset, members, pool=pool, directory=directory)
    feasible, infeasible = planner.plans()
    plans = {arm.name: of_arm for arm, of_arm in feasible}
    arms = [arm for arm, _ in feasible]
    if infeasible:
        _say_left_out(arms, infeasible)
    for arm in arms:
        _log_counts(arm, plans[arm.name][0], dataset)
        for variant, made in enumerate(plans[arm.name]):
            (directory / "plans").mkdir(exist_ok=True)
            made.plan.save(directory / plan_path(arm.name, variant))
    trained: dict[str, list[StoredMember | FloatingPointError]] = {}
    groups_of_arms = by_recipe(study, feasible)
    for number, (recipe, of_recipe) in enumerate(groups_of_arms):
        later = sum(
            other.epochs * len(job.plan or ()) for other, more in groups_of_arms[number + 1 :] for _, job in more
        )
        jobs = [job for _, job in of_recipe]
        names = dict.fromkeys(arm for arm, _ in of_recipe)
        outcomes = train("arms" if recipe == study.recipe else ", ".join(names), recipe, jobs, later)
        for (arm_name, _), outcome in zip(of_recipe, outcomes, strict=True):
            trained.setdefault(arm_name, []).append(outcome)
    full = np.bincount(dataset.train.labels[rows.train], minlength=len(dataset.classes))
    results = [ArmResult(BASELINE, None, (), np.tile(full, (study.variants, 1)), baseline)]
    for arm in arms:
        counts = np.array([made.plan.provenance["counts"] for made in plans[arm.name]])
        cells = cells_of(arm.name, trained[arm.name])
        allocations = tuple(made.allocation for made in plans[arm.name])
        base = plans[arm.name][0].plan.provenance.get("base", "own")
        results.append(ArmResult(arm.name, arm, allocations, counts, cells, base))
    write_results(
        directory,
        study=study,
        dataset=dataset,
        rows=rows,
        arms=results,
        failed=failed,
        infeasible=infeasible,
        scores=scores_by(members[: study.hardness_members], dataset, study.estimator),
        class_hardness=planner.class_hardness,
        seconds=time.perf_counter() - start,
        groups=groups,
    )


def arm_images(study: Study, size: int, arms: Sequence[Arm]) -> int:
    """Images that the trainings of these arms, and those of the path, pass through the network before any is done.

    Parameters
    ----------
    study : Study
    size : int
        Rows of the train split; arms that do not prune keep them.
    arms : sequence of Arm
    """
    epochs = sum(study.recipe_of(arm).epochs * (1 - (arm.prune.rate if arm.prune else 0.0)) for arm in arms)
    return round(size * study.members_per_arm * (epochs + study.recipe.epochs * study.path))


def make_planner(
    study: Study, dataset: Dataset, members: Sequence[StoredMember], *, pool: Pool | None, directory: Path
) -> Planner:
    """The planner of a study whose baseline is trained."""
    of_hardness = list(members[: study.hardness_members])
    return Planner(
        study,
        dataset,
        study_rows(study, dataset),
        scores=scores_by(of_hardness, dataset, study.estimator),
        members=of_hardness,
        pool=pool,
        cache=directory / CACHE,
    )


def baseline_jobs(study: Study, dataset: Dataset) -> list[Job]:
    """The trainings of the baseline."""
    plan = baseline_plan(study, dataset, study_rows(study, dataset))
    return [Job(study.training_seed(*cell), plan) for cell in study.cells()]


def by_recipe(
    study: Study, feasible: Sequence[tuple[Arm, Sequence[ArmPlan]]]
) -> list[tuple[Recipe, list[tuple[str, Job]]]]:
    """The trainings of all arms, each with its arm's name, by the recipe that they are trained by."""
    found: list[tuple[Recipe, list[tuple[str, Job]]]] = []
    for arm, plans in feasible:
        for (variant, _), job in zip(study.cells(), arm_jobs(study, plans), strict=True):
            recipe = plans[variant].recipe
            group = next((jobs for other, jobs in found if other == recipe), None)
            if group is None:
                group = []
                found.append((recipe, group))
            group.append((arm.name, job))
    return found


def require_trainable(study: Study, dataset: Dataset, execution: Execution) -> None:
    """Check that the baseline can be trained, and try the recipes of arms before it trains, which may take hours.

    Raises
    ------
    ValueError, FileNotFoundError
        See `check_fit` and `try_step`; with the name of the arm, if it has a recipe of its own.
    """
    study = dataclasses.replace(study, recipe=resolve_precision(study.recipe, execution.training_device()))
    check_fit(dataset, study.recipe, None)
    for arm in study.arms:
        if arm.changes:
            try:
                try_step(dataset, study.recipe_of(arm), device=execution.trial_device())
            except ValueError as error:
                raise ValueError(f"arm {arm.name!r}: {error}") from None


def arm_jobs(study: Study, plans: Sequence[ArmPlan]) -> list[Job]:
    """The trainings of an arm, from the plan of each variant; the baseline's where nothing differs."""
    return [
        Job(
            study.training_seed(variant, member),
            None if plans[variant].is_baseline else plans[variant].plan,
            plans[variant].pools,
        )
        for variant, member in study.cells()
    ]


def identity(job: Job) -> tuple[int, str | None]:
    """What distinguishes the trainings of a study."""
    return job.seed, job.plan.content_hash() if job.plan is not None else None


def _say_left_out(arms: Sequence[Arm], infeasible: Mapping[str, str]) -> None:
    """Which arms are left out and why; first what to do where the study would have none that resamples by hardness."""
    if not any(arm.alpha > 0 for arm in arms):
        progress.say(
            f"no arm that resamples by hardness is feasible: {remedy(infeasible)}. The other arms train now; to change "
            "that, stop (Ctrl-C) and run again: what is trained is kept"
        )
    progress.say(f"{len(infeasible)} of {len(infeasible) + len(arms)} arms are infeasible and left out:")
    for line in lines(infeasible):
        progress.say(f"  {line}")


def _log_counts(arm: Arm, made: ArmPlan, dataset: Dataset) -> None:
    start = made.plan.provenance.get("base")
    base = "" if start is None else f" from {_START.get(start, f'class sizes to the power {start}')}"
    counts = zip(dataset.classes, made.plan.provenance["counts"], strict=True)
    if arm.reweight:
        weights = zip(dataset.classes, made.plan.provenance["class_weight"], strict=True)
        progress.say(
            f"{arm.name}: class weights at alpha {arm.alpha:g}{base}: {', '.join(f'{c} {w:.3g}' for c, w in weights)}"
        )
        return
    progress.say(
        f"{arm.name}: samples per class at alpha {arm.alpha:g}{base}: {', '.join(f'{c} {n}' for c, n in counts)}"
    )
