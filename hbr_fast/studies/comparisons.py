"""Every arm against its comparison arm: paired differences, intervals and tests.

All p-values of a study are computed here, once, and corrected together; tables and pictures read them from
`comparisons.csv`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.measures import MEASURES, METRICS, gaps, hard_classes
from hbr_fast.evaluation.metrics import Evaluation
from hbr_fast.evaluation.power import variants_needed
from hbr_fast.evaluation.resolution import difference_noise
from hbr_fast.evaluation.statistics import (
    MIN_BOOTSTRAP_VARIANTS,
    bootstrap_interval,
    combined_interval,
    holm,
    members_t_test,
    paired_difference,
)

# NaN in a row whose `no_test` says why there is none.
_OF_A_TEST = (
    *(
        "low",
        "high",
        "combined_low",
        "combined_high",
        "bootstrap_low",
        "bootstrap_high",
        "effect_size",
        "p",
        "smallest_p",
        "paper_t",
        "paper_p",
    ),
    "variants_needed",
)


@dataclass(frozen=True)
class Trained:
    """An evaluated training of an arm, and what the results files say of it.

    Attributes
    ----------
    variant, member, seed : int
        The resampled set it trained on, its number among the members of that variant, and its seed.
    evaluation : Evaluation
    predicted : integer [N]
        Predicted class of every test sample.
    samples : integer [C], optional
        Training samples of each class.
    hardness : float64 [C], optional
        Hardness of the classes by this training; NaN where it saw none.
    seconds, images_per_second : float
        NaN if unknown.
    """

    variant: int
    member: int
    seed: int
    evaluation: Evaluation
    predicted: np.ndarray
    samples: np.ndarray | None = None
    hardness: np.ndarray | None = None
    seconds: float = math.nan
    images_per_second: float = math.nan


@dataclass(frozen=True)
class Sides:
    """Samples per class and the sizes they started from: hard classes are those that gained, see `gaps`."""

    counts: np.ndarray
    base: np.ndarray

    @property
    def hard(self) -> np.ndarray:
        """The hard classes, bool [C]."""
        return hard_classes(self.counts, self.base)


def comparison_table(
    arms: Mapping[str, Sequence[Trained]],
    against: Mapping[str, str],
    sides: Mapping[str, Sides],
    *,
    labels_n: np.ndarray,
    metric: str = "recall",
    seed: int,
) -> pl.DataFrame:
    """One row per arm and quantity: difference, intervals, effect size, p-values; fractions, not percent.

    A training of an arm is paired with the other arm's training of the same seed, which has the same initial weights.
    `p_holm` is corrected over all rows, since readers pick out whatever stands out among them; Holm's correction
    holds under any dependence.

    Parameters
    ----------
    arms : mapping of str to sequence of Trained
        Every arm's trainings; those that diverged are missing.
    against : mapping of str to str
        Arm -> its comparison arm.
    sides : mapping of str to Sides
        Which classes are easy, for both sides of an arm's comparison.
    labels_n : integer [N]
        True classes of the test samples.
    metric : str
        The metric that the study is about: its measures are among the quantities, whether or not `METRICS` says so.
    seed : int
        Of the bootstraps.
    """
    metrics = [name for name, about in METRICS.items() if about.compared or name == metric]
    rows = []
    for arm, other in against.items():
        treatment = sorted(arms[arm], key=lambda one: one.variant)
        partners = {one.seed: one for one in arms[other]}
        why = _why_no_test(treatment, partners, other)
        # Means are over the pairs if there is a test, else over all trainings.
        baseline = list(partners.values()) if why else [partners[one.seed] for one in treatment]
        before, after = (
            _quantities([one.evaluation for one in side], sides[arm], metrics) for side in (baseline, treatment)
        )
        noise: Mapping[str, float] = {}
        if not why:
            predicted = [np.stack([one.predicted for one in side]) for side in (baseline, treatment)]
            noise = difference_noise(
                predicted[0],
                predicted[1],
                labels_n,
                num_classes=len(sides[arm].counts),
                hard_c=sides[arm].hard,
                seed=seed,
            )
        per_variant = Counter(one.variant for one in treatment)
        shape = len(per_variant), max(per_variant.values())
        for quantity, values in after.items():
            numbers = _row(
                before[quantity],
                values,
                shape=shape,
                why=why,
                signed=quantity.endswith("_easy_hard"),
                noise=noise.get(quantity, math.nan),
                seed=seed,
            )
            rows.append({"arm": arm, "against": other, "quantity": quantity, **numbers})
    frame = pl.DataFrame(rows)
    corrected = pl.Series("p_holm", holm(frame["p"].to_numpy()))
    return frame.insert_column(frame.columns.index("p") + 1, corrected)


def _why_no_test(treatment: Sequence[Trained], partners: Mapping[int, Trained], other: str) -> str:
    """What the design lacks for a test, in words; empty if nothing."""
    per_variant = Counter(one.variant for one in treatment)
    if len(per_variant) < 2:
        return "one resampled variant gives no interval"
    if not {one.seed for one in treatment} <= set(partners):
        return f"some members have no partner in {other}, so that there is no interval"
    if len(set(per_variant.values())) > 1:
        return "the variants differ in their number of members, so that there is no interval"
    return ""


def measured(evaluation: Evaluation, sides: Sides, metrics: Iterable[str]) -> dict[str, float]:
    """Accuracy and every measure of the metrics, by quantity; NaN where a class has none."""
    found = {"accuracy": evaluation.accuracy}
    for metric in metrics:
        values_c = getattr(evaluation, metric)
        numbers: Mapping[str, float] = dict.fromkeys(MEASURES, math.nan)
        if not np.isnan(values_c).any():
            numbers = gaps(values_c, counts_c=sides.counts, base_c=sides.base, better=METRICS[metric].better)
        found |= {f"{metric}_{measure}": value for measure, value in numbers.items()}
    return found


def _quantities(evaluations: Sequence[Evaluation], sides: Sides, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """`measured`, float64 [V * m] by quantity."""
    rows = [measured(one, sides, metrics) for one in evaluations]
    return {quantity: np.array([row[quantity] for row in rows]) for quantity in rows[0]}


def _row(
    before: np.ndarray, after: np.ndarray, *, shape: tuple[int, int], why: str, signed: bool, noise: float, seed: int
) -> dict[str, Any]:
    """The values of one quantity for both sides, in the order (variant, member); `shape` is [variants, members]."""
    defined = bool(np.isfinite(before).all() and np.isfinite(after).all())
    why = why or ("" if defined else "it is undefined for some members")
    row: dict[str, Any] = {
        "baseline": float(before.mean()),
        "treatment": float(after.mean()),
        "variants": shape[0],
        "members": shape[1],
        "difference": float(after.mean() - before.mean()),
    }
    # A gap with a sign is judged by its size.
    change = abs(row["treatment"]) - abs(row["baseline"]) if signed else row["difference"]
    direction = "smaller" if change < 0 else "larger" if change > 0 else "no difference" if defined else "undefined"
    undefined = {**dict.fromkeys(_OF_A_TEST, math.nan), "direction": direction}
    if why:
        return {**row, **undefined, "no_test": why}
    baseline_vm, treatment_vm = before.reshape(shape), after.reshape(shape)
    paired = paired_difference(baseline_vm, treatment_vm)
    if math.isnan(paired.low):
        return {**row, **undefined, "no_test": "all variants differ by the same amount, which gives no interval"}
    combined = combined_interval(paired.variant_means, noise)
    low = high = needed = math.nan
    if len(baseline_vm) >= MIN_BOOTSTRAP_VARIANTS:
        low, high = bootstrap_interval(treatment_vm - baseline_vm, seed=seed)
    # Do not plan for an effect so small that a thousand variants would not show it.
    if math.isfinite(paired.effect_size) and abs(paired.effect_size) > 0.1:
        needed = float(variants_needed(paired.effect_size))
    t, p = members_t_test(baseline_vm, treatment_vm)
    return {
        **row,
        "difference": paired.difference,
        "low": paired.low,
        "high": paired.high,
        "combined_low": combined[0],
        "combined_high": combined[1],
        "bootstrap_low": low,
        "bootstrap_high": high,
        "effect_size": paired.effect_size,
        "p": paired.p_value,
        "smallest_p": paired.smallest_p,
        "paper_t": t,
        "paper_p": p,
        "variants_needed": needed,
        "direction": direction,
        "no_test": "",
    }
