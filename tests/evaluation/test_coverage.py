"""What the intervals and tests promise, checked by simulation of the design: variants with members nested in them."""

import numpy as np
import pytest
from scipy import stats

from hbr_fast.evaluation.statistics import bootstrap_interval, members_t_test, sign_flip_p, t_interval

DESIGNS = [(3, 3), (4, 4), (10, 2)]
# Standard deviation of the variants' effects; the members' is 1.
VARIANT_EFFECTS = [0.0, 1.0, 3.0]
RUNS = 20_000  # a share of 0.95 is then known to 0.0015


def simulated(variants: int, members: int, *, variant_effect: float, runs: int, true: float = 0.0) -> np.ndarray:
    """Differences of `runs` studies without any other effect than `true`: float64 [runs, V, m]."""
    draws = np.random.default_rng([variants, members, int(10 * variant_effect)])
    shared = variant_effect * draws.normal(size=(runs, variants, 1))
    return true + shared + draws.normal(size=(runs, variants, members))


@pytest.mark.parametrize("variant_effect", VARIANT_EFFECTS)
@pytest.mark.parametrize(("variants", "members"), DESIGNS)
def test_the_default_interval_covers_as_it_says(variants: int, members: int, variant_effect: float) -> None:
    differences = simulated(variants, members, variant_effect=variant_effect, runs=RUNS, true=0.7)
    low, high = t_interval(differences.mean(axis=2))
    assert 0.93 <= ((low <= 0.7) & (high >= 0.7)).mean() <= 0.97


@pytest.mark.parametrize("variant_effect", VARIANT_EFFECTS)
@pytest.mark.parametrize(("variants", "members"), DESIGNS)
def test_the_permutation_test_is_not_above_its_level(variants: int, members: int, variant_effect: float) -> None:
    p = sign_flip_p(simulated(variants, members, variant_effect=variant_effect, runs=RUNS).mean(axis=2))
    for level in (0.01, 0.05, 0.125, 0.25):
        error = np.sqrt(level * (1 - level) / RUNS)
        assert (p <= level).mean() <= level + 4 * error
    # It is not empty caution either: at the smallest p of the design it rejects exactly that share.
    smallest = 2 / 2**variants
    assert (p <= smallest).mean() == pytest.approx(smallest, abs=4 * np.sqrt(smallest / RUNS))


@pytest.mark.parametrize(("variants", "members", "share"), [(3, 3, 0.18), (4, 4, 0.23)])
def test_the_papers_test_finds_effects_that_are_not_there(variants: int, members: int, share: float) -> None:
    differences = simulated(variants, members, variant_effect=1.0, runs=RUNS).reshape(RUNS, -1)
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(share, abs=0.015)
    assert members_t_test(np.zeros(variants * members), differences[0])[1] == pytest.approx(
        stats.ttest_1samp(differences[0], 0).pvalue
    )


def test_the_bootstrap_covers_from_ten_variants_on() -> None:
    covered = 0
    for run, differences in enumerate(simulated(10, 2, variant_effect=1.0, runs=1000)):
        low, high = bootstrap_interval(differences, seed=run, resamples=1000)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 1000 <= 0.96


def test_why_fewer_variants_have_no_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hbr_fast.evaluation.statistics.MIN_BOOTSTRAP_VARIANTS", 2)
    covered = 0
    for run, differences in enumerate(simulated(4, 4, variant_effect=1.0, runs=1000)):
        low, high = bootstrap_interval(differences, seed=run, resamples=1000)
        covered += low <= 0 <= high
    assert 0.84 <= covered / 1000 <= 0.90
