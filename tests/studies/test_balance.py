"""Studies of classes of different sizes: where arms start from, the balanced control, and easy against hard classes."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.files import read_json
from hbr_fast.studies.recipes import STUDIES, named_study
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Arm

SIZES = np.array([120, 40, 24])


@pytest.fixture(scope="module")
def uneven(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's small data with 120, 40 and 24 samples of its classes, 3 x 8 copies of them at most."""
    folder = tmp_path_factory.mktemp("uneven")
    labels = data.train.labels
    rows = np.concatenate([np.resize(np.flatnonzero(labels == c), size) for c, size in enumerate(SIZES)])
    arrays = {
        "train_images": data.train.images[rows],
        "train_labels": labels[rows],
        "test_images": data.test.images,
        "test_labels": data.test.labels,
    }
    np.savez(folder / "uneven.npz", **arrays)
    return convert("npz", folder / "uneven.hbr", root=folder / "uneven.npz").path


def test_balance_study_keeps_both_treatments_apart(uneven: Path, tmp_path: Path) -> None:
    run_study(named_study("balance", tiny=True, alpha=0.2), open_dataset(uneven), out=tmp_path)
    arms: dict[str, dict[str, Any]] = {arm["name"]: arm for arm in read_json(tmp_path / "study.json")["arms"]}
    assert [(name, arm.get("against"), arm["base"]) for name, arm in arms.items()] == [
        ("baseline", None, "own"),
        ("balanced", "baseline", "balanced"),
        ("balanced-hardness", "balanced", "balanced"),
        ("hardness", "baseline", "own"),
    ]
    assert arms["baseline"]["counts"] == SIZES.tolist()
    assert sorted(arms["balanced"]["counts"]) == [61, 61, 62]
    assert (np.array(arms["hardness"]["counts"]) >= np.floor(0.8 * SIZES)).all()
    assert arms["hardness"]["base_counts"] == SIZES.tolist()
    assert arms["balanced-hardness"]["counts"][0] < 0.8 * SIZES[0]
    table = pl.read_csv(tmp_path / "comparisons.csv").filter(pl.col("quantity") == "recall_easy_hard")
    # Easy classes are those that lost samples relative to where they started, not the large ones.
    members = pl.read_csv(tmp_path / "per_class.csv").filter(pl.col("arm") == "baseline")
    recall = members.sort("variant", "class_index")["recall"].to_numpy().reshape(-1, 3)
    hard = np.array(arms["hardness"]["counts"]) > SIZES
    assert 0 < hard.sum() < 3
    expected = (recall[:, ~hard].mean(axis=1) - recall[:, hard].mean(axis=1)).mean()
    found = table.filter(pl.col("arm") == "hardness")["baseline"].item()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_takes_the_balanced_control(name: str) -> None:
    study = named_study(name, tiny=True, balanced_control=True)
    controls = [arm for arm in study.arms if arm.alpha == 0 and arm.base == "balanced"]
    pruned = {arm.prune for arm in study.arms if arm.resamples}
    assert {arm.prune for arm in controls} == (pruned or {None})
    assert all(arm.against != arm.name for arm in controls)


def test_control_is_compared_with_arms_that_start_from_balanced_classes() -> None:
    study = named_study("case-study-1", tiny=True, base="balanced", balanced_control=True)
    by_name = {arm.name: arm for arm in study.arms}
    assert by_name["pruned-50-random-0.3"].against == "pruned-50-balanced"
    assert by_name["pruned-50-balanced"].against == "pruned-50"
    own = named_study("quickstart", tiny=True, base="own", balanced_control=True)
    assert [(arm.name, arm.against) for arm in own.arms] == [("balanced", "baseline"), ("hbr", "baseline")]
    path = named_study("alpha-path", tiny=True, base=0.5, balanced_control=True)
    assert path.path_from is not None
    assert (path.path_from.base, path.path_from.against, path.arms[0].name) == (0.5, "baseline", "balanced")


def test_base_is_refused_where_it_changes_nothing() -> None:
    with pytest.raises(ValueError, match="study pruning has no arm that resamples, so a base would change nothing"):
        named_study("pruning", base="own")
    with pytest.raises(ValueError, match="arm 'a': alpha must be a finite number above 0, got 0"):
        Arm("a", alpha=0.0, base="own")
    with pytest.raises(ValueError, match=r"base must be \"own\", \"balanced\" or an exponent .*got 2"):
        Arm("a", alpha=0.3, base=2)
