"""`hbr-fast suspects`."""

from __future__ import annotations

from pathlib import Path

from hbr_fast import progress
from hbr_fast.cli.options import OutPath, RunPath, dataset_of
from hbr_fast.cli.overwriting import refuse_to_overwrite

MOST_PRINTED = 10  # suspects


def suspects(
    run: RunPath,
    out: OutPath,
    *,
    count: int | None = None,
    threshold: float | None = None,
    percentile: float = 99.0,
    estimator: str = "aum",
    truth: Path | None = None,
    csv: Path | None = None,
    force: bool = False,
) -> None:
    """Find train samples that look mislabelled, and write a plan without them.

    Without --count and --threshold the threshold samples of relabel set the cut: train on the dataset that relabel
    wrote, then with the plan on the original one. Threshold samples are kept; another seed judges them too.

    Args:
        run: A run directory that train wrote.
        out: Plan file to write (.safetensors), for train --plan.
        count: Suspect the N hardest samples.
        threshold: Suspect the samples at least as hard as this.
        percentile: Suspect what is harder than all but this share of the threshold samples, in percent.
        estimator: The estimator of hardness.
        truth: A dataset of the same images with the true labels, to score the suspects against.
        csv: Write the suspects to this file, the hardest first: id, class, source and score.
        force: Replace the files.
    """
    progress.say("suspects: loading")  # the imports below take seconds
    import numpy as np

    from hbr_fast.data.plan import Plan
    from hbr_fast.data.relabel import fingerprint_for_plans, real_classes, true_labels
    from hbr_fast.files import atomic_write
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.members.ensemble import open_ensemble
    from hbr_fast.members.scoring.final_model import scores_by
    from hbr_fast.resampling.noise import NoisyLabels, score_detection, score_ranking, threshold_of
    from hbr_fast.resampling.noise import suspects as suspected_by
    from hbr_fast.studies.results import sample_table

    refuse_to_overwrite(out, force, kind="plan")
    if csv is not None:
        refuse_to_overwrite(csv, force, kind="table")
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
    table = sample_table(scores_by(ensemble.members, opened, estimator), opened)
    scores = table[estimator].to_numpy()
    if by_threshold_samples:
        threshold = threshold_of(scores, labels, num_classes=classes, hard_is=chosen.hard_is, percentile=percentile)
    ids = np.flatnonzero(judged)
    found = ids[suspected_by(scores[ids], hard_is=chosen.hard_is, count=count, threshold=threshold)]
    rest = np.setdiff1d(np.arange(len(labels)), found)
    how = {"estimator": estimator, "count": count, "threshold": threshold}
    detection = ranked = None
    if truth is not None:
        right = true_labels(truth, opened)
        noisy = NoisyLabels(np.where(judged, labels, right), right)
        detection = score_detection(found, noisy)
        if noisy.wrong.any():
            ranked = score_ranking(np.where(judged, scores, np.nan), noisy, hard_is=chosen.hard_is)
    Plan.of_rows(rest, provenance={"dataset": fingerprint_for_plans(opened), "suspects": how}).save(out)
    where = f"{estimator} {'<=' if chosen.hard_is == 'low' else '>='} {threshold:.4g}" if count is None else estimator
    print(f"{out}: {len(rest):,} rows; {len(found):,} of {len(ids):,} samples are suspects by {where}")
    totals = np.bincount(labels, minlength=classes).tolist()
    for name, some, all_ in zip(opened.classes, np.bincount(labels[found], minlength=classes), totals, strict=False):
        print(f"{some:>9,} of {all_:>9,}  {name}")
    gone = [opened.classes[c] for c in np.setdiff1d(labels, labels[rest]) if c < len(opened.classes)]
    if gone:
        progress.say(f"warning: {out} leaves no sample of {' and '.join(gone)}")
    if detection is not None:
        print(
            f"wrong labels: {100 * detection.precision:.1f} % of the suspects have one, "
            f"{100 * detection.recall:.1f} % of the wrong labels are suspects"
        )
    if ranked is not None:
        print(
            f"ranking by {estimator}: average precision {ranked.average_precision:.3f}, AUROC {ranked.auroc:.3f}, "
            f"precision at the true count {ranked.precision_at_count:.3f}"
        )
    of_sample = [name for name in ("sample_id", "class_index", "class_name", "source") if name in table.columns]
    listed = table[found].select(*of_sample, estimator)
    listed = listed.sort(estimator, "sample_id", descending=[chosen.hard_is == "high", False])
    for row in listed.head(MOST_PRINTED).iter_rows(named=True):
        source = f"  {row['source']}" if "source" in row else ""
        print(f"{row[estimator]:>12.4f}  sample {row['sample_id']}  {row['class_name']}{source}")
    if listed.height > MOST_PRINTED:
        print(f"{'':>12}  and {listed.height - MOST_PRINTED:,} more{'' if csv else ': --csv FILE lists them all'}")
    if csv is not None:
        with atomic_write(csv) as file:
            listed.write_csv(file)
        print(f"{len(found):,} suspects: {csv}")
