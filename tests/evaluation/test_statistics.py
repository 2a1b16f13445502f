import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hbr_fast.evaluation.statistics import paired_difference, sign_flip_p


def test_by_hand() -> None:
    baseline = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    treatment = baseline - [[0.0, 0.2], [0.2, 0.2], [0.1, 0.5], [0.4, 0.4]]
    result = paired_difference(baseline, treatment)
    # Mean of the variant means -0.25, their sample deviation sqrt(0.05 / 3), t(3, 0.975) = 3.18245.
    np.testing.assert_allclose(result.variant_means, [-0.1, -0.2, -0.3, -0.4])
    assert result.difference == pytest.approx(-0.25)
    margin = 3.18245 * math.sqrt(0.05 / 3) / 2
    assert (result.low, result.high) == pytest.approx((-0.25 - margin, -0.25 + margin), rel=1e-5)
    assert result.effect_size == pytest.approx(-0.25 / math.sqrt(0.05 / 3))
    assert result.p_value == 2 / 16  # all of one sign: the smallest there is
    assert result.smallest_p == 0.125
    assert result.direction == "smaller"


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 1000))
def test_interval_is_the_t_interval_of_the_variant_means(variants: int, members: int, seed: int) -> None:
    baseline, treatment = np.random.default_rng(seed).normal(size=(2, variants, members))
    result = paired_difference(baseline, treatment)
    means = (treatment - baseline).mean(axis=1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    t = stats.ttest_1samp(means, 0).statistic
    assert result.effect_size * math.sqrt(variants) == pytest.approx(t)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_permutation_is_the_enumeration(values: list[int]) -> None:
    # Whole numbers make ties common and the sums exact; tenths of them make the same ties inexact.
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in SIGNS[len(values)]]
    expected = sum(total >= abs(sum(values)) for total in sums) / len(sums)
    assert sign_flip_p(np.array(values, float)) == expected
    assert sign_flip_p(np.array(values) / 10 + 0.0) == expected
    assert sign_flip_p(np.array(values) * 0.1) == expected


SIGNS = {n: list(itertools.product([1, -1], repeat=n)) for n in range(1, 9)}


def test_permutation_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 8)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("variants", [1, 2, 4, 10, 20])
def test_smallest_p_is_reached_and_stated(variants: int) -> None:
    result = paired_difference(np.zeros((variants, 1)), np.arange(1.0, variants + 1)[:, None])
    assert result.p_value == result.smallest_p == 2 / 2**variants


def test_one_variant_has_no_interval() -> None:
    result = paired_difference(np.array([[0.2, 0.3]]), np.array([[0.4, 0.3]]))
    assert result.difference == pytest.approx(0.1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert math.isnan(result.effect_size)
    assert (result.p_value, result.smallest_p, result.direction) == (1.0, 1.0, "larger")


def test_no_spread_has_no_effect_size() -> None:
    result = paired_difference(np.zeros((3, 1)), np.full((3, 1), 0.5))
    assert (result.low, result.high) == (0.5, 0.5)
    assert math.isnan(result.effect_size)


def test_no_difference() -> None:
    result = paired_difference(np.ones((4, 2)), np.ones((4, 2)))
    assert (result.difference, result.p_value, result.direction) == (0.0, 1.0, "no difference")


def test_trap_09_members_of_a_variant_are_not_independent_and_worse_is_larger() -> None:
    # Two variants that disagree, many members that agree with their variant: still two observations.
    treatment = np.stack([np.full(50, 0.1), np.full(50, 0.3)])
    result = paired_difference(np.zeros((2, 50)), treatment)
    assert result.high - result.low == pytest.approx(2 * 12.7062 * math.sqrt(0.02) / math.sqrt(2), rel=1e-5)
    assert result.smallest_p == 0.5
    assert result.direction == "larger"
    # Pairs are by place: another order of the baseline is another result.
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
        (np.zeros((21, 1)), np.zeros((21, 1)), r"21 variants are more than .* enumerates \(20\)"),
    ],
)
def test_bad_input(baseline: np.ndarray, treatment: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(baseline, treatment)
