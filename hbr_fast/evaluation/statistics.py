"""Whether a treatment changed a metric: paired statistics for variants with members nested in them.

A variant is one resampled dataset (its own resampling seed), a member one model trained on it. Members of a
variant share its data, so the variant means, not the members, are the independent observations. Everything here
follows from that except `members_t_test`, the paper's test, kept for comparison with the paper.

Coverage and level of intervals and tests were checked by simulation for designs of 3 x 3, 4 x 4 and 10 x 2 (variants x
members): `tests/evaluation/test_coverage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats would take a second to import

from hbr_fast.seeding import Stream, generator

# The sign-flip test enumerates 2^(V - 1) patterns up to this many variants, counts them by halves up to the next (both
# exactly), and draws from them beyond.
_ENUMERATED, _COUNTED, _DRAWN_PATTERNS = 20, 40, 100_000
# Means that differ by less than this share are equal but for rounding.
_SAME = 1e-9
# Below this many variants the percentile interval of a hierarchical bootstrap is too narrow where variants differ: a
# simulated 95 % interval covers 0.83 at 3 x 3 and 0.87 at 4 x 4, but 0.94 at 10 x 2. The t interval is right at each.
MIN_BOOTSTRAP_VARIANTS = 10


@dataclass(frozen=True)
class PairedDifference:
    """Treatment minus baseline of one metric, over V variants of m members.

    Attributes
    ----------
    difference : float
        Mean of treatment - baseline.
    low, high : float
        95 % t interval of the difference over the V variant means, V - 1 degrees of freedom. NaN for V = 1 and where
        the variant means are all equal: an interval without width is no evidence.
    effect_size : float
        The difference over the sample standard deviation of the variant means (Cohen's d_z). NaN for V = 1
        and where the variant means are all equal.
    p_value : float
        Two-sided sign-flip permutation test over the variant means, over every sign pattern (over 100,000 drawn ones
        from 41 variants on).
    smallest_p : float
        The smallest p-value that V variants can reach, 2 / 2^V (1 / 100,001 from 41 variants on). Claim nothing finer.
    direction : str
        Sign of the difference: "smaller" or "larger" (the treatment's value against the baseline's) or "no
        difference" where it is exactly 0. It says nothing about significance, nor which direction is good.
    variant_means : float64 [V]
        Mean difference of each variant: the observations behind all of the above.

    Examples
    --------
    >>> found = paired_difference(np.array([[0.30], [0.28], [0.33]]), np.array([[0.25], [0.26], [0.27]]))
    >>> (round(found.difference, 4), found.direction, found.smallest_p)
    (-0.0433, 'smaller', 0.25)
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
        One metric of each model. Entries at the same index share their training seed.

    Returns
    -------
    PairedDifference

    Raises
    ------
    ValueError
        If the shapes differ or are not [V, m], or a value is not finite.

    Examples
    --------
    >>> gap_before = np.array([[0.30, 0.32], [0.28, 0.30], [0.33, 0.31]])  # three variants of two members
    >>> gap_after = np.array([[0.25, 0.29], [0.26, 0.26], [0.27, 0.29]])
    >>> found = paired_difference(gap_before, gap_after)
    >>> f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p = {found.p_value}"
    '-0.037 [-0.051, -0.022], p = 0.25'
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
    variant_means = (treatment_vm - baseline_vm).mean(axis=1)
    difference = float(variant_means.mean())
    low = high = effect_size = math.nan
    if variants > 1 and np.ptp(variant_means) > _SAME * np.abs(variant_means).max():
        low, high = map(float, t_interval(variant_means))
        effect_size = difference / float(variant_means.std(ddof=1))
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        effect_size=effect_size,
        p_value=float(sign_flip_p(variant_means)),
        smallest_p=2 / 2**variants if variants <= _COUNTED else 1 / (1 + _DRAWN_PATTERNS),
        direction="smaller" if difference < 0 else "larger" if difference > 0 else "no difference",
        variant_means=variant_means,
    )


def t_interval(values_v: np.ndarray, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Student's t interval of a mean.

    Parameters
    ----------
    values_v : float64 [..., V]
        Independent observations along the last axis.
    confidence : float
        In (0, 1).

    Returns
    -------
    low, high : float64 [...]
        NaN for V = 1.
    """
    variants = values_v.shape[-1]
    mean = values_v.mean(axis=-1)
    if variants == 1:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    margin = special.stdtrit(variants - 1, (1 + confidence) / 2) * values_v.std(axis=-1, ddof=1) / math.sqrt(variants)
    return mean - margin, mean + margin


def combined_interval(values_v: np.ndarray, noise: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a mean that also covers the noise of the test set, which all values share.

    The half widths of the two intervals, Student's over the values and the normal one of the test set, add up as
    independent errors do (MOVER: Zou & Donner 2008), so that it is never narrower than either.
    `tests/evaluation/test_coverage.py` checks the coverage.

    Parameters
    ----------
    values_v : float64 [V]
        Independent observations.
    noise : float
        Standard deviation of their mean over test sets, see `resolution.difference_noise`.
    confidence : float
        In (0, 1).

    Returns
    -------
    low, high : float
        NaN for V = 1, and without any spread at all.
    """
    variants, mean = len(values_v), float(values_v.mean())
    if variants == 1 or not math.isfinite(noise):
        return math.nan, math.nan
    low, high = t_interval(values_v, confidence=confidence)
    margin = math.hypot(float(high - low) / 2, float(special.ndtri((1 + confidence) / 2)) * noise)
    if margin <= _SAME * abs(mean):
        return math.nan, math.nan
    return mean - margin, mean + margin


def sign_flip_p(values_v: np.ndarray) -> np.ndarray:
    """Two-sided p-value of "the values are symmetric about 0", by flipping signs in every possible way.

    Parameters
    ----------
    values_v : float64 [..., V]
        Independent paired differences along the last axis.

    Returns
    -------
    float64 [...]
        Share of the 2^V sign patterns whose |sum| is at least that of the values, in [2 / 2^V, 1]. From 41 values on,
        of 100,000 patterns drawn with their own key, plus that of the values.
    """
    if values_v.shape[-1] > _ENUMERATED:
        count = _share_by_halves if values_v.shape[-1] <= _COUNTED else _share_of_drawn
        return np.apply_along_axis(count, -1, values_v)
    # A pattern and its opposite have the same |sum|, so the first sign is fixed.
    sums = values_v[..., :1]
    for v in range(1, values_v.shape[-1]):
        value = values_v[..., v : v + 1]
        sums = np.concatenate([sums + value, sums - value], axis=-1)
    # Mathematically equal sums may differ in their last bits: count them as equal.
    slack = 1e-12 * np.abs(values_v).sum(axis=-1, keepdims=True)
    return np.asarray((np.abs(sums) >= np.abs(values_v.sum(axis=-1, keepdims=True)) - slack).mean(axis=-1))


def _share_by_halves(values_v: np.ndarray) -> float:
    """The count of `sign_flip_p` for one row: sums of the two halves are enumerated, and pairs counted by sorting."""
    half = len(values_v) // 2
    left, right = _signed_sums(values_v[:half])[: 2 ** (half - 1)], np.sort(_signed_sums(values_v[half:]))
    least = abs(values_v.sum()) - 1e-12 * np.abs(values_v).sum()
    if least <= 0:
        return 1.0
    above = len(right) - np.searchsorted(right, least - left, side="left")
    below = np.searchsorted(right, -least - left, side="right")
    return float((above.sum() + below.sum()) / (len(left) * len(right)))


def _signed_sums(values_v: np.ndarray) -> np.ndarray:
    """Sums over all sign patterns; those with the first sign kept are the first half."""
    sums = np.array([values_v[0], -values_v[0]])
    for value in values_v[1:]:
        sums = np.stack([sums + value, sums - value], axis=1).ravel()
    return sums


def _share_of_drawn(values_v: np.ndarray) -> float:
    signs = generator(0, Stream.SIGN_FLIP).integers(0, 2, size=(_DRAWN_PATTERNS, len(values_v)), dtype=np.int8)
    sums = (2.0 * signs - 1) @ values_v
    hits = int((np.abs(sums) >= abs(values_v.sum()) - 1e-12 * np.abs(values_v).sum()).sum())
    return (1 + hits) / (1 + _DRAWN_PATTERNS)


def bootstrap_interval(
    differences_vm: np.ndarray, *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean by a hierarchical bootstrap: variants drawn again, then members within each.

    Parameters
    ----------
    differences_vm : float [V, m]
        Treatment minus baseline of each pair.
    seed : int
        Of the draws, in [0, 2**63).
    resamples : int
        Draws of the whole design.
    confidence : float
        In (0, 1).

    Raises
    ------
    ValueError
        If there are fewer than 10 variants, where it would be too narrow, or an argument is out of range.
    """
    differences_vm = np.asarray(differences_vm, np.float64)
    if differences_vm.ndim != 2 or differences_vm.size == 0 or not np.isfinite(differences_vm).all():
        raise ValueError(f"differences must be finite and [variants, members], got {differences_vm.shape}")
    variants, members = differences_vm.shape
    if variants < MIN_BOOTSTRAP_VARIANTS:
        raise ValueError(
            f"a bootstrap over {variants} variants is too narrow: use the t interval, or at least "
            f"{MIN_BOOTSTRAP_VARIANTS} variants"
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be at least 1 and confidence in (0, 1), got {resamples} and {confidence}")
    draws = generator(seed, Stream.BOOTSTRAP)
    variant = draws.integers(variants, size=(resamples, variants, 1))
    member = draws.integers(members, size=(resamples, variants, members))
    means = differences_vm[variant, member].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values corrected for multiple testing (Holm 1979): float64 in [0, 1], in the input order.

    Rejecting if the corrected value is at most a keeps the chance of any false rejection at most a. NaN (a test that
    could not be made) stays NaN and does not count.

    Raises
    ------
    ValueError
        If a value lies outside [0, 1].

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise ValueError(f"p-values must be a row of numbers in [0, 1], got {p}")
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    # The smallest is multiplied by their number, the next by one less, and so on; never below the one before.
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def members_t_test(baseline: np.ndarray, treatment: np.ndarray) -> tuple[float, float]:
    """The paper's paired t-test, over all members as if they were independent: for comparison with the paper only.

    Members of a variant share its data, so this test claims more than the data show: where variants differ as much as
    members do, it calls 18 % (3 x 3) to 23 % (4 x 4) of true nulls significant at the 5 % level.

    Parameters
    ----------
    baseline, treatment : float [...]
        One metric of each model, paired by index.

    Returns
    -------
    t, p : float
        NaN for a single pair or where all differences are equal.
    """
    differences = (np.asarray(treatment, np.float64) - np.asarray(baseline, np.float64)).ravel()
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan, math.nan
    t = float(differences.mean() / differences.std(ddof=1) * math.sqrt(len(differences)))
    return t, float(2 * special.stdtr(len(differences) - 1, -abs(t)))
