import numpy as np
import pytest

from hbr_fast.sampler import SequentialOrder, UniformOrder, sequential_order, uniform_order


def test_the_order_is_pinned() -> None:
    # Stored studies are repeated from their seeds: these numbers may change with a new schema only.
    assert uniform_order(10, seed=0).rows(0, 10, epoch=0).tolist() == [0, 5, 7, 3, 2, 4, 6, 9, 1, 8]
    assert uniform_order(50_000, seed=7).rows(12_345, 10, epoch=3).tolist() == [
        32770,
        24441,
        24186,
        998,
        48573,
        4956,
        4666,
        33812,
        23556,
        21404,
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 255, 256, 257, 1000, 50_000])
def test_every_row_stands_once_in_an_epoch(length: int) -> None:
    rows = uniform_order(length, seed=1).rows(0, length, epoch=5)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(length))


def test_any_stretch_at_once_is_the_stretch_of_the_whole() -> None:
    order = uniform_order(3000, seed=1)
    whole = order.rows(0, 3000, epoch=2)
    for start, count in ((0, 1), (2999, 1), (17, 0), (511, 2), (700, 1111)):
        np.testing.assert_array_equal(order.rows(start, count, epoch=2), whole[start : start + count])


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    orders = {
        tuple(uniform_order(50, seed=seed).rows(0, 50, epoch=epoch).tolist())
        for seed in (0, 1, 2, 2**40, 2**63 - 1)
        for epoch in (0, 1, 2, 2**32 - 1)
    }
    # 20 pairs, none equal: seed + epoch as the key would make (0, 1) and (1, 0) the same.
    assert len(orders) == 20


def test_sequential_order_takes_rows_as_they_stand() -> None:
    order = sequential_order(10)
    assert len(order) == 10
    assert order.rows(0, 10, epoch=0).tolist() == list(range(10))
    assert order.rows(7, 3, epoch=9).tolist() == [7, 8, 9]
    assert order.rows(7, 3, epoch=9).dtype == np.int64


@pytest.mark.parametrize("length", [0, -1, 2**48 + 1])
def test_length_out_of_range(length: int) -> None:
    with pytest.raises(ValueError, match=rf"length in \[1, 2\*\*48\], got {length}"):
        uniform_order(length, seed=0)
    with pytest.raises(ValueError, match=rf"length in \[1, 2\*\*48\], got {length}"):
        sequential_order(length)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range_is_refused_at_once(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\)"):
        uniform_order(10, seed=seed)


@pytest.mark.parametrize("order", [uniform_order(10, seed=0), sequential_order(10)])
@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 11), (10, 1), (3, -1)])
def test_positions_out_of_range(order: UniformOrder | SequentialOrder, start: int, count: int) -> None:
    with pytest.raises(
        ValueError, match=rf"positions {start} to {start + count - 1} in steps of 1 are not inside the epoch's 10"
    ):
        order.rows(start, count, epoch=0)


@pytest.mark.parametrize("order", [uniform_order(10, seed=0), sequential_order(10)])
@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_epoch_out_of_range(order: UniformOrder | SequentialOrder, epoch: int) -> None:
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\)"):
        order.rows(0, 1, epoch=epoch)


def test_lengths_are_reported() -> None:
    assert len(uniform_order(123, seed=0)) == 123
