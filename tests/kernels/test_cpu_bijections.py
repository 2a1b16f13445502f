from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hbr_fast.kernels import reference
from hbr_fast.kernels.orders import cpu_bijections
from hbr_fast.orders import uniform_order


def keys_for(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, cpu_bijections.rounds(length))


def elements(length: int, start: int, count: int, *, stride: int = 1, keys: np.ndarray | None = None) -> np.ndarray:
    out = np.full(count, -1)
    if keys is None:
        keys = keys_for(length)
    cpu_bijections.bijection(start, stride, length, *cpu_bijections.grid(length), keys, out)
    return out


@pytest.mark.parametrize("length", [1, 2, 3, 5, 17, 100, 255, 256, 1000, 65_537, 10**9, 2**32 + 1, 2**48])
def test_bijection_matches_reference(length: int) -> None:
    positions = np.unique(np.linspace(0, length - 1, 300).astype(np.int64))
    keys = keys_for(length, seed=length)
    a, b = cpu_bijections.grid(length)
    got = [int(elements(length, int(x), 1, keys=keys)[0]) for x in positions]
    assert got == [reference.bijection(int(x), length, a, b, keys.tolist()) for x in positions]


@pytest.mark.parametrize("b", [49, 98, 103, 107, 161, 187, 2**24 - 1, 16_777_103])
def test_bijection_digits_are_exact_despite_rounded_inverse(b: int) -> None:
    # 49 * (1 / 49) is less than 1 in float64: multiples of such b are where a quotient may come out one too small.
    length, keys = b * b, keys_for(b * b)
    assert cpu_bijections.grid(length) == (b, b)
    for k in np.unique(np.linspace(0, b - 1, 200).astype(np.int64)):
        positions = [x for x in (int(k) * b - 1, int(k) * b) if x >= 0]
        got = [int(elements(length, x, 1, keys=keys)[0]) for x in positions]
        assert got == [reference.bijection(x, length, b, b, keys.tolist()) for x in positions]


def test_bijection_small_lengths_are_permutations() -> None:
    for length in range(1, 601):
        got = elements(length, 0, length)
        np.testing.assert_array_equal(np.sort(got), np.arange(length), err_msg=f"{length=}")


@pytest.mark.parametrize("length", [1023, 1024, 1025, 50_000, 99_991, 250_001, 1_048_576, 1_999_993])
def test_bijection_large_lengths_are_permutations(length: int) -> None:
    seen = np.bincount(elements(length, 0, length), minlength=length)
    assert len(seen) == length
    assert (seen == 1).all()


@pytest.mark.parametrize("length", [10**9, 2**31 + 1, 2**40 + 3, 2**48 - 1, 2**48])
def test_bijection_huge_lengths_are_distinct_and_in_range(length: int) -> None:
    starts = (0, length // 3, length - 20_000)
    got = np.concatenate([elements(length, start, 20_000) for start in starts])
    assert got.min() >= 0
    assert got.max() < length
    assert len(np.unique(got)) == 60_000
    # Not merely distinct: 60,000 uniform draws have a mean within 0.006 of the middle, five standard errors.
    assert abs(got.mean() / length - 0.5) < 0.006


@given(
    length=st.one_of(st.integers(1, 3000), st.integers(1, 2**48)),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_bijection_random_access_matches_sequential(length: int, seed: int, data: st.DataObject) -> None:
    keys = keys_for(length, seed)
    count = data.draw(st.integers(1, min(length, 1200)))
    stride = data.draw(st.integers(1, max((length - 1) // max(count - 1, 1), 1)))
    start = data.draw(st.integers(0, length - 1 - (count - 1) * stride))
    got = elements(length, start, count, stride=stride, keys=keys)
    assert got.min() >= 0
    assert got.max() < length
    for i in {0, count // 2, count - 1}:
        assert got[i] == elements(length, start + i * stride, 1, keys=keys)[0]


@given(length=st.integers(1, 2**48))
def test_bijection_grid_just_covers_length(length: int) -> None:
    a, b = cpu_bijections.grid(length)
    assert 0 <= a * b - length < length**0.5 + 1
    assert max(a, b) < 2**32  # digits are hashed as 32-bit words
    assert cpu_bijections.rounds(length) % 4 == 0  # keys come four a Philox block, rounds in pairs


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 11, 16, 30])
def test_bijection_ends_are_uniform_over_seeds(length: int) -> None:
    # Random round keys of 40,000 orders: first element, (first, second) and (first, last) pairs.
    keys = np.random.default_rng(length).integers(0, 2**32, (40_000, cpu_bijections.rounds(length)))
    a, b = cpu_bijections.grid(length)
    out = np.empty((40_000, length), np.int64)
    for key, row in zip(keys, out, strict=True):
        cpu_bijections.bijection(0, 1, length, a, b, key, row)
    assert chisquare(np.bincount(out[:, 0], minlength=length)).pvalue > 1e-4
    for other in (1, length - 1):
        pairs = np.bincount(out[:, 0] * length + out[:, other], minlength=length**2).reshape(length, length)
        assert not pairs.diagonal().any()
        assert chisquare(pairs[~np.eye(length, dtype=bool)]).pvalue > 1e-4


def test_bijection_orders_of_four_are_equally_frequent() -> None:
    keys = np.random.default_rng(4).integers(0, 2**32, (24_000, cpu_bijections.rounds(4)))
    counts = dict.fromkeys(permutations(range(4)), 0)
    for key in keys:
        counts[tuple(elements(4, 0, 4, keys=key).tolist())] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize("length", [3, 5, 12])
def test_bijection_orders_are_uniform_over_seeds_and_epochs(length: int) -> None:
    # End to end, keys included: consecutive seeds and consecutive epochs.
    drawn = [
        uniform_order(length, seed=seed).rows(0, length, epoch=epoch) for seed in range(400) for epoch in range(15)
    ]
    out = np.array(drawn)
    assert chisquare(np.bincount(out[:, 0], minlength=length)).pvalue > 1e-4
    pairs = np.bincount(out[:, 0] * length + out[:, -1], minlength=length**2).reshape(length, length)
    assert chisquare(pairs[~np.eye(length, dtype=bool)]).pvalue > 1e-4


@pytest.mark.parametrize("length", [256, 1000, 5000])
def test_bijection_positions_are_uniform_at_larger_lengths(length: int) -> None:
    # 16 bins of the place of the first, a middle and the last element, over 20,000 orders.
    keys = np.random.default_rng(length).integers(0, 2**32, (20_000, cpu_bijections.rounds(length)))
    a, b = cpu_bijections.grid(length)
    out = np.empty((20_000, 2), np.int64)
    for key, row in zip(keys, out, strict=True):
        cpu_bijections.bijection(0, length - 1, length, a, b, key, row)
    expected = np.diff(-(-np.arange(17) * length // 16)) * 20_000 / length
    for column in out.T:
        assert chisquare(np.bincount(column * 16 // length, minlength=16), expected).pvalue > 1e-4
    cells = np.bincount((out[:, 0] * 4 // length) * 4 + out[:, 1] * 4 // length, minlength=16)
    assert chisquare(cells).pvalue > 1e-4


def quota_rows(
    labels: np.ndarray,
    counts: list[int],
    keys: np.ndarray,
    member_keys: np.ndarray,
    salts: np.ndarray,
    *,
    start: int,
    stride: int,
    count: int,
    shift: int = 3,
) -> np.ndarray:
    total, sizes = sum(counts), np.bincount(labels, minlength=len(counts))
    starts = np.cumsum([0, *counts])
    guide = [np.searchsorted(starts, slot, side="right") - 1 for slot in range(0, total, 1 << shift)]
    classes = np.zeros((len(counts) + 1, 6), np.int64)
    classes[:, 0] = starts
    classes[:-1, 1] = np.maximum(sizes, 1)
    classes[:-1, 2:4] = [cpu_bijections.grid(max(int(size), 1)) for size in sizes]
    classes[:-1, 4] = salts
    classes[:-1, 5] = np.cumsum(sizes) - sizes
    out = np.full(count, -1)
    cpu_bijections.quota_rows(
        start,
        stride,
        total,
        *cpu_bijections.grid(total),
        keys,
        shift,
        np.array(guide, np.int32),
        classes,
        member_keys,
        np.argsort(labels, kind="stable"),
        out,
    )
    return out


@given(data=st.data(), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
def test_quota_rows_match_reference(data: st.DataObject, sizes: list[int]) -> None:
    high = data.draw(st.sampled_from([1, 30, 10**12]))
    counts = [data.draw(st.integers(0, high)) if size else 0 for size in sizes]
    counts[int(np.argmax(sizes))] += 1
    total = sum(counts)
    random = np.random.default_rng(data.draw(st.integers(0, 100)))
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    keys, member_keys = random.integers(0, 2**32, (2, 12))
    salts = random.integers(0, 2**32, len(sizes))
    count = data.draw(st.integers(1, min(total, 25)))
    stride = data.draw(st.integers(1, max((total - 1) // max(count - 1, 1), 1)))
    start = data.draw(st.integers(0, total - 1 - (count - 1) * stride))
    # The guide only says where to start looking: the result does not depend on its size.
    best = cpu_bijections.guide_shift(total, len(sizes))
    assert total >> best < 16 * len(sizes)
    for shift in (best, best + 5):
        got = quota_rows(
            labels,
            counts,
            keys,
            member_keys,
            salts,
            start=start,
            stride=stride,
            count=count,
            shift=shift,
        )
        assert got.tolist() == [
            reference.quota_row(
                start + i * stride,
                labels,
                counts,
                keys=keys.tolist(),
                member_keys=member_keys.tolist(),
                salts_c=salts.tolist(),
            )
            for i in range(count)
        ]


def test_quota_rows_match_reference_over_many_blocks() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 60)
    counts = [700, 1, 0, 400, 99]
    keys, member_keys = random.integers(0, 2**32, (2, 12))
    salts = random.integers(0, 2**32, 5)
    got = quota_rows(labels, counts, keys, member_keys, salts, start=0, stride=1, count=1200)
    expected = [
        reference.quota_row(
            i, labels, counts, keys=keys.tolist(), member_keys=member_keys.tolist(), salts_c=salts.tolist()
        )
        for i in range(1200)
    ]
    assert got.tolist() == expected


def test_quota_rows_without_member_keys_keep_listed_order() -> None:
    random = np.random.default_rng(3)
    labels, preference = np.repeat([0, 1, 2], [5, 3, 8]), -np.arange(16.0)
    keys, salts = random.integers(0, 2**32, 12), np.zeros(3, np.int64)
    got = quota_rows(labels, [3, 7, 8], keys, np.empty(0, np.int64), salts, start=0, stride=1, count=18)
    assert got.tolist() == [
        reference.quota_row(
            i, labels, [3, 7, 8], keys=keys.tolist(), member_keys=[], salts_c=[0, 0, 0], preference_n=preference
        )
        for i in range(18)
    ]
    assert sorted(got.tolist()) == [0, 1, 2, 5, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15]
