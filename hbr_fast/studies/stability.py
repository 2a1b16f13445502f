"""How many members hardness needs: samples per class, pruned sets and ranks by some members against all of them."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
from scipy import stats

from hbr_fast.allocation import allocate
from hbr_fast.hardness import ESTIMATORS, HardnessScores
from hbr_fast.pruning import rounded_share
from hbr_fast.seeding import Stream, generator

MEASURES = ("class_spearman", "class_kendall", "sample_spearman", "sample_kendall", "pruned_jaccard", "counts_change")
ORDERS = 20
PRUNED = 0.5  # of each class, the easy end: the set whose overlap is measured
RANKED_SAMPLES = 5000  # correlations of more change in the third digit and take minutes
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
        Samples to share out among the classes, at alpha 1 (clipped where that is not feasible).
    seed : int
        Of the orders.
    orders : int

    Returns
    -------
    frame : polars.DataFrame
        `ensemble_size.csv` of docs/results.md.
    enough : dict of str to int or None
        By estimator, the smallest j from which on another member changes the samples per class by at most `TOLERANCE`
        of their mean, in the mean over orders; None where even the last one changes them more.
    """
    random = generator(seed, Stream.MEMBER)
    turns = [np.argsort(random.bit_generator.random_raw(scores.members), kind="stable") for _ in range(orders)]
    rows, enough = [], {}
    for name in scores.values:
        curves = _curves(scores, name, labels_n, num_classes=num_classes, total=total, turns=turns)
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
    scores: HardnessScores,
    name: str,
    labels_n: np.ndarray,
    *,
    num_classes: int,
    total: int,
    turns: list[np.ndarray],
) -> np.ndarray:
    """The measures of one estimator, float64 [measures, orders, members]."""
    hard_is = ESTIMATORS[name].hard_is
    values_mn = scores.values[name] if hard_is == "low" else -scores.values[name]  # the hardest is the lowest
    observed = ~np.isnan(values_mn).any(axis=0)
    values_mn, labels = values_mn[:, observed], np.asarray(labels_n)[observed]
    class_sizes = np.bincount(labels, minlength=num_classes)
    some = np.arange(0, len(labels), max(1, len(labels) // RANKED_SAMPLES))

    def class_means(scores_n: np.ndarray) -> np.ndarray:
        return np.bincount(labels, weights=scores_n, minlength=num_classes) / class_sizes

    def counts(means_c: np.ndarray) -> np.ndarray:
        hardness = means_c if hard_is == "low" else -means_c
        return allocate(hardness, hard_is=hard_is, alpha=1.0, total=total, nonpositive="shift", clip=True).counts

    def kept(scores_n: np.ndarray) -> np.ndarray:
        by_class = np.lexsort((scores_n, labels))
        place = np.arange(len(labels)) - np.repeat(np.cumsum(class_sizes) - class_sizes, class_sizes)
        stays = place < np.repeat([size - rounded_share(PRUNED, int(size)) for size in class_sizes], class_sizes)
        mask = np.zeros(len(labels), bool)
        mask[by_class[stays]] = True
        return mask

    whole = values_mn.mean(axis=0)
    whole_means, whole_kept = class_means(whole), kept(whole)
    curves = np.full((len(MEASURES), len(turns), len(values_mn)), np.nan)
    for order, turn in enumerate(turns):
        total_n, before = np.zeros(len(labels)), None
        for j, member in enumerate(turn):
            total_n += values_mn[member]
            part = total_n / (j + 1)
            means_c, mask = class_means(part), kept(part)
            now = counts(means_c)
            curves[:, order, j] = (
                _correlation(stats.spearmanr, means_c, whole_means),
                _correlation(stats.kendalltau, means_c, whole_means),
                _correlation(stats.spearmanr, part[some], whole[some]),
                _correlation(stats.kendalltau, part[some], whole[some]),
                (mask & whole_kept).sum() / (mask | whole_kept).sum(),
                np.nan if before is None else np.abs(now - before).mean(),
            )
            before = now
    return curves


def estimator_agreement(scores: HardnessScores, *, hardest: float = 0.1) -> pl.DataFrame:
    """Of every pair of estimators: rank correlation, and the overlap of the hardest tenth (`estimators.csv`)."""
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


def _correlation(of: object, x: np.ndarray, y: np.ndarray) -> float:
    """NaN, without a warning, where one side is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(of(x, y).statistic)  # type: ignore[operator]
