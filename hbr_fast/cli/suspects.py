"""`hbr-fast suspects`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from hbr_fast.cli.options import dataset_of, refuse_to_overwrite


def suspects(
    run: Positional[Path],
    out: Positional[Path],
    *,
    count: int | None = None,
    threshold: float | None = None,
    percentile: float = 99.0,
    estimator: str = "aum",
    truth: Path | None = None,
    force: bool = False,
) -> None:
    """Find train samples that look mislabelled, and write a plan without them.

    Without --count and --threshold the threshold samples of relabel say what is suspect: train on the dataset that it
    wrote, and with the plan on the one that it was given. They are kept: another seed judges them too.

    Args:
        run: A run directory that train wrote.
        out: Plan file to write (.safetensors), for train --plan.
        count: Suspect so many samples, the hardest.
        threshold: Suspect the samples at least as hard as this.
        percentile: Suspect what is harder than all but this share of the threshold samples, in percent.
        estimator: What hardness is measured by.
        truth: A dataset of the same images with the true labels: tells how many suspects are rightly so.
        force: Replace the plan file.
    """
    import numpy as np

    from hbr_fast.data.relabel import fingerprint_for_plans, real_classes, true_labels
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.noise import NoisyLabels, score_detection, threshold_of
    from hbr_fast.noise import suspects as suspected_by
    from hbr_fast.plan import Plan
    from hbr_fast.training.ensemble import open_ensemble
    from hbr_fast.training.final import scores_by

    refuse_to_overwrite(out, force)
    chosen = estimator_named(estimator)
    ensemble, about = open_ensemble(run)
    opened = dataset_of(run, about)
    labels, classes = opened.train.labels, real_classes(opened)
    judged = labels < classes
    by_threshold_samples = count is None and threshold is None
    if by_threshold_samples and judged.all():
        raise ValueError(
            f"{run} was trained without threshold samples: give --count or --threshold, or train on what "
            "relabel --threshold-samples wrote"
        )
    scores = scores_by(ensemble.members, opened, estimator).per_sample(estimator)
    if by_threshold_samples:
        threshold = threshold_of(scores, labels, num_classes=classes, hard_is=chosen.hard_is, percentile=percentile)
    ids = np.flatnonzero(judged)
    found = ids[suspected_by(scores[ids], hard_is=chosen.hard_is, count=count, threshold=threshold)]
    rest = np.setdiff1d(np.arange(len(labels)), found)
    how = {"estimator": estimator, "count": count, "threshold": threshold}
    detection = None
    if truth is not None:
        right = true_labels(truth, opened)
        detection = score_detection(found, NoisyLabels(np.where(judged, labels, right), right))
    Plan.of_rows(rest, provenance={"dataset": fingerprint_for_plans(opened), "suspects": how}).save(out)
    where = f"{estimator} {'<=' if chosen.hard_is == 'low' else '>='} {threshold:.4g}" if count is None else estimator
    print(f"{out}: {len(rest):,} rows; {len(found):,} of {len(ids):,} samples are suspects by {where}")
    totals = np.bincount(labels, minlength=classes).tolist()
    for name, some, all_ in zip(opened.classes, np.bincount(labels[found], minlength=classes), totals, strict=False):
        print(f"{some:>9,} of {all_:>9,}  {name}")
    if detection is not None:
        print(
            f"wrong labels: {100 * detection.precision:.1f} % of the suspects have one, "
            f"{100 * detection.recall:.1f} % of those that do are suspects"
        )
