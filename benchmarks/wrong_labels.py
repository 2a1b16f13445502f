"""How well each estimator, and cleanlab, finds the wrong labels of a dataset whose truth is known.

    hbr-fast relabel cifar10.hbr worse.hbr --labels judges.npz --key worse
    hbr-fast train worse.hbr runs/worse --recipe small-cnn --members 2
    python benchmarks/wrong_labels.py runs/worse --truth cifar10.hbr [--cleanlab runs/worse-folds --folds 4]

Every estimator ranks the samples of the same trainings. cleanlab (its own package, `pip install cleanlab`) judges by
probabilities that it needs from networks which did not see the sample: with `--cleanlab`, a network of the run's recipe
is trained without each fold, and kept there. `aum` is also what the package of that name computes, for one member
(tests/hardness/test_aum.py compares them). The last line is JSON by method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from hbr_fast.cli.options import dataset_of
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.relabel import true_labels
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.members.ensemble import Ensemble, open_ensemble, train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.scoring.final_model import as_trained, scores_by, trained_model
from hbr_fast.resampling.noise import NoisyLabels, score_ranking
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import stored_recipe

METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")  # cleanlab's


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="an ensemble trained on the wrong labels")
    parser.add_argument("--truth", type=Path, required=True, help="the dataset with the right ones")
    parser.add_argument("--cleanlab", type=Path, help="where the networks of the folds are kept")
    parser.add_argument("--folds", type=int, default=4)
    chosen = parser.parse_args(argv)
    ensemble, about = open_ensemble(chosen.run)
    dataset = dataset_of(chosen.run, about)
    noisy = NoisyLabels(dataset.train.labels, true_labels(chosen.truth, dataset))
    seconds = sum(float(member.history()["seconds"].sum()) for member in ensemble.members)
    rows = {name: {**found, "seconds": seconds} for name, found in by_estimators(ensemble, dataset, noisy).items()}
    if chosen.cleanlab is not None:
        folds = [
            trained_without(fold, dataset, chosen.run, chosen.cleanlab) for fold in folds_of(dataset, chosen.folds)
        ]
        rows |= by_cleanlab(folds, dataset, noisy)
    share = noisy.wrong.mean()
    table = Table(title=f"{dataset.name}: {100 * share:.1f} % wrong labels, {len(ensemble.members)} members")
    columns = next(iter(rows.values())).keys()
    for column in ("method", *columns):
        table.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    for name, row in sorted(rows.items(), key=lambda one: -one[1]["average_precision"]):
        table.add_row(
            name, *(f"{row[column]:.0f}" if column == "seconds" else f"{row[column]:.3f}" for column in columns)
        )
    Console(width=120).print(table)
    print(json.dumps(rows, allow_nan=False))


def by_estimators(ensemble: Ensemble, dataset: Dataset, noisy: NoisyLabels) -> dict[str, dict[str, float]]:
    """The figures of each estimator that the ensemble's trainings and final networks have."""
    found = {}
    for name, one in ESTIMATORS.items():
        if one.origin != "second training":
            scores_n = scores_by(ensemble.members, dataset, name).per_sample(name)
            found[name] = asdict(score_ranking(scores_n, noisy, hard_is=one.hard_is))
    return found


def folds_of(dataset: Dataset, count: int) -> list[np.ndarray]:
    """Samples of each fold, at random, ascending."""
    rows = np.random.default_rng(0).permutation(len(dataset.train))
    return [np.sort(fold) for fold in np.array_split(rows, count)]


def trained_without(fold: np.ndarray, dataset: Dataset, run: Path, out: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """A fold, the logits of its samples by a network trained on all others, and the seconds of its training."""
    like = open_ensemble(run)[0].members[0]
    recipe = stored_recipe(like.path / "recipe.json", remedy=f"train {run} again")
    rest = Plan.of_rows(np.setdiff1d(np.arange(len(dataset.train)), fold))
    place = out / f"without-{fold[0]}-and-{len(fold)}"
    member = train_ensemble(dataset, recipe, members=1, out=place, plan=rest, execution=Execution(1)).members[0]
    network = trained_model(member, dataset.train)
    logits = predict(network, as_trained(member, dataset.train), dtype=member.dtype, rows=fold)
    return fold, logits, float(member.history()["seconds"].sum())


def by_cleanlab(
    folds: Sequence[tuple[np.ndarray, np.ndarray, float]], dataset: Dataset, noisy: NoisyLabels
) -> dict[str, dict[str, float]]:
    """The figures of cleanlab's rankings by probabilities out of sample."""
    from cleanlab.rank import get_label_quality_scores

    probabilities = np.empty((len(dataset.train), dataset.train.num_classes))
    for rows, logits, _ in folds:
        probabilities[rows] = softmax(logits.astype(np.float64), axis=1)
    seconds = sum(spent for _, _, spent in folds)
    found = {}
    for method in METHODS:
        quality_n = get_label_quality_scores(noisy.labels, probabilities, method=method, adjust_pred_probs=False)
        figures = asdict(score_ranking(quality_n, noisy, hard_is="low"))
        found[f"cleanlab {method}"] = {**figures, "seconds": seconds}
    return found


if __name__ == "__main__":
    main()
