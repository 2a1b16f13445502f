"""Pruning: exact counts, the right end, nested rates, and everything accounted for."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbr_fast.resampling.pruning import prune, rounded_share

LABELS = np.arange(30) % 3
SCORES = np.arange(30.0)


def test_trap_12_shares_of_a_class_are_exact() -> None:
    """Floating point kept 3349 of 5000 at 33 %; the decimal as written keeps 3350."""
    assert 5000 - rounded_share(0.33, 5000) == 3350
    assert len(prune(np.zeros(5000, np.int64), 0.33).kept) == 3350
    assert [rounded_share(0.5, count) for count in (1, 3, 5)] == [1, 2, 3]
    assert [rounded_share(rate, 1000) for rate in (0.33, 0.42, 0.5, 0.58, 0.66, 0.75)] == [330, 420, 500, 580, 660, 750]


@given(st.integers(0, 9999), st.integers(0, 10**6))
def test_prune_rounds_shares_to_nearest(parts: int, count: int) -> None:
    exact = Fraction(parts, 10_000) * count
    found = rounded_share(parts / 10_000, count)
    assert abs(found - exact) <= Fraction(1, 2)
    assert found - exact > -Fraction(1, 2), "halves go up"


@pytest.mark.parametrize("by", ["random", "hardness"])
@pytest.mark.parametrize("level", ["class", "dataset"])
def test_prune_partitions_samples_and_rates_are_nested(by: Any, level: Any) -> None:
    options: dict[str, Any] = {"by": by, "level": level, "scores_n": SCORES % 10, "hard_is": "low", "seed": 5}
    pruned = {rate: prune(LABELS, rate, **options) for rate in (0.0, 0.25, 0.5, 0.6)}
    for rate, result in pruned.items():
        assert sorted([*result.kept, *result.holdout]) == list(range(30))
        if level == "class":
            assert np.bincount(LABELS[result.kept]).tolist() == [10 - rounded_share(rate, 10)] * 3
        assert len(result.kept) == 30 - (3 * rounded_share(rate, 10) if level == "class" else rounded_share(rate, 30))
    assert set(pruned[0.6].kept) < set(pruned[0.5].kept) < set(pruned[0.25].kept)


def test_prune_by_hardness_drops_given_end_by_class_and_overall() -> None:
    options: dict[str, Any] = {"by": "hardness", "scores_n": SCORES}
    assert prune(LABELS, 0.8, hard_is="low", **options).kept.tolist() == [0, 1, 2, 3, 4, 5], "the easy end goes"
    assert prune(LABELS, 0.8, hard_is="high", **options).kept.tolist() == [24, 25, 26, 27, 28, 29]
    assert prune(LABELS, 0.8, hard_is="low", drop="hard", **options).kept.tolist() == [24, 25, 26, 27, 28, 29]
    uneven = {
        "by": "hardness",
        "level": "dataset",
        "scores_n": np.where(LABELS == 1, 0.0, SCORES + 1),
        "hard_is": "low",
    }
    kept = prune(LABELS, 0.4, **uneven).kept  # type: ignore[arg-type]
    assert np.bincount(LABELS[kept]).tolist() == [4, 10, 4]
    with pytest.raises(ValueError, match=r"class 'x' would be left with none of its 10 samples at rate 0\.9"):
        prune(LABELS, 0.9, classes=["x", "y", "z"], **uneven)  # type: ignore[arg-type]


def test_prune_class_depends_only_on_its_scores_and_ids() -> None:
    kept = prune(LABELS, 0.5, seed=1).kept
    assert kept.tolist() != prune(LABELS, 0.5, seed=2).kept.tolist()
    places = [set((kept[LABELS[kept] == c] - c) // 3) for c in range(3)]
    assert len({frozenset(one) for one in places}) == 3, "not the same places in every class"
    ids = np.arange(12)
    some = prune(LABELS, 0.5, ids=ids, seed=1)
    assert sorted([*some.kept, *some.holdout]) == list(range(12))


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (1.0, {}, r"a pruning rate is a share in \[0, 1\), got 1.0"),
        (-0.1, {}, r"share in \[0, 1\)"),
        (0.5, {"by": "aum"}, "by must be one of random, hardness; got 'aum'"),
        (0.5, {"level": "global"}, "level must be one of class, dataset; got 'global'"),
        (0.5, {"by": "hardness"}, "ranks samples: give scores_n and hard_is"),
        (0.5, {"by": "hardness", "scores_n": np.zeros(3), "hard_is": "low"}, "one score for each of 30 labels, got 3"),
        (0.5, {"by": "hardness", "scores_n": np.full(30, np.nan), "hard_is": "low"}, "30 scores are NaN"),
    ],
)
def test_prune_refuses_invalid_input(rate: float, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(LABELS, rate, **options)
