"""Every arm against the arm it is compared with: paired differences and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.metrics import Evaluation, gaps
from hbr_fast.evaluation.statistics import (
    MIN_BOOTSTRAP_VARIANTS,
    bootstrap_interval,
    holm,
    members_t_test,
    paired_difference,
    variants_needed,
)

METRICS = ("recall", "precision", "f1", "mcc")


def comparison_table(
    evaluations: Mapping[str, Sequence[Evaluation]],
    against: Mapping[str, str],
    counts: Mapping[str, np.ndarray],
    *,
    variants: int,
    seed: int,
) -> pl.DataFrame:
    """One row an arm and a quantity: difference, interval, effect size, p-values; fractions, not percent.

    Parameters
    ----------
    evaluations : mapping of str to sequence of Evaluation
        By arm, in the order (variant, member).
    against : mapping of str to str
        Arm -> the arm it is compared with.
    counts : mapping of str to int64 [C]
        Samples per class that an arm asked for: they say which classes are easy, for both sides of its comparison.
    variants : int
    seed : int
        Of the bootstrap, which is offered where there are enough variants.
    """
    rows = []
    for arm, other in against.items():
        before, after = (_quantities(evaluations[name], counts[arm]) for name in (other, arm))
        for quantity, values in after.items():
            treatment, baseline = values.reshape(variants, -1), before[quantity].reshape(variants, -1)
            rows.append({"arm": arm, "against": other, **_row(quantity, baseline, treatment, seed=seed)})
    frame = pl.DataFrame(rows)
    # One family a question: do the gaps of a metric change (all gaps, all arms), does its mean.
    family = np.array([row["family"] for row in rows])
    p = np.array([row["p"] for row in rows], np.float64)
    corrected = np.full(len(rows), np.nan)
    for name in set(family.tolist()):
        corrected[family == name] = holm(p[family == name])
    return frame.with_columns(pl.Series("p_holm", corrected))


def _quantities(evaluations: Sequence[Evaluation], counts_c: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and every gap of every metric, float64 [V * m]."""
    columns: dict[str, list[float]] = {"accuracy": [one.accuracy for one in evaluations]}
    for one in evaluations:
        for metric in METRICS:
            for gap, value in gaps(getattr(one, metric), counts_c=counts_c).items():
                columns.setdefault(f"{metric}_{gap}", []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _row(quantity: str, baseline_vm: np.ndarray, treatment_vm: np.ndarray, *, seed: int) -> dict[str, Any]:
    metric, _, gap = quantity.partition("_")
    row: dict[str, Any] = {
        "quantity": quantity,
        "family": metric if not gap else f"{metric} mean" if gap == "mean" else f"{metric} gaps",
        "baseline": float(baseline_vm.mean()),
        "treatment": float(treatment_vm.mean()),
        "variants": baseline_vm.shape[0],
        "members": baseline_vm.shape[1],
    }
    undefined = dict.fromkeys(
        (
            *("difference", "low", "high", "bootstrap_low", "bootstrap_high", "effect_size", "p", "smallest_p"),
            *("paper_t", "paper_p", "variants_needed"),
        ),
        math.nan,
    )
    if not (np.isfinite(baseline_vm).all() and np.isfinite(treatment_vm).all()):
        return {**row, **undefined, "direction": "undefined"}
    paired = paired_difference(baseline_vm, treatment_vm)
    low = high = needed = math.nan
    if len(baseline_vm) >= MIN_BOOTSTRAP_VARIANTS:
        low, high = bootstrap_interval(treatment_vm - baseline_vm, seed=seed)
    # An effect so small that a thousand variants would not show it is not worth planning for.
    if math.isfinite(paired.effect_size) and abs(paired.effect_size) > 0.1:
        needed = float(variants_needed(paired.effect_size))
    t, p = members_t_test(baseline_vm, treatment_vm)
    return {
        **row,
        "difference": paired.difference,
        "low": paired.low,
        "high": paired.high,
        "bootstrap_low": low,
        "bootstrap_high": high,
        "effect_size": paired.effect_size,
        "p": paired.p_value,
        "smallest_p": paired.smallest_p,
        "paper_t": t,
        "paper_p": p,
        "variants_needed": needed,
        "direction": paired.direction,
    }
