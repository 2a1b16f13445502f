"""`hbr-fast resample`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hbr_fast import progress
from hbr_fast.cli.options import OutPath, RunPath, dataset_of
from hbr_fast.cli.overwriting import refuse_to_overwrite


def resample(
    run: RunPath,
    out: OutPath,
    *,
    alpha: float = 1.0,
    estimator: str = "aum",
    undersample: str = "easy",
    oversample: str = "random",
    pool: Path | None = None,
    prune_rate: float = 0.0,
    prune_by: Literal["random", "hardness"] = "random",
    prune_level: Literal["class", "dataset"] = "class",
    base: Literal["own", "balanced"] | float | None = None,
    nonpositive: Literal["shift", "authors"] | None = None,
    clip: bool = False,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Turn an ensemble's class hardness into a resampled set: a plan to train with.

    Args:
        run: A run directory that train wrote.
        out: Plan file to write, for train --plan: in the safetensors format, whatever its name.
        alpha: Degree of resampling: 0 gives the classes the sizes of --base, 1 takes the hardness ratio itself.
        estimator: The estimator of class hardness.
        undersample: easy, hard, extreme, random or none.
        oversample: random, weighted-easy, weighted-hard, smote, holdout, pool-random, pool-average, pool-hard or none.
        pool: Generated images for the pool oversamplers: a dataset, an .npz or an .npy file.
        prune_rate: Share of the samples to prune first; they become the holdout.
        prune_by: Prune at random, or the easiest samples.
        prune_level: Prune the share of each class, or of the whole set.
        base: Class sizes to start from: own, balanced, or an exponent of the own sizes in [0, 1]; by default own where
            they differ by more than a tenth.
        nonpositive: What to do with classes whose mean is not positive, which is an error without it: shift raises
            all means until the least is a twentieth of their range, authors by just enough to make them positive, as
            the paper's code does.
        clip: Hold classes at one sample where alpha is too large for them, instead of failing.
        seed: Seed of the random choices.
        force: Replace OUT if it exists.
    """
    progress.say("resample: loading")  # the imports below take seconds
    import functools

    from hbr_fast.data.pool import open_pool
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.members.ensemble import open_ensemble
    from hbr_fast.members.scoring.confidence import ranked_pool
    from hbr_fast.members.scoring.final_model import scores_by
    from hbr_fast.resampling.pipeline import resample_by_hardness
    from hbr_fast.resampling.pruning import Pruning

    refuse_to_overwrite(out, force, kind="plan")
    estimator_named(estimator)  # refuse an unknown estimator before computing anything
    pruning = Pruning(prune_rate, prune_by, prune_level) if prune_rate != 0 else None
    ensemble, about = open_ensemble(run)
    opened = dataset_of(run, about)
    ranked, cache = None, run / "cache"
    if pool is not None:
        opened_pool = open_pool(pool, dataset=opened, cache=cache)
        ranked = functools.partial(ranked_pool, oversample, opened_pool, opened, ensemble.members, cache=cache)
    made = resample_by_hardness(
        opened,
        scores_by(ensemble.members, opened, estimator),
        estimator,
        alpha=alpha,
        undersample=undersample,
        oversample=oversample,
        pruning=pruning,
        base=base,
        nonpositive=nonpositive,
        clip=clip,
        pool=ranked,
        cache=cache,
        seed=seed,
    )
    plan, allocation = made.plan, made.allocation
    assert allocation is not None
    plan.save(out)
    print(
        f"{out}: {len(plan):,} rows, base {plan.provenance['base']}; the largest feasible alpha is "
        f"{allocation.max_alpha:.4g}"
    )
    for name, before, after in zip(
        opened.classes, opened.train.class_counts().tolist(), plan.provenance["counts"], strict=True
    ):
        print(f"{before:>9,} -> {after:>9,}  {name}")
