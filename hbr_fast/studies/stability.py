"""How many members hardness needs: samples per class, pruned sets and ranks by some members against all of them."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl

from hbr_fast.hardness import ESTIMATORS, HardnessScores
from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.stability import ensemble_size_curve, observed_by_all, partial_scores
from hbr_fast.resampling.allocation import allocate
from hbr_fast.resampling.base import base_sizes, resolved_base
from hbr_fast.resampling.pruning import rounded_share

MEASURES = ("class_spearman", "class_kendall", "sample_spearman", "sample_kendall", "pruned_jaccard", "counts_change")
ORDERS = 20
PRUNED = 0.5  # share of each class, from the easy end: the set whose overlap is measured
RANKED_SAMPLES = 5000
TOLERANCE = 0.01  # of the mean class size: samples per class that change by less have settled


def ensemble_sizes(
    scores: HardnessScores, labels_n: np.ndarray, *, num_classes: int, total: int, seed: int, orders: int = ORDERS
) -> tuple[pl.DataFrame, dict[str, int | None]]:
    """Hardness by the first j of the members against hardness by all, for every j and over random orders of them.

    Parameters
    ----------
    scores : HardnessScores
        Of M members.
    labels_n : integer [N]
    num_classes : int
    total : int
        Samples to share out among the classes, at alpha 1 (clipped where that is not feasible) and the default base.
    seed : int
        Of the orders.
    orders : int

    Returns
    -------
    frame : polars.DataFrame
        `ensemble_size.csv` of docs/results.md.
    enough : dict of str to int or None
        By estimator, the smallest j beyond which another member changes the samples per class by at most `TOLERANCE`
        of their mean, in the mean over orders; None if even the last one changes them more.
    """
    rows, enough = [], {}
    for name in scores.values:
        curves = _curves(scores, name, labels_n, num_classes=num_classes, total=total, orders=orders, seed=seed)
        for measure, curve_oj in zip(MEASURES, curves, strict=True):
            for j in range(scores.members):
                values = curve_oj[:, j][~np.isnan(curve_oj[:, j])]
                if len(values):  # one member changes no counts, and constant scores have no correlation
                    low, high = np.quantile(values, [0.05, 0.95])
                    rows.append((name, measure, j + 1, float(values.mean()), float(low), float(high)))
        change_j = curves[-1].mean(axis=0)[1:]  # by the second member, the third, ...
        late = np.flatnonzero(~(change_j <= TOLERANCE * total / num_classes))
        settled = int(late[-1]) + 2 if len(late) else 1
        enough[name] = settled if settled < scores.members else None
    schema = {"estimator": pl.String, "measure": pl.String, "size": pl.Int64}
    columns = {**schema, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame(rows, schema=columns, orient="row"), enough


def _curves(
    scores: HardnessScores, name: str, labels_n: np.ndarray, *, num_classes: int, total: int, orders: int, seed: int
) -> np.ndarray:
    """The measures of one estimator, float64 [measures, orders, members]."""
    hard_is = ESTIMATORS[name].hard_is
    correlations = ensemble_size_curve(
        scores, name, labels_n=labels_n, num_classes=num_classes, orders=orders, ranked=RANKED_SAMPLES, seed=seed
    )
    values_mn, labels = observed_by_all(scores, name, labels_n)
    class_sizes = np.bincount(labels, minlength=num_classes)

    base = base_sizes(resolved_base(None, class_sizes), class_sizes)

    def counts(scores_n: np.ndarray) -> np.ndarray:
        means_c = class_means(scores_n, labels, num_classes)
        hardness = means_c if hard_is == "low" else -means_c
        return allocate(
            hardness, hard_is=hard_is, alpha=1.0, total=total, nonpositive="shift", clip=True, base=base
        ).counts

    def kept(scores_n: np.ndarray) -> np.ndarray:
        by_class = np.lexsort((scores_n, labels))
        place = np.arange(len(labels)) - np.repeat(np.cumsum(class_sizes) - class_sizes, class_sizes)
        stays = place < np.repeat([size - rounded_share(PRUNED, int(size)) for size in class_sizes], class_sizes)
        mask = np.zeros(len(labels), bool)
        mask[by_class[stays]] = True
        return mask

    whole_kept = kept(values_mn.mean(axis=0))
    overlap, change = (np.full((orders, len(values_mn)), np.nan) for _ in range(2))
    before = np.zeros(num_classes)
    for order, number, scores_n in partial_scores(values_mn, orders=orders, seed=seed):
        mask, now = kept(scores_n), counts(scores_n)
        overlap[order, number - 1] = (mask & whole_kept).sum() / (mask | whole_kept).sum()
        if number > 1:
            change[order, number - 1] = np.abs(now - before).mean()
        before = now
    of_classes = (correlations.spearman_classes, correlations.kendall_classes)
    return np.stack([*of_classes, correlations.spearman_samples, correlations.kendall_samples, overlap, change])


def estimator_agreement(scores: HardnessScores, *, hardest: float = 0.1) -> pl.DataFrame:
    """For every pair of estimators: rank correlation, and overlap of the hardest tenth (`estimators.csv`)."""
    names = list(scores.values)
    table = scores.correlations(names)
    k = max(1, round(hardest * len(scores)))
    sets = {name: set(scores.top(name, min(k, int((~np.isnan(scores.per_sample(name))).sum())))) for name in names}
    return pl.DataFrame(
        [
            {
                "estimator": one,
                "other": other,
                "spearman": table[other][names.index(one)],
                "jaccard": len(sets[one] & sets[other]) / len(sets[one] | sets[other]),
            }
            for one, other in itertools.product(names, repeat=2)
        ]
    )
