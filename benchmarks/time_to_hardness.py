"""How soon a ranking by hardness agrees with an outside judge, by ensemble, number of members and estimator.

    hbr-fast train cifar10.hbr runs/small-cnn --recipe small-cnn --members 4
    python benchmarks/time_to_hardness.py cifar10.hbr runs/small-cnn --judge judges.npz --key cscore

A judge is a file with one number a train sample, in the order of the sample ids: high is easy (C-score, Jiang et al.,
ICML 2021), or hard with `--high-is hard`. Agreement is Spearman's rank correlation, over samples and over the means of
classes. Members come in the order of their seeds, and the seconds are the sum of what their trainings recorded. The
last line is JSON: by run and number of members, the best estimator and its figures.

`--held-out` judges samples by networks that did not see them, as C-scores do:

    python benchmarks/time_to_hardness.py cifar10.hbr runs/small-cnn --judge judges.npz --key cscore \
        --held-out runs/held-out --recipe small-cnn --parts 3 --rounds 2

The train samples are cut into parts at random, and a network is trained on each part alone; its probability of the
right class, and its margin, count for the samples of all other parts. Each round cuts anew. Networks are kept, and the
command goes on where it was interrupted; a row comes from as many as it takes to judge every sample.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from held_out import HeldOut, held_out_logits, seconds_of
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from hbr_fast.data.dataset import Dataset, Split, open_dataset
from hbr_fast.data.npy import read_npy, read_npz
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.scores import stack_scores
from hbr_fast.members.ensemble import open_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.scoring.final_model import scores_of_logits
from hbr_fast.training.recipes import named_recipe

RECORDED = tuple(name for name, one in ESTIMATORS.items() if one.origin == "training")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True, help=".npy, or .npz with --key")
    parser.add_argument("--key")
    parser.add_argument("--high-is", choices=("easy", "hard"), default="easy")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    parser.add_argument("--held-out", type=Path, help="where the networks of parts of the samples are kept")
    parser.add_argument("--recipe", default="small-cnn", help="theirs")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes of it")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--members-at-once", type=int, help="networks of parts that train at once (default: auto)")
    chosen = parser.parse_args(argv)
    dataset = open_dataset(chosen.dataset)
    judge = read_npy(chosen.judge) if chosen.key is None else read_npz(chosen.judge, chosen.key)
    if judge.shape != (len(dataset.train),):
        parser.error(f"{chosen.judge} holds {list(judge.shape)} values for {len(dataset.train):,} train samples")
    easiness = judge.astype(np.float64) * (1 if chosen.high_is == "easy" else -1)
    tables = [agreement(run, dataset, easiness) for run in chosen.runs]
    if chosen.held_out is not None:
        recipe = named_recipe(chosen.recipe, chosen.set)
        parts = parts_of(len(dataset.train), parts=chosen.parts, rounds=chosen.rounds)
        judged = held_out_logits(
            dataset, recipe, parts, chosen.held_out, execution=Execution(chosen.members_at_once or "auto")
        )
        tables.append(held_out_agreement(judged, chosen.held_out.name, recipe.epochs, dataset, easiness))
    rows = pl.concat(tables)
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
        about = {
            "run": run.name,
            "members": count,
            "epochs": members[0].history().height,
            "seconds": round(seconds_of(members)),
        }
        for name in RECORDED:
            sign = 1 if ESTIMATORS[name].hard_is == "low" else -1  # high is easy, as of the judge
            rows.append({**about, "estimator": name, **agreed(sign * scores.per_sample(name), easiness_n, split)})
    return pl.DataFrame(rows)


def parts_of(samples: int, *, parts: int, rounds: int) -> list[np.ndarray]:
    """For each network of each round, the samples that it is not trained on, ascending."""
    if parts < 2 or rounds < 1:
        raise SystemExit(f"--parts must be at least 2 and --rounds at least 1, got {parts} and {rounds}")
    random = np.random.default_rng(0)
    held_out = []
    for _ in range(rounds):
        part_n = random.permutation(samples) % parts
        held_out += [np.flatnonzero(part_n != part) for part in range(parts)]
    return held_out


def held_out_agreement(found: HeldOut, run: str, epochs: int, dataset: Dataset, easiness_n: np.ndarray) -> pl.DataFrame:
    """A row for each number of networks that judge every sample, and for the probability and the margin."""
    split = dataset.train
    sums = {name: np.zeros(len(split)) for name in ("held-out confidence", "held-out margin")}
    times_n = np.zeros(len(split))
    rows = []
    for count, (rows_n, logits_nc) in enumerate(zip(found.rows, found.logits, strict=True), start=1):
        times_n[rows_n] += 1
        scores = scores_of_logits(logits_nc, split.labels[rows_n])
        sums["held-out confidence"][rows_n] += scores.per_sample("confidence_final")
        sums["held-out margin"][rows_n] += scores.per_sample("aum_final")
        if not times_n.all():
            continue
        for name, sum_n in sums.items():
            rows.append(
                {
                    "run": run,
                    "members": count,
                    "epochs": epochs,
                    "seconds": round(sum(found.seconds[:count])),
                    "estimator": name,
                    **agreed(sum_n / times_n, easiness_n, split),
                }
            )
    return pl.DataFrame(rows)


def agreed(ours_n: np.ndarray, judge_n: np.ndarray, split: Split) -> dict[str, float]:
    """Spearman's correlation over samples and over means of classes; high is easy in both, NaN: not recorded."""
    seen = np.isfinite(ours_n)
    classes = [class_means(values[seen], split.labels[seen], split.num_classes) for values in (ours_n, judge_n)]
    return {
        "samples": float(spearmanr(ours_n[seen], judge_n[seen]).statistic),
        "classes": float(spearmanr(*classes).statistic),
    }


if __name__ == "__main__":
    main()
