"""The resampled sets of a study: from the baseline's hardness to the plan of every arm and variant."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.hardness import HardnessScores, estimator
from hbr_fast.hardness.class_means import class_means
from hbr_fast.members.scoring.confidence import ranked_pool
from hbr_fast.members.store import StoredMember
from hbr_fast.resampling import RankedPool
from hbr_fast.resampling.allocation import Allocation, allocate
from hbr_fast.resampling.base import base_sizes, resolved_base
from hbr_fast.resampling.pipeline import resample_by_hardness
from hbr_fast.resampling.pools import POOL
from hbr_fast.resampling.pruning import prune
from hbr_fast.seeding import Stream
from hbr_fast.studies.infeasible import said
from hbr_fast.studies.study import Arm, Study
from hbr_fast.training.recipe import Recipe

HELD_OUT = 0.1  # of each class, to choose an arm by where the dataset has no validation split


@dataclass(frozen=True)
class ArmPlan:
    """One variant of an arm.

    Attributes
    ----------
    plan : Plan
        Its rows.
    allocation : Allocation or None
        What they follow; None if the arm does not resample.
    recipe : Recipe
    pools : tuple of Pool
    is_baseline : bool
        Whether recipe and rows are the baseline's, as where a balanced set is made of equal classes.
    """

    plan: Plan
    allocation: Allocation | None
    recipe: Recipe
    pools: tuple[Pool, ...] = ()
    is_baseline: bool = False


@dataclass(frozen=True)
class Rows:
    """The samples of a study.

    Attributes
    ----------
    train : int64 [N]
        Rows of the train split to train on.
    validation : int64 [K]
        Rows to choose an arm by.
    of : str
        The split that these are rows of: the dataset's validation split, or "train", where they are held out.
    """

    train: np.ndarray
    validation: np.ndarray
    of: str = "train"


def study_rows(study: Study, dataset: Dataset) -> Rows:
    """Train on all samples; if the study chooses an arm, by the validation split, or a share of each class held out.

    Raises
    ------
    ValueError
        If a class has no sample to choose by.
    """
    labels = dataset.train.labels
    if study.choose is None:
        return Rows(np.arange(len(labels)), np.arange(0))
    share = held_out_share(study, dataset)
    if share is None:
        assert dataset.validation is not None
        empty = np.flatnonzero(dataset.validation.class_counts() == 0)
        if len(empty):
            raise ValueError(
                f"class {dataset.classes[empty[0]]!r} has no sample in the validation split of {dataset.path} "
                f"({len(empty)} such): hold out a share of the train split instead, --validation {HELD_OUT:g}"
            )
        return Rows(np.arange(len(labels)), np.arange(len(dataset.validation)), of="validation")
    split = prune(
        labels,
        share,
        seed=study.validation_seed(),
        stream=Stream.VALIDATION,
        classes=dataset.classes,
    )
    empty = np.flatnonzero(np.bincount(labels[split.holdout], minlength=len(dataset.classes)) == 0)
    if len(empty):
        raise ValueError(
            f"class {dataset.classes[empty[0]]!r} has no sample in a validation split of "
            f"{share:g}: hold out a larger share"
        )
    return Rows(split.kept, split.holdout)


def held_out_share(study: Study, dataset: Dataset) -> float | None:
    """The share of each class of the train split that is held out to choose an arm by; None if there is none."""
    if study.choose is None or (study.choose.validation is None and dataset.validation is not None):
        return None
    return HELD_OUT if study.choose.validation is None else study.choose.validation


def baseline_plan(study: Study, dataset: Dataset, rows: Rows) -> Plan | None:
    """Rows of the baseline; None means every sample."""
    share = held_out_share(study, dataset)
    if share is None:
        return None
    return Plan.of_rows(rows.train, provenance={"dataset": dataset.fingerprint, "validation": share})


class Planner:
    """Makes the plans of arms from the baseline ensemble, and caches what arms share.

    Parameters
    ----------
    study : Study
    dataset : Dataset
    rows : Rows
    scores : HardnessScores
        Of the baseline.
    members : sequence of StoredMember
        Of the baseline; they rank a pool.
    pool : Pool, optional
        Generated images.
    cache : path
        Caches neighbours and a pool's ranking.
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
        self.scores = scores
        self.class_hardness = class_means(
            scores.per_sample(study.estimator)[rows.train],
            dataset.train.labels[rows.train],
            len(dataset.classes),
            classes=dataset.classes,
        )

    def path_arms(self) -> list[Arm]:
        """The arms of a path of alphas: geometric steps up to the largest feasible alpha, over at most two decades."""
        arm, points = self.study.path_from, self.study.path
        if arm is None:
            return []
        sizes = np.bincount(self.dataset.train.labels[self.rows.train], minlength=len(self.dataset.classes))
        most = allocate(
            self.class_hardness,
            hard_is=estimator(self.study.estimator).hard_is,
            alpha=1e-6,
            total=len(self.rows.train),
            nonpositive=arm.nonpositive,
            clip=arm.clip,
            classes=self.dataset.classes,
            base=base_sizes(resolved_base(arm.base, sizes), sizes),
        ).max_alpha
        if not np.isfinite(most):
            raise ValueError("all classes are equally hard: a path of alphas has nothing to resample")
        alphas = most * np.geomspace(1 / 32, 1, points) if points > 1 else np.array([most])
        # Rounded down to three digits: the largest stays feasible, and names stay short.
        digits = [10.0 ** (2 - int(np.floor(np.log10(alpha)))) for alpha in alphas]
        rounded = [float(np.floor(alpha * unit) / unit) for alpha, unit in zip(alphas, digits, strict=True)]
        return [dataclasses.replace(arm, name=f"{arm.name}-{alpha:g}", alpha=alpha) for alpha in rounded]

    def plans(self, *, neighbours: bool = True) -> tuple[list[tuple[Arm, list[ArmPlan]]], dict[str, str]]:
        """Every feasible arm with the plans of its variants, and why the others have none.

        An arm without its comparison arm is infeasible too. Without `neighbours` the plans of "smote" have copies in
        place of interpolated samples: as many rows, without the search.

        Raises
        ------
        ValueError
            If no arm is feasible though there are some, with the reasons of all.
        """
        infeasible: dict[str, str] = {}
        found: list[tuple[Arm, list[ArmPlan]]] = []
        arms = list(self.study.arms)
        try:
            arms += self.path_arms()
        except ValueError as error:
            assert self.study.path_from is not None
            infeasible[self.study.path_from.name] = str(error)
        for arm in arms:
            try:
                if reason := lacks_pool(arm, self.pool):
                    raise ValueError(reason)
                copies = arm.oversample == "smote" and not neighbours
                made_as = dataclasses.replace(arm, oversample="random") if copies else arm
                found.append((arm, [self.plan(made_as, variant) for variant in range(self.study.variants)]))
            except ValueError as error:
                infeasible[arm.name] = str(error)
        while stranded := [arm for arm, _ in found if arm.against in infeasible]:
            infeasible |= {arm.name: f"it is compared with {arm.against!r}" for arm in stranded}
            found = [(arm, plans) for arm, plans in found if arm not in stranded]
        if infeasible and not found:
            raise ValueError(said(infeasible))
        return found, infeasible

    def plan(self, arm: Arm, variant: int) -> ArmPlan:
        """The rows of one variant of an arm.

        Raises
        ------
        ValueError
            If it is infeasible.
        """
        made = resample_by_hardness(
            self.dataset,
            self.scores,
            self.study.estimator,
            alpha=arm.alpha if arm.resamples else None,
            undersample=arm.undersample,
            oversample=arm.oversample,
            pruning=arm.prune,
            base=arm.base,
            nonpositive=arm.nonpositive,
            clip=arm.clip,
            other_class=arm.other_class,
            ids=self.rows.train,
            pool=None if self.pool is None else functools.partial(self._ranked, arm.oversample, self.pool),
            cache=self.cache,
            seed=self.study.resampling_seed(variant),
        )
        recipe = self.study.recipe_of(arm)
        if arm.reweight:
            assert made.allocation is not None, "weights by hardness follow from an allocation"
            labels = self.dataset.train.labels[self.rows.train]
            counts = np.bincount(labels, minlength=len(self.dataset.classes))
            weights = (made.allocation.counts / np.maximum(counts, 1)).round(6).tolist()
            own = recipe.loss_args if recipe.loss == "cross-entropy" else {}
            recipe = dataclasses.replace(recipe, loss="cross-entropy", loss_args={**own, "class_weight": weights})
            provenance = {**made.plan.provenance, "counts": counts.tolist(), "class_weight": weights}
            return ArmPlan(Plan.of_rows(self.rows.train, provenance=provenance), made.allocation, recipe)
        pools = (self.pool,) if made.plan.stores and self.pool is not None else ()
        same = recipe == self.study.recipe and self.study.choose is None and _is_all(made.plan, self.rows.train)
        return ArmPlan(made.plan, made.allocation, recipe, pools, is_baseline=same)

    def _ranked(self, oversample: str, pool: Pool) -> RankedPool:
        return ranked_pool(oversample, pool, self.dataset, self.members, cache=self.cache)


def _is_all(plan: Plan, ids: np.ndarray) -> bool:
    """Whether a plan's rows are these samples, each once and in order."""
    return not plan.stores and np.array_equal(plan.index, ids) and bool((plan.partner < 0).all())


def lacks_pool(arm: Arm, pool: Pool | None) -> str:
    """Why an arm cannot be planned without a pool, or ""."""
    if arm.oversample in POOL and pool is None:
        return f"oversampler {arm.oversample} takes images from a pool, and none was given"
    return ""


def require_pool(study: Study, pool: Pool | None) -> None:
    """Refuse a study whose every arm needs a missing pool, before its baseline trains."""
    arms = [*study.arms, *([study.path_from] if study.path_from else [])]
    if arms and all(lacks_pool(arm, pool) for arm in arms):
        raise ValueError(said({arm.name: "the images come from a pool, and none was given" for arm in arms}))
