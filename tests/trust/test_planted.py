"""Studies of which the truth is known, by real trainings: labels without any meaning, and a mislabelled class."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.relabel import relabel
from hbr_fast.report.answers import LEVEL
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Arm, Study
from hbr_fast.training.recipes import named_recipe

RECIPE = named_recipe(
    "small-cnn", ["model=cnn-8-16", "epochs=6", "batch_size=50", "lr=0.05", "precision=float32", "augment.flip=0"]
)
STUDY = Study(name="planted", recipe=RECIPE, arms=(Arm("hbr", 1.0),), estimator="el2n", variants=12, members=1, seed=3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return convert("synthetic", tmp_path / "a.hbr", classes=3, train_per_class=80, test_per_class=40, shape=(1, 8, 8))


def comparisons(data: Dataset, out: Path, **changes: Any) -> pl.DataFrame:
    return pl.read_csv(run_study(dataclasses.replace(STUDY, **changes), data, out=out) / "comparisons.csv")


def test_shuffled_labels_have_no_effect(data: Dataset, tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(data.train.labels)
    made = relabel(data, shuffled, tmp_path / "shuffled.hbr")
    found = comparisons(made, tmp_path / "study", arms=(Arm("hbr", 20.0),))
    treated = Plan.load(tmp_path / "study" / "plans" / "hbr-variant-0.safetensors")
    assert len(set(np.bincount(made.train.labels[treated.index], minlength=3))) > 1, "the arms are the same"
    assert not (found["p_holm"] <= LEVEL).any()


def test_mislabelled_class_has_an_effect(data: Dataset, tmp_path: Path) -> None:
    """Half of the labels of class 2 are wrong: it is the hardest, and gets more samples."""
    labels = data.train.labels.copy()
    wrong = np.flatnonzero(labels == 2)[::2]
    labels[wrong] = np.arange(len(wrong)) % 2
    found = comparisons(
        relabel(data, labels, tmp_path / "mislabelled.hbr"), tmp_path / "study", arms=(Arm("hbr", 2.0),)
    )
    assert (found["p_holm"] <= LEVEL).any()
