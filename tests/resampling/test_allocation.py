import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbr_fast.resampling import division
from hbr_fast.resampling.allocation import Allocation, Hard, Nonpositive, allocate, reallocate

HARDNESS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)
HARD_IS = st.sampled_from(["low", "high"])
ALPHA = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 8))


def obvious_targets(hardness: list[float], hard_is: str, alpha: float, total: int) -> list[Fraction]:
    """Real-valued S_c of method section 3, in exact fractions."""
    ratio = [1 / Fraction(h) if hard_is == "low" else Fraction(h) for h in hardness]
    mean = Fraction(total, len(ratio))
    return [mean + Fraction(alpha) * (total * r / sum(ratio) - mean) for r in ratio]


def obvious_counts(hardness: list[float], hard_is: str, alpha: float, total: int, floor: int) -> list[int]:
    """Method section 3 taken literally, in exact fractions; water-filling in rounds."""
    ratio = [1 / Fraction(h) if hard_is == "low" else Fraction(h) for h in hardness]
    wanted = obvious_targets(hardness, hard_is, alpha, total)
    held: set[int] = set()
    shares = list(wanted)
    while any(shares[c] < floor for c in range(len(ratio)) if c not in held):
        held |= {c for c in range(len(ratio)) if shares[c] < floor}
        free = sum(w for c, w in enumerate(wanted) if c not in held)
        rest = total - floor * len(held)
        shares = [Fraction(floor) if c in held else rest * w / free for c, w in enumerate(wanted)]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(ratio)), key=lambda c: (counts[c] - shares[c], -ratio[c] if alpha == 0 else 0, c))
    for c in by_remainder[: total - sum(counts)]:
        counts[c] += 1
    return counts


def test_allocate_ratio_by_hand() -> None:
    allocation = allocate([1.0, 2.0, 4.0], hard_is="low", total=70)  # 1/H is 4 : 2 : 1
    assert allocation.counts.tolist() == [40, 20, 10]
    assert allocation.counts.dtype == np.int64
    np.testing.assert_allclose(allocation.ratios, [4 / 7, 2 / 7, 1 / 7])
    assert allocation.max_alpha == pytest.approx((70 / 3 - 1) / (70 / 3 - 10))
    assert (allocation.alpha, allocation.shifted, allocation.clipped) == (1.0, None, ())
    assert allocate([1.0, 2.0, 4.0], hard_is="high", total=70).counts.tolist() == [10, 20, 40]


def test_allocate_largest_remainder_by_hand() -> None:
    # 40.57, 20.29, 10.14: the one left over goes to the largest remainder.
    assert allocate([1.0, 2.0, 4.0], hard_is="low", total=71).counts.tolist() == [41, 20, 10]
    # 31 2/3, 21 2/3, 16 2/3: two left over, all remainders equal, so to the lower indices.
    assert allocate([1.0, 2.0, 4.0], hard_is="low", alpha=0.5, total=70).counts.tolist() == [32, 22, 16]
    assert allocate([3.0] * 4, hard_is="high", total=10).counts.tolist() == [3, 3, 2, 2]


@given(HARDNESS, HARD_IS, ALPHA, st.integers(1, 10**6), st.integers(0, 3))
@example([1.0, 2.0, 4.0], "low", 8.0, 70, 1)
def test_allocate_counts_match_definition(
    hardness: list[float], hard_is: Hard, alpha: float, total: int, floor: int
) -> None:
    total = max(total, floor * len(hardness))
    allocation = allocate(hardness, hard_is=hard_is, alpha=alpha, total=total, floor=floor, clip=True)
    counts = allocation.counts
    assert counts.sum() == total
    assert counts.min() >= floor
    assert counts.tolist() == obvious_counts(hardness, hard_is, alpha, total, floor)
    assert (len(allocation.clipped) > 0) == (alpha > allocation.max_alpha)
    assert all(counts[c] == floor for c in allocation.clipped)
    # Order: a strictly harder class never has fewer, equal ones differ by one at most.
    hard_to_easy = np.argsort(hardness if hard_is == "low" else -np.array(hardness), kind="stable")
    assert (np.diff(counts[hard_to_easy]) <= 0).all()
    for value in set(hardness):
        assert np.ptp(counts[np.array(hardness) == value]) <= 1


@given(HARDNESS, HARD_IS, st.integers(1, 10**6), st.integers(0, 3))
def test_allocate_feasibility_bound_is_tight(hardness: list[float], hard_is: Hard, total: int, floor: int) -> None:
    total = max(total, floor * len(hardness))
    bound = allocate(hardness, hard_is=hard_is, alpha=0, total=total, floor=floor).max_alpha
    if math.isinf(bound):
        assert len(set(hardness)) == 1
        return
    counts = allocate(hardness, hard_is=hard_is, alpha=bound, total=total, floor=floor).counts
    assert (counts.sum(), counts.min() >= floor) == (total, True)
    above = math.nextafter(bound, math.inf)
    assert min(obvious_targets(hardness, hard_is, bound, total)) >= floor
    assert min(obvious_targets(hardness, hard_is, above, total)) < floor
    with pytest.raises(ValueError, match=f"the largest feasible alpha is {bound!r}"):
        allocate(hardness, hard_is=hard_is, alpha=above, total=total, floor=floor)
    if bound:
        with pytest.raises(ValueError, match="largest feasible"):
            allocate(hardness, hard_is=hard_is, alpha=bound * (1 + 1e-6), total=total, floor=floor)


@given(HARDNESS, HARD_IS, st.integers(12, 10**9))
def test_allocate_alpha_zero_is_balanced(hardness: list[float], hard_is: Hard, total: int) -> None:
    each, left = divmod(total, len(hardness))
    expected = [each + 1] * left + [each] * (len(hardness) - left)
    counts = allocate(hardness, hard_is=hard_is, alpha=0, total=total).counts
    assert sorted(counts.tolist(), reverse=True) == expected


def test_allocate_alpha_zero_gives_remainder_to_hardest() -> None:
    # Equal targets: by index alone the easier class would get more than the harder one.
    assert allocate([4.0, 3.0, 1.0, 1.0], hard_is="low", alpha=0, total=9).counts.tolist() == [2, 2, 3, 2]
    assert allocate([1.0, 2.0], hard_is="high", alpha=0, total=3).counts.tolist() == [1, 2]


def test_allocate_keeps_order_when_reciprocals_round_to_same_float() -> None:
    harder = 1.7
    while 1 / harder != 1 / math.nextafter(harder, 2):
        harder = math.nextafter(harder, 2)
    easier = math.nextafter(harder, 2)
    assert allocate([easier, harder], hard_is="low", total=3).counts.tolist() == [1, 2]


def test_allocate_clip_by_hand() -> None:
    # Targets at alpha 2: 56 2/3, 16 2/3, -3 1/3. The last is held, the others share 69 as 17 : 5.
    allocation = allocate([1.0, 2.0, 4.0], hard_is="low", alpha=2, total=70, clip=True)
    assert allocation.counts.tolist() == [53, 16, 1]
    assert allocation.clipped == (2,)
    with pytest.raises(ValueError, match=r"alpha 2\.0 would put class 'boot' below the floor of 1.*clip=True"):
        allocate([1.0, 2.0, 4.0], hard_is="low", alpha=2, total=70, classes=["shirt", "bag", "boot"])


def test_allocate_clip_holds_class_pushed_below_floor_by_others() -> None:
    # Targets 30, 5.4, -5.4 with a floor of 5: holding the last leaves 25, and 5.4 / 35.4 of that is 3.8.
    hardness = [20.0, 7.7, 2.3]
    allocation = allocate(hardness, hard_is="high", alpha=2, total=30, floor=5, clip=True)
    assert allocation.clipped == (1, 2)
    assert allocation.counts.tolist() == [20, 5, 5]


def test_allocate_many_classes_and_a_large_total() -> None:
    hardness = np.random.default_rng(0).uniform(0.3, 7, 1000)
    for alpha in (0.0, 0.25, 3.0):
        counts = allocate(hardness, hard_is="low", alpha=alpha, total=10**9, clip=True).counts
        assert (counts.sum(), counts.min() >= 1) == (10**9, True)


@given(st.floats(0, 4), st.integers(10_000, 60_000))
def test_trap_01_rounding_keeps_the_total(alpha: float, total: int) -> None:
    hardness = [0.3, 1.1, 1.3, 2.2, 2.9, 3.1, 4.7, 5.0, 6.1, 7.0]
    assert allocate(hardness, hard_is="low", alpha=alpha, total=total, clip=True).counts.sum() == total


def test_trap_02_counts_do_not_go_negative() -> None:
    hardness = [0.3, 1.1, 1.3, 2.2, 2.9, 3.1, 4.7, 5.0, 6.1, 7.0]
    with pytest.raises(ValueError, match="class 9 below the floor of 1: the largest feasible alpha is 1\\."):
        allocate(hardness, hard_is="low", alpha=5, total=50_000)
    clipped = allocate(hardness, hard_is="low", alpha=5, total=50_000, clip=True)
    assert clipped.counts.min() == 1
    assert set(np.flatnonzero(clipped.counts == 1)) == set(clipped.clipped)


@pytest.mark.parametrize("bad", [-0.5, 0.0, -0.0])
def test_trap_03_nonpositive_class_mean_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"class 'cat' \(-?0.*nonpositive=\"shift\".*nonpositive=\"authors\""):
        allocate([1.0, bad, 2.0], hard_is="low", total=30, classes=["dog", "cat", "car"])


def test_trap_04_alpha_below_one_and_written_as_a_float() -> None:
    # Halfway from balanced (30 each) to 80 : 40 : 20 x 9/14.
    assert allocate([1.0, 2.0, 4.0], hard_is="low", alpha=0.5, total=84).counts.tolist() == [38, 26, 20]
    assert allocate([1.0, 2.0, 4.0], hard_is="low", alpha=1, total=84).counts.tolist() == [48, 24, 12]
    whole = allocate([3.0, 4.0], hard_is="low", alpha=2, total=70)
    assert whole.counts.tolist() == allocate([3.0, 4.0], hard_is="low", alpha=2.0, total=70).counts.tolist()


def test_trap_13_both_ends_give_the_hard_class_more() -> None:
    assert allocate([1.0, 2.0], hard_is="low", total=30).counts.tolist() == [20, 10]
    assert allocate([1.0, 2.0], hard_is="high", total=30).counts.tolist() == [10, 20]
    with pytest.raises(TypeError, match="hard_is"):
        allocate([1.0, 2.0], total=30)  # type: ignore[call-arg]  # no default: the hard end is required


def test_allocate_shift_by_hand() -> None:
    # -1, 0, 3 -> + 1 + 0.05 * 4 -> 0.2, 1.2, 4.2; reciprocals 5, 5/6, 5/21.
    allocation = allocate([-1.0, 0.0, 3.0], hard_is="low", total=850, nonpositive="shift")
    np.testing.assert_allclose(allocation.hardness, [0.2, 1.2, 4.2])
    np.testing.assert_allclose(allocation.ratios, np.array([42, 7, 2]) / 51)
    assert allocation.counts.tolist() == [700, 117, 33]
    assert allocation.shifted == "shift"


@pytest.mark.parametrize("hard_is", ["low", "high"])
def test_allocate_shift_is_continuous_at_zero(hard_is: Any) -> None:
    # A hardness just above 0 used to be left unshifted: at 1e-9 one class got everything.
    def counts(lowest: float) -> np.ndarray:
        return allocate([lowest, 1.0, 2.0], hard_is=hard_is, total=100_000, nonpositive="shift").counts

    for lowest in (1e-12, 1e-9, -1e-9):
        assert np.abs(counts(lowest) - counts(0.0)).max() <= 1
    assert np.abs(counts(0.0952) - counts(0.0953)).max() < 100  # where it ends
    assert allocate([0.1, 1.0, 2.0], hard_is=hard_is, total=100, nonpositive="shift").shifted is None
    assert allocate([0.05, 1.0, 2.0], hard_is=hard_is, total=100, nonpositive="shift").shifted == "shift"


def test_allocate_many_classes_is_exact_where_shares_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    exact: list[list[Allocation]] = []
    cases: list[tuple[np.ndarray, dict[str, Any]]] = []
    for trial in range(300):
        size = int(rng.integers(1, 40))
        hardness = rng.gamma(2, 1, size) if trial % 3 else rng.choice([0.1, 0.2, 0.7, 3.0], size)
        total, floor = int(rng.integers(3 * size, 500 * size)), int(rng.integers(0, 4))
        cases.append((hardness, {"alpha": float(rng.choice([0, 0.3, 1, 5])), "total": total, "floor": floor}))
    for short in (10**9, 0):  # all by their exact shares, then none at once
        monkeypatch.setattr(division, "_SHORT", short)
        exact.append([allocate(hardness, hard_is="low", clip=True, **options) for hardness, options in cases])
    for one, other in zip(*exact, strict=True):
        assert one.counts.tolist() == other.counts.tolist()
        assert one.ratios.tolist() == other.ratios.tolist()
        assert (one.max_alpha, one.clipped) == (other.max_alpha, other.clipped)


def test_allocate_ten_thousand_classes() -> None:
    hardness = np.random.default_rng(0).gamma(2, 1, 10_000)
    found = allocate(hardness, hard_is="low", alpha=0.3, total=10**6, floor=0, clip=True)
    assert found.counts.sum() == 10**6
    order = np.argsort(hardness)
    assert (np.diff(found.counts[order]) <= 0).all()


# --- a base ---


def test_allocate_from_a_base_by_hand() -> None:
    # b r = 100, 600, 200; S = b + (400 b r / 900 - b) / 2 = 72.2, 233.3, 94.4
    found = allocate([1.0, 3.0, 2.0], hard_is="high", alpha=0.5, total=400, base=[100, 200, 100])
    assert found.counts.tolist() == [72, 233, 95]
    np.testing.assert_allclose(found.ratios, [1 / 9, 6 / 9, 2 / 9])
    still = allocate([1.0, 3.0, 2.0], hard_is="high", alpha=0.0, total=400, base=[100, 200, 100])
    assert still.counts.tolist() == [100, 200, 100]
    assert allocate([1.0, 3.0, 2.0], hard_is="high", alpha=0, total=200, base=[1, 2, 1]).counts.tolist() == [
        50,
        100,
        50,
    ]


def test_allocate_from_an_equal_base_is_the_balanced_rule() -> None:
    rng = np.random.default_rng(1)
    for hard_is in ("low", "high"):
        for size in (1, 7, 300):
            options: dict[str, Any] = {"hard_is": hard_is, "alpha": 0.4, "total": 77 * size, "clip": True}
            hardness = rng.gamma(2, 1, size)
            one, other = allocate(hardness, **options), allocate(hardness, base=np.full(size, 41.5), **options)
            assert one.counts.tolist() == other.counts.tolist()
            assert one.max_alpha == other.max_alpha
            assert one.ratios.tolist() == other.ratios.tolist()


def test_allocate_from_a_base_is_bounded_by_the_floor() -> None:
    base, hardness = [500, 30, 70], [1.0, 5.0, 2.0]
    options: dict[str, Any] = {"hard_is": "low", "total": 600, "base": base, "floor": 5}
    most = allocate(hardness, alpha=0.0, **options).max_alpha
    assert allocate(hardness, alpha=most, **options).counts.min() == 5
    with pytest.raises(ValueError, match="the largest feasible alpha is"):
        allocate(hardness, alpha=math.nextafter(most, 9), **options)
    with pytest.raises(ValueError, match=r"the base itself puts class 'b' below the floor of 40"):
        allocate(hardness, alpha=0.1, **{**options, "floor": 40}, classes=["a", "b", "c"])
    held = allocate(hardness, alpha=0.1, **{**options, "floor": 40}, clip=True)
    assert held.counts.sum() == 600
    assert held.counts[1] == 40


@pytest.mark.parametrize("base", [[1, 2], [1, 0, 1], [1, -1, 1], [1, math.nan, 1], 3])
def test_allocate_refuses_invalid_base(base: Any) -> None:
    with pytest.raises(ValueError, match="the base must be one finite size above 0 for each of 3 classes"):
        allocate([1.0, 2.0, 3.0], hard_is="low", total=30, base=base)


def test_allocate_authors_shift_gives_nearly_everything_to_the_hardest() -> None:
    allocation = allocate([-1.0, 0.0, 3.0], hard_is="low", total=60_000, nonpositive="authors")
    np.testing.assert_allclose(allocation.hardness, [1e-4, 1.0001, 4.0001])
    assert allocation.counts.tolist() == [59_993, 6, 1]
    assert allocation.shifted == "authors"


def test_allocate_ignores_policy_when_ratio_is_defined() -> None:
    plain = allocate([1.0, 2.0], hard_is="low", total=30)
    offered = allocate([1.0, 2.0], hard_is="low", total=30, nonpositive="shift")
    assert offered.shifted is None
    assert offered.counts.tolist() == plain.counts.tolist()


@given(
    st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=8),
    HARD_IS,
    st.sampled_from(["shift", "authors"]),
)
def test_allocate_shift_always_gives_a_ratio_and_keeps_order(
    hardness: list[float], hard_is: Hard, policy: Nonpositive
) -> None:
    counts = allocate(hardness, hard_is=hard_is, total=997, nonpositive=policy, clip=True).counts
    assert counts.sum() == 997
    hard_to_easy = np.argsort(hardness if hard_is == "low" else -np.array(hardness), kind="stable")
    assert (np.diff(counts[hard_to_easy]) <= 0).all()


def test_allocate_high_is_hard_with_zeros() -> None:
    # A class of hardness 0 has a share of 0 at alpha 1: below the floor, as the bound reports.
    assert allocate([0.0, 1.0], hard_is="high", total=100, alpha=0.5).counts.tolist() == [25, 75]
    with pytest.raises(ValueError, match=r"class 0 below the floor of 1: the largest feasible alpha is 0\.98"):
        allocate([0.0, 1.0], hard_is="high", total=100)
    assert allocate([0.0, 1.0], hard_is="high", total=100, floor=0).counts.tolist() == [0, 100]
    with pytest.raises(ValueError, match=r"class 1 \(-2\) gives no ratio, which needs values of at least 0"):
        allocate([1.0, -2.0], hard_is="high", total=100)
    with pytest.raises(ValueError, match=r"class 0 \(0\), class 1 \(0\) gives no ratio, which needs .* not all 0: "):
        allocate([0.0, 0.0], hard_is="high", total=100)
    assert allocate([0.0, 0.0], hard_is="high", total=100, nonpositive="shift").counts.tolist() == [50, 50]


def test_allocate_equal_classes_have_no_bound() -> None:
    allocation = allocate([2.0, 2.0], hard_is="low", alpha=1e6, total=10)
    assert (allocation.counts.tolist(), allocation.max_alpha) == ([5, 5], math.inf)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_hardness_c": [1.0, math.nan]}, r"class 'b' \(nan\) is not finite"),
        ({"class_hardness_c": [math.inf, 1.0]}, r"class 'a' \(inf\) is not finite"),
        ({"class_hardness_c": []}, r"one value a class, got shape \(0,\)"),
        ({"class_hardness_c": [[1.0, 2.0]]}, r"got shape \(1, 2\)"),
        ({"class_hardness_c": [1.0, 2.0, 3.0]}, "3 class hardness values but 2 class names"),
        ({"hard_is": "hard"}, 'hard_is must be "low" or "high", got \'hard\''),
        ({"nonpositive": "clip"}, "nonpositive must be None.*got 'clip'"),
        ({"alpha": -0.1}, "alpha must be a finite number >= 0, got -0.1"),
        ({"alpha": math.nan}, "alpha must be a finite number"),
        ({"total": 5, "floor": 3}, "total 5 is too small for 2 classes of at least 3: it must be at least 6"),
        ({"total": 0, "floor": 0}, "total 0 is too small"),
        ({"total": 10.5}, "whole numbers and floor >= 0, got 10.5 and 1"),
        ({"floor": -1}, "floor >= 0, got 10 and -1"),
    ],
)
def test_allocate_refuses_invalid_input(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"class_hardness_c": [1.0, 2.0], "hard_is": "low", "total": 10}
    with pytest.raises(ValueError, match=message):
        allocate(**{**arguments, "classes": ["a", "b"], **changed})  # type: ignore[arg-type]


def test_allocate_counts_many_bad_classes() -> None:
    with pytest.raises(ValueError, match=r"class 4 \(-1\) and 95 more gives no ratio, which needs positive values: "):
        allocate([-1.0] * 100, hard_is="low", total=1000)


@given(
    counts=st.lists(st.integers(1, 5000), min_size=2, max_size=12),
    data=st.data(),
    alpha=st.floats(0, 3),
    max_change=st.floats(0, 1),
)
def test_reallocate_keeps_the_total_and_the_bound(
    counts: list[int], data: st.DataObject, alpha: float, max_change: float
) -> None:
    hardness = data.draw(st.lists(st.floats(-5, 5), min_size=len(counts), max_size=len(counts)))
    moved = reallocate(counts, hardness, hard_is="low", alpha=alpha, max_change=max_change)
    assert moved.sum() == sum(counts)
    assert moved.min() >= 1
    for before, after in zip(counts, moved.tolist(), strict=True):
        assert abs(after - before) <= before * max_change


def test_reallocate_converges_to_targets_in_bounded_steps() -> None:
    hardness = [1.0, 2.0, 4.0]
    wanted = allocate(hardness, hard_is="low", total=300).counts
    counts = np.array([100, 100, 100])
    first = reallocate(counts, hardness, hard_is="low", max_change=0.2)
    # The targets are 171, 86 and 43. A step is at most 20: 120, 86 and 80, which leaves 14 for classes that can take
    # more, in proportion to 34 (86 to 120) and 40 (80 to 120): 6.4 and 7.6, so 6 and 8.
    assert first.tolist() == [120, 92, 88]
    for _ in range(10):
        counts = reallocate(counts, hardness, hard_is="low", max_change=0.2)
    assert counts.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("counts", "hardness", "max_change", "message"),
    [
        ([0, 5], [1.0, 1.0], 0.1, "at least 1"),
        ([5, 5], [1.0], 0.1, "2 counts but 1 class hardness"),
        ([5, 5], [1.0, 1.0], 1.5, r"max_change is a share in \[0, 1\], got 1.5"),
    ],
)
def test_reallocate_refuses(counts: list[int], hardness: list[float], max_change: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reallocate(counts, hardness, hard_is="low", max_change=max_change)
