"""Prune, allocate, resample in one call: the plans of every pair of strategies, and refused requests."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.hardness import HardnessScores
from hbr_fast.resampling import OVERSAMPLE, UNDERSAMPLE, RankedPool
from hbr_fast.resampling.pipeline import Resampled, resample_by_hardness
from hbr_fast.resampling.pruning import Pruning
from hbr_fast.studies.plans import Planner, study_rows
from hbr_fast.studies.study import Arm, Study
from hbr_fast.training.recipes import quickstart

STUDY = Study("grid", quickstart(), (), variants=1, members=1, seed=3)
PRUNINGS = {
    "whole": None,
    "random": Pruning(0.25),
    "hardest": Pruning(0.3, by="hardness", drop="hard"),
    "easiest": Pruning(0.2, by="hardness", level="dataset"),
}
# SHA-256 of the content hashes of the plans by all undersamplers, one after the other.
GOLDEN = {
    ("whole", "random"): "25f0fb46568e",
    ("whole", "weighted-easy"): "dc47e8cfef82",
    ("whole", "weighted-hard"): "60d83607dbf4",
    ("whole", "smote"): "5d90de011800",
    ("whole", "pool-random"): "c618ef6c027a",
    ("whole", "pool-average"): "7140f9c78dff",
    ("whole", "pool-hard"): "4baadafd2895",
    ("whole", "none"): "63cb15c3ad5d",
    ("random", "random"): "77c98964b89e",
    ("random", "weighted-easy"): "b83b4031c5db",
    ("random", "weighted-hard"): "954b7549244c",
    ("random", "smote"): "44f3cd18a8e0",
    ("random", "holdout"): "3bfed0341abc",
    ("random", "pool-random"): "aa4ee13b6ea6",
    ("random", "pool-average"): "1eff6f2085b6",
    ("random", "pool-hard"): "6ce8bc1f811f",
    ("random", "none"): "f9b70117c2b9",
    ("hardest", "random"): "9890376e441e",
    ("hardest", "weighted-easy"): "ffa3920f8630",
    ("hardest", "weighted-hard"): "3bb8baf3c3c2",
    ("hardest", "smote"): "d7297eba92ce",
    ("hardest", "holdout"): "86b9c84d41c7",
    ("hardest", "pool-random"): "d9f9bb8819d4",
    ("hardest", "pool-average"): "25b1bbb8c713",
    ("hardest", "pool-hard"): "4c7bbcfa8999",
    ("hardest", "none"): "7b31c1f2f23f",
    ("easiest", "random"): "2a6ba6a232fe",
    ("easiest", "weighted-easy"): "529ce30190ef",
    ("easiest", "weighted-hard"): "b444055e60ec",
    ("easiest", "smote"): "08322b79e82c",
    ("easiest", "holdout"): "993d82e55844",
    ("easiest", "pool-random"): "7ab2ef88a558",
    ("easiest", "pool-average"): "6219acf80e59",
    ("easiest", "pool-hard"): "503721b041b7",
    ("easiest", "none"): "8079c299e4db",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "small.hbr"
    return convert("synthetic", path, classes=4, train_per_class=60, test_per_class=5, shape=(1, 8, 8), seed=1)


RANDOM = np.random.default_rng(5)
MARGINS = RANDOM.random((2, 240)) + np.array([1.0, 1.5, 2.0, 3.0])[np.arange(240) % 4]
POOL = RankedPool(
    labels=np.arange(800) % 4,
    fingerprint="pool",
    confidence=RANDOM.random(800),
    real_confidence=np.array([0.4, 0.5, 0.6, 0.7]),
)


@pytest.fixture(scope="module")
def scores(data: Dataset) -> HardnessScores:
    seen = np.ones(MARGINS.shape, np.int64)
    return HardnessScores({"aum": MARGINS}, seen, seen == 0, {"dataset": data.fingerprint})


@pytest.mark.parametrize(("pruning", "oversample"), GOLDEN)
def test_resample_golden_plans_of_all_strategies(
    data: Dataset, scores: HardnessScores, pruning: str, oversample: str, tmp_path: Path
) -> None:
    digest = hashlib.sha256()
    for undersample in UNDERSAMPLE:
        made = resample_by_hardness(
            data,
            scores,
            alpha=0.3,
            undersample=undersample,
            oversample=oversample,
            pruning=PRUNINGS[pruning],
            pool=POOL,
            cache=tmp_path,
            seed=STUDY.resampling_seed(0),
        )
        digest.update(made.plan.content_hash().encode())
    assert digest.hexdigest()[:12] == GOLDEN[pruning, oversample]


def test_resample_by_hardness_of_other_classes_moves_every_count(data: Dataset, scores: HardnessScores) -> None:
    def counts(seed: int, *, other_class: bool) -> list[int]:
        made = resample_by_hardness(data, scores, alpha=0.3, other_class=other_class, seed=seed)
        assert made.plan.provenance.get("other_class", False) is other_class
        assert np.bincount(data.train.labels[made.plan.index], minlength=4).tolist() == made.plan.provenance["counts"]
        found: list[int] = made.plan.provenance["counts"]
        return found

    own = counts(0, other_class=False)
    assert len(set(own)) == 4
    others = [counts(seed, other_class=True) for seed in range(20)]
    for other in others:
        assert sorted(other) == sorted(own), "as much resampling"
        assert all(a != b for a, b in zip(other, own, strict=True)), "no class keeps its own hardness"
    assert len({tuple(other) for other in others}) > 3
    assert counts(7, other_class=True) == others[7]


def test_resample_golden_plans_cover_every_oversampler() -> None:
    assert set(OVERSAMPLE) == {oversample for _, oversample in GOLDEN}


@pytest.mark.parametrize("pruning", PRUNINGS)
def test_resample_matches_plan_of_a_study(data: Dataset, scores: HardnessScores, pruning: str, tmp_path: Path) -> None:
    planner = Planner(STUDY, data, study_rows(STUDY, data), scores=scores, members=[], pool=None, cache=tmp_path)
    arm = Arm("arm", alpha=0.3, oversample="smote", prune=PRUNINGS[pruning])
    own = resample_by_hardness(
        data,
        scores,
        alpha=0.3,
        oversample="smote",
        pruning=PRUNINGS[pruning],
        cache=tmp_path,
        seed=STUDY.resampling_seed(0),
    )
    planned = planner.plan(arm, 0)
    assert planned.plan.content_hash() == own.plan.content_hash()
    assert planned.plan.provenance == own.plan.provenance


def test_resample_without_alpha_only_prunes(data: Dataset, scores: HardnessScores) -> None:
    made = resample_by_hardness(data, scores, alpha=None, pruning=Pruning(0.25), seed=0)
    assert made.allocation is None
    assert made.plan.provenance["counts"] == [45] * 4
    assert len(np.unique(made.plan.index)) == 180


def test_resample_of_uneven_classes_cuts_none_by_more_than_alpha(data: Dataset, scores: HardnessScores) -> None:
    labels, sizes = data.train.labels, [60, 6, 30, 12]
    ids = np.sort(np.concatenate([np.flatnonzero(labels == c)[:size] for c, size in enumerate(sizes)]))

    def made(**options: Any) -> Resampled:
        return resample_by_hardness(data, scores, alpha=0.25, ids=ids, seed=0, **options)

    own = made()
    assert own.allocation is not None
    np.testing.assert_array_equal(own.allocation.base, sizes)
    assert sum(own.plan.provenance["counts"]) == 108
    assert (np.array(own.plan.provenance["counts"]) >= np.floor(0.75 * np.array(sizes))).all()
    balanced = made(base="balanced")
    assert balanced.plan.provenance["counts"][0] < 0.6 * 60, "what the default must not do"
    assert [one.plan.provenance["base"] for one in (own, balanced, made(base=0.5))] == ["own", "balanced", 0.5]
    np.testing.assert_array_equal(resample_by_hardness(data, scores, alpha=0.0, ids=ids, seed=0).plan.index, ids)
    nearly = ids[labels[ids] == 0][:33], *(np.flatnonzero(labels == c)[:30] for c in (1, 2, 3))
    even = resample_by_hardness(data, scores, alpha=0.25, ids=np.concatenate(nearly), seed=0)
    assert even.plan.provenance["base"] == "balanced"


def test_resample_ranks_pool_only_for_pool_oversamplers(data: Dataset, scores: HardnessScores) -> None:
    asked: list[bool] = []

    def rank() -> RankedPool:
        asked.append(True)
        return POOL

    resample_by_hardness(data, scores, alpha=0.3, oversample="random", pool=rank, seed=0)
    with pytest.raises(ValueError, match="largest feasible alpha"):
        resample_by_hardness(data, scores, alpha=90.0, oversample="pool-hard", pool=rank, seed=0)
    assert not asked
    made = resample_by_hardness(data, scores, alpha=0.3, oversample="pool-hard", pool=rank, seed=0)
    assert asked == [True]
    assert made.plan.stores == ("pool",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "loss"}, "no scores of estimator 'loss': these hold aum"),
        ({"oversample": "holdout"}, "wants .* more samples but its holdout has 0"),
        ({"oversample": "pool-random"}, "takes images from a pool: give pool"),
        ({"ids": np.arange(0, 240, 2)}, "no sample of class 'class_1' or class 'class_3' has a score"),
    ],
)
def test_resample_refuses_infeasible_requests(
    data: Dataset, scores: HardnessScores, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resample_by_hardness(data, scores, **{"alpha": 0.3, "seed": 0, **options})


def test_resample_refuses_scores_of_another_dataset(data: Dataset, scores: HardnessScores) -> None:
    other = HardnessScores(scores.values, scores.observations, scores.never_learnt, {"dataset": "other"})
    with pytest.raises(ValueError, match="recorded on dataset other"):
        resample_by_hardness(data, other, seed=0)
