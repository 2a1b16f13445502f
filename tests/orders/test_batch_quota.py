"""Counts of each class in every batch."""

import json
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from hbr_fast.orders import batch_quota_order, quota_order
from hbr_fast.orders.torch_sampler import OrderSampler

LABELS = np.repeat([0, 1, 2], [900, 80, 20])


@pytest.mark.parametrize("length", [1000, 1050])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_batch_quota_order_balances_classes_on_every_rank(length: int, world_size: int) -> None:
    order = batch_quota_order(LABELS, [length // 2, length // 2, 0], batch_size=100, seed=0)
    own = 100 // world_size
    for rank in range(world_size):
        rows = order.shard(rank, world_size).rows(0, length // world_size, epoch=3)
        for first in range(0, len(rows), own):
            batch = rows[first : first + own]
            counts = np.bincount(LABELS[batch], minlength=3)
            assert abs(counts[0] - counts[1]) <= len(batch) % 2
            assert counts[2] == 0


@pytest.mark.parametrize(
    ("counts", "batch_size"),
    [([500, 500, 0], 100), ([333, 300, 418], 64), ([7, 1, 93], 10), ([1, 0, 2], 2), ([5, 5, 5], 15)],
)
def test_batch_quota_order_has_class_shares_and_exact_epoch_counts(counts: list[int], batch_size: int) -> None:
    order = batch_quota_order(LABELS, counts, batch_size=batch_size, seed=1)
    length = sum(counts)
    share = np.array(counts) * batch_size / length
    for epoch in range(3):
        rows = order.rows(0, length, epoch=epoch)
        assert np.bincount(LABELS[rows], minlength=3).tolist() == counts
        for first in range(0, length - batch_size + 1, batch_size):
            batch = np.bincount(LABELS[rows[first : first + batch_size]], minlength=3)
            # Dealing rounds once, the last, smaller batch's share once more.
            assert (np.abs(batch - share) < (1 if length % batch_size == 0 else 2)).all()
        for c in range(3):
            times = np.bincount(rows[LABELS[rows] == c], minlength=1000)[c == LABELS]
            assert times.max() - times.min() <= 1


def test_batch_quota_order_is_pure_and_varies_by_epoch() -> None:
    order = batch_quota_order(LABELS, [300, 300, 450], batch_size=100, seed=2)
    whole = order.rows(0, 1050, epoch=4)
    assert order.rows(990, 20, epoch=4, stride=3).tolist() == whole[990::3][:20].tolist()
    assert set(order.rows(0, 100, epoch=5).tolist()) != set(whole[:100].tolist())
    assert order.rows(0, 0, epoch=0).tolist() == []
    other = order.with_counts([350, 350, 350])
    assert (len(other), other.batch_size) == (1050, 100)
    assert order.describe() != other.describe() != quota_order(LABELS, [350, 350, 350], seed=2).describe()


def test_batch_quota_order_state_has_constant_size_and_resumes() -> None:
    order = batch_quota_order(LABELS, [500, 500, 0], batch_size=100, seed=0)
    sampler = OrderSampler(order)
    loader: Any = DataLoader(LABELS, sampler=sampler, batch_size=100)  # type: ignore[arg-type]
    seen = []
    for batch in loader:
        assert batch.bincount().tolist() == [50, 50]
        seen.append(batch)
        if len(seen) == 4:
            break
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = OrderSampler(order)
    resumed.load_state_dict(state)
    assert list(resumed) == order.rows(400, 600, epoch=0).tolist()
    with pytest.raises(ValueError, match="its batch_size is 100, this order's is 50"):
        OrderSampler(batch_quota_order(LABELS, [500, 500, 0], batch_size=50, seed=0)).load_state_dict(state)


@pytest.mark.parametrize("batch_size", [0, 1001, 2.5])
def test_batch_quota_order_refuses_batch_size_out_of_range(batch_size: float) -> None:
    with pytest.raises(ValueError, match="batch_size must be"):
        batch_quota_order(LABELS, [500, 500, 0], batch_size=batch_size, seed=0)  # type: ignore[arg-type]


def test_batch_quota_order_is_pinned() -> None:
    order = batch_quota_order(LABELS, [5, 4, 3], batch_size=4, seed=0)
    assert LABELS[order.rows(0, 12, epoch=0)].tolist() == [0, 0, 1, 2, 0, 0, 1, 2, 0, 1, 1, 2]
