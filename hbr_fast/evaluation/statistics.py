"""Whether a treatment changed a metric: paired statistics for variants with members nested in them.

A variant is one resampled dataset (its own resampling seed), a member one model trained on it. Members of a
variant share its data, so the variant means, not the members, are the independent observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

MAX_VARIANTS = 20  # the exact permutation test enumerates 2^(V - 1) sign patterns


@dataclass(frozen=True)
class PairedDifference:
    """Treatment minus baseline of one metric, over V variants of m members.

    Attributes
    ----------
    difference : float
        Mean of treatment - baseline.
    low, high : float
        95 % t interval of the difference over the V variant means, V - 1 degrees of freedom. NaN for V = 1.
    effect_size : float
        The difference over the sample standard deviation of the variant means (Cohen's d_z). NaN for V = 1
        and where the variant means are all equal.
    p_value : float
        Two-sided sign-flip permutation test over the variant means, every sign pattern enumerated.
    smallest_p : float
        The smallest p-value that V variants can reach, 2 / 2^V. Claim nothing finer.
    direction : str
        Sign of the difference: "smaller" or "larger" (the treatment's value against the baseline's) or "no
        difference" where it is exactly 0. It says nothing about significance, nor which way is good.
    variant_means : float64 [V]
        Mean difference of each variant: the observations behind all of the above.
    """

    difference: float
    low: float
    high: float
    effect_size: float
    p_value: float
    smallest_p: float
    direction: str
    variant_means: np.ndarray


def paired_difference(baseline_vm: np.ndarray, treatment_vm: np.ndarray) -> PairedDifference:
    """Compare a treatment with its baseline, paired by (variant, member).

    Parameters
    ----------
    baseline_vm, treatment_vm : float [V, m]
        One metric of each model. Entries at the same place share their training seed; V is at most 20.

    Returns
    -------
    PairedDifference

    Raises
    ------
    ValueError
        If the shapes differ or are not [V, m], a value is not finite, or V is above 20.
    """
    baseline_vm, treatment_vm = np.asarray(baseline_vm, np.float64), np.asarray(treatment_vm, np.float64)
    if baseline_vm.ndim != 2 or baseline_vm.shape != treatment_vm.shape or baseline_vm.size == 0:
        raise ValueError(
            "baseline and treatment must both be [variants, members], one value a pair, got "
            f"{baseline_vm.shape} and {treatment_vm.shape}"
        )
    if not (np.isfinite(baseline_vm).all() and np.isfinite(treatment_vm).all()):
        raise ValueError("baseline and treatment must be finite: leave out a metric that is undefined for a model")
    variants = len(baseline_vm)
    if variants > MAX_VARIANTS:
        raise ValueError(f"{variants} variants are more than the exact permutation test enumerates ({MAX_VARIANTS})")

    variant_means = (treatment_vm - baseline_vm).mean(axis=1)
    difference = float(variant_means.mean())
    low = high = effect_size = math.nan
    if variants > 1:
        deviation = float(variant_means.std(ddof=1))
        margin = float(stats.t.ppf(0.975, variants - 1)) * deviation / math.sqrt(variants)
        low, high = difference - margin, difference + margin
        if np.ptp(variant_means) > 0:
            effect_size = difference / deviation
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        effect_size=effect_size,
        p_value=sign_flip_p(variant_means),
        smallest_p=2 / 2**variants,
        direction="smaller" if difference < 0 else "larger" if difference > 0 else "no difference",
        variant_means=variant_means,
    )


def sign_flip_p(values_v: np.ndarray) -> float:
    """Two-sided p-value of "the values are symmetric about 0", by flipping signs in every possible way.

    Parameters
    ----------
    values_v : float64 [V]
        Independent paired differences; V is at most 20.

    Returns
    -------
    float
        Share of the 2^V sign patterns whose |sum| is at least that of the values, in [2 / 2^V, 1].
    """
    # A pattern and its opposite have the same |sum|, so the first sign stays.
    sums = values_v[:1]
    for value in values_v[1:]:
        sums = np.concatenate([sums + value, sums - value])
    # Sums that are equal on paper differ in their last bits: they count as equal.
    slack = 1e-12 * np.abs(values_v).sum()
    return float((np.abs(sums) >= abs(values_v.sum()) - slack).mean())
