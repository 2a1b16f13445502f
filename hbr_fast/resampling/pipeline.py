"""Prune, allocate, resample: from the hardness of a dataset's samples to the plan of an epoch, in one call.

`hbr-fast resample` and studies make their plans here. The steps are `pruning.prune`, `allocation.allocate` and
`rows.resample`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.verify import require_unchanged
from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.estimators import estimator as estimator_named
from hbr_fast.hardness.scores import HardnessScores
from hbr_fast.resampling.allocation import Allocation, Nonpositive, allocate
from hbr_fast.resampling.base import Base, base_sizes, resolved_base
from hbr_fast.resampling.pools import POOL, RankedPool
from hbr_fast.resampling.pruning import Pruning, prune
from hbr_fast.resampling.ranking import shuffled
from hbr_fast.resampling.rows import resample
from hbr_fast.resampling.smote import same_class_neighbours
from hbr_fast.seeding import Stream


@dataclass(frozen=True)
class Resampled:
    """A plan, and the allocation it follows: None if the rows are only pruned."""

    plan: Plan
    allocation: Allocation | None


def resample_by_hardness(
    dataset: Dataset,
    scores: HardnessScores,
    estimator: str = "aum",
    *,
    alpha: float | None = 1.0,
    undersample: str = "easy",
    oversample: str = "random",
    pruning: Pruning | None = None,
    base: Base | None = None,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    other_class: bool = False,
    ids: np.ndarray | None = None,
    pool: RankedPool | Callable[[], RankedPool] | None = None,
    cache: Path | None = None,
    seed: int,
) -> Resampled:
    """Resample the train split of a dataset by the hardness of its classes.

    Samples are pruned first. Class hardness is then the mean score of those left, and the plan has as many rows as
    there are samples left (unless a strategy is "none").

    Parameters
    ----------
    dataset : Dataset
    scores : HardnessScores
        Of its train split, e.g. `Ensemble.scores()`.
    estimator : str
        One that `scores` hold.
    alpha : float or None
        Degree of resampling, see `allocate`. None: only prune; every remaining sample is one row.
    undersample, oversample : str
        See `resample`.
    pruning : Pruning, optional
        What to set aside: the holdout of `oversample="holdout"`.
    base : "own", "balanced", float in [0, 1] or None
        Sizes that the classes start from (those at alpha = 0): of the samples that pruning leaves, equal ones, or a
        power of the first. None is "own" where the classes differ by more than a tenth before pruning, else
        "balanced".
    nonpositive, clip
        See `allocate`.
    other_class : bool
        Give every class the hardness of another one, by a random cycle: a control, as much resampling that hardness
        has no part in.
    ids : int64 [K], optional
        Samples to start from, by default all of the train split.
    pool : RankedPool, or a function that returns one, optional
        The images of the "pool-..." oversamplers. A function is called only if one is used and the allocation is
        feasible: ranking a pool by an ensemble may take hours.
    cache : path, optional
        A directory that caches the neighbours of "smote".
    seed : int
        In [0, 2**63).

    Returns
    -------
    Resampled
        The plan's provenance holds the dataset, the estimator, alpha, the base, the pruning and the entries of
        `resample`.

    Raises
    ------
    ValueError
        If the scores are of another dataset or lack the estimator, a class has no sample with a score left, or a step
        refuses its arguments.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hbr_fast import HardnessScores, convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = convert("synthetic", Path(folder) / "toy.hbr", classes=2, train_per_class=6, test_per_class=1)
    ...     margins = np.where(data.train.labels == 0, 1.0, 2.0)[None]  # class 0 is twice as hard
    ...     seen = np.ones_like(margins, dtype=np.int64)
    ...     scores = HardnessScores({"aum": margins}, seen, seen == 0, {"dataset": data.fingerprint})
    ...     resample_by_hardness(data, scores, seed=0).plan.provenance["counts"]
    [8, 4]
    """
    scores.require_dataset(dataset.fingerprint)
    if alpha is not None and oversample == "smote" and dataset.train.store.image_shape is None:
        raise ValueError(
            "smote compares pixels, and pictures that vary in size have no pixels in common: choose a size, e.g. "
            "dataset.at_size(96) or --set size=96 in a study, or oversample another way"
        )
    labels, classes = dataset.train.labels, dataset.classes
    hard_is, scores_n = estimator_named(estimator).hard_is, scores.per_sample(estimator)
    kept = np.arange(len(labels)) if ids is None else np.asarray(ids, np.int64)
    holdout = kept[:0]
    chosen = resolved_base(base, np.bincount(labels[kept], minlength=len(classes)))
    if pruning is not None:
        pruned = prune(
            labels,
            pruning.rate,
            by=pruning.by,
            level=pruning.level,
            drop=pruning.drop,
            ids=kept,
            scores_n=scores_n,
            hard_is=hard_is,
            seed=seed,
            classes=classes,
        )
        kept, holdout = pruned.kept, pruned.holdout
    provenance = {
        "dataset": dataset.fingerprint,
        "estimator": estimator,
        "alpha": alpha or 0.0,
        "prune": None if pruning is None else dataclasses.asdict(pruning),
    }
    had = np.bincount(labels[kept], minlength=len(classes))
    if alpha is None:
        return Resampled(Plan.of_rows(kept, provenance={**provenance, "counts": had.tolist()}), None)
    provenance["base"] = chosen
    hardness_c = class_means(scores_n[kept], labels[kept], len(classes), classes=classes)
    if other_class:
        provenance["other_class"] = True
        cycle = shuffled(np.arange(len(classes)), seed=seed, stream=Stream.OTHER_CLASS, c=0)
        hardness_c[cycle] = hardness_c[np.roll(cycle, 1)]
    allocation = allocate(
        hardness_c,
        hard_is=hard_is,
        alpha=alpha,
        total=len(kept),
        nonpositive=nonpositive,
        clip=clip,
        classes=classes,
        base=base_sizes(chosen, had),
    )
    neighbours = None
    if oversample == "smote":
        require_unchanged(dataset)
        neighbours = same_class_neighbours(
            dataset.train.store,
            labels,
            len(classes),
            ids=kept,
            wanted_of=np.flatnonzero(allocation.counts > had).tolist(),
            cache=cache,
            classes=classes,
        )
    if oversample not in POOL:
        pool = None
    plan = resample(
        labels,
        allocation.counts,
        ids=kept,
        scores_n=scores_n,
        hard_is=hard_is,
        undersample=undersample,
        oversample=oversample,
        holdout=holdout,
        neighbours_nk=neighbours,
        pool=pool() if callable(pool) else pool,
        seed=seed,
        provenance=provenance,
        classes=classes,
    )
    return Resampled(plan, allocation)
