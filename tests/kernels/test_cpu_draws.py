import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbr_fast.kernels import cpu_draws, reference
from hbr_fast.seeding import Stream, philox, stream_key

KEY = stream_key(5, Stream.ORDER)


def table(weights: np.ndarray) -> tuple[list[int], list[int]]:
    """Thresholds and aliases of the table of some weights."""
    thresholds, packed = np.empty((2, len(weights)), np.uint64)
    cpu_draws.alias_table(weights, float(weights.sum()), thresholds, packed)
    np.testing.assert_array_equal(packed >> np.uint64(32), thresholds >> np.uint64(32))
    return thresholds.tolist(), (packed & np.uint64(2**32 - 1)).tolist()


def probabilities(weights: np.ndarray) -> list[Fraction]:
    """What the table of some weights really draws with, exactly."""
    thresholds, aliases = table(weights)
    shares = [0] * len(weights)
    for column, (threshold, alias) in enumerate(zip(thresholds, aliases, strict=True)):
        shares[column] += threshold
        shares[alias] += 2**64 - threshold
    return [Fraction(share, len(weights) * 2**64) for share in shares]


def draws(first: int, stride: int, count: int, epoch: int, thresholds: list[int], aliases: list[int]) -> list[int]:
    out = np.full(count, -1)
    packed = [threshold >> 32 << 32 | alias for threshold, alias in zip(thresholds, aliases, strict=True)]
    arrays = np.array(thresholds, np.uint64), np.array(packed, np.uint64)
    cpu_draws.alias_draws(first, stride, epoch, np.array(KEY, np.uint64), *arrays, out)
    return out.tolist()


def assert_right(weights: np.ndarray) -> None:
    exact = [Fraction(weight) for weight in weights.tolist()]
    total = sum(exact)
    for weight, probability in zip(exact, probabilities(weights), strict=True):
        # A threshold is a whole number of 2**64ths of a column: a weight far below that may round to nothing.
        assert abs(probability - weight / total) <= weight / total * Fraction(1, 10**12) + Fraction(
            2, len(weights) * 2**64
        )
        if weight == 0:
            assert probability == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_exact_over_twelve_orders_of_magnitude(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = 10 ** random.uniform(-6, 6, 3000)
    weights[random.integers(0, 3000, 300)] = 0
    assert_right(weights)
    # So the tiniest weight is not merely near 0: it has its probability to eight digits.
    tiniest = int(np.flatnonzero(weights)[np.argmin(weights[weights > 0])])
    assert weights[tiniest] < 1e-11 * weights.max()
    expected = float(weights[tiniest] / weights.sum())
    assert float(probabilities(weights)[tiniest]) == pytest.approx(expected, rel=1e-8)


@given(
    weights=st.lists(
        st.one_of(st.just(0.0), st.floats(1e-12, 1.0), st.floats(0, 1e300, allow_subnormal=False)),
        min_size=1,
        max_size=40,
    ).filter(any)
)
@example(weights=[1.0])
@example(weights=[0.0, 1e-12, 1.0])
@example(weights=[0.1] * 10)  # shares that round to either side of 1
@example(weights=[0.1] * 7 + [0.0] * 3)
@example(weights=[1e12] + [1.0] * 20)
def test_the_table_is_exact_for_any_weights(weights: list[float]) -> None:
    assert_right(np.array(weights))


def test_rounding_never_makes_a_weight_of_zero_drawable() -> None:
    # Sums that do not come out even: what is left over when the table is built must not be a column of weight 0.
    random = np.random.default_rng(0)
    for size in range(2, 200):
        weights = random.random(size)
        weights[random.random(size) < 0.5] = 0
        if weights.any():
            found = probabilities(weights)
            assert {found[i] for i in np.flatnonzero(weights == 0)} <= {0}
            assert sum(found) == 1


@pytest.mark.parametrize(("first", "stride"), [(0, 1), (3, 1), (2**32 - 100, 1), (2**47, 1), (10, 2**36 + 1)])
def test_draws_agree_with_the_definition(first: int, stride: int) -> None:
    thresholds, aliases = table(np.random.default_rng(1).random(1000) ** 8)
    for epoch in (0, 2**32 - 1):
        expected = [reference.alias_draw(first + i * stride, epoch, KEY, thresholds, aliases) for i in range(600)]
        assert draws(first, stride, 600, epoch, thresholds, aliases) == expected


def test_the_lower_half_of_a_threshold_decides_where_the_upper_halves_are_equal() -> None:
    # Thresholds made from the very numbers that positions 0 to 99 draw; by chance this happens once in 2**32 draws.
    for position in range(100):
        words = philox((position, 0, 0, 0), KEY)
        column, uniform = words[0] * 2 >> 32, words[2] << 32 | words[3]
        for threshold, own in ((uniform, False), (uniform + 1, True), (uniform - 1, False)):
            expected = column if own else 1 - column
            assert draws(position, 1, 1, 0, [threshold] * 2, [1, 0]) == [expected]


def test_exponential_keys_agree_with_the_definition() -> None:
    weights = 10 ** np.random.default_rng(2).uniform(-6, 6, 500)
    weights[::7] = 0
    keys = np.empty(500)
    cpu_draws.exponential_keys(weights, 3, np.array(KEY, np.uint64), keys)
    expected = [reference.exponential_key(i, weight, 3, KEY) for i, weight in enumerate(weights.tolist())]
    np.testing.assert_allclose(keys, expected, rtol=1e-14)
    assert all(math.isinf(key) for key in keys[::7])


def test_all_64_bits_choose_the_column() -> None:
    # With 2**22 columns, 32 bits alone would choose another one for some 20 of these positions.
    n = 2**22 - 1
    always = np.full(n, 2**64 - 1, np.uint64)
    packed = np.arange(n, dtype=np.uint64) | np.uint64((2**32 - 1) << 32)
    out = np.empty(20_000, np.int64)
    cpu_draws.alias_draws(0, 1, 0, np.array(KEY, np.uint64), always, packed, out)
    words = [philox((position, 0, 0, 0), KEY) for position in range(20_000)]
    assert out.tolist() == [(w0 << 32 | w1) * n >> 64 for w0, w1, _, _ in words]
