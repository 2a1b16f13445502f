"""Compare recipes: accuracy, seconds a member, and how well their hardness agrees with that of a longer training.

    python benchmarks/recipes.py fashion-mnist.hbr runs/recipes --recipes small-cnn:epochs=4 quickstart \\
        --reference small-cnn:epochs=12 --members 2 [--images 2000]

A recipe is a name, followed by the fields to change after colons. Ensembles are kept in the run directory and not
trained again. Hardness is AUM, the mean over the members. Its values by class (mean of the samples) and by sample are
compared with the reference's by Spearman's rank correlation; the reference's members have other seeds, so that only
the hardness is shared. Compare correlations only between runs with equally many members.
The last line is JSON, by recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.plan import Plan
from hbr_fast.evaluation.metrics import evaluate
from hbr_fast.members.ensemble import Ensemble, train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.training.recipes import named_recipe

REFERENCE_SEED = 1  # the recipes compared have seed 0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["small-cnn:epochs=4", "quickstart"])
    parser.add_argument("--reference", default="small-cnn")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--images", type=int, help="train on the first N images only")
    chosen = parser.parse_args(argv)
    dataset = open_dataset(chosen.dataset)
    plan = None if chosen.images is None else Plan.of_rows(np.arange(chosen.images))

    def trained(words: str, seed: int) -> Ensemble:
        name, *changes = words.split(":")
        place = chosen.out / f"{words.replace(':', '-')}-{chosen.images or 'all'}-seed-{seed}"
        recipe = named_recipe(name, changes)
        return train_ensemble(
            dataset, recipe, members=chosen.members, out=place, seed=seed, plan=plan, execution=Execution("auto")
        )

    reference = trained(chosen.reference, REFERENCE_SEED)
    rows = {f"{chosen.reference} (reference)": figures(reference, reference, dataset)}
    for words in chosen.recipes:
        rows[words] = figures(trained(words, 0), reference, dataset)
    table = Table(title=f"{dataset.name}, {chosen.images or len(dataset.train):,} images, {chosen.members} members")
    for column in ("recipe", *next(iter(rows.values()))):
        table.add_column(column.replace("_", " "), justify="right")
    for words, row in rows.items():
        table.add_row(words, *(f"{value:.4g}" for value in row.values()))
    Console(width=120).print(table)
    print(json.dumps(rows, allow_nan=False))


def figures(ensemble: Ensemble, reference: Ensemble, dataset: Dataset) -> dict[str, float]:
    """The row of one recipe."""
    split = dataset.train
    accuracies = [
        evaluate(member.test_logits(), dataset.test.labels, classes=dataset.classes).accuracy
        for member in ensemble.members
    ]
    ours, theirs = (one.scores() for one in (ensemble, reference))
    ours_n, theirs_n = ours.per_sample("aum"), theirs.per_sample("aum")
    seen = np.isfinite(ours_n) & np.isfinite(theirs_n)
    classes = [scores.class_means("aum", split.labels, split.num_classes) for scores in (ours, theirs)]
    return {
        "accuracy": float(np.mean(accuracies)),
        "seconds_a_member": float(np.mean([member.history()["seconds"].sum() for member in ensemble.members])),
        "class_correlation": float(spearmanr(*classes).statistic),
        "sample_correlation": float(spearmanr(ours_n[seen], theirs_n[seen]).statistic),
    }


if __name__ == "__main__":
    main()
