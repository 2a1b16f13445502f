"""Oversampling: weighted copies, interpolations, set-aside and generated images, also of subsets."""

from typing import Any

import numpy as np
import pytest

from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.resampling import RankedPool, resample
from hbr_fast.resampling.oversampling import draw_weights
from hbr_fast.resampling.smote import same_class_neighbours

LABELS = np.repeat([0, 1], [40, 20])
SCORES = np.arange(60.0)  # where low is hard, samples 0 and 40 are the hardest of their classes
POOL = RankedPool(
    labels=np.arange(300) % 2,
    fingerprint="pool",
    confidence=np.arange(300) / 300,
    real_confidence=np.array([0.5, 0.6]),
)


def gained(oversample: str, *, counts: tuple[int, int] = (40, 50), seed: int = 3, **options: Any) -> Plan:
    given: dict[str, Any] = {"scores_n": SCORES, "hard_is": "low", **options}
    return resample(LABELS, counts, oversample=oversample, undersample="random", seed=seed, **given)


def neighbours(k: int = 5) -> np.ndarray:
    """The next k ids of the class, cyclically."""
    ids = np.arange(60)
    start, size = np.where(ids < 40, 0, 40), np.where(ids < 40, 40, 20)
    return start[:, None] + (ids[:, None] - start[:, None] + 1 + np.arange(k)) % size[:, None]


@pytest.mark.parametrize(
    ("oversample", "options"),
    [
        ("weighted-easy", {}),
        ("weighted-hard", {}),
        ("smote", {"neighbours_nk": neighbours()}),
        ("pool-random", {"pool": POOL}),
        ("pool-average", {"pool": POOL}),
        ("pool-hard", {"pool": POOL}),
    ],
)
def test_oversamplers_meet_counts_are_nested_and_pinned_by_seed(oversample: str, options: dict[str, Any]) -> None:
    plan = gained(oversample, **options)
    assert plan.provenance["counts"] == [40, 50]
    assert plan.provenance["counts_had"] == [40, 20]
    plain = plan.index[(plan.store == 0) & (plan.partner < 0)]
    assert set(plain) == set(range(60))
    assert plan.content_hash() == gained(oversample, **options).content_hash()
    assert plan.content_hash() != gained(oversample, seed=4, **options).content_hash()
    # Another class's count changes nothing in this one.
    other = gained(oversample, counts=(45, 50), **options)

    def rows(plan: Plan, c: int) -> set[tuple]:
        label = np.where(plan.store == 0, LABELS[np.minimum(plan.index, 59)], POOL.labels[plan.index])
        columns = (plan.store, plan.index, plan.partner, plan.weight)
        return {tuple(column[row] for column in columns) for row in np.flatnonzero(label == c)}

    assert rows(plan, 1) == rows(other, 1)
    assert sum(array.nbytes for array in (plan.store, plan.index, plan.partner, plan.weight)) == 22 * len(plan)


def test_draw_weights_match_definition() -> None:
    rank = np.linspace(0, 1, 11)
    expected = 0.5 + 0.5 * (1 - np.exp(-5 * (1 - rank))) / (1 - np.exp(-5))
    np.testing.assert_allclose(draw_weights(11), expected, rtol=1e-14)
    assert draw_weights(1).tolist() == [1.0]


@pytest.mark.parametrize(("oversample", "hard_is", "favoured"), [
    ("weighted-hard", "low", 40),
    ("weighted-easy", "low", 59),
    ("weighted-hard", "high", 59),
    ("weighted-easy", "high", 40),
])  # fmt: skip
def test_weighted_draws_follow_weights_from_favoured_end(oversample: str, hard_is: str, favoured: int) -> None:
    plan = gained(oversample, counts=(40, 40_020), hard_is=hard_is)
    drawn = np.bincount(plan.index, minlength=60)[40:] - 1
    expected = 40_000 * draw_weights(20) / draw_weights(20).sum()
    if favoured == 59:
        expected = expected[::-1]
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()
    assert drawn[favoured - 40] > 1.5 * drawn[59 - favoured]


def test_smote_cycles_samples_with_random_neighbours_and_uniform_weights() -> None:
    plan = gained("smote", counts=(40, 20_020), neighbours_nk=neighbours())
    made = plan.partner >= 0
    assert made.sum() == 20_000
    assert (np.bincount(plan.index[made], minlength=60)[40:] == 1000).all()
    offset = (plan.partner[made] - plan.index[made]) % 20
    assert set(offset) == {1, 2, 3, 4, 5}
    assert (np.abs(np.bincount(offset)[1:] - 4000) < 5 * np.sqrt(4000)).all()
    weight = np.sort(plan.weight[made])
    assert np.abs(weight - np.linspace(0, 1, 20_000)).max() < 0.015  # Kolmogorov-Smirnov, far in the tail
    assert (plan.weight[~made] == 1).all()


def test_smote_neighbours_match_brute_force() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 5, 4), dtype=np.uint8)
    found = same_class_neighbours(RawImages(images), LABELS, 2, k=3)
    pixels = images.reshape(60, -1).astype(int)
    for n in range(60):
        others = [m for m in np.flatnonzero(LABELS[n] == LABELS) if m != n]
        distance = {m: int(((pixels[n] - pixels[m]) ** 2).sum()) for m in others}
        nearest = sorted(distance[m] for m in others)[:3]
        assert [distance[m] for m in found[n]] == nearest


def test_smote_caches_neighbours_by_class_content(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hbr_fast.resampling import smote

    images = np.random.default_rng(0).integers(0, 256, (60, 1, 5, 4), dtype=np.uint8)
    searched: list[int] = []
    real = smote._search

    def counting(images_nchw: np.ndarray, k: int) -> np.ndarray:
        searched.append(len(images_nchw))
        return real(images_nchw, k)

    monkeypatch.setattr(smote, "_search", counting)
    options: dict[str, Any] = {"k": 3, "cache": tmp_path}
    first = same_class_neighbours(RawImages(images), LABELS, 2, **options)
    assert searched == [40, 20]
    np.testing.assert_array_equal(same_class_neighbours(RawImages(images), LABELS, 2, **options), first)
    # Without a sample of class 1, that class is another; class 0 is not.
    fewer = same_class_neighbours(RawImages(images), LABELS, 2, ids=np.arange(59), **options)
    assert searched == [40, 20, 19]
    assert (fewer[59] == -1).all()
    assert not (fewer[:59] == 59).any()
    changed = images.copy()
    changed[0] ^= 1
    same_class_neighbours(RawImages(changed), LABELS, 2, **options)
    same_class_neighbours(RawImages(images), LABELS, 2, **{**options, "k": 4}, wanted_of=[1])
    assert searched == [40, 20, 19, 40, 20]


def test_smote_with_too_many_neighbours_names_class_and_numbers() -> None:
    images = np.zeros((60, 1, 2, 2), np.uint8)
    with pytest.raises(ValueError, match="class 'b' wants 20 neighbours each but has 19 other samples: lower k"):
        same_class_neighbours(RawImages(images), LABELS, 2, k=20, classes=["a", "b"])
    assert same_class_neighbours(RawImages(images), LABELS, 2, k=19, wanted_of=[1]).shape == (60, 19)


def test_holdout_adds_set_aside_samples_until_they_run_out() -> None:
    ids, held = np.r_[0:40, 40:50], np.arange(50, 60)
    plan = gained("holdout", counts=(30, 16), ids=ids, holdout=held)
    assert plan.provenance["counts"] == [30, 16]
    mine = plan.index[LABELS[plan.index] == 1]
    assert set(range(40, 50)) < set(mine)
    assert len(set(mine)) == 16, "each at most once"
    assert (plan.store == 0).all(), "rows of the same split"
    more = gained("holdout", counts=(30, 18), ids=ids, holdout=held)
    assert set(mine) < set(more.index)
    with pytest.raises(ValueError, match="class 'b' wants 11 more samples but its holdout has 10"):
        gained("holdout", counts=(30, 21), ids=ids, holdout=held, classes=["a", "b"])


def test_pool_hard_draws_from_twice_as_many_of_lowest_confidence() -> None:
    plan = gained("pool-hard", pool=POOL)
    picked = plan.index[plan.store == 1]
    assert plan.stores == ("pool",)
    assert len(set(picked)) == 30
    assert set(picked) <= set(range(1, 121, 2)), "60 of the lowest confidence with label 1"
    assert picked.max() > 60, "drawn from them, not the 30 lowest"


def test_trap_06_pool_average_is_about_the_real_mean() -> None:
    """The authors' code compared tensors with whole numbers as keys: the real mean was NaN and the choice arbitrary."""
    plan = gained("pool-average", pool=POOL)
    picked = plan.index[plan.store == 1]
    confidence = np.asarray(POOL.confidence)
    nearest = sorted(range(1, 300, 2), key=lambda row: abs(confidence[row] - 0.6))[:60]
    assert set(picked) <= set(nearest)
    assert picked.min() < min(nearest) + 20
    assert abs(confidence[picked].mean() - 0.6) < 0.05


def test_pool_too_small_names_class_and_numbers() -> None:
    empty = RankedPool(labels=np.zeros(300, np.int64), fingerprint="p")
    with pytest.raises(ValueError, match="class 'b' wants 30 generated images but the pool has 0: give a larger pool"):
        gained("pool-random", pool=empty, classes=["a", "b"])
    assert gained("pool-random", pool=empty, counts=(60, 20)).provenance["counts"] == [60, 20]
    all_of_them = gained("pool-hard", pool=POOL, counts=(40, 170))
    assert all_of_them.provenance["counts"] == [40, 170], "150 wanted, 150 there: twice as many is not needed"
    for strategy, missing in (("pool-hard", "confidence"), ("pool-average", "confidence")):
        with pytest.raises(ValueError, match=f"ranks the pool: give it {missing}"):
            gained(strategy, pool=empty)
    half = RankedPool(labels=POOL.labels, fingerprint="p", confidence=POOL.confidence)
    with pytest.raises(ValueError, match="give the pool real_confidence"):
        gained("pool-average", pool=half)


def test_trap_16_scores_follow_the_samples_that_pruning_kept() -> None:
    # The two easiest of the rest by their own scores, not by the scores at the same places.
    ids = np.array([3, 11, 17, 30, 39, 45, 50])
    plan = resample(LABELS, [3, 2], ids=ids, scores_n=SCORES[::-1].copy(), hard_is="low", undersample="easy", seed=0)
    assert plan.index.tolist() == [17, 30, 39, 45, 50]
    assert plan.provenance["counts_had"] == [5, 2]
    only_there = np.full(60, np.nan)
    only_there[ids] = 1.0
    assert len(resample(LABELS, [3, 2], ids=ids, scores_n=only_there, hard_is="low", seed=0)) == 5
