"""What a study would train, how much is done, and how long the rest would take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.members.execution import Execution
from hbr_fast.members.store import find_member, member_key, member_path
from hbr_fast.members.trial import try_step
from hbr_fast.progress import counted
from hbr_fast.resampling.smote import NEIGHBOURS
from hbr_fast.studies.infeasible import by_reason
from hbr_fast.studies.plans import lacks_pool, require_pool, study_rows
from hbr_fast.studies.runner import CACHE, arm_images, arm_jobs, baseline_jobs, make_planner, require_same_dataset
from hbr_fast.studies.study import BASELINE, Study
from hbr_fast.training.device import resolve_precision
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import train_member

TIMED_BATCHES = 8
PROBES = (2, 4, 16)  # images of a batch: always, of a slow network, of others
PATIENCE_S = 3.0
INFEASIBLE = "infeasible: "  # a note that begins so


@dataclass(frozen=True)
class ArmPreview:
    """The trainings of one arm; `done` counts those in the store."""

    name: str
    trainings: int
    done: int
    note: str = ""


@dataclass(frozen=True)
class Preview:
    """What a study would do.

    Attributes
    ----------
    arms : tuple of ArmPreview
        The baseline first.
    images : int
        Images that the missing trainings would pass through the network.
    """

    arms: tuple[ArmPreview, ...]
    images: int

    @property
    def missing(self) -> int:
        """Trainings to do."""
        return sum(arm.trainings - arm.done for arm in self.arms)


def preview(
    study: Study,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    pool: Pool | None = None,
    execution: Execution | None = None,
) -> Preview:
    """List the trainings of a study and find the finished ones; nothing is trained.

    Arms follow from the baseline's hardness: until the baseline is trained, their trainings count as missing. The
    arguments are those of `run_study`.

    Raises
    ------
    ValueError
        If every arm is infeasible.
    """
    recipe = resolve_precision(study.recipe, (execution or Execution()).checked().training_device())
    study = dataclasses.replace(study, recipe=recipe)
    dataset = dataset.at_size(recipe.size)
    _ = dataset.train.image_shape  # refuse pictures without a size before anything is listed
    directory = Path(out)
    require_pool(study, pool)
    require_same_dataset(directory, dataset)
    size = len(study_rows(study, dataset).train)
    first = baseline_jobs(study, dataset)
    found = [find_member(dataset, study.recipe, seed=job.seed, plan=job.plan, store=directory) for job in first]
    images = study.recipe.epochs * size * sum(member is None for member in found)
    rows = [ArmPreview(BASELINE, len(first), sum(member is not None for member in found))]
    members = [member for member in found if member is not None]
    if len(members) < len(first):
        note = "rows follow from the baseline, which is not trained yet"
        possible = []
        for arm in study.arms:
            if reason := lacks_pool(arm, pool):
                rows.append(ArmPreview(arm.name, 0, 0, f"{INFEASIBLE}{reason}"))
            else:
                rows.append(ArmPreview(arm.name, study.members_per_arm, 0, note))
                possible.append(arm)
        if study.path_from is not None:
            count = study.members_per_arm * study.path
            rows.append(ArmPreview(f"{study.path_from.name}, {study.path} alphas", count, 0, note))
        return Preview(tuple(rows), images + arm_images(study, size, possible))
    planner = make_planner(study, dataset, members, pool=pool, directory=directory)
    seen = {member.key for member in members}
    # The search for neighbours takes minutes on a large set. Before it no training of such an arm can be done.
    searched = any((directory / CACHE).glob(NEIGHBOURS))
    feasible, infeasible = planner.plans(neighbours=searched)
    for arm, of_arm in feasible:
        jobs = arm_jobs(study, of_arm)
        if arm.oversample == "smote" and not searched:
            images += study.recipe.epochs * sum(len(job.plan or ()) for job in jobs)
            rows.append(ArmPreview(arm.name, len(jobs), 0, "neighbours are not searched yet"))
            continue
        done = 0
        for (variant, _), job in zip(study.cells(), jobs, strict=True):
            key = member_key(dataset, of_arm[variant].recipe, seed=job.seed, plan=job.plan)
            if member_path(directory, key).exists() or key in seen:
                done += 1
            else:
                images += of_arm[variant].recipe.epochs * len(job.plan or ())
            seen.add(key)
        rows.append(ArmPreview(arm.name, len(jobs), done))
    rows += [ArmPreview(name, 0, 0, f"{INFEASIBLE}{reason}") for name, reason in infeasible.items()]
    return Preview(tuple(rows), images)


def images_per_second(
    dataset: Dataset, recipe: Recipe, *, execution: Execution | None = None, at_once: int = 1
) -> float:
    """Measure how fast one member trains here: a few batches, after as many to warm up.

    First a batch of two images, then one of a few more. Where whole batches would take long, their time follows from
    those two: a constant, and a share of each image.

    Parameters
    ----------
    dataset, recipe, execution
        Those of the trainings.
    at_once : int
        How many members train at the same time. If several, each has one thread, and so has the measurement: two
        threads on a busy machine mostly wait for each other.

    Raises
    ------
    ValueError, FileNotFoundError
        If the recipe cannot be trained: see `try_step`.
    """
    device = (execution or Execution()).trial_device()
    try_step(dataset.at_size(recipe.size), resolve_precision(recipe, device), device=device)
    threads = torch.get_num_threads()
    try:
        if at_once > 1:
            torch.set_num_threads(1)
        pair = min(PROBES[0], recipe.batch_size)
        pair_s = _batch_seconds(dataset, recipe, images=pair, execution=execution)
        affordable = 2 * pair_s * PROBES[2] / pair <= PATIENCE_S
        few = min(PROBES[2] if affordable else PROBES[1], recipe.batch_size)
        few_s = _batch_seconds(dataset, recipe, images=few, execution=execution)
        image_s = max(0.0, few_s - pair_s) / (few - pair) if few > pair else few_s / few
        batch_s = few_s + (recipe.batch_size - few) * image_s
        if 2 * TIMED_BATCHES * batch_s > PATIENCE_S:
            return recipe.batch_size / batch_s
        return _timed(dataset, recipe, batches=TIMED_BATCHES, execution=execution)
    finally:
        torch.set_num_threads(threads)


def _batch_seconds(dataset: Dataset, recipe: Recipe, *, images: int, execution: Execution | None) -> float:
    small = dataclasses.replace(recipe, batch_size=images, accumulate=1)
    return images / _timed(dataset, small, batches=1, execution=execution)


def _timed(dataset: Dataset, recipe: Recipe, *, batches: int, execution: Execution | None) -> float:
    dataset = dataset.at_size(recipe.size)
    rows = min(len(dataset.train), batches * recipe.batch_size)
    test = dataset.test
    rows_of_test = min(len(test), recipe.batch_size)
    few = dataclasses.replace(
        test,
        store=RawImages(test.store.gather(np.arange(rows_of_test))),
        labels=test.labels[:rows_of_test],
        truth=None,
    )
    small = dataclasses.replace(dataset, splits={**dataset.splits, "test": few})
    short = dataclasses.replace(recipe, epochs=2, milestones=(), online_every=0)
    compute = (execution or Execution()).compute
    member = train_member(small, short, seed=0, plan=Plan.of_rows(np.arange(rows)), compute=compute)
    return member.history[-1].images_per_second


def arm_lines(found: Preview) -> list[str]:
    """The arms of a preview as text; a reason that several arms share is told once, with ranges of what differs."""
    widest = max(len(arm.name) for arm in found.arms)
    notes = _notes(found.arms)
    return [
        f"{arm.name:<{widest}}  {arm.trainings:>4} trainings, {arm.done:>4} done"
        + (f"  ({notes[arm.name]})" if notes[arm.name] else "")
        for arm in found.arms
    ]


def _notes(arms: Sequence[ArmPreview]) -> dict[str, str]:
    notes = {arm.name: arm.note for arm in arms}
    reasons = {name: note.removeprefix(INFEASIBLE) for name, note in notes.items() if note.startswith(INFEASIBLE)}
    for alike, reason in by_reason(reasons):
        notes |= dict.fromkeys(alike, f"{INFEASIBLE}as {alike[0]}")
        notes[alike[0]] = f"{INFEASIBLE}{reason}"
    return notes


def time_line(found: Preview, *, rate: float, at_once: int) -> str:
    """How long the rest of a study would take, as text."""
    total, done = sum(arm.trainings for arm in found.arms), sum(arm.done for arm in found.arms)
    seconds = found.images / rate / at_once
    hours, minutes = divmod(round(seconds / 60), 60)
    took = f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
    return (
        f"{counted(total, 'training')}, {done} done, {total - done} to do: about {took} "
        f"({found.images:,} images at {rate:,.{0 if rate >= 10 else 1}f} per second and member, {at_once} at once)"
    )
