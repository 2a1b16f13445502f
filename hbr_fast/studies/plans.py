"""The resampled sets of a study: from the baseline's hardness to the plan of every arm and variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hbr_fast.allocation import Allocation, allocate
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.hardness import HardnessScores, estimator
from hbr_fast.plan import Plan
from hbr_fast.pruning import prune
from hbr_fast.resampling import RankedPool, resample
from hbr_fast.resampling.pools import POOL, RANKED
from hbr_fast.resampling.smote import same_class_neighbours
from hbr_fast.seeding import Stream
from hbr_fast.studies.study import Arm, Study
from hbr_fast.training.confidence import rank_pool
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import StoredMember


@dataclass(frozen=True)
class ArmPlan:
    """One variant of an arm: its rows, and the allocation they came from (None where it does not resample)."""

    plan: Plan
    allocation: Allocation | None
    pools: tuple[Pool, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Samples of the train split: those that trainings may see, and those held out to choose by."""

    train: np.ndarray
    validation: np.ndarray


def study_rows(study: Study, dataset: Dataset) -> Rows:
    """All samples to train on, or a share of each class held out where the study chooses."""
    labels = dataset.train.labels
    if study.choose is None:
        return Rows(np.arange(len(labels)), np.arange(0))
    split = prune(
        labels,
        study.choose.validation,
        seed=study.validation_seed(),
        stream=Stream.VALIDATION,
        classes=dataset.classes,
    )
    empty = np.flatnonzero(np.bincount(labels[split.holdout], minlength=len(dataset.classes)) == 0)
    if len(empty):
        raise ValueError(
            f"class {dataset.classes[empty[0]]!r} has no sample in a validation split of "
            f"{study.choose.validation:g}: hold out a larger share"
        )
    return Rows(split.kept, split.holdout)


def baseline_plan(study: Study, dataset: Dataset, rows: Rows) -> Plan | None:
    """Rows of the baseline: None is every sample."""
    if study.choose is None:
        return None
    return Plan.of_rows(rows.train, provenance={"dataset": dataset.fingerprint, "validation": study.choose.validation})


def hardness_of(dataset: Dataset, scores_n: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Class means of the scores of some samples of the train split, float64 [C].

    Raises
    ------
    ValueError
        If a class has no scored sample among them.
    """
    labels, scores = dataset.train.labels[ids], scores_n[ids]
    seen = ~np.isnan(scores)
    sums = np.bincount(labels[seen], weights=scores[seen], minlength=len(dataset.classes))
    counts = np.bincount(labels[seen], minlength=len(dataset.classes))
    if not counts.all():
        raise ValueError(f"class {dataset.classes[int(counts.argmin())]!r} has no scored sample left: prune less")
    return sums / counts


def ranked_pool(
    oversample: str,
    pool: Pool | None,
    dataset: Dataset,
    recipe: Recipe,
    members: Sequence[StoredMember],
    *,
    cache: Path,
) -> RankedPool | None:
    """What an oversampler needs to know of a pool; None where it takes no images from one."""
    if oversample not in POOL or pool is None:
        return None
    if oversample not in RANKED:
        return RankedPool(labels=pool.split.labels, fingerprint=pool.fingerprint)
    return rank_pool(pool, dataset, recipe, members, cache=cache)


class Planner:
    """Makes the plans of arms from the baseline ensemble, and keeps what several arms need.

    Parameters
    ----------
    study : Study
    dataset : Dataset
    rows : Rows
    scores : HardnessScores
        Of the baseline.
    members : sequence of StoredMember
        Of the baseline: they rank a pool.
    pool : Pool, optional
        Generated images.
    cache : path
        Keeps neighbours and a pool's ranking.
    """

    def __init__(
        self,
        study: Study,
        dataset: Dataset,
        rows: Rows,
        *,
        scores: HardnessScores,
        members: list[StoredMember],
        pool: Pool | None,
        cache: Path,
    ) -> None:
        self.study, self.dataset, self.rows = study, dataset, rows
        self.members, self.pool, self.cache = members, pool, cache
        self.scores_n = scores.per_sample(study.estimator)
        self.hard_is = estimator(study.estimator).hard_is
        self.class_hardness = self.hardness_of(rows.train)

    def hardness_of(self, ids: np.ndarray) -> np.ndarray:
        """Class means of the scores of these samples, float64 [C]: hardness follows the samples."""
        return hardness_of(self.dataset, self.scores_n, ids)

    def path_arms(self) -> list[Arm]:
        """The arms of a path of alphas: equal ratios up to the largest feasible one, over two decades at most."""
        arm, points = self.study.path_from, self.study.path
        if arm is None:
            return []
        most = self._allocate(dataclasses.replace(arm, alpha=1e-6), self.class_hardness, len(self.rows.train)).max_alpha
        if not np.isfinite(most):
            raise ValueError("all classes are equally hard: there is nothing to resample, so no path of alphas")
        alphas = most * np.geomspace(1 / 32, 1, points) if points > 1 else np.array([most])
        # Rounded down to three digits, so that the largest stays feasible and names are short.
        digits = [10.0 ** (2 - int(np.floor(np.log10(alpha)))) for alpha in alphas]
        rounded = [float(np.floor(alpha * unit) / unit) for alpha, unit in zip(alphas, digits, strict=True)]
        return [dataclasses.replace(arm, name=f"{arm.name}-{alpha:g}", alpha=alpha) for alpha in rounded]

    def plan(self, arm: Arm, variant: int) -> ArmPlan:
        """The rows of one variant of an arm.

        Raises
        ------
        ValueError
            If it cannot be had; the message starts with the arm.
        """
        try:
            return self._plan(arm, variant)
        except ValueError as error:
            raise ValueError(f"arm {arm.name!r}: {error}") from None

    def _plan(self, arm: Arm, variant: int) -> ArmPlan:
        labels, seed = self.dataset.train.labels, self.study.resampling_seed(variant)
        kept, holdout = self.rows.train, self.rows.train[:0]
        if arm.prune is not None:
            pruned = prune(
                labels,
                arm.prune.rate,
                by=arm.prune.by,
                level=arm.prune.level,
                drop=arm.prune.drop,
                ids=kept,
                scores_n=self.scores_n,
                hard_is=self.hard_is,
                seed=seed,
                classes=self.dataset.classes,
            )
            kept, holdout = pruned.kept, pruned.holdout
        provenance = {
            "dataset": self.dataset.fingerprint,
            "estimator": self.study.estimator,
            "alpha": arm.alpha,
            "prune": None if arm.prune is None else dataclasses.asdict(arm.prune),
        }
        if not arm.resamples:
            counts = np.bincount(labels[kept], minlength=len(self.dataset.classes)).tolist()
            return ArmPlan(Plan.of_rows(kept, provenance={**provenance, "counts": counts}), None)
        allocation = self._allocate(arm, self.hardness_of(kept), len(kept))
        had = np.bincount(labels[kept], minlength=len(self.dataset.classes))
        neighbours = None
        if arm.oversample == "smote":
            neighbours = same_class_neighbours(
                self.dataset.train.images,
                labels,
                len(self.dataset.classes),
                ids=kept,
                wanted_of=np.flatnonzero(allocation.counts > had).tolist(),
                cache=self.cache,
                classes=self.dataset.classes,
            )
        plan = resample(
            labels,
            allocation.counts,
            ids=kept,
            scores_n=self.scores_n,
            hard_is=self.hard_is,
            undersample=arm.undersample,
            oversample=arm.oversample,
            holdout=holdout,
            neighbours_nk=neighbours,
            pool=ranked_pool(
                arm.oversample, self.pool, self.dataset, self.study.recipe, self.members, cache=self.cache
            ),
            seed=seed,
            provenance=provenance,
            classes=self.dataset.classes,
        )
        return ArmPlan(plan, allocation, (self.pool,) if plan.stores and self.pool is not None else ())

    def _allocate(self, arm: Arm, hardness_c: np.ndarray, total: int) -> Allocation:
        return allocate(
            hardness_c,
            hard_is=self.hard_is,
            alpha=arm.alpha,
            total=total,
            nonpositive=arm.nonpositive,
            clip=arm.clip,
            classes=self.dataset.classes,
        )


def require_pool(arms: list[Arm], pool: Pool | None) -> None:
    """Refuse arms that take images from a pool where there is none, before hours of training."""
    for arm in arms:
        if arm.oversample in POOL and pool is None:
            raise ValueError(f"arm {arm.name!r} takes images from a pool: give one with --pool, or leave the arm out")
