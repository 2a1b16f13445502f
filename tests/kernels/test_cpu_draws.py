import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbr_fast.kernels import reference
from hbr_fast.kernels.orders import cpu_draws
from hbr_fast.seeding import Stream, philox, stream_key

KEY = stream_key(5, Stream.ORDER)


def table(weights: np.ndarray, *, off: float = 1.0) -> tuple[list[int], list[int]]:
    """Thresholds and aliases for weights, built with a sum that is off by a factor."""
    packed, fine = np.empty(len(weights), np.uint64), np.empty(len(weights), np.uint32)
    cpu_draws.alias_table(weights, float(weights.sum()) * off, int(weights.argmax()), packed, fine)
    thresholds = [entry >> 32 << 32 | low for entry, low in zip(packed.tolist(), fine.tolist(), strict=True)]
    return thresholds, (packed & np.uint64(2**32 - 1)).tolist()


def probabilities(weights: np.ndarray, *, off: float = 1.0) -> list[Fraction]:
    """The exact probabilities that a table draws with."""
    thresholds, aliases = table(weights, off=off)
    shares = [0] * len(weights)
    for column, (threshold, alias) in enumerate(zip(thresholds, aliases, strict=True)):
        shares[column] += threshold
        shares[alias] += 2**64 - threshold
    return [Fraction(share, len(weights) * 2**64) for share in shares]


def draws(first: int, stride: int, count: int, epoch: int, thresholds: list[int], aliases: list[int]) -> list[int]:
    out = np.full(count, -1)
    packed = [threshold >> 32 << 32 | alias for threshold, alias in zip(thresholds, aliases, strict=True)]
    fine = [threshold & 2**32 - 1 for threshold in thresholds]
    arrays = np.array(packed, np.uint64), np.array(fine, np.uint32)
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
def test_alias_table_is_exact_over_twelve_orders_of_magnitude(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = 10 ** random.uniform(-6, 6, 3000)
    weights[random.integers(0, 3000, 300)] = 0
    assert_right(weights)
    # The tiniest weight is not merely near 0: its probability is right to eight digits.
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
def test_alias_table_is_exact_for_any_weights(weights: list[float]) -> None:
    assert_right(np.array(weights))


def test_alias_table_never_draws_zero_weights() -> None:
    # Sums that do not come out even: what is left over when the table is built must not be a column of weight 0.
    random = np.random.default_rng(0)
    for size in range(2, 200):
        weights = random.random(size)
        weights[random.random(size) < 0.5] = 0
        # With a sum far off, columns of weight 0 are left over, as the rounding of a very large table might leave them.
        for off in (1.0, 0.7, 1.3, 100.0) if weights.any() else ():
            found = probabilities(weights, off=off)
            assert {found[i] for i in np.flatnonzero(weights == 0)} <= {0}
            assert sum(found) == 1


@pytest.mark.parametrize("columns", [1, 1000])
@pytest.mark.parametrize(
    ("first", "stride"),
    [(0, 1), (3, 1), (2**33 - 101, 1), (2**47, 1), (10, 2**36 + 1), (7, 2), (2**33 - 300, 3)],
)
def test_draws_match_definition(first: int, stride: int, columns: int) -> None:
    thresholds, aliases = table(np.random.default_rng(1).random(columns) ** 8)
    for epoch in (0, 2**32 - 1):
        expected = [reference.alias_draw(first + i * stride, epoch, KEY, thresholds, aliases) for i in range(600)]
        assert draws(first, stride, 600, epoch, thresholds, aliases) == expected


def test_draws_compare_lower_half_of_threshold() -> None:
    # Thresholds equal to the numbers drawn at positions 0 to 99; by chance this happens once in 2**32 draws.
    for position in range(100):
        words = philox((position // 2, 0, 0, 0), KEY)[2 * (position % 2) :]
        column, uniform = divmod((words[0] << 32 | words[1]) * 2, 2**64)
        for threshold, own in ((uniform, False), (uniform + 1, True), (uniform - 1, False)):
            expected = column if own else 1 - column
            assert draws(position, 1, 1, 0, [threshold] * 2, [1, 0]) == [expected]


def test_exponential_keys_match_definition() -> None:
    weights = 10 ** np.random.default_rng(2).uniform(-6, 6, 500)
    weights[::7] = 0
    keys = np.empty(500)
    cpu_draws.exponential_keys(weights, 3, np.array(KEY, np.uint64), keys)
    expected = [reference.exponential_key(i, weight, 3, KEY) for i, weight in enumerate(weights.tolist())]
    np.testing.assert_allclose(keys, expected, rtol=1e-14)
    assert all(math.isinf(key) for key in keys[::7])


@pytest.mark.parametrize("n", [2**22 - 1, 2**32 - 1])
def test_draws_use_all_64_bits_for_column(n: int) -> None:
    # With 2**22 columns, 32 bits alone would choose a different column for some 20 of these positions.
    # The table of 2**32 - 1 columns repeats one array element: all its columns are full.
    packed = np.broadcast_to(np.uint64((2**32 - 1) << 32), n)
    fine = np.broadcast_to(np.uint32(2**32 - 1), n)
    out = np.empty(20_000, np.int64)
    cpu_draws.alias_draws(0, 1, 0, np.array(KEY, np.uint64), packed, fine, out)
    words = np.array([philox((block, 0, 0, 0), KEY) for block in range(10_000)], dtype=object).reshape(-1, 2)
    assert out.tolist() == [(high << 32 | low) * n >> 64 for high, low in words]
