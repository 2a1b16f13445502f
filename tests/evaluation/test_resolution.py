"""The noise of the test set: against the binomial's formula, paired, and undefined where the measure is."""

import math

import numpy as np
import pytest

from hbr_fast.evaluation.measures import MEASURES
from hbr_fast.evaluation.resolution import difference_noise, few_samples
from hbr_fast.evaluation.statistics import combined_interval, t_interval

LABELS = np.repeat([0, 1], [40, 60])


def test_difference_noise_matches_the_formula() -> None:
    before = np.where(np.arange(100) < 30, 0, 1)[None]  # 30 of 40 and 60 of 60 right
    after = np.where(np.arange(100) < 10, 1, LABELS)[None]  # those that were right are wrong, and the others right
    found = difference_noise(before, after, LABELS, num_classes=2, seed=0, resamples=4000)
    # Class 0: the differences of its samples are -1 for ten, 0 for twenty and +1 for ten.
    expected = math.sqrt(20 / 40 / 40)
    assert found["recall_mean"] == pytest.approx(expected / 2, rel=0.05)
    assert found["accuracy"] == pytest.approx(0.4 * expected, rel=0.05)
    assert found["recall_worst"] == pytest.approx(expected, rel=0.05)
    assert math.isnan(found["recall_easy_hard"])
    assert set(found) == {"accuracy", *(f"recall_{measure}" for measure in MEASURES)}


def test_difference_noise_of_equal_predictions_is_zero() -> None:
    predicted = np.random.default_rng(0).integers(0, 2, (3, 100))
    found = difference_noise(predicted, predicted, LABELS, num_classes=2, hard_c=np.array([True, False]), seed=0)
    assert set(found.values()) == {0.0}


def test_difference_noise_shrinks_with_the_test_set_not_with_members() -> None:
    draws = np.random.default_rng(3)
    before, after = (draws.random((1, 100)) < share for share in (0.5, 0.6))

    def noise(copies: int, members: int) -> float:
        one, other = (np.tile(np.where(side, LABELS, 1 - LABELS), (members, copies)) for side in (before, after))
        labels = np.tile(LABELS, copies)
        return difference_noise(one, other, labels, num_classes=2, seed=1, resamples=2000)["accuracy"]

    assert noise(1, 8) == pytest.approx(noise(1, 1), rel=1e-6)
    assert noise(4, 1) == pytest.approx(noise(1, 1) / 2, rel=0.06)


def test_combined_interval_by_hand() -> None:
    values = np.array([0.01, 0.02, 0.03])
    low, high = t_interval(values)
    assert combined_interval(values, 0.0) == pytest.approx((low, high))
    # Standard error and noise are 1 / sqrt(3) points: half widths of t(0.975, 2) and of the normal's 1.96 times that.
    margin = math.hypot(4.302653, 1.959964) / math.sqrt(3) / 100
    assert combined_interval(values, 0.01 / math.sqrt(3)) == pytest.approx((0.02 - margin, 0.02 + margin), rel=1e-5)
    flat = combined_interval(np.full(3, 0.02), 0.01)
    assert flat == pytest.approx((0.02 - 0.0195996, 0.02 + 0.0195996), rel=1e-4)
    for undefined in ((np.full(3, 0.02), 0.0), (values[:1], 0.01), (values, math.nan)):
        assert np.isnan(combined_interval(*undefined)).all()


def test_few_samples_names_the_classes_that_one_sample_moves_much() -> None:
    assert few_samples("ab", np.array([50, 0]), kind="test") is None  # a class without samples has no recall
    warning = few_samples("abcdef", np.array([49, 60, 1, 3, 3, 20]), kind="validation")
    assert warning is not None
    assert warning.startswith(
        "Few validation samples: c 1, d 3, e 3, f 20 and 1 more. One sample moves the recall of c "
    )
    assert " by 100.0 points, " in warning
