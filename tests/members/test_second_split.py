"""Second-split forgetting time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.hardness import stack_scores
from hbr_fast.members.scoring import second_split as ssft
from hbr_fast.members.scoring.second_split import halves, second_split_forgetting
from hbr_fast.training.recipe import Recipe


def test_second_split_halves_are_stratified_and_random() -> None:
    labels = np.array([0] * 5 + [1] * 4)
    first, second = halves(labels, seed=0)
    assert sorted([*first, *second]) == list(range(9))
    assert np.bincount(labels[first]).tolist() == [3, 2]
    assert len({tuple(halves(labels, seed=seed)[0]) for seed in range(20)}) > 5
    np.testing.assert_array_equal(halves(labels, seed=0)[0], first)
    with pytest.raises(ValueError, match="class 2 has 1 sample: a second split needs at least 2 of every class"):
        halves(np.array([0, 0, 2]), seed=0)


def test_second_split_score_is_first_epoch_forgotten(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up evaluations: four kinds of samples, over three epochs."""
    answers = iter(
        [
            [False, True, True, True],  # before the second training
            [True, True, False, True],
            [True, False, True, True],  # wrong once, then right again: the first time counts
            [True, True, True, True],
        ]
    )

    def made_up(model: torch.nn.Module, split: Split, rows: np.ndarray, *, dtype: torch.dtype) -> np.ndarray:
        return np.resize(np.array(next(answers)), len(rows))

    monkeypatch.setattr(ssft, "right", made_up)
    scores = second_split_forgetting(tiny, dataclasses.replace(recipe, epochs=3), seed=4)
    first, second = halves(np.asarray(tiny.train.labels), seed=4)
    np.testing.assert_array_equal(scores.per_sample("ssft")[first], np.resize([0.0, 2, 1, 4], len(first)))
    assert np.isnan(scores.per_sample("ssft")[second]).all()
    np.testing.assert_array_equal(scores.never_learnt[0, first], np.resize([True, False, False, False], len(first)))
    assert scores.observations[0, first].tolist() == [4] * len(first)
    assert not scores.observations[0, second].any()
    assert scores.provenance["dataset"] == tiny.fingerprint


def test_second_split_forgets_hard_samples_first(tmp_path: Path) -> None:
    data = convert(
        "synthetic", tmp_path / "known.hbr", classes=5, train_per_class=200, test_per_class=20, shape=(1, 8, 8)
    )
    recipe = Recipe(
        name="t", model="cnn-8-16", epochs=4, batch_size=50, lr=0.1, schedule="triangular", precision="float32"
    )
    steps: list[int] = []
    members = [second_split_forgetting(data, recipe, seed=seed, advance=steps.append) for seed in range(3)]
    assert sum(steps) == 3 * recipe.epochs * len(data.train), "each training sees its own half"
    scores = stack_scores(members)
    assert data.train.truth is not None
    seen = scores.observations.any(axis=0)
    assert 0.8 < seen.mean() < 0.95, "a sample is in one of three first halves with probability 7/8"
    ssft_n = scores.per_sample("ssft")
    assert np.nanmin(ssft_n) >= 0
    assert np.nanmax(ssft_n) <= recipe.epochs + 1
    assert len(np.unique(ssft_n[seen])) > 4
    assert spearmanr(ssft_n[seen], data.train.truth[seen]).statistic < -0.4
    same = second_split_forgetting(data, dataclasses.replace(recipe, epochs=1), seed=1)
    again = second_split_forgetting(data, dataclasses.replace(recipe, epochs=1), seed=1)
    np.testing.assert_array_equal(same.values["ssft"], again.values["ssft"])
