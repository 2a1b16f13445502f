import json
import math
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hbr_fast import orders
from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.orders import (
    Sampler,
    SequentialOrder,
    Shard,
    UniformOrder,
    quota_order,
    ratio_order,
    sequential_order,
    shard_order,
    uniform_order,
    weighted_order,
)


def test_uniform_order_is_pinned() -> None:
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
def test_uniform_order_has_every_row_once(length: int) -> None:
    rows = uniform_order(length, seed=1).rows(0, length, epoch=5)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(length))


def test_uniform_order_slice_matches_whole() -> None:
    order = uniform_order(3000, seed=1)
    whole = order.rows(0, 3000, epoch=2)
    for start, count in ((0, 1), (2999, 1), (17, 0), (511, 2), (700, 1111)):
        np.testing.assert_array_equal(order.rows(start, count, epoch=2), whole[start : start + count])


def test_uniform_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(uniform_order(50, seed=seed).rows(0, 50, epoch=epoch).tolist())
        for seed in (0, 1, 2, 2**40, 2**63 - 1)
        for epoch in (0, 1, 2, 2**32 - 1)
    }
    # 20 pairs, none equal: seed + epoch as the key would make (0, 1) and (1, 0) the same.
    assert len(orders) == 20


def test_sequential_order_keeps_row_order() -> None:
    order = sequential_order(10)
    assert len(order) == 10
    assert order.rows(0, 10, epoch=0).tolist() == list(range(10))
    assert order.rows(7, 3, epoch=9).tolist() == [7, 8, 9]
    assert order.rows(7, 3, epoch=9).dtype == np.int64


@pytest.mark.parametrize("length", [0, -1, 2**48 + 1])
def test_uniform_order_length_out_of_range(length: int) -> None:
    with pytest.raises(ValueError, match=rf"whole length in \[1, 2\*\*48\], got {length}"):
        uniform_order(length, seed=0)
    with pytest.raises(ValueError, match=rf"whole length in \[1, 2\*\*48\], got {length}"):
        sequential_order(length)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_uniform_order_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\)"):
        uniform_order(10, seed=seed)


@pytest.mark.parametrize("order", [uniform_order(10, seed=0), sequential_order(10)])
@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 11), (10, 1), (3, -1)])
def test_uniform_order_positions_out_of_range(order: UniformOrder | SequentialOrder, start: int, count: int) -> None:
    with pytest.raises(
        ValueError, match=rf"positions {start} to {start + count - 1} in steps of 1 are not inside the epoch's 10"
    ):
        order.rows(start, count, epoch=0)


@pytest.mark.parametrize("order", [uniform_order(10, seed=0), sequential_order(10)])
@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_uniform_order_epoch_out_of_range(order: UniformOrder | SequentialOrder, epoch: int) -> None:
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\)"):
        order.rows(0, 1, epoch=epoch)


def test_orders_report_their_length() -> None:
    assert len(uniform_order(123, seed=0)) == 123


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [90, 1, 40, 0, 300]))
COUNTS = [200, 3, 17, 0, 299]
WEIGHTS = np.where(np.arange(1000) % 5 == 0, 0.0, 10 ** np.random.default_rng(1).uniform(-6, 6, 1000))
ORDERS: dict[str, Sampler] = {
    "uniform": uniform_order(1000, seed=1),
    "sequential": sequential_order(1000),
    "quota": quota_order(LABELS, COUNTS, seed=1),
    "quota by preference": quota_order(LABELS, COUNTS, seed=1, preference=np.arange(431.0)),
    "ratio": ratio_order(LABELS, [0.3, 0.01, 0.2, 0, 0.5], length=501, seed=1),
    "weighted": weighted_order(WEIGHTS, seed=1),
    "without replacement": weighted_order(WEIGHTS, seed=1, length=700, replacement=False),
    "shards": shard_order(1000, seed=1, run=64, runs_at_once=4),
    "shards of a plan": shard_order(np.arange(1000)[::-1].copy(), seed=1, run=64, runs_at_once=4),
    "shard that pads": uniform_order(1000, seed=1).shard(2, 3),
    "shard of a shard": uniform_order(1000, seed=1).shard(1, 2, origin=5).shard(2, 3, uneven="drop"),
}


PINNED = {
    "uniform": [1, 676, 118, 937, 693, 159, 568, 850, 318, 657],
    "sequential": [123, 124, 125, 126, 127, 128, 129, 130, 131, 132],
    "quota": [139, 323, 314, 24, 9, 19, 256, 39, 261, 195],
    "quota by preference": [8, 367, 301, 228, 256, 416, 289, 240, 102, 38],
    "ratio": [392, 92, 303, 415, 185, 253, 339, 344, 300, 408],
    "weighted": [803, 668, 183, 24, 381, 169, 393, 293, 322, 903],
    "without replacement": [918, 847, 624, 707, 833, 84, 657, 418, 553, 363],
    "shards": [532, 547, 534, 549, 548, 66, 517, 572, 700, 537],
    "shards of a plan": [467, 452, 465, 450, 451, 933, 482, 427, 299, 462],
    "shard that pads": [374, 747, 637, 234, 974, 852, 141, 411, 47, 304],
    "shard of a shard": [547, 67, 195, 594, 913, 847, 430, 681, 297, 30],
}


def epoch_of(order: Sampler, epoch: int = 0) -> np.ndarray:
    return order.rows(0, len(order), epoch=epoch)


def chi_square_of_subsets(subsets: Iterable[Iterable[int]], items: Iterable[int], size: int) -> float:
    """p-value of the hypothesis that all subsets of a size are equally frequent."""
    counts = dict.fromkeys(combinations(items, size), 0)
    for subset in subsets:
        counts[tuple(sorted(subset))] += 1
    return float(chisquare(list(counts.values())).pvalue)


# Every order


@pytest.mark.parametrize("name", ORDERS)
@given(data=st.data())
def test_orders_slice_matches_whole(name: str, data: st.DataObject) -> None:
    order = ORDERS[name]
    epoch = data.draw(st.sampled_from([0, 1, 2**32 - 1]))
    count = data.draw(st.integers(0, len(order)))
    stride = data.draw(st.integers(1, max((len(order) - 1) // max(count - 1, 1), 1)))
    start = data.draw(st.integers(0, max(len(order) - 1 - (count - 1) * stride, 0)))
    rows = order.rows(start, count, epoch=epoch, stride=stride)
    assert rows.dtype == np.int64
    assert len(rows) == count
    np.testing.assert_array_equal(rows, epoch_of(order, epoch)[start::stride][:count])
    assert (rows < order.num_rows).all()


@pytest.mark.parametrize("name", ORDERS)
def test_orders_do_not_depend_on_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = ORDERS[name]
    alone, strided = epoch_of(order, 3), order.rows(1, 80, epoch=3, stride=2)
    monkeypatch.setattr(orders.order, "PARALLEL_ROWS", 7)
    monkeypatch.setattr(orders.order, "usable_cpus", lambda: 5)
    np.testing.assert_array_equal(epoch_of(order, 3), alone)
    np.testing.assert_array_equal(order.rows(1, 80, epoch=3, stride=2), strided)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_return_writable_rows(name: str) -> None:
    order = ORDERS[name]
    before = epoch_of(order).tolist()
    epoch_of(order)[:] = -1
    assert epoch_of(order).tolist() == before


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "sequential"])
def test_orders_differ_between_epochs(name: str) -> None:
    assert len({tuple(epoch_of(ORDERS[name], epoch).tolist()) for epoch in (0, 1, 2, 2**32 - 1)}) == 4


@pytest.mark.parametrize("name", ORDERS)
def test_orders_refuse_positions_outside_epoch(name: str) -> None:
    order = ORDERS[name]
    for start, count, stride in ((-1, 1, 1), (len(order), 1, 1), (0, 2, len(order)), (0, 1, 0), (0, -1, 1)):
        with pytest.raises(ValueError, match=f"are not inside the epoch's {len(order)}"):
            order.rows(start, count, epoch=0, stride=stride)
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\), got -1"):
        order.rows(0, 1, epoch=-1)


def test_orders_are_pinned() -> None:
    # As above: stored studies are repeated from these.
    assert {name: order.rows(123, 10, epoch=3).tolist() for name, order in ORDERS.items()} == PINNED


# Shards


@pytest.mark.parametrize(("length", "run", "at_once"), [(100, 10, 2), (103, 10, 3), (7, 3, 1), (5, 100, 9), (64, 1, 8)])
def test_shard_order_draws_every_row_once_from_few_runs(length: int, run: int, at_once: int) -> None:
    order = shard_order(length, seed=3, run=run, runs_at_once=at_once)
    epochs = [order.rows(0, length, epoch=epoch) for epoch in range(2)]
    for rows in epochs:
        np.testing.assert_array_equal(np.sort(rows), np.arange(length))
    assert length < 50 or (epochs[0] != epochs[1]).mean() > 0.5
    first = epochs[0][: min(length, run) * at_once // 2]
    assert len(set((first // run).tolist())) <= at_once
    assert length != 100 or sorted(first) != first.tolist()


def test_shard_order_follows_where_rows_are_stored() -> None:
    places = np.random.default_rng(0).permutation(60) // 2  # a plan that has every sample twice
    order = shard_order(places, seed=0, run=12, runs_at_once=1)
    rows = order.rows(0, 60, epoch=1)
    np.testing.assert_array_equal(np.sort(rows), np.arange(60))
    for group in places[rows].reshape(5, 12):
        assert np.ptp(group) == 5
    other = shard_order(places[::-1].copy(), seed=0, run=12, runs_at_once=1)
    with pytest.raises(ValueError, match="this state is from another order: its sequence is"):
        order.restore(other.state(epoch=0, position=12))
    for wrong, message in (
        ({"places": places / 2}, "places must be whole numbers"),
        ({"run": 0}, "run and runs_at_once must be at least 1, got 0 and 16"),
        ({"runs_at_once": 1.5}, "runs_at_once must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            shard_order(**{"places": 10, "seed": 0, **wrong})  # type: ignore[arg-type]


# Class quotas


@st.composite
def labels_and_counts(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Labels and counts that fit: classes with no samples have no count."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any))
    counts = [draw(st.integers(0, 40)) if size else 0 for size in sizes]
    counts[sizes.index(max(sizes))] += 1
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(draw(st.integers(0, 50))).permutation(labels), counts


@given(labels_and_counts(), st.integers(0, 2**63 - 1), st.sampled_from([0, 1, 77, 2**32 - 1]))
@example((np.array([4, 1]), [0, 5, 0, 0, 1, 0, 0]), 0, 0)  # more classes than samples
@example((np.array([0]), [1]), 0, 0)
@example((np.array([0, 0, 0]), [2**17 + 1]), 0, 0)  # enough for threads
def test_quota_order_counts_are_exact_and_even_in_every_epoch(
    problem: tuple[np.ndarray, list[int]], seed: int, epoch: int
) -> None:
    labels, counts = problem
    order = quota_order(labels, counts, seed=seed)
    assert len(order) == sum(counts)
    assert order.counts(epoch).tolist() == counts
    rows = epoch_of(order, epoch)
    assert np.bincount(labels[rows], minlength=len(counts)).tolist() == counts
    times = np.bincount(rows, minlength=len(labels))
    for c, count in enumerate(counts):
        size = int((labels == c).sum())
        if size:
            extra = np.sort(times[labels == c]) - count // size
            assert extra.tolist() == [0] * (size - count % size) + [1] * (count % size)


def test_quota_order_extra_copies_are_uniform_over_subsets() -> None:
    # Class 0: 7 of 5 members, so 2 extra copies; class 1: 3 of 6 members are drawn at all.
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1])
    members = [np.flatnonzero(labels == c).tolist() for c in (0, 1)]
    order = quota_order(labels, [7, 3], seed=3)
    by_epoch = [np.bincount(epoch_of(order, epoch), minlength=11) for epoch in range(4000)]
    by_seed = [np.bincount(epoch_of(quota_order(labels, [7, 3], seed=s)), minlength=11) for s in range(2000)]
    for times in (by_epoch, by_seed):
        extra = ([i for i in members[0] if counted[i] == 2] for counted in times)
        assert chi_square_of_subsets(extra, members[0], 2) > 1e-4
        drawn = ([i for i in members[1] if counted[i]] for counted in times)
        assert chi_square_of_subsets(drawn, members[1], 3) > 1e-4


def test_quota_order_classes_are_independent() -> None:
    # Classes of one size share their round keys: without a number of its own they would leave out the same members.
    order = quota_order(np.repeat([0, 1], 4), [2, 2], seed=0)
    cells = np.zeros((6, 6))
    subsets = list(combinations(range(4), 2))
    for epoch in range(7200):
        rows = np.sort(epoch_of(order, epoch)).tolist()
        cells[subsets.index((rows[0], rows[1])), subsets.index((rows[2] - 4, rows[3] - 4))] += 1
    assert chisquare(cells.ravel()).pvalue > 1e-4


def test_quota_order_mixes_classes_over_epoch() -> None:
    order = quota_order(np.repeat([0, 1, 2], [10, 20, 2]), [5, 20, 7], seed=0)
    at = np.array([order.rows(0, 32, epoch=epoch) for epoch in range(3000)])
    for position in (0, 1, 15, 31):
        classes = np.bincount(np.digitize(at[:, position], [10, 30]), minlength=3)
        assert chisquare(classes, np.array([5, 20, 7]) / 32 * 3000).pvalue > 1e-4


def test_quota_order_checks_detect_too_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # The checks above can fail: with 4 rounds the choice of members is visibly uneven.
    monkeypatch.setattr(cpu_bijections, "rounds", lambda length: 4)
    order = quota_order(np.zeros(5, np.int64), [2], seed=3)
    assert chi_square_of_subsets((epoch_of(order, epoch) for epoch in range(10_000)), range(5), 2) < 1e-6


def test_quota_order_preference_keeps_same_samples_in_every_epoch() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    preference = np.array([2.0, -np.inf, 5.0, 1.0, 2.0, 2.0, 1.0, np.inf])
    order = quota_order(labels, [2, 6], seed=0, preference=preference)
    for epoch in range(20):
        # Of class 0 the largest and, of three that tie, the first; of class 1 all, and the two largest again.
        assert sorted(epoch_of(order, epoch).tolist()) == [0, 1, 2, 3, 3, 6, 7, 7]
    assert len({tuple(epoch_of(order, epoch).tolist()) for epoch in range(20)}) > 15


def test_quota_order_preference_follows_counts() -> None:
    order = quota_order(np.zeros(9, np.int64), [2], seed=0, preference=np.arange(9.0)).with_counts([4])
    assert sorted(epoch_of(order, 5).tolist()) == [5, 6, 7, 8]


def test_quota_order_with_counts_has_new_length() -> None:
    order = quota_order(LABELS, COUNTS, seed=9)
    other = order.with_counts([1, 2, 3, 0, 4])
    assert (len(order), len(other)) == (519, 10)
    assert np.bincount(LABELS[epoch_of(other)], minlength=5).tolist() == [1, 2, 3, 0, 4]
    assert epoch_of(other).tolist() == epoch_of(quota_order(LABELS, [1, 2, 3, 0, 4], seed=9)).tolist()
    assert epoch_of(order.with_counts(COUNTS)).tolist() == epoch_of(order).tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_quota_order_accepts_labels_of_any_integer_type(dtype: type) -> None:
    order = quota_order(LABELS.astype(dtype), np.array(COUNTS, np.uint16), seed=1)
    assert order.describe() == ORDERS["quota"].describe()
    np.testing.assert_array_equal(epoch_of(order), epoch_of(ORDERS["quota"]))


@pytest.mark.parametrize(
    ("labels", "counts", "message"),
    [
        ([0, 1], [1.0, 1.0], r"counts must be whole numbers, one a class, got float64 \(2,\)"),
        ([0, 1], [[1, 1]], r"counts must be whole numbers, one a class, got int64 \(1, 2\)"),
        ([0, 1], [], "counts must be whole numbers"),
        ([0, 2], [1, 1], "labels go up to 2, but there are counts for 2 classes"),
        ([-1, 1], [1, 1], "labels must not be negative, got -1"),
        ([0, 1], [1, -2], "counts must not be negative, class 1 has -2"),
        ([0, 2], [1, 1, 1], "class 1 has no samples but a count of 1: give it a count of 0"),
        ([0, 1], [1, 1, 1], "class 2 has no samples but a count of 1: give it a count of 0"),
        ([0, 0], [1, 3], "class 1 has no samples but a count of 3: give it a count of 0"),
        ([0, 1], [0, 0], r"whole length in \[1, 2\*\*48\], got 0"),
        ([0.0, 1.0], [1, 1], r"labels must be whole numbers, one a sample, got float64 \(2,\)"),
        ([[0, 1]], [1, 1], r"labels must be whole numbers, one a sample, got int64 \(1, 2\)"),
        ([], [1, 1], "labels must be whole numbers"),
    ],
)
def test_quota_order_refuses_invalid_labels_and_counts(labels: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quota_order(np.array(labels), counts, seed=0)


@pytest.mark.parametrize("preference", [[1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_quota_order_refuses_invalid_preference(preference: list[float]) -> None:
    with pytest.raises(ValueError, match="preference must be 2 numbers, one a sample, and none NaN"):
        quota_order(np.array([0, 1]), [1, 1], seed=0, preference=np.array(preference))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_orders_refuse_seed_out_of_range(seed: int) -> None:
    for make in (
        lambda: quota_order(np.array([0]), [1], seed=seed),
        lambda: ratio_order(np.array([0]), [1.0], length=1, seed=seed),
        lambda: weighted_order(np.ones(1), seed=seed),
    ):
        with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\)"):
            make()


# Real-valued ratios


def exact_quotas(ratios: list[float], length: int) -> list[Fraction]:
    exact = [Fraction(ratio) for ratio in ratios]
    return [length * ratio / sum(exact) for ratio in exact]


@given(
    ratios=st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=8).filter(any),
    length=st.integers(1, 500),
    epochs=st.integers(1, 30),
)
def test_ratio_order_is_never_off_by_one_over_epochs(ratios: list[float], length: int, epochs: int) -> None:
    quotas = exact_quotas(ratios, length)
    assume(all(quota == 0 or quota >= 1 for quota in quotas))
    order = ratio_order(np.arange(len(ratios)), ratios, length=length, seed=0)
    assert len(order) == length
    so_far = np.zeros(len(ratios), np.int64)
    for epoch in range(epochs):
        counts = np.bincount(epoch_of(order, epoch), minlength=len(ratios))
        assert counts.tolist() == order.counts(epoch).tolist()
        so_far += counts
        assert all(abs(count - (epoch + 1) * quota) < 1 for count, quota in zip(so_far.tolist(), quotas, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_ratio_order_is_never_off_by_one_over_two_thousand_epochs(seed: int) -> None:
    ratios = np.random.default_rng(seed).uniform(0.2, 1, 6).tolist()
    quotas = exact_quotas(ratios, 31)
    order = ratio_order(np.arange(6), ratios, length=31, seed=0)
    so_far = np.zeros(6, np.int64)
    for epoch in range(2000):
        counts = order.counts(epoch)
        assert counts.sum() == 31
        so_far += counts
        off = [abs(count - (epoch + 1) * quota) for count, quota in zip(so_far.tolist(), quotas, strict=True)]
        assert max(off) < 1


def test_ratio_order_alternates_between_epochs() -> None:
    order = ratio_order(np.array([0, 0, 1, 1, 2, 2]), [1, 1, 1], length=4, seed=0)
    counts = [tuple(order.counts(epoch).tolist()) for epoch in range(3)]
    assert np.sum(counts, axis=0).tolist() == [4, 4, 4]
    assert len(set(counts)) > 1
    # Even when requested out of order, rows follow their own epoch's counts.
    for epoch in (2, 0, 1, 0):
        assert tuple(np.bincount(epoch_of(order, epoch) // 2).tolist()) == counts[epoch]


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([1.0, -0.1], "ratios must be finite, >= 0 and not all 0"),
        ([1.0, np.nan], "ratios must be finite, >= 0 and not all 0"),
        ([1.0, np.inf], "ratios must be finite, >= 0 and not all 0"),
        ([0.0, 0.0], "ratios must be finite, >= 0 and not all 0"),
        ([[1.0, 1.0]], "ratios must be finite, >= 0 and not all 0, one a class"),
        ([1.0, 0.05], "class 1 would get 0.476 samples an epoch: it needs at least 1"),
        ([1.0], "labels go up to 1, but there are counts for 1 classes"),
        ([1.0, 1.0, 1.0], "class 2 has no samples but a count of 3.33333: give it a count of 0"),
    ],
)
def test_ratio_order_refuses_invalid_ratios(ratios: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_order(np.array([0, 1]), ratios, length=10, seed=0)


def test_ratio_order_refuses_length_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"whole length in \[1, 2\*\*48\], got 0"):
        ratio_order(np.array([0]), [1.0], length=0, seed=0)


# Arbitrary weights

FEW_WEIGHTS = np.array([0.0, 1.0, 2.0, 0.0, 3.5, 0.25, 10.0, 4.0])
DRAWS, BLOCK = 60_000_000, 10_000_000


def chi_square_of_draws(order: Sampler, weights: np.ndarray, draws: int, *, first: int = 0) -> float:
    """p-value of the hypothesis that the order draws in proportion to the weights."""
    counts = np.zeros(len(weights), np.int64)
    for start in range(0, draws, BLOCK):
        rows = order.rows(first + start, min(BLOCK, draws - start), epoch=0)
        counts += np.bincount(rows, minlength=len(weights))
    assert not counts[weights == 0].any()
    positive = weights > 0
    return float(chisquare(counts[positive], weights[positive] / weights.sum() * draws).pvalue)


def test_weighted_order_draws_in_proportion() -> None:
    assert chi_square_of_draws(weighted_order(FEW_WEIGHTS, seed=0, length=DRAWS), FEW_WEIGHTS, DRAWS) > 1e-4


def test_weighted_order_check_detects_error_of_a_thousandth() -> None:
    # The check above can fail.
    off = FEW_WEIGHTS * (1 + 1e-3 * (-1) ** np.arange(8))
    assert chi_square_of_draws(weighted_order(off, seed=0, length=DRAWS), FEW_WEIGHTS, DRAWS) < 1e-6


def test_weighted_order_draws_many_weights_in_proportion() -> None:
    weights = np.random.default_rng(0).random(20_000)
    weights[::3] = 0
    order = weighted_order(weights, seed=1, length=2**48)
    assert chi_square_of_draws(order, weights, 4_000_000) > 1e-4
    assert chi_square_of_draws(order, weights, 4_000_000, first=2**47 + 12_345) > 1e-4


def test_weighted_order_draws_rare_rows_over_twelve_orders_of_magnitude() -> None:
    weights = 10.0 ** np.arange(-12, 1)
    counts = np.zeros(13, np.int64)
    order = weighted_order(weights, seed=0, length=DRAWS)
    for start in range(0, DRAWS, BLOCK):
        counts += np.bincount(order.rows(start, BLOCK, epoch=0), minlength=13)
    expected = weights / weights.sum() * DRAWS
    assert chisquare(counts[6:], expected[6:] / expected[6:].sum() * counts[6:].sum()).pvalue > 1e-4
    assert counts[:6].sum() < 30  # 5.4 are expected


@pytest.mark.parametrize("epoch", [0, 7])
def test_weighted_order_draws_are_independent(epoch: int) -> None:
    weights = np.array([1.0, 2.0, 5.0])
    order = weighted_order(weights, seed=4, length=300_000)
    rows = epoch_of(order, epoch)
    others = (
        np.roll(rows, 1),
        epoch_of(order, epoch + 1),
        epoch_of(weighted_order(weights, seed=5, length=300_000), epoch),
    )
    expected = np.outer(weights, weights).ravel() / 64 * 300_000
    for other in others:
        assert chisquare(np.bincount(rows * 3 + other, minlength=9), expected).pvalue > 1e-4


def test_weighted_order_with_weights_keeps_length_and_replacement() -> None:
    for replacement in (True, False):
        order = weighted_order(np.ones(10), seed=3, length=4, replacement=replacement)
        other = order.with_weights(np.isin(np.arange(10), [2, 3, 5, 7]))
        assert len(other) == 4
        drawn = set(epoch_of(other).tolist())
        assert drawn < {2, 3, 5, 7} if replacement else drawn == {2, 3, 5, 7}
        assert epoch_of(order.with_weights(np.ones(10))).tolist() == epoch_of(order).tolist()


def test_weighted_order_depends_only_on_proportions() -> None:
    weights = np.random.default_rng(3).random(50)
    for scale in (2.0**-900, 2.0**-30, 2.0**60, 2.0**900):
        np.testing.assert_array_equal(
            epoch_of(weighted_order(weights * scale, seed=0)), epoch_of(weighted_order(weights, seed=0))
        )


def test_weighted_order_without_replacement_has_no_repeats() -> None:
    order = weighted_order(WEIGHTS, seed=0, length=300, replacement=False)
    for epoch in range(5):
        rows = epoch_of(order, epoch)
        assert len(set(rows.tolist())) == 300
        assert (WEIGHTS[rows] > 0).all()
    everything = weighted_order(WEIGHTS, seed=0, length=800, replacement=False)
    assert sorted(epoch_of(everything).tolist()) == np.flatnonzero(WEIGHTS).tolist()


def test_weighted_order_without_replacement_matches_sequential_draws() -> None:
    # First and second of an epoch: P(i, j) = w_i / W * w_j / (W - w_i). Over epochs of one order, and over seeds.
    weights = np.array([1.0, 0.0, 2.0, 3.0, 6.0])
    order = weighted_order(weights, seed=0, length=2, replacement=False)
    by_epoch = np.array([epoch_of(order, epoch) for epoch in range(12_000)])
    by_seed = np.array([epoch_of(weighted_order(weights, seed=s, length=2, replacement=False)) for s in range(6000)])
    expected = np.outer(weights, weights) / 12 / (12 - weights)[:, None]
    possible = (expected > 0) & ~np.eye(5, dtype=bool)
    for pairs in (by_epoch, by_seed):
        cells = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25).reshape(5, 5)
        assert cells[possible].sum() == len(pairs)
        assert chisquare(cells[possible], expected[possible] * len(pairs)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1e-300], "weights must be finite and >= 0: weight 1 is -1e-300"),
        ([1.0, 2.0, np.nan], "weights must be finite and >= 0: weight 2 is nan"),
        ([np.inf, 2.0, np.nan], "weights must be finite and >= 0: weight 0 is inf"),
        ([0.0, 0.0], "all weights are 0: there is nothing to draw"),
        ([-0.0], "all weights are 0: there is nothing to draw"),
        ([], r"weights must be a row of 1 to 2\*\*32 - 1 numbers, got shape \(0,\)"),
        ([[1.0, 2.0]], r"weights must be a row of 1 to 2\*\*32 - 1 numbers, got shape \(1, 2\)"),
    ],
)
def test_weighted_order_refuses_invalid_weights(weights: list[float], message: str) -> None:
    for replacement in (True, False):
        with pytest.raises(ValueError, match=message):
            weighted_order(np.array(weights), seed=0, length=1, replacement=replacement)
    with pytest.raises(ValueError, match=message):
        weighted_order(np.ones(2), seed=0, length=1).with_weights(np.array(weights))


def test_weighted_order_refuses_more_draws_than_rows() -> None:
    with pytest.raises(ValueError, match="5 draws without replacement need as many weights above 0, got 3"):
        weighted_order(np.array([1.0, 0.0, 2.0, 3.0, 0.0]), seed=0, replacement=False)
    with pytest.raises(ValueError, match=r"whole length in \[1, 2\*\*48\], got 0"):
        weighted_order(np.ones(3), seed=0, length=0)


def test_weighted_order_accepts_more_weights_than_torch() -> None:
    weights = np.zeros(2**24 + 1)
    weights[[5, 2**23, 2**24 - 1, 2**24]] = [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match=r"cannot exceed 2\^24"):
        torch.multinomial(torch.from_numpy(weights), 10, replacement=True)
    order = weighted_order(weights, seed=0, length=100_000)
    drawn, counts = np.unique(epoch_of(order), return_counts=True)
    assert drawn.tolist() == [5, 2**23, 2**24 - 1, 2**24]
    assert chisquare(counts, [10_000, 20_000, 30_000, 40_000]).pvalue > 1e-4
    without = weighted_order(weights, seed=0, length=4, replacement=False)
    assert sorted(epoch_of(without).tolist()) == drawn.tolist()


# Parts of an order for several processes


@given(
    length=st.integers(1, 60), world_size=st.integers(1, 90), uneven=st.sampled_from(["pad", "drop"]), data=st.data()
)
def test_shards_together_are_the_whole_order(
    length: int, world_size: int, uneven: Literal["pad", "drop"], data: st.DataObject
) -> None:
    origin = data.draw(st.integers(0, length))
    order = uniform_order(length, seed=2)
    whole = epoch_of(order, 1)
    shards = [order.shard(rank, world_size, uneven=uneven, origin=origin) for rank in range(world_size)]
    left = length - origin
    each = left // world_size if uneven == "drop" else math.ceil(left / world_size)
    assert {len(shard) for shard in shards} == {each}
    assert {shard.num_rows for shard in shards} == {length}
    together = np.stack([epoch_of(shard, 1) for shard in shards], axis=1).ravel()
    np.testing.assert_array_equal(together, whole[(origin + np.arange(each * world_size)) % length])
    for shard in shards:
        # Row i of a shard is at the global position that is passed to a batch starting there.
        first, step = shard.global_positions(2)
        at = first + step * np.arange(max(each - 2, 0))
        np.testing.assert_array_equal(epoch_of(shard, 1)[2:], whole[at % length])


@given(
    length=st.integers(1, 200),
    steps=st.integers(0, 50),
    before=st.integers(1, 7),
    after=st.integers(1, 7),
)
def test_shards_resume_with_another_number_of_ranks(length: int, steps: int, before: int, after: int) -> None:
    steps = min(steps, length // before)
    order = ratio_order(np.arange(7) % 3, [1.0, 1.0, 0.0], length=length + 1, seed=5)
    done = [order.shard(rank, before).rows(0, steps, epoch=4) for rank in range(before)]
    state = json.loads(json.dumps(order.state(epoch=4, position=steps * before)))

    again = ratio_order(np.arange(7) % 3, [1.0, 1.0, 0.0], length=length + 1, seed=5)
    epoch, position = again.restore(state)
    shards = [again.shard(rank, after, uneven="drop", origin=position) for rank in range(after)]
    rest = [epoch_of(shard, epoch) for shard in shards]
    seen = np.concatenate([np.stack(done, axis=1).ravel(), np.stack(rest, axis=1).ravel()])
    # Nothing is lost or repeated, except what "drop" leaves out at the very end.
    whole = epoch_of(order, 4)
    np.testing.assert_array_equal(seen, whole[: len(seen)])
    assert len(whole) - len(seen) < after


@given(length=st.integers(1, 60), world_size=st.integers(1, 90), data=st.data())
def test_shards_keeping_rows_share_each_row_once(length: int, world_size: int, data: st.DataObject) -> None:
    origin = data.draw(st.integers(0, length))
    order = uniform_order(length, seed=2)
    whole = epoch_of(order, 1)[origin:]
    for rank in range(world_size):
        shard = order.shard(rank, world_size, uneven="keep", origin=origin)
        assert len(shard) == len(range(rank, len(whole), world_size))
        np.testing.assert_array_equal(epoch_of(shard, 1), whole[rank::world_size])


def test_shard_of_a_shard() -> None:
    order = uniform_order(100, seed=0)
    whole = epoch_of(order)
    inner = order.shard(1, 4).shard(2, 3)
    np.testing.assert_array_equal(epoch_of(inner), whole[[9, 21, 33, 45, 57, 69, 81, 93, 5]])
    np.testing.assert_array_equal(inner.rows(1, 3, epoch=0, stride=2), whole[[21, 45, 69]])


def test_shard_refuses_invalid_arguments() -> None:
    order = uniform_order(10, seed=0)
    for world_size in (0, -1):
        with pytest.raises(ValueError, match=f"world_size must be at least 1, got {world_size}"):
            order.shard(0, world_size)
    for rank in (-1, 3):
        with pytest.raises(ValueError, match=rf"rank must be in \[0, 3\), the world size, got {rank}"):
            order.shard(rank, 3)
    for origin in (-1, 11):
        with pytest.raises(ValueError, match=rf"origin must be in \[0, 10\], the epoch's positions, got {origin}"):
            order.shard(0, 3, origin=origin)
    with pytest.raises(ValueError, match='uneven must be "pad", "drop" or "keep", got \'wrap\''):
        order.shard(0, 3, uneven="wrap")  # type: ignore[arg-type]


# States


@pytest.mark.parametrize("name", ORDERS)
def test_order_state_round_trips_through_json(name: str) -> None:
    order = ORDERS[name]
    # A shard's state is a place in the whole order.
    end, start = (len(order.order), order.origin) if isinstance(order, Shard) else (len(order), 0)
    if isinstance(order, Shard) and isinstance(order.order, Shard):
        end, start = len(order.order.order), order.order.state(epoch=0, position=order.origin)["position"]
    last = json.loads(json.dumps(order.state(epoch=2**32 - 1, position=len(order))))
    assert order.restore(last) == (2**32 - 1, end)
    assert order.restore(json.loads(json.dumps(order.state(epoch=0, position=0)))) == (0, start)


def test_order_state_has_constant_size() -> None:
    def size(order: Sampler) -> int:
        return len(json.dumps(order.state(epoch=0, position=10_000)))

    few, many = np.arange(100), np.arange(100_000)
    assert size(uniform_order(10**5, seed=0)) == size(uniform_order(9 * 10**5, seed=0)) < 150
    quotas = [quota_order(labels % classes, [200] * classes, seed=0) for labels, classes in ((few, 50), (many, 51))]
    assert size(quotas[0]) == size(quotas[1]) < 250
    assert size(weighted_order(few + 1.0, seed=0, length=10**5)) == size(weighted_order(many + 1.0, seed=0)) < 250


@pytest.mark.parametrize(
    ("theirs", "mine", "message"),
    [
        (uniform_order(10, seed=0), uniform_order(11, seed=0), "its length is 10, this order's is 11"),
        (uniform_order(10, seed=0), uniform_order(10, seed=1), "its seed is 0, this order's is 1"),
        (uniform_order(10, seed=0), sequential_order(10), "its kind is 'uniform', this order's is 'sequential'"),
        (sequential_order(10), uniform_order(10, seed=0), "its kind is 'sequential', this order's is 'uniform'"),
        (
            quota_order(np.array([0, 0, 1]), [1, 2], seed=0),
            quota_order(np.array([0, 0, 1]), [2, 1], seed=0),
            "its content is",
        ),
        (
            quota_order(np.array([0, 0, 1]), [1, 2], seed=0),
            quota_order(np.array([0, 1, 1]), [1, 2], seed=0),
            "its content is",
        ),
        (
            quota_order(np.array([0, 0, 1]), [1, 2], seed=0),
            quota_order(np.array([0, 0, 1]), [1, 2], seed=0, preference=np.zeros(3)),
            "its content is",
        ),
        (weighted_order(np.ones(3), seed=0), weighted_order(np.arange(3.0), seed=0), "its content is"),
        (
            weighted_order(np.ones(3), seed=0),
            weighted_order(np.ones(3), seed=0, replacement=False),
            "its replacement is True, this order's is False",
        ),
    ],
)
def test_restore_names_what_differs_in_state_of_another_order(theirs: Sampler, mine: Sampler, message: str) -> None:
    with pytest.raises(ValueError, match=f"this state is from another order: {message}"):
        mine.restore(theirs.state(epoch=0, position=1))


def test_restore_refuses_invalid_states() -> None:
    order = uniform_order(10, seed=0)
    good = order.state(epoch=3, position=7)
    for schema in (0, 2, None):
        with pytest.raises(ValueError, match=f"this state has schema {schema}, this version reads 1"):
            order.restore(good | {"schema": schema})
    for name in ("order", "epoch", "position"):
        for broken in ({key: value for key, value in good.items() if key != name}, good | {name: [1]}):
            with pytest.raises(ValueError, match=f"this state is incomplete: its {name} is"):
                order.restore(broken)
    with pytest.raises(ValueError, match=r"a state must come from state_dict\(\) or state\(\), got list"):
        order.restore([good])  # type: ignore[arg-type]
    for change in ({"position": -1}, {"position": 11}, {"epoch": -1}):
        with pytest.raises(ValueError, match=r"this state is at epoch -?\d+, position -?\d+: not one of 10 positions"):
            order.restore(good | change)


# Bugs that were found


def test_weighted_order_keeps_proportions_when_sum_overflows() -> None:
    order = weighted_order(np.array([1.0, 3.0, 4.0, 0.0]) * 4e307, seed=0, length=100_000)
    counts = np.bincount(epoch_of(order), minlength=4)
    assert counts[3] == 0
    assert chisquare(counts[:3], [12_500, 37_500, 50_000]).pvalue > 1e-4


@pytest.mark.parametrize("replacement", [True, False])
def test_weighted_order_keeps_proportions_of_subnormal_weights(replacement: bool) -> None:
    weights = np.array([0.0, 1.0, 7.0, 0.0]) * 2.0**-1070
    order = weighted_order(weights, seed=0, length=2, replacement=replacement)
    counts = np.bincount([order.rows(0, 1, epoch=epoch)[0] for epoch in range(2000)], minlength=4)
    assert not counts[[0, 3]].any()
    assert chisquare(counts[1:3], [250, 1750]).pvalue > 1e-4


def test_orders_copy_their_arrays() -> None:
    labels, preference, weights = np.repeat([0, 1], 50), np.arange(100.0), np.ones(100)
    orders = [
        quota_order(labels, [30, 80], seed=0, preference=preference),
        weighted_order(weights, seed=0),
        weighted_order(weights, seed=0, length=50, replacement=False),
    ]
    same = [
        quota_order(labels.copy(), [30, 80], seed=0, preference=preference.copy()),
        weighted_order(weights.copy(), seed=0),
        weighted_order(weights.copy(), seed=0, length=50, replacement=False),
    ]
    labels[:], preference[:], weights[:50] = 1, 0, 0
    for order, other in zip(orders, same, strict=True):
        assert epoch_of(order).tolist() == epoch_of(other).tolist()
        assert order.describe() == other.describe()


def test_order_state_with_numpy_length_and_seed_is_json() -> None:
    length: Any = np.array([4, 6]).sum()
    seed: Any = np.int64(3)
    for order in (
        uniform_order(length, seed=seed),
        weighted_order(np.ones(10), length=length, seed=seed),
        quota_order(np.array([0, 1]), np.array([1, 2]), seed=seed),
    ):
        assert order.restore(json.loads(json.dumps(order.state(epoch=0, position=2)))) == (0, 2)


def test_quota_order_accepts_unsigned_64_bit_labels() -> None:
    order = quota_order(LABELS.astype(np.uint64), COUNTS, seed=1)
    np.testing.assert_array_equal(epoch_of(order), epoch_of(ORDERS["quota"]))
    with pytest.raises(ValueError, match="labels must be classes, numbered from 0, got 9223372036854775808"):
        quota_order(np.array([0, 2**63], np.uint64), [1, 1], seed=1)


@pytest.mark.parametrize("kind", ["ratio", "without replacement"])
def test_orders_serve_different_epochs_to_threads(kind: str) -> None:
    order: Sampler
    if kind == "ratio":
        order = ratio_order(np.array([0, 0, 1, 1, 2, 2]), [1, 1, 1], length=4, seed=0)
    else:
        order = weighted_order(np.ones(6), seed=0, length=4, replacement=False)
    expected = {epoch: epoch_of(order, epoch).tolist() for epoch in range(4)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            epochs = [i % 4 for i in range(3000)]
            for epoch, rows in zip(epochs, pool.map(lambda e: epoch_of(order, e).tolist(), epochs), strict=True):
                assert rows == expected[epoch]
    finally:
        sys.setswitchinterval(interval)


def test_shard_state_is_a_place_in_the_whole_order() -> None:
    order = uniform_order(30, seed=0)
    state = order.shard(1, 3).state(epoch=0, position=4)
    assert order.restore(state) == (0, 12)


def test_nested_shard_positions_are_those_of_the_whole_order() -> None:
    order = uniform_order(100, seed=0)
    inner = order.shard(1, 4).shard(2, 3)
    assert inner.global_positions(2) == (1 + 4 * (2 + 3 * 2), 12)
