"""Coverage and level of intervals and tests, by simulation of the design: members nested in variants."""

import numpy as np
import pytest
from scipy import stats

from hbr_fast.evaluation.resolution import difference_noise
from hbr_fast.evaluation.statistics import (
    bootstrap_interval,
    combined_interval,
    members_t_test,
    sign_flip_p,
    t_interval,
)

DESIGNS = [(3, 3), (4, 4), (10, 2)]
# Standard deviation of the variant effects; that of the members is 1.
VARIANT_EFFECTS = [0.0, 1.0, 3.0]
RUNS = 20_000  # gives a share of 0.95 to within 0.0015


def simulated(variants: int, members: int, *, variant_effect: float, runs: int, true: float = 0.0) -> np.ndarray:
    """Differences of `runs` studies whose only effect is `true`: float64 [runs, V, m]."""
    draws = np.random.default_rng([variants, members, int(10 * variant_effect)])
    shared = variant_effect * draws.normal(size=(runs, variants, 1))
    return true + shared + draws.normal(size=(runs, variants, members))


@pytest.mark.parametrize("variant_effect", VARIANT_EFFECTS)
@pytest.mark.parametrize(("variants", "members"), DESIGNS)
def test_t_interval_has_nominal_coverage(variants: int, members: int, variant_effect: float) -> None:
    differences = simulated(variants, members, variant_effect=variant_effect, runs=RUNS, true=0.7)
    low, high = t_interval(differences.mean(axis=2))
    assert 0.93 <= ((low <= 0.7) & (high >= 0.7)).mean() <= 0.97


@pytest.mark.parametrize("variant_effect", VARIANT_EFFECTS)
@pytest.mark.parametrize(("variants", "members"), DESIGNS)
def test_permutation_test_keeps_its_level(variants: int, members: int, variant_effect: float) -> None:
    p = sign_flip_p(simulated(variants, members, variant_effect=variant_effect, runs=RUNS).mean(axis=2))
    for level in (0.01, 0.05, 0.125, 0.25):
        error = np.sqrt(level * (1 - level) / RUNS)
        assert (p <= level).mean() <= level + 4 * error
    # Nor is it overly conservative: at the design's smallest p it rejects exactly that share.
    smallest = 2 / 2**variants
    assert (p <= smallest).mean() == pytest.approx(smallest, abs=4 * np.sqrt(smallest / RUNS))


@pytest.mark.parametrize(("variants", "members", "share"), [(3, 3, 0.18), (4, 4, 0.23)])
def test_paper_t_test_exceeds_its_level(variants: int, members: int, share: float) -> None:
    differences = simulated(variants, members, variant_effect=1.0, runs=RUNS).reshape(RUNS, -1)
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(share, abs=0.015)
    assert members_t_test(np.zeros(variants * members), differences[0])[1] == pytest.approx(
        stats.ttest_1samp(differences[0], 0).pvalue
    )


def test_bootstrap_has_nominal_coverage_from_ten_variants() -> None:
    covered = 0
    for run, differences in enumerate(simulated(10, 2, variant_effect=1.0, runs=1000)):
        low, high = bootstrap_interval(differences, seed=run, resamples=1000)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 1000 <= 0.96


def test_bootstrap_undercovers_with_few_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hbr_fast.evaluation.statistics.MIN_BOOTSTRAP_VARIANTS", 2)
    covered = 0
    for run, differences in enumerate(simulated(4, 4, variant_effect=1.0, runs=1000)):
        low, high = bootstrap_interval(differences, seed=run, resamples=1000)
        covered += low <= 0 <= high
    assert 0.84 <= covered / 1000 <= 0.90


def test_combined_interval_covers_over_test_sets_where_the_t_interval_does_not() -> None:
    """Every study has a test set of its own; a test sample is easy or hard for all models, and resampling helps."""
    draws, covered, runs = np.random.default_rng(5), np.zeros(2), 500
    labels = np.repeat(np.arange(3), 30)
    chance = stats.norm.ppf(np.array([0.95, 0.9, 0.5])[labels])
    true = stats.norm.cdf(0.3 / np.sqrt(1.01)) - 0.5  # the gain of class 2, the worst one
    for run in range(runs):
        sample = draws.normal(size=len(labels))  # how hard each test sample is
        predicted = []
        for helped in (0.0, 0.3):
            shift = np.where(labels == 2, helped + 0.1 * draws.normal(size=(8, 1)), 0)  # varies over resampled sets
            right = chance + shift > 0.95 * sample + np.sqrt(1 - 0.95**2) * draws.normal(size=(8, len(labels)))
            predicted.append(np.where(right, labels, (labels + 1) % 3))
        before, after = predicted
        noise = difference_noise(before, after, labels, num_classes=3, seed=run, resamples=100)["recall_worst"]
        worst = [np.min([(side == c)[:, labels == c].mean(axis=1) for c in range(3)], axis=0) for side in predicted]
        differences = worst[1] - worst[0]
        for number, (low, high) in enumerate((t_interval(differences), combined_interval(differences, noise))):
            covered[number] += low <= true <= high
    assert covered[0] / runs < 0.9
    assert 0.93 <= covered[1] / runs <= 0.98
