"""Weights, labels, counts and ratios from callers: read unambiguously or refused."""

from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.orders import quota_order, ratio_order, weighted_order

WEIGHTS: Any = [1.0, 2.0, 0.5, 4.0]
LABELS: Any = [0, 1, 1, 0]


@pytest.mark.parametrize(
    "weights",
    [
        WEIGHTS,
        tuple(WEIGHTS),
        np.array(WEIGHTS, np.float16),
        torch.tensor(WEIGHTS, dtype=torch.bfloat16),
        torch.tensor(WEIGHTS, requires_grad=True) * 1,
        np.ma.MaskedArray(WEIGHTS, mask=False),
    ],
    ids=lambda weights: type(weights).__name__,
)
def test_weighted_order_accepts_weights_of_any_kind(weights: Any) -> None:
    assert weighted_order(weights, seed=0).describe() == weighted_order(np.array(WEIGHTS), seed=0).describe()


def test_weighted_order_reads_series_by_position() -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(WEIGHTS)
    expected = weighted_order(np.array(WEIGHTS), seed=0).describe()
    assert weighted_order(series, seed=0).describe() == expected
    shuffled = series.sample(frac=1, random_state=1)
    with pytest.raises(ValueError, match=r"weights is indexed by \[.*\].* instead of 0, 1, 2.*weights.sort_index\(\)"):
        weighted_order(shuffled, seed=0)
    assert weighted_order(shuffled.sort_index(), seed=0).describe() == expected
    with pytest.raises(ValueError, match="labels is indexed by"):
        quota_order(pandas.Series(LABELS, index=list("abcd")), [1, 1], seed=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.float64(3), "weights must be one number a sample in a row, got"),
        (torch.tensor(3.0), "weights must be one number a sample in a row, got"),
        (np.ma.MaskedArray(WEIGHTS, mask=np.array([0, 0, 1, 0])), "weights is masked at position 2: fill in a number"),
        ({"cat": 1.0, "dog": 2.0}, "weights must be one number a sample in a row, got a mapping: .* by the labels"),
    ],
)
def test_weighted_order_refuses_ambiguous_weights(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_order(weights, seed=0)


def test_orders_accept_counts_and_ratios_by_label() -> None:
    labels: Any = torch.tensor(LABELS)
    assert quota_order(labels, {1: 3, 0: 5}, seed=0).describe() == quota_order(LABELS, [5, 3], seed=0).describe()
    by_label = ratio_order(labels, {0: 1.0, 1: 3.0}, length=8, seed=0)
    assert by_label.describe() == ratio_order(LABELS, [1.0, 3.0], length=8, seed=0).describe()
    for mapping in ({"cat": 5, "dog": 3}, {0: 5, 2: 3}):
        with pytest.raises(
            ValueError, match=r"counts must have the labels 0 to 1 as keys, got .*mapping\[name\] for name"
        ):
            quota_order(labels, mapping, seed=0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ratios must have the labels 0 to 1 as keys"):
            ratio_order(labels, mapping, length=8, seed=0)  # type: ignore[arg-type]
