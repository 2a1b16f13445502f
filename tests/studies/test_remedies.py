"""The study `remedies`: arms that differ in their loss, at equal cost."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast.data.dataset import Dataset
from hbr_fast.files import read_json
from hbr_fast.report.page import write_report
from hbr_fast.studies.preview import preview
from hbr_fast.studies.recipes import named_study
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Arm, Pruning, Study

from .conftest import RECIPE

SHORT = dataclasses.replace(RECIPE, epochs=3)
ARMS = [
    "resampled",
    "reweighted",
    "other-class",
    "balanced",
    "class-weighted",
    "balanced-softmax",
    "logit-adjusted",
    "focal",
]


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = named_study("remedies", recipe=SHORT, variants=2, alpha=0.3, nonpositive="shift", seed=4)
    return run_study(study, data, out=tmp_path_factory.mktemp("remedies"))


def arms_of(directory: Path) -> dict[str, Any]:
    return {arm["name"]: arm for arm in read_json(directory / "study.json")["arms"]}


def test_remedies_compares_every_remedy_with_the_baseline_at_equal_cost(data: Dataset, finished: Path) -> None:
    arms = arms_of(finished)
    assert list(arms) == ["baseline", *ARMS]
    for arm in arms.values():
        assert np.sum(arm["counts"]) == len(data.train)
        for member in arm["members"]:
            recipe = read_json(finished / member["path"] / "recipe.json")
            assert (recipe["epochs"], recipe["batch_size"], recipe["model"]) == (3, 50, "cnn-8-16")
    tests = pl.read_csv(finished / "comparisons.csv").filter(pl.col("quantity") == "recall_max_min")
    assert sorted(tests["arm"]) == sorted(ARMS)
    assert set(tests["against"]) == {"baseline"}
    tested = tests.filter(pl.col("no_test").fill_null("") == "")["arm"].to_list()
    assert {"resampled", "reweighted", "focal"} <= set(tested)


def test_remedies_arms_train_by_their_own_losses(data: Dataset, finished: Path) -> None:
    arms = arms_of(finished)

    def first(arm: str) -> tuple[dict[str, Any], np.ndarray]:
        path = finished / arms[arm]["members"][0]["path"]
        return read_json(path / "recipe.json"), np.load(path / "logits.npy")

    _, plain = first("baseline")
    losses = {arm: (first(arm)[0]["loss"], first(arm)[0]["loss_args"]) for arm in ARMS}
    assert losses["resampled"] == losses["balanced"] == ("cross-entropy", {})
    assert losses["class-weighted"] == ("cross-entropy", {"class_weight": "balanced"})
    assert losses["logit-adjusted"] == ("logit-adjusted", {"tau": 0.5})
    weights = np.array(losses["reweighted"][1]["class_weight"])
    np.testing.assert_allclose(weights, np.array(arms["resampled"]["counts_wanted"]) / 80, atol=1e-6)
    assert arms["reweighted"]["counts"] == [80, 80, 80], "no sample is dropped or repeated"
    for arm in ("class-weighted", "balanced-softmax", "logit-adjusted"):  # the classes have equal sizes
        np.testing.assert_allclose(first(arm)[1], plain, rtol=1e-3, atol=1e-3, err_msg=arm)
    for arm in ("resampled", "reweighted", "focal"):
        assert np.abs(first(arm)[1] - plain).max() > 0.01, arm


def test_remedies_report_names_every_arm(data: Dataset, finished: Path) -> None:
    page = write_report(finished, dataset=data).read_text()
    assert all(arm in page for arm in ARMS)


def test_preview_finds_the_members_of_changed_recipes(data: Dataset, finished: Path) -> None:
    study = named_study("remedies", recipe=SHORT, variants=2, alpha=0.3, nonpositive="shift", seed=4)
    found = preview(study, data, out=finished)
    assert [(arm.name, arm.trainings, arm.done) for arm in found.arms] == [(arm, 2, 2) for arm in ["baseline", *ARMS]]
    assert found.missing == found.images == 0


def test_remedies_against_another_arm() -> None:
    study = named_study("remedies", against="class-weighted")
    assert {arm.name: arm.against for arm in study.arms if arm.against != "class-weighted"} == {
        "class-weighted": "baseline"
    }
    with pytest.raises(ValueError, match="is compared with 'none', which the study does not have"):
        named_study("remedies", against="none")


def test_arm_reweights_only_what_it_could_resample() -> None:
    with pytest.raises(ValueError, match="arm 'w': weights of classes follow from resampling them all"):
        Arm("w", 0.3, prune=Pruning(0.5), reweight=True)


def test_study_refuses_changes_that_do_not_fit_before_the_baseline_trains(data: Dataset, tmp_path: Path) -> None:
    def study(*changes: str) -> Study:
        arm = Arm("own", undersample="none", oversample="none", changes=changes)
        return Study(name="s", recipe=SHORT, arms=(arm,), variants=2, members=1)

    with pytest.raises(ValueError, match="arm 'own': unknown recipe field 'los'"):
        study("los=focal")
    weighted = study(f"loss_args={json.dumps({'class_weight': [1, 2]})}")
    with pytest.raises(ValueError, match="arm 'own': class_weight must be 'balanced' or 3 finite weights"):
        run_study(weighted, data, out=tmp_path / "run")
    deep = dataclasses.replace(weighted, arms=(), recipe=dataclasses.replace(SHORT, model="cnn-2-2-2-2-2-2-2-2"))
    with pytest.raises(ValueError, match="are too small"):
        run_study(deep, data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
