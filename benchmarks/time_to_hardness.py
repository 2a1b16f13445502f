"""How soon a ranking by hardness agrees with an outside judge, by ensemble, number of members and estimator.

    hbr-fast train cifar10.hbr runs/small-cnn --recipe small-cnn --members 4
    python benchmarks/time_to_hardness.py cifar10.hbr runs/small-cnn --judge judges.npz --key cscore

A judge is a file with one number a train sample, in the order of the sample ids: high is easy (C-score, Jiang et al.,
ICML 2021), or hard with `--high-is hard`. Agreement is Spearman's rank correlation, over samples and over the means of
classes. Members come in the order of their seeds, and the seconds are the sum of what their trainings recorded. The
last line is JSON: by run and number of members, the best estimator and its figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.npy import read_npy, read_npz
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.scores import stack_scores
from hbr_fast.members.ensemble import open_ensemble

RECORDED = tuple(name for name, one in ESTIMATORS.items() if one.origin == "training")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True, help=".npy, or .npz with --key")
    parser.add_argument("--key")
    parser.add_argument("--high-is", choices=("easy", "hard"), default="easy")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    chosen = parser.parse_args(argv)
    dataset = open_dataset(chosen.dataset)
    judge = read_npy(chosen.judge) if chosen.key is None else read_npz(chosen.judge, chosen.key)
    if judge.shape != (len(dataset.train),):
        parser.error(f"{chosen.judge} holds {list(judge.shape)} values for {len(dataset.train):,} train samples")
    easiness = judge.astype(np.float64) * (1 if chosen.high_is == "easy" else -1)
    rows = pl.concat([agreement(run, dataset, easiness) for run in chosen.runs])
    if chosen.out is not None:
        rows.write_csv(chosen.out)
    best = rows.sort("samples", descending=True).unique(["run", "members"], keep="first", maintain_order=True)
    best_of_run = pl.col("samples").max().over("run", "members")
    shown = rows.filter(pl.col("estimator").is_in(["aum", "confidence"]) | (pl.col("samples") == best_of_run))
    table = Table(title=f"{dataset.name}: agreement with {chosen.key or chosen.judge.name}")
    for column in shown.columns:
        table.add_column(column, justify="left" if column in ("run", "estimator") else "right")
    for row in shown.iter_rows():
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) and value < 10 else f"{value}" for value in row))
    Console(width=120).print(table)
    found = {f"{row.pop('run')} x{row.pop('members')}": row for row in best.sort("run", "members").to_dicts()}
    print(json.dumps(found, allow_nan=False))


def agreement(run: Path, dataset: Dataset, easiness_n: np.ndarray) -> pl.DataFrame:
    """A row for each number of members of a run and each recorded estimator."""
    ensemble, _ = open_ensemble(run)
    split = dataset.train
    rows = []
    for count in range(1, len(ensemble.members) + 1):
        members = ensemble.members[:count]
        scores = stack_scores([member.scores() for member in members])
        scores.require_dataset(dataset.fingerprint)
        histories = [member.history() for member in members]
        for name in RECORDED:
            sign = 1 if ESTIMATORS[name].hard_is == "low" else -1  # high is easy, as of the judge
            ours_n = sign * scores.per_sample(name)
            seen = np.isfinite(ours_n)
            classes = [
                class_means(values[seen], split.labels[seen], split.num_classes) for values in (ours_n, easiness_n)
            ]
            rows.append(
                {
                    "run": run.name,
                    "members": count,
                    "epochs": histories[0].height,
                    "seconds": round(sum(float(history["seconds"].sum()) for history in histories)),
                    "estimator": name,
                    "samples": float(spearmanr(ours_n[seen], easiness_n[seen]).statistic),
                    "classes": float(spearmanr(*classes).statistic),
                }
            )
    return pl.DataFrame(rows)


if __name__ == "__main__":
    main()
