"""What a study would train, what of it is done, and how long the rest would take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.plan import Plan
from hbr_fast.studies.plans import require_pool, study_rows
from hbr_fast.studies.runner import arm_trainings, baseline_trainings, identity, make_planner
from hbr_fast.studies.study import BASELINE, Study
from hbr_fast.training.device import Compute
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import find_member, member_key, member_path
from hbr_fast.training.trainer import train_member

TIMED_BATCHES = 8


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


def preview(study: Study, dataset: Dataset, *, out: str | os.PathLike[str], pool: Pool | None = None) -> Preview:
    """List the trainings of a study and find those that are there; nothing is trained.

    Arms follow from the baseline's hardness: until the baseline is trained, theirs count as missing.

    Raises
    ------
    ValueError
        If an arm cannot be had.
    """
    directory = Path(out)
    arms = [*study.arms, *([study.path_from] if study.path_from else [])]
    require_pool(arms, pool)
    size = len(study_rows(study, dataset).train)
    first = baseline_trainings(study, dataset)
    found = [
        find_member(dataset, study.recipe, seed=training.seed, plan=training.plan, store=directory)
        for training in first
    ]
    images = study.recipe.epochs * size * sum(member is None for member in found)
    rows = [ArmPreview(BASELINE, len(first), sum(member is not None for member in found))]
    members = [member for member in found if member is not None]
    if len(members) < len(first):
        note = "rows follow from the baseline, which is not trained yet"
        rows += [ArmPreview(arm.name, study.members_per_arm, 0, note) for arm in study.arms]
        if study.path_from is not None:
            count = study.members_per_arm * study.path
            rows.append(ArmPreview(f"{study.path_from.name}, {study.path} alphas", count, 0, note))
        kept = [1 - (arm.prune.rate if arm.prune else 0.0) for arm in study.arms] + [1.0] * study.path
        return Preview(tuple(rows), images + round(study.recipe.epochs * size * study.members_per_arm * sum(kept)))
    planner = make_planner(study, dataset, members, pool=pool, directory=directory)
    seen = {identity(training) for training in first}
    for arm in [*study.arms, *planner.path_arms()]:
        trainings = arm_trainings(study, [planner.plan(arm, variant) for variant in range(study.variants)])
        done = 0
        for training in trainings:
            key = member_key(dataset, study.recipe, seed=training.seed, plan=training.plan)
            if member_path(directory, key).exists() or identity(training) in seen:
                done += 1
            else:
                images += study.recipe.epochs * len(training.plan or ())
            seen.add(identity(training))
        rows.append(ArmPreview(arm.name, len(trainings), done))
    return Preview(tuple(rows), images)


def images_per_second(dataset: Dataset, recipe: Recipe, *, compute: Compute | None = None) -> float:
    """How fast one member trains here: a few batches, after as many to warm up."""
    rows = min(len(dataset.train), TIMED_BATCHES * recipe.batch_size)
    test = dataset.test
    few = dataclasses.replace(
        test, images=test.images[: recipe.batch_size], labels=test.labels[: recipe.batch_size], truth=None
    )
    small = dataclasses.replace(dataset, splits={**dataset.splits, "test": few})
    short = dataclasses.replace(recipe, epochs=2, milestones=(), online_every=0)
    member = train_member(small, short, seed=0, plan=Plan.of_rows(np.arange(rows)), compute=compute)
    return member.history[-1].images_per_second


def preview_lines(found: Preview, *, rate: float, at_once: int) -> Sequence[str]:
    """The preview for a reader."""
    widest = max(len(arm.name) for arm in found.arms)
    lines = [
        f"{arm.name:<{widest}}  {arm.trainings:>4} trainings, {arm.done:>4} done{f'  ({arm.note})' if arm.note else ''}"
        for arm in found.arms
    ]
    total, done = sum(arm.trainings for arm in found.arms), sum(arm.done for arm in found.arms)
    seconds = found.images / rate / at_once
    hours, minutes = divmod(round(seconds / 60), 60)
    time = f"{hours} h {minutes:02} min" if seconds >= 60 else f"{seconds:.0f} s"
    return [
        *lines,
        f"{total} trainings, {done} done, {total - done} to do: about {time} "
        f"({found.images:,} images at {rate:,.0f} a second and member, {at_once} at once)",
    ]
