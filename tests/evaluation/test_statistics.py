import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hbr_fast.evaluation import statistics
from hbr_fast.evaluation.power import power, sign_flip_power, variants_needed
from hbr_fast.evaluation.statistics import (
    bootstrap_interval,
    holm,
    members_t_test,
    paired_difference,
    sign_flip_p,
    t_interval,
)


def test_paired_difference_by_hand() -> None:
    baseline = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    treatment = baseline - [[0.0, 0.2], [0.2, 0.2], [0.1, 0.5], [0.4, 0.4]]
    result = paired_difference(baseline, treatment)
    # Mean of the variant means -0.25, their sample deviation sqrt(0.05 / 3), t(3, 0.975) = 3.18245.
    np.testing.assert_allclose(result.variant_means, [-0.1, -0.2, -0.3, -0.4])
    assert result.difference == pytest.approx(-0.25)
    margin = 3.18245 * math.sqrt(0.05 / 3) / 2
    assert (result.low, result.high) == pytest.approx((-0.25 - margin, -0.25 + margin), rel=1e-5)
    assert result.effect_size == pytest.approx(-0.25 / math.sqrt(0.05 / 3))
    assert result.p_value == 2 / 16  # all of one sign: the smallest possible
    assert result.smallest_p == 0.125
    assert result.direction == "smaller"


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 1000))
def test_paired_difference_interval_is_t_interval_of_variant_means(variants: int, members: int, seed: int) -> None:
    baseline, treatment = np.random.default_rng(seed).normal(size=(2, variants, members))
    result = paired_difference(baseline, treatment)
    means = (treatment - baseline).mean(axis=1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    t = stats.ttest_1samp(means, 0).statistic
    assert result.effect_size * math.sqrt(variants) == pytest.approx(t)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_permutation_p_value_matches_enumeration(values: list[int]) -> None:
    # Whole numbers make ties common and the sums exact; tenths of them make the same ties inexact.
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in SIGNS[len(values)]]
    expected = sum(total >= abs(sum(values)) for total in sums) / len(sums)
    assert sign_flip_p(np.array(values, float)) == expected
    assert sign_flip_p(np.array(values) / 10 + 0.0) == expected
    assert sign_flip_p(np.array(values) * 0.1) == expected


SIGNS = {n: list(itertools.product([1, -1], repeat=n)) for n in range(1, 9)}


def test_permutation_p_value_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 8)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("variants", [1, 2, 4, 10, 20])
def test_paired_difference_reaches_and_reports_smallest_p(variants: int) -> None:
    result = paired_difference(np.zeros((variants, 1)), np.arange(1.0, variants + 1)[:, None])
    assert result.p_value == result.smallest_p == 2 / 2**variants


def test_paired_difference_one_variant_has_no_interval() -> None:
    result = paired_difference(np.array([[0.2, 0.3]]), np.array([[0.4, 0.3]]))
    assert result.difference == pytest.approx(0.1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert math.isnan(result.effect_size)
    assert (result.p_value, result.smallest_p, result.direction) == (1.0, 1.0, "larger")


def test_paired_difference_without_spread_has_no_effect_size() -> None:
    result = paired_difference(np.zeros((3, 1)), np.full((3, 1), 0.5))
    assert np.isnan([result.low, result.high]).all(), "an interval without width is no evidence"
    assert math.isnan(result.effect_size)


def test_paired_difference_of_equal_values() -> None:
    result = paired_difference(np.ones((4, 2)), np.ones((4, 2)))
    assert (result.difference, result.p_value, result.direction) == (0.0, 1.0, "no difference")


def test_trap_09_members_of_a_variant_are_not_independent() -> None:
    # Two variants that disagree, many members that agree with their variant: still two observations.
    treatment = np.stack([np.full(50, 0.1), np.full(50, 0.3)])
    result = paired_difference(np.zeros((2, 50)), treatment)
    assert result.high - result.low == pytest.approx(2 * 12.7062 * math.sqrt(0.02) / math.sqrt(2), rel=1e-5)
    assert result.smallest_p == 0.5
    assert result.direction == "larger"
    # Pairing is by position: reordering the baseline changes the result.
    baseline = np.array([[0.0], [1.0]])
    assert (
        paired_difference(baseline, baseline + 0.5).effect_size
        != paired_difference(baseline[::-1], baseline + 0.5).effect_size
    )


@pytest.mark.parametrize(
    ("baseline", "treatment", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"one value a pair, got \(2, 3\) and \(3, 2\)"),
        (np.zeros(3), np.zeros(3), r"must both be \[variants, members\]"),
        (np.zeros((0, 3)), np.zeros((0, 3)), r"must both be \[variants, members\]"),
        (np.zeros((1, 1)), np.full((1, 1), np.nan), "must be finite"),
        (np.full((1, 1), np.inf), np.zeros((1, 1)), "must be finite"),
    ],
)
def test_paired_difference_rejects_invalid_input(baseline: np.ndarray, treatment: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(baseline, treatment)


# --- batches ---


def test_intervals_and_p_values_of_many_rows_match_each_row() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (2, 5, 6))
    low, high = t_interval(values, confidence=0.9)
    p = sign_flip_p(values)
    assert low.shape == high.shape == p.shape == (2, 5)
    for place in np.ndindex(2, 5):
        expected = stats.ttest_1samp(values[place], 0).confidence_interval(0.9)
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high))
        assert p[place] == sign_flip_p(values[place])


# --- the bootstrap ---


def test_bootstrap_interval_draws_variants_then_members() -> None:
    differences = np.random.default_rng(5).normal(0, 1, (12, 3)) + np.random.default_rng(6).normal(0, 2, (12, 1))
    low, high = bootstrap_interval(differences, seed=0)
    # The variance of a resampled mean: between the observed variants, plus within them.
    between = differences.mean(axis=1).var() / 12
    within = differences.var(axis=1).mean() / (12 * 3)
    half = 1.96 * math.sqrt(between + within)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(differences, seed=0) == (low, high)
    assert bootstrap_interval(differences, seed=1) != (low, high)
    narrow = bootstrap_interval(differences, seed=0, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(
    ("differences", "options", "message"),
    [
        (np.zeros((9, 4)), {}, "a bootstrap over 9 variants is too narrow"),
        (np.zeros(10), {}, r"finite and \[variants, members\], got \(10,\)"),
        (np.full((10, 1), np.nan), {}, "must be finite"),
        (np.zeros((10, 1)), {"resamples": 0}, "resamples must be at least 1"),
        (np.zeros((10, 1)), {"confidence": 1.0}, r"confidence in \(0, 1\)"),
    ],
)
def test_bootstrap_interval_rejects_invalid_arguments(
    differences: np.ndarray, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(differences, seed=0, **options)  # type: ignore[arg-type]


# --- multiple testing ---


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, each raised to the maximum so far.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    # 0.001 times 3, then 0.2 times 2 = 0.4, then 0.9.
    np.testing.assert_allclose(holm([0.9, 0.2, 0.001]), [0.9, 0.4, 0.003])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.03]), [0.03])
    assert holm([]).shape == (0,)


def test_holm_skips_missing_tests() -> None:
    np.testing.assert_allclose(holm([math.nan, 0.02, 0.03]), [math.nan, 0.04, 0.04])


@pytest.mark.parametrize("values", [[0.5, 1.1], [-0.1], [[0.1, 0.2]]])
def test_holm_rejects_invalid_p_values(values: list) -> None:
    with pytest.raises(ValueError, match=r"must be a row of numbers in \[0, 1\]"):
        holm(values)


# --- the paper's test ---


def test_paper_t_test_agrees_with_scipy() -> None:
    baseline, treatment = np.random.default_rng(2).normal(size=(2, 4, 4))
    theirs = stats.ttest_rel(treatment.ravel(), baseline.ravel())
    assert members_t_test(baseline, treatment) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_paper_t_test_undefined_cases() -> None:
    assert all(math.isnan(x) for x in members_t_test(np.zeros(1), np.ones(1)))
    assert all(math.isnan(x) for x in members_t_test(np.zeros(3), np.ones(3)))


# --- planning ---


def test_power_agrees_with_simulation() -> None:
    values = np.random.default_rng(1).normal(0.9, 1, (40_000, 8))
    found = (stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean()
    assert power(0.9, 8) == pytest.approx(found, abs=0.01)
    assert power(-0.9, 8) == pytest.approx(power(0.9, 8))
    assert power(0.0, 8) == pytest.approx(0.05)


def test_variants_needed_is_the_smallest_with_that_power() -> None:
    # 34 pairs for a medium effect (d = 0.5, power 0.8) is the textbook figure (Cohen 1988).
    assert variants_needed(0.5) == 34
    for effect in (0.3, 0.7, 1.1):
        needed = variants_needed(effect)
        assert power(effect, needed) >= 0.8 > power(effect, needed - 1)


@pytest.mark.parametrize("effect", [0.9, 1.2, 1.5, 2.5])
def test_variants_needed_has_power_in_both_tests(effect: float) -> None:
    # At 1.5, six variants have power 0.8 in the t test, but the sign-flip test detects it in two of three studies.
    needed = variants_needed(effect)
    values = np.random.default_rng(3).normal(effect, 1, (4000, needed))
    assert (sign_flip_p(values) <= 0.05).mean() > 0.78
    assert power(effect, needed) >= 0.8
    if effect == 1.5:
        assert power(effect, 6) >= 0.8 > sign_flip_power(effect, 6) + 0.1
        assert needed == 7


def test_paired_difference_of_many_variants() -> None:
    needed = variants_needed(0.5)
    values = np.random.default_rng(0).normal(0.5, 1, (needed, 1))
    found = paired_difference(np.zeros_like(values), values)
    assert needed == 34
    assert found.smallest_p == 2 / 2**34
    assert found.p_value == pytest.approx(stats.ttest_1samp(values[:, 0], 0).pvalue, rel=0.2)


@pytest.mark.parametrize("variants", [5, 12, 13])
def test_sign_flip_p_by_halves_and_by_sampling(variants: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(variants).normal(0.4, 1, (3, variants))
    values[1] = 1.0  # ties everywhere
    values[2] = 0.0
    enumerated = sign_flip_p(values)
    monkeypatch.setattr(statistics, "_ENUMERATED", 3)
    np.testing.assert_array_equal(sign_flip_p(values), enumerated)
    monkeypatch.setattr(statistics, "_COUNTED", 3)
    np.testing.assert_allclose(sign_flip_p(values), enumerated, atol=0.005)
    assert sign_flip_p(np.ones(60)) == 1 / 100_001


def test_variants_needed_suffices_for_permutation_test() -> None:
    assert variants_needed(10.0) == 6  # 2 / 2^6 = 0.031; five variants cannot go below 0.0625
    assert variants_needed(10.0, level=0.125) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"effect_size": 0.0},
        {"effect_size": math.inf},
        {"effect_size": 0.5, "wanted_power": 1.0},
        {"effect_size": 0.5, "level": 0.9},
    ],
)
def test_variants_needed_rejects_invalid_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="planning needs an effect size other than 0"):
        variants_needed(**arguments)


def test_variants_needed_rejects_tiny_effect() -> None:
    with pytest.raises(ValueError, match="needs more than 1,000,000 variants"):
        variants_needed(1e-4)


@pytest.mark.parametrize(("variants", "level"), [(1, 0.05), (5, 0.0), (5, 1.0)])
def test_power_needs_two_variants_and_a_level(variants: int, level: float) -> None:
    with pytest.raises(ValueError, match="at least 2 variants"):
        power(0.5, variants, level=level)


def test_shuffled_arms_have_no_effect_and_a_planted_effect_is_found() -> None:
    """200 experiments of 12 variants: at the level 0.05, about one in twenty without an effect, and nearly all with."""
    rng = np.random.default_rng(0)
    shuffled, planted = 0, 0
    for _ in range(200):
        baseline, other = rng.normal(0.7, 0.03, (2, 12, 1))
        shuffled += paired_difference(baseline, other).p_value <= 0.05
        planted += paired_difference(baseline, other + 0.06).p_value <= 0.05
    assert 4 <= shuffled <= 16
    assert planted > 190
