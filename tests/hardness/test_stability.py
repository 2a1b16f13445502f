import math

import numpy as np
import pytest
from scipy import stats

from hbr_fast.hardness import HardnessScores, ensemble_size_curve
from hbr_fast.hardness.stability import AGREEMENTS

LABELS = np.arange(60) % 4


def noisy_members(members: int, noise: float, *, name: str = "aum") -> HardnessScores:
    """Members that observe one truth with independent noise."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=60) + 0.3 * LABELS + rng.normal(0, noise, (members, 60))
    return HardnessScores({name: values}, np.ones((members, 60), np.int64), np.zeros((members, 60), bool))


def test_stability_curve_matches_definition() -> None:
    scores = noisy_members(5, 0.8)
    curve = ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=4, orders=6, hardest=7)
    values = scores.values["aum"]
    full = values.mean(axis=0)
    # Column 0 comes from one member, the first in the order: one of these five.
    single = {
        "spearman_samples": [stats.spearmanr(v, full).statistic for v in values],
        "kendall_samples": [stats.kendalltau(v, full).statistic for v in values],
    }
    for name, expected in single.items():
        for got in getattr(curve, name)[:, 0]:
            assert min(abs(got - np.array(expected))) < 1e-12, name
    means = [np.array([v[c == LABELS].mean() for c in range(4)]) for v in [*values, full]]
    by_class = [stats.kendalltau(m, means[-1]).statistic for m in means[:-1]]
    assert {round(x, 9) for x in curve.kendall_classes[:, 0]} <= {round(x, 9) for x in by_class}
    sets = [set(np.argsort(v)[:7].tolist()) for v in [*values, full]]
    jaccard = {round(len(s & sets[-1]) / len(s | sets[-1]), 9) for s in sets[:-1]}
    assert {round(x, 9) for x in curve.jaccard_hardest[:, 0]} <= jaccard
    for name in AGREEMENTS:
        agreement = getattr(curve, name)
        assert agreement.shape == (6, 5)
        np.testing.assert_allclose(agreement[:, -1], 1, rtol=1e-12, err_msg=name)
    assert len(np.unique(curve.spearman_samples[:, 0])) > 1, "the orders differ"


def test_stability_curve_rises_with_members_and_falls_with_noise() -> None:
    quiet = ensemble_size_curve(noisy_members(12, 0.1), "aum", labels_n=LABELS, num_classes=4)
    loud = ensemble_size_curve(noisy_members(12, 2.0), "aum", labels_n=LABELS, num_classes=4)
    mean = loud.spearman_samples.mean(axis=0)
    assert (np.diff(mean) > 0).all()
    assert quiet.smallest_size("spearman_samples", 0.05) == 1
    assert 3 < loud.smallest_size("spearman_samples", 0.05) < 12
    assert loud.smallest_size("spearman_samples", 0.0) == 12
    assert loud.smallest_size("jaccard_hardest", 1.0) == 1


def test_smallest_stable_size_requires_staying_above_threshold() -> None:
    curve = ensemble_size_curve(noisy_members(4, 1.0), "aum", labels_n=LABELS, num_classes=4, orders=1)
    curve.jaccard_hardest[:] = [[0.9, 0.5, 0.95, 1.0]]  # above, below, then above for good
    assert curve.smallest_size("jaccard_hardest", 0.1) == 3
    with pytest.raises(ValueError, match="unknown agreement 'jaccard': available are spearman_samples, "):
        curve.smallest_size("jaccard", 0.1)
    with pytest.raises(ValueError, match=r"the tolerance must be in \[0, 1\], got 5"):
        curve.smallest_size("jaccard_hardest", 5)


def test_stability_curve_uses_hard_end_of_estimator() -> None:
    low = noisy_members(3, 1.0)
    high = HardnessScores({"loss": -low.values["aum"]}, low.observations, low.never_learnt)
    one = ensemble_size_curve(low, "aum", labels_n=LABELS, num_classes=4)
    other = ensemble_size_curve(high, "loss", labels_n=LABELS, num_classes=4)
    for name in AGREEMENTS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, err_msg=name)


def test_stability_curve_is_seeded_and_converts_to_frame() -> None:
    scores = noisy_members(6, 1.0)
    first, again, other = (
        ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=4, orders=3, seed=seed) for seed in (7, 7, 8)
    )
    frame = first.to_frame()
    assert frame.equals(again.to_frame())
    assert not frame.equals(other.to_frame())
    assert frame.columns == ["order", "members", *AGREEMENTS]
    assert frame["members"].to_list() == [1, 2, 3, 4, 5, 6] * 3
    assert frame["order"].to_list() == [0] * 6 + [1] * 6 + [2] * 6


def test_stability_curve_excludes_unobserved_samples() -> None:
    scores = noisy_members(3, 1.0)
    scores.values["aum"][1, 5] = math.nan
    curve = ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=4)
    assert np.isfinite(curve.spearman_samples).all()
    scores.values["aum"][1, LABELS == 2] = math.nan
    with pytest.raises(ValueError, match="each with a sample that all members observed"):
        ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=4)


def test_stability_curve_rejects_out_of_range_arguments() -> None:
    scores = noisy_members(3, 1.0)
    with pytest.raises(ValueError, match="59 labels for scores of 60 samples"):
        ensemble_size_curve(scores, "aum", labels_n=LABELS[1:], num_classes=4)
    with pytest.raises(ValueError, match="at least 1 order"):
        ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=4, orders=0)
    with pytest.raises(ValueError, match="must have 1 to 60 of them, got 61"):
        ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=4, hardest=61)
    with pytest.raises(ValueError, match="classes must be the 3 of the labels"):
        ensemble_size_curve(scores, "aum", labels_n=LABELS, num_classes=3)
