"""Every public integer of an order may come from numpy or torch, and is stored as Python's."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.orders import quota_order, ratio_order, sequential_order, uniform_order, weighted_order

INTEGERS = [np.int64, np.int32, np.uint8, np.array, torch.tensor]


@pytest.mark.parametrize("kind", INTEGERS)
def test_orders_convert_numpy_and_torch_integers(kind: Callable[[int], Any]) -> None:
    labels = np.arange(40) % 4
    made = {
        "uniform": lambda i: uniform_order(i(40), seed=i(7)),
        "sequential": lambda i: sequential_order(i(40)),
        "weighted": lambda i: weighted_order(np.arange(40.0), seed=i(7), length=i(30)),
        "without": lambda i: weighted_order(np.arange(40.0), seed=i(7), length=i(30), replacement=False),
        "quota": lambda i: quota_order(labels, [9, 10, 11, 12], seed=i(7)),
        "ratio": lambda i: ratio_order(labels, [1.0, 2, 3, 4], length=i(30), seed=i(7)),
    }
    for name, make in made.items():
        order, expected = make(kind), make(int)
        for epoch in (0, 3, 5):
            theirs = order.rows(kind(2), kind(9), epoch=kind(epoch), stride=kind(3))  # first: a cache would keep it
            ours = expected.rows(2, 9, epoch=epoch, stride=3)
            assert theirs.tolist() == ours.tolist(), name
            assert order.rows(2, 9, epoch=epoch, stride=3).tolist() == ours.tolist(), name
        part = order.shard(kind(1), kind(2), origin=kind(4))
        assert part.rows(kind(0), kind(3), epoch=kind(3)).tolist() == expected.rows(5, 3, epoch=3, stride=2).tolist()
        state = part.state(epoch=kind(3), position=kind(5))
        assert json.loads(json.dumps(state)) == expected.shard(1, 2, origin=4).state(epoch=3, position=5)


@pytest.mark.parametrize(
    "value", [True, 3.0, np.float64(3), np.True_, torch.tensor(True), torch.tensor([3]), "3", None]
)
def test_orders_refuse_non_integers(value: Any) -> None:
    order = uniform_order(10, seed=0)
    for name, call in {
        "length": lambda: uniform_order(value, seed=0),
        "seed": lambda: uniform_order(10, seed=value),
        "epoch": lambda: order.rows(0, 1, epoch=value),
        "start": lambda: order.rows(value, 1, epoch=0),
        "count": lambda: order.rows(0, value, epoch=0),
        "stride": lambda: order.rows(0, 1, epoch=0, stride=value),
        "rank": lambda: order.shard(value, 4),
        "world_size": lambda: order.shard(0, value),
        "position": lambda: order.state(epoch=0, position=value),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got"):
            call()
