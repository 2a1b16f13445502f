"""Controls of resampling by hardness, `case-study-2 --controls`: their trainings, table, picture and sentence."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast.data.dataset import Dataset
from hbr_fast.files import read_json
from hbr_fast.report.controls import controls_answers, controls_table
from hbr_fast.report.reading import read_study
from hbr_fast.report.study_files import StudyFiles
from hbr_fast.report.sweeps import gaps_by_alpha
from hbr_fast.report.tables import tables_of
from hbr_fast.studies.preview import preview
from hbr_fast.studies.recipes import named_study
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Study

from .conftest import RECIPE

SHORT = dataclasses.replace(RECIPE, epochs=3)
ARMS = ["balanced", "other-class-0.2", "reweighted-0.2", "other-class-0.4", "reweighted-0.4"]


def study_of(*, controls: bool = True) -> Study:
    return named_study(
        "case-study-2",
        recipe=SHORT,
        oversamplers=("smote", "random"),
        alphas=(0.2, 0.4),
        controls=controls,
        variants=3,
        members=1,
        nonpositive="shift",
    )


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(study_of(), data, out=tmp_path_factory.mktemp("controls"))


@pytest.fixture(scope="module")
def files(finished: Path) -> StudyFiles:
    return read_study(finished)


def test_controls_resample_as_much_and_are_compared_with_the_first_arm_of_their_alpha(finished: Path) -> None:
    arms = {arm["name"]: arm for arm in read_json(finished / "study.json")["arms"]}
    assert list(arms)[5:] == ARMS
    for alpha in ("0.2", "0.4"):
        by_hardness, other, weighted = (arms[f"{arm}-{alpha}"] for arm in ("smote", "other-class", "reweighted"))
        assert other["against"] == weighted["against"] == f"smote-{alpha}"
        assert sorted(other["counts_wanted"]) == sorted(by_hardness["counts_wanted"])
        assert all(np.array(other["counts_wanted"]) != by_hardness["counts_wanted"]), "every class has another's"
        assert weighted["counts"] == [80, 80, 80]
        recipe = read_json(finished / weighted["members"][0]["path"] / "recipe.json")
        weights = np.array(recipe["loss_args"]["class_weight"])
        np.testing.assert_allclose(weights, np.array(by_hardness["counts_wanted"]) / 80, atol=1e-6)
    assert arms["balanced"]["against"] == "baseline"


def test_balanced_set_of_equal_classes_shares_the_trainings_of_the_baseline(finished: Path, data: Dataset) -> None:
    arms = {arm["name"]: arm for arm in read_json(finished / "study.json")["arms"]}
    paths = [[member["path"] for member in arms[arm]["members"]] for arm in ("baseline", "balanced")]
    assert paths[0] == paths[1]
    assert len(list((finished / "members").iterdir())) == 3 * 9
    assert preview(study_of(), data, out=finished).missing == 0


def test_controls_table_by_hand(files: StudyFiles) -> None:
    table = controls_table(files)
    assert table is not None
    assert table in tables_of(files)
    assert [row[0] for row in table.rows] == [
        *("baseline", "smote-0.2", "other-class-0.2", "reweighted-0.2"),
        *("smote-0.4", "other-class-0.4", "reweighted-0.4"),
    ]
    rows = {row[0]: dict(zip(table.columns[1:], map(float, row[1:]), strict=True)) for row in table.rows}
    members = pl.read_csv(files.path / "per_member.csv").group_by("arm").mean()
    gap = dict(zip(members["arm"], 100 * members["recall_max_min"], strict=True))
    for arm, row in rows.items():
        assert row["gap (points)"] == pytest.approx(gap[arm])
        assert row["change"] == pytest.approx(gap[arm] - gap["baseline"])
    other = rows["other-class-0.4"]
    assert other["minus by hardness"] == pytest.approx(gap["other-class-0.4"] - gap["smote-0.4"])
    assert other["95 % low"] < other["minus by hardness"] < other["95 % high"]


def test_controls_have_their_lines_along_alpha(files: StudyFiles) -> None:
    picture = gaps_by_alpha(files)
    assert picture is not None
    assert picture.data["line"].unique(maintain_order=True).to_list() == [
        "smote oversampling",
        "random oversampling",
        "by the hardness of other classes",
        "class weights, not resampled",
    ]
    assert picture.data.filter(metric="accuracy", line="class weights, not resampled")["alpha"].to_list() == [0.2, 0.4]


def test_page_says_whether_it_is_hardness(files: StudyFiles) -> None:
    quantity = "recall_max_min"
    answers = controls_answers(files)
    assert len(answers) == 2
    assert answers[0].startswith("Is it hardness? Smote-0.2 moved the gap by ")

    def with_effects(by_hardness: tuple[float, float], other: tuple[float, float]) -> str:
        """The sentence if the intervals of two differences were these."""
        found = dict(files.comparisons)
        for arm, (low, high) in (("smote-0.2", by_hardness), ("other-class-0.2", other)):
            changes: dict[str, Any] = {"combined_low": low, "combined_high": high, "baseline": 50.0}
            changes |= {"treatment": 50 + (low + high) / 2, "no_test": ""}
            found[arm, quantity] = dataclasses.replace(found[arm, quantity], **changes)
        return controls_answers(dataclasses.replace(files, comparisons=found))[0]

    assert with_effects((-9, -5), (2, 6)).endswith("leaves a wider gap: hardness does the work.")
    assert "cannot be told from as much resampling without it" in with_effects((-9, -5), (-1, 3))
    assert "no effect to explain" in with_effects((-9, 1), (2, 6))
    assert "no effect to explain" in with_effects((3, 5), (2, 6))


def test_without_controls_there_is_no_table_of_them(files: StudyFiles) -> None:
    without = study_of(controls=False)
    assert [arm.name for arm in without.arms] == list(files.arms[1:5])
    few = dataclasses.replace(files, arms=files.arms[:5])
    assert controls_table(few) is None
    assert controls_answers(few) == []
    with pytest.raises(ValueError, match="study pruning takes no option 'controls'"):
        named_study("pruning", controls=True)
