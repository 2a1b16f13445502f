"""`hbr-fast resample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from hbr_fast.cli.options import dataset_of, refuse_to_overwrite


def resample(
    run: Positional[Path],
    out: Positional[Path],
    *,
    alpha: float = 1.0,
    estimator: str = "aum",
    undersample: str = "easy",
    oversample: str = "random",
    pool: Path | None = None,
    prune_rate: float = 0.0,
    prune_by: Literal["random", "hardness"] = "random",
    prune_level: Literal["class", "dataset"] = "class",
    nonpositive: Literal["shift", "authors"] | None = None,
    clip: bool = False,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Turn an ensemble's class hardness into a resampled set: a plan to train with.

    Args:
        run: A run directory that train wrote.
        out: Plan file to write (.safetensors), for train --plan.
        alpha: Degree of resampling: 0 balances the classes, 1 takes the hardness ratio itself.
        estimator: What class hardness is measured by.
        undersample: easy, hard, extreme, random or none.
        oversample: random, weighted-easy, weighted-hard, smote, holdout, pool-random, pool-average, pool-hard or none.
        pool: Generated images for the pool oversamplers: a dataset, an .npz or an .npy file.
        prune_rate: Share of the samples to leave out first; they are the holdout.
        prune_by: Leave samples out by chance, or the easiest.
        prune_level: Leave out the share of each class, or of the whole set.
        nonpositive: What to do with classes whose mean is not positive.
        clip: Hold classes at one sample where alpha is too large for them, instead of an error.
        seed: Of the random choices.
        force: Replace what is at OUT.
    """
    import numpy as np

    from hbr_fast.allocation import allocate
    from hbr_fast.data.pool import open_pool
    from hbr_fast.files import read_json
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.pruning import prune
    from hbr_fast.resampling import resample as resample_labels
    from hbr_fast.resampling.smote import same_class_neighbours
    from hbr_fast.studies.plans import hardness_of, ranked_pool
    from hbr_fast.training.ensemble import open_ensemble
    from hbr_fast.training.final import scores_by
    from hbr_fast.training.recipe import Recipe

    refuse_to_overwrite(out, force)
    chosen = estimator_named(estimator)
    ensemble, about = open_ensemble(run)
    opened = dataset_of(run, about)
    scores = scores_by(ensemble.members, opened, estimator).per_sample(estimator)
    labels, cache = opened.train.labels, run / "cache"
    ranked: dict[str, Any] = {"scores_n": scores, "hard_is": chosen.hard_is, "seed": seed, "classes": opened.classes}
    left = prune(labels, prune_rate, by=prune_by, level=prune_level, **ranked)
    allocation = allocate(
        hardness_of(opened, scores, left.kept),
        hard_is=chosen.hard_is,
        alpha=alpha,
        total=len(left.kept),
        nonpositive=nonpositive,
        clip=clip,
        classes=opened.classes,
    )
    had = np.bincount(labels[left.kept], minlength=len(opened.classes))
    neighbours = None
    if oversample == "smote":
        neighbours = same_class_neighbours(
            opened.train.images,
            labels,
            len(opened.classes),
            ids=left.kept,
            wanted_of=np.flatnonzero(allocation.counts > had).tolist(),
            cache=cache,
            classes=opened.classes,
        )
    opened_pool = None if pool is None else open_pool(pool, dataset=opened, cache=cache)
    recipe = Recipe.from_json(read_json(run / "recipe.json"))
    plan = resample_labels(
        labels,
        allocation.counts,
        ids=left.kept,
        undersample=undersample,
        oversample=oversample,
        holdout=left.holdout,
        neighbours_nk=neighbours,
        pool=ranked_pool(oversample, opened_pool, opened, recipe, ensemble.members, cache=cache),
        provenance={"dataset": opened.fingerprint, "estimator": estimator, "alpha": alpha, "prune_rate": prune_rate},
        **ranked,
    )
    plan.save(out)
    print(f"{out}: {len(plan):,} rows; the largest feasible alpha is {allocation.max_alpha:.4g}")
    for name, before, after in zip(
        opened.classes, opened.train.class_counts().tolist(), plan.provenance["counts"], strict=True
    ):
        print(f"{before:>9,} -> {after:>9,}  {name}")
