"""How well each estimator, AUM with threshold samples, and cleanlab find wrong labels where the truth is known.

    hbr-fast relabel cifar10.hbr worse.hbr --labels judges.npz --key worse
    hbr-fast train worse.hbr runs/worse --recipe small-cnn --members 2
    python benchmarks/wrong_labels.py runs/worse --truth cifar10.hbr

Every estimator ranks the samples of the same trainings. `--threshold-samples` adds the procedure of Pleiss et al.
(NeurIPS 2020): two trainings with different threshold samples judge each other's, and suspects are below the 99th
percentile of the threshold samples.

    hbr-fast relabel worse.hbr worse-a.hbr --threshold-samples --seed 0
    hbr-fast relabel worse.hbr worse-b.hbr --threshold-samples --seed 1
    hbr-fast train worse-a.hbr runs/worse-a --recipe small-cnn --members 1
    hbr-fast train worse-b.hbr runs/worse-b --recipe small-cnn --members 1
    python benchmarks/wrong_labels.py runs/worse --truth cifar10.hbr --threshold-samples runs/worse-a runs/worse-b \
        --cleanlab runs/worse-folds --folds 4

`--cleanlab` adds cleanlab (its own package, `pip install cleanlab`), which judges by probabilities of networks that did
not see the sample: for each fold, a network of the run's recipe is trained on the others, and kept. The command goes on
where it was interrupted. `held-out margin` is the margin of the same networks' logits.

The `aum` package has no row of its own: fed with the logits of a training it computes the `aum` of that one member, to
the last digits (tests/hardness/test_aum.py), and has no ensembles. Its row is `aum` with `--members 1`.

Cost: trainings count the images trained on, as a multiple of one training on all; seconds are those of the trainings,
without the pass over the images that `..._final` and cleanlab need. The last line is JSON by method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from held_out import held_out_logits, seconds_of
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from hbr_fast.cli.options import dataset_of
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.relabel import fingerprint_for_plans, real_classes, true_labels
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.members.ensemble import open_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.scoring.final_model import scores_by, scores_of_logits
from hbr_fast.members.store import StoredMember
from hbr_fast.resampling.noise import NoisyLabels, score_detection, score_ranking, suspects, threshold_of
from hbr_fast.training.recipe import Recipe, stored_recipe

QUALITIES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")  # cleanlab's rankings


@dataclass(frozen=True)
class Row:
    """A method's ranking of all samples, its own choice of suspects, and what it cost; None: it has none."""

    trainings: float
    seconds: float
    average_precision: float | None = None
    auroc: float | None = None
    precision_at_count: float | None = None
    suspects: int | None = None
    precision: float | None = None
    recall: float | None = None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="an ensemble trained on the wrong labels")
    parser.add_argument("--truth", type=Path, required=True, help="the dataset with the right ones")
    parser.add_argument("--members", type=int, help="use the first N members of the run")
    parser.add_argument(
        "--threshold-samples", type=Path, nargs="+", default=[], help="ensembles trained with threshold samples"
    )
    parser.add_argument("--cleanlab", type=Path, help="where the networks of the folds are kept")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument(
        "--fold-members", type=int, default=1, help="networks of a fold, whose predictions are averaged"
    )
    parser.add_argument("--members-at-once", type=int, help="networks of folds that train at once (default: auto)")
    chosen = parser.parse_args(argv)
    ensemble, about = open_ensemble(chosen.run)
    dataset = dataset_of(chosen.run, about)
    members = ensemble.members[: chosen.members]
    noisy = NoisyLabels(dataset.train.labels, true_labels(chosen.truth, dataset))
    rows = by_estimators(members, dataset, noisy)
    if chosen.threshold_samples:
        rows |= by_threshold_samples(chosen.threshold_samples, dataset, noisy)
    if chosen.cleanlab is not None:
        recipe = stored_recipe(members[0].path / "recipe.json", remedy=f"train {chosen.run} again")
        execution = Execution(chosen.members_at_once or "auto")
        logits_mnc, cost = out_of_fold(
            dataset, recipe, chosen.cleanlab, folds=chosen.folds, members=chosen.fold_members, execution=execution
        )
        rows |= by_cleanlab(logits_mnc, cost, noisy)
    print_table(rows, f"{dataset.name}: {100 * noisy.wrong.mean():.1f} % wrong labels, {len(members)} members")
    print(json.dumps({name: asdict(row) for name, row in rows.items()}, allow_nan=False))


def by_estimators(members: Sequence[StoredMember], dataset: Dataset, noisy: NoisyLabels) -> dict[str, Row]:
    """Each estimator that the trainings and final networks of an ensemble have."""
    found = {}
    for name, one in ESTIMATORS.items():
        if one.origin != "second training":
            scores_n = scores_by(members, dataset, name).per_sample(name)
            ranked = asdict(score_ranking(scores_n, noisy, hard_is=one.hard_is))
            found[name] = Row(len(members), seconds_of(members), **ranked)
    return found


def by_threshold_samples(runs: Sequence[Path], dataset: Dataset, noisy: NoisyLabels) -> dict[str, Row]:
    """AUM of trainings with threshold samples, relative to the cut that those of the same training give.

    A sample's score is the mean over the runs in which it is no threshold sample itself; a suspect's is at most 0.
    """
    opened = []
    for run in runs:
        ensemble, about = open_ensemble(run)
        with_extra = dataset_of(run, about)
        if fingerprint_for_plans(with_extra) != dataset.fingerprint:
            raise ValueError(f"{run} was not trained on what relabel --threshold-samples makes of {dataset.path}")
        opened.append((ensemble.members, with_extra))
    members = [member for own, _ in opened for member in own]
    found = {}
    for name in ("aum", "aum_final"):
        above_rn = np.full((len(runs), len(noisy.labels)), np.nan)
        for above_n, (own, with_extra) in zip(above_rn, opened, strict=True):
            classes, labels = real_classes(with_extra), with_extra.train.labels
            scores_n = scores_by(own, with_extra, name).per_sample(name)
            cut = threshold_of(scores_n, labels, num_classes=classes, hard_is="low")
            above_n[labels < classes] = (scores_n - cut)[labels < classes]
        above_n = np.ma.masked_invalid(above_rn).mean(axis=0).filled(np.nan)
        ranked = asdict(score_ranking(above_n, noisy, hard_is="low"))
        chosen = detected(suspects(above_n, hard_is="low", threshold=0.0), noisy)
        found[f"{name}, threshold samples"] = Row(len(members), seconds_of(members), **ranked, **chosen)
    return found


def folds_of(samples: int, count: int) -> list[np.ndarray]:
    """Samples of each fold, at random, ascending."""
    rows = np.random.default_rng(0).permutation(samples)
    return [np.sort(fold) for fold in np.array_split(rows, count)]


def out_of_fold(
    dataset: Dataset, recipe: Recipe, out: Path, *, folds: int, members: int, execution: Execution
) -> tuple[np.ndarray, tuple[float, float]]:
    """Logits of each sample by networks of the other folds, float [M, N, C]; the trainings and seconds they cost."""
    cut = folds_of(len(dataset.train), folds)
    rows, numbers = zip(*((fold, number) for fold in cut for number in range(members)), strict=True)
    found = held_out_logits(dataset, recipe, rows, out, execution=execution, numbers=numbers)
    logits_mnc = np.empty((members, len(dataset.train), dataset.train.num_classes), np.float32)
    for fold, number, logits in zip(rows, numbers, found.logits, strict=True):
        logits_mnc[number, fold] = logits
    return logits_mnc, (sum(found.trainings), sum(found.seconds))


def by_cleanlab(logits_mnc: np.ndarray, cost: tuple[float, float], noisy: NoisyLabels) -> dict[str, Row]:
    """cleanlab's rankings and its choice of suspects by probabilities out of fold; the margin of the same logits."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    probabilities = softmax(logits_mnc.astype(np.float64), axis=2).mean(axis=0)
    found = {}
    for method in QUALITIES:
        quality_n = get_label_quality_scores(noisy.labels, probabilities, method=method, adjust_pred_probs=False)
        found[f"cleanlab {method}"] = Row(*cost, **asdict(score_ranking(quality_n, noisy, hard_is="low")))
    wrong = np.flatnonzero(find_label_issues(noisy.labels, probabilities, n_jobs=1))
    found["cleanlab find_label_issues"] = Row(*cost, **detected(wrong, noisy))
    margins = [scores_of_logits(logits_nc, noisy.labels).per_sample("aum_final") for logits_nc in logits_mnc]
    found["held-out margin"] = Row(*cost, **asdict(score_ranking(np.mean(margins, axis=0), noisy, hard_is="low")))
    return found


def detected(suspected: np.ndarray, noisy: NoisyLabels) -> dict[str, Any]:
    """The columns of a method's own choice of suspects."""
    if not len(suspected):
        return {"suspects": 0, "recall": 0.0}
    return {"suspects": len(suspected), **asdict(score_detection(suspected, noisy))}


def print_table(rows: dict[str, Row], title: str) -> None:
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    for column in (
        "average precision",
        "AUROC",
        "at true count",
        "suspects",
        "precision",
        "recall",
        "trainings",
        "seconds",
    ):
        table.add_column(column, justify="right")
    for name, row in sorted(rows.items(), key=lambda one: -(one[1].average_precision or 0)):
        shares = (row.average_precision, row.auroc, row.precision_at_count), (row.precision, row.recall)
        ranked, chosen = ([f"{share:.3f}" if share is not None else "" for share in part] for part in shares)
        count = f"{row.suspects:,}" if row.suspects is not None else ""
        table.add_row(name, *ranked, count, *chosen, f"{row.trainings:g}", f"{row.seconds:.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
